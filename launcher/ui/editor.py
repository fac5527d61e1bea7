"""The editor: one config as a form and as text, its plan and findings beside it; each change is saved and answered."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from launcher.ui import form
from launcher.ui.editing import FORMS, Edit, edit, hidden, put, restored
from launcher.ui.judging import Judged, launch_words, texts
from launcher.ui.numbers import CARDS, numbers, polyline
from launcher.ui.runs import run_id
from launcher.ui.site import Site, answer, from_htmx, json_body
from schemas.blanking import blanked
from schemas.config import BadValue, read_value, table
from schemas.problems import ConfigError, Problem, error, errors

Parts = dict[str, str]
FIRST_TAG = re.compile(r"<(\w+) ")
RENDERED: OrderedDict[tuple[str, str], Parts] = OrderedDict()  # what was last sent of each version, to send less
RENDERED_LOCK = threading.Lock()
MOST_RENDERED = 16
BESIDE = ("bar", "plan", "findings", "conflict")  # parts that every view of a config has
COALESCED = 6.0  # seconds in which further keystrokes in one field are one change


def token(judged: Judged) -> str:
    """Names what a page shows: the version of the file, the words of its launch, a conflict."""
    words = abs(hash(repr(sorted(judged.entry.words.items())))) % 10**8
    return f"{judged.entry.now.number}.{judged.entry.now.mark[:8]}.{words}{'.conflict' if judged.conflict else ''}"


def parts(site: Site, judged: Judged) -> Parts:
    """Every part of the editor that may change, by the id of its element."""
    found = form.fields(judged)
    views = site.templates.get_template("editor_parts.html").module
    plan = numbers(judged, site.runs)
    sections = list(form.sections(found))
    made: Parts = {}
    for name in form.FIRST:
        made[f"f-{name}"] = views.field(found[name], judged.entry.id)  # type: ignore[attr-defined]
    for section in sections:
        made[f"h-{section.id}"] = views.heading(section)  # type: ignore[attr-defined]
        made |= {f"f-{one.name}": views.field(one, judged.entry.id) for one in section.fields}  # type: ignore[attr-defined]
    curve = polyline(plan["rate"]) if plan else ""
    made["plan"] = views.plan(plan, judged, curve, CARDS)  # type: ignore[attr-defined]
    made["findings"] = views.findings(judged.findings(), judged)  # type: ignore[attr-defined]
    made["differs"] = views.differs(list(_differs(judged, found)), judged)  # type: ignore[attr-defined]
    made["ignored"] = views.ignored(form.ignored(judged), judged)  # type: ignore[attr-defined]
    made["bar"] = views.bar(judged, token(judged), form.title_of(judged))  # type: ignore[attr-defined]
    made["conflict"] = views.conflict(judged, _both(judged))  # type: ignore[attr-defined]
    return {name: str(part) for name, part in made.items()}


def _both(judged: Judged) -> dict[str, str] | None:
    if judged.conflict is None:
        return None
    return {
        "disk": hidden(judged.conflict.disk.decode("utf-8", "replace"))[0],
        "ours": hidden(judged.conflict.ours.decode("utf-8", "replace"))[0],
    }


def _differs(judged: Judged, found: dict[str, form.Field]) -> Any:
    """What trains differently from the file as it came, or from its preset."""
    before = judged.before.config if judged.before is not None else None
    for one in found.values():
        if one.changed and one.widget != "secret":
            was = blanked(form.shown(getattr(before, one.name))) if before is not None else ""
            yield {"name": one.name, "label": one.label, "before": was or "unset", "now": one.value or "unset"}


def changed(site: Site, judged: Judged, seen: str, view: str = "form") -> Response:
    """The parts that a page which shows `seen` has to exchange; 204 where there are none.

    A page without the form gets the parts that it has; one whose file can be read again, or no more, is loaded anew.
    """
    if view == ("form" if judged.resolved is None else "unreadable"):
        return Response(headers={"HX-Refresh": "true"})
    now = parts(site, judged)
    if view != "form":
        now = {name: part for name, part in now.items() if name in BESIDE}
    name = judged.entry.id
    with RENDERED_LOCK:
        before = RENDERED.get((name, seen), {})
        if view == "form":
            RENDERED[name, token(judged)] = now
            RENDERED.move_to_end((name, token(judged)))
        while len(RENDERED) > MOST_RENDERED:
            RENDERED.popitem(last=False)
    fresh = [
        FIRST_TAG.sub(r'<\1 hx-swap-oob="true" ', part, count=1)
        for name, part in now.items()
        if before.get(name) != part
    ]
    return HTMLResponse("\n".join(fresh)) if fresh else Response(status_code=204)


def page(site: Site, request: Request, body: dict[str, Any]) -> Response:
    """`/config/ID`"""
    judged = site.judge.judge(request.path_params["id"], fresh=True)
    now = parts(site, judged)
    with RENDERED_LOCK:
        RENDERED[judged.entry.id, token(judged)] = now
    view = request.query_params.get("view", "form")
    shown = texts(judged) if view != "form" else {}
    return site.html(
        "editor.html",
        parts=now,
        judged=judged,
        entry=judged.entry,
        first=form.FIRST,
        sections=list(form.sections(form.fields(judged))),
        view=view if view in ("form", "json", "toml", "text") else "form",
        texts=shown,
        title=form.title_of(judged),
        bad_lines=sorted({one.line for one in judged.problems if one.line and one.severity == "error"}),
        token=token(judged),
        prompts=prompts(site, judged),
        in_form=holds_prompts(judged),
    )


def changes(site: Site, request: Request, body: dict[str, Any]) -> Response:
    """`/config/ID/changes?seen=`: what another browser, another program or time has changed."""
    name, seen = request.path_params["id"], request.query_params.get("seen", "")
    judged = site.judge.judge(name)
    if seen == token(judged) and (name, seen) in RENDERED:
        return Response(status_code=204)
    return changed(site, judged, seen, request.query_params.get("view", "form"))


def _answer(site: Site, request: Request, body: dict[str, Any], **more: Any) -> Response:
    """After a change: the parts for a page, the document for a script."""
    judged = site.judge.judge(request.path_params["id"], fresh=True)
    if from_htmx(request):
        return changed(site, judged, json_body(body, "seen"), json_body(body, "view", "form"))
    return answer({**document(site, judged), **more})


def document(site: Site, judged: Judged) -> dict[str, Any]:
    """`/api/config/ID`"""
    entry = judged.entry
    return {
        "id": entry.id,
        "file": str(site.work.path(entry)),
        "version": entry.now.number,
        "token": token(judged),
        "source": entry.source,
        "preset": entry.preset,
        "words": launch_words(entry),
        "ok": judged.ok,
        "text": hidden(judged.text)[0],
        "lost": list(entry.lost),
        "undo": entry.at > 0,
        "redo": entry.at + 1 < len(entry.versions),
        "changed_on_disk": judged.conflict is not None,
        "findings": judged.findings(),
        "plan": numbers(judged, site.runs),
    }


def show(site: Site, request: Request, body: dict[str, Any]) -> Response:
    """`GET /api/config/ID`"""
    return answer(document(site, site.judge.judge(request.path_params["id"], fresh=True)))


def set_values(site: Site, request: Request, body: dict[str, Any]) -> Response:
    """`POST /api/config/ID/set`: NAME=VALUE of arguments or of the file's own keys; empty unsets."""
    name = request.path_params["id"]
    sets = {key: json_body(body, key) for key in body if key not in ("seen", "view")}
    if not sets:
        raise error("nothing-to-set", "names no option", fix="send NAME=VALUE")
    judged = site.judge.judge(name)
    unknown = [
        key for key in sets if key not in table() and (judged.resolved is None or key not in judged.resolved.draft.keys)
    ]
    if unknown:
        raise error(
            "no-option", "is neither an option nor a key of this file", key=unknown[0][:80], fix="see `explain`"
        )
    with site.work.lock(name):
        entry = site.work.recovered(site.work.entry(name))
        text = _decoded(site.work.content(entry))
        made = edit(text, str(site.work.path(entry)), sets, site.work.folder)
        made = Edit(made.text, Path(made.file).name, made.lost)
        why = f"set {', '.join(sets)}"
        entry = site.work.save(entry, made.text.encode("utf-8"), why, file=made.file, within=COALESCED)
        if made.lost or made.file != entry.file:
            site.work.with_lost(entry, [*entry.lost, *made.lost])
    return _answer(site, request, body)


def _decoded(content: bytes) -> str:
    from launcher.formats import decode

    return decode(content)[0]


def set_text(site: Site, request: Request, body: dict[str, Any]) -> Response:
    """`POST /api/config/ID/text`: the whole text, in the file's own form or in the other; a text that fails stays."""
    name, kind = request.path_params["id"], json_body(body, "kind", "own")
    text = json_body(body, "text").replace("\r\n", "\n")
    with site.work.lock(name):
        entry = site.work.entry(name)
        before = _decoded(site.work.content(entry))
        seen = json_body(body, "seen").partition(".")[0]
        if seen and seen != str(entry.now.number):
            must = "has been changed in another window since this text was loaded"
            problem = Problem(code="stale-text", must=must, fix="copy what you typed, reload, and put it in again")
            return answer({"ok": False, "now": hidden(before)[0], "problems": [problem.as_json()]}, 409)
        judged = site.judge.judge(name)
        own = texts(judged)["own"]
        if kind in ("own", own):
            content = restored(text, before)
            site.work.save(entry, content.encode("utf-8"), "text edited")
        else:
            made = _from_other(site, judged, text, kind)
            site.work.save(entry, made.text.encode("utf-8"), f"{kind.upper()} edited", file=Path(made.file).name)
    return _answer(site, request, body)


def _from_other(site: Site, judged: Judged, text: str, kind: str) -> Edit:
    """The file with what was changed in its other form: only the arguments that differ are touched."""
    from launcher.check.resolve import resolve

    if judged.plain is None or kind not in ("json", "toml"):
        raise error("not-readable", "the file itself cannot be read", fix="mend its own text first")
    other = texts(judged)[kind]
    reader = "kohya-gui" if kind == "json" else "sd-scripts"
    before = resolve(f"edited.{kind}", text=other, format=reader).config
    resolved = resolve(f"edited.{kind}", text=text, format=reader)
    wrong = [one for one in errors(list(resolved.problems)) if one.code in ("bad-value", "unknown-option")]
    if wrong:
        raise ConfigError(wrong)
    sets = {
        name: form.shown(getattr(resolved.config, name))
        for name, option in table().items()
        if getattr(resolved.config, name) != getattr(before, name) and not option.secret
    }
    file = str(site.work.path(judged.entry))
    return edit(judged.text, file, sets, site.work.folder) if sets else Edit(judged.text, file)


def set_words(site: Site, request: Request, body: dict[str, Any]) -> Response:
    """`POST /api/config/ID/words`: words of the next launch that no file may say: vram, trust, overwrite, sets."""
    name = request.path_params["id"]
    with site.work.lock(name):
        entry = site.work.entry(name)
        words = dict(entry.words)
        if "vram" in body:
            words["vram"] = _gigabytes(json_body(body, "vram"))
        if "price" in body:
            words["price"] = _price(json_body(body, "price"))
        if body.get("trust"):
            words["trust"] = sorted({*(words.get("trust") or ()), *json_body(body, "trust").split()})
        if body.get("distrust"):
            words["trust"] = [one for one in words.get("trust") or () if one != body["distrust"]]
        if "overwrite" in body:
            words["overwrite"] = json_body(body, "overwrite") == "true"
        if body.get("unset"):
            words["sets"] = {key: one for key, one in (words.get("sets") or {}).items() if key != body["unset"]}
        if isinstance(body.get("sets"), dict):
            words["sets"] = {**(words.get("sets") or {}), **_checked(body["sets"])}
        site.work.with_words(entry, words)
    return _answer(site, request, body)


def _checked(sets: dict[str, Any]) -> dict[str, str]:
    for name, value in sets.items():
        if name not in table():
            raise error("no-option", "is no option of the trainer", key=str(name)[:80], fix="see `explain`")
        try:
            read_value(table()[name], str(value))
        except BadValue as bad:
            raise error("bad-value", str(bad), key=name, got=value, fix=bad.fix) from None
    return {name: str(value) for name, value in sets.items()}


def set_prompts(site: Site, request: Request, body: dict[str, Any]) -> Response:
    """`POST /api/config/ID/prompts` text=: the prompts of the previews, in the form itself or in a file beside it."""
    from launcher.run.files import write_text

    name, text = request.path_params["id"], json_body(body, "text").replace("\r\n", "\n").strip("\n")
    with site.work.lock(name):
        entry = site.work.entry(name)
        before = _decoded(site.work.content(entry))
        judged = site.judge.judge(name)
        if judged.plain is None:
            raise error("not-readable", "the file itself cannot be read", fix="mend its own text first")
        if holds_prompts(judged):
            made = Edit(put(before, "sample_prompts", text), entry.file)
        else:
            place = site.work.folder / f"{entry.id}-prompts.txt"
            write_text(place, text + "\n" if text else "")
            sets = {"sample_prompts": str(place) if text else ""}
            edited = edit(before, str(site.work.path(entry)), sets, site.work.folder)
            made = Edit(edited.text, Path(edited.file).name, edited.lost)
        site.work.save(entry, made.text.encode("utf-8"), "set prompts", file=made.file, within=COALESCED)
    return _answer(site, request, body)


def holds_prompts(judged: Judged) -> bool:
    """Whether the file is a form, which holds the prompts themselves."""
    draft = judged.plain.draft if judged.plain is not None else None
    return draft is not None and draft.format in FORMS


def prompts(site: Site, judged: Judged) -> str:
    """The prompts of the previews as text, wherever they lie."""
    from schemas.files.textfile import CONFIG, read_text

    if judged.plain is None:
        return ""
    if judged.plain.draft.prompts:
        return judged.plain.draft.prompts.strip("\n")
    file = judged.plain.config.sample_prompts
    if not file or not file.endswith(".txt") or not site.folders.holds(file):
        return ""
    try:
        return read_text(file, limit=CONFIG, what="prompt file").strip("\n")
    except ConfigError:
        return ""


def _price(text: str) -> float | None:
    if not text.strip():
        return None
    try:
        found = float(text.replace(",", "."))
    except ValueError:
        found = -1.0
    if not 0 <= found <= 10_000:
        raise error("bad-value", "must be what an hour costs, such as 0.4", key="price", got=text[:40], fix="0.4")
    return found


def _gigabytes(text: str) -> float | None:
    if not text.strip() or text.strip() == "0":
        return None
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 1 <= found <= 1024:
        raise error(
            "bad-value", "must be a number of GB from 1 to 1024", key="vram", got=text, fix="8, or empty for none"
        )
    return found


def undo(site: Site, request: Request, body: dict[str, Any]) -> Response:
    """`POST /api/config/ID/undo`: the file before."""
    return _step(site, request, body, -1)


def redo(site: Site, request: Request, body: dict[str, Any]) -> Response:
    """`POST /api/config/ID/redo`: the file after."""
    return _step(site, request, body, +1)


def _step(site: Site, request: Request, body: dict[str, Any], by: int) -> Response:
    with site.work.lock(request.path_params["id"]):
        site.work.step(site.work.entry(request.path_params["id"]), by)
    return _answer(site, request, body)


def settle(site: Site, request: Request, body: dict[str, Any]) -> Response:
    """`POST /api/config/ID/settle` with take=disk or take=ours, where the file was changed by another program."""
    take = json_body(body, "take")
    if take not in ("disk", "ours"):
        raise error("bad-value", "must be disk or ours", key="take", got=take, fix="take=disk")
    with site.work.lock(request.path_params["id"]):
        site.work.settle(site.work.entry(request.path_params["id"]), take)
    return _answer(site, request, body)


def launch(site: Site, request: Request, body: dict[str, Any]) -> Response:
    """`POST /api/config/ID/launch`: a process of its own that trains this file; refused while the plan has errors."""
    from launcher.check import paths
    from schemas.files.run_lock import in_use

    name = request.path_params["id"]
    with site.work.lock(name):
        judged = site.judge.judge(name, fresh=True)
        if judged.conflict is not None:
            raise judged.conflict
        wrong = errors(list(judged.problems))
        if wrong or judged.plan is None:
            raise ConfigError(wrong)
        folder = paths.run_folder(judged.plan.checked.resolved)
        busy = in_use(folder)
        if busy is not None:
            raise busy
        words = ["launch", str(site.work.path(judged.entry)), *launch_words(judged.entry)]
        start = site.runs.start(words, folder, judged.entry.id)
        if judged.entry.words.get("overwrite"):  # consent is for one start
            site.work.with_words(judged.entry, {**judged.entry.words, "overwrite": False})
    address = f"/run/{run_id(start.run)}"
    response = answer({"ok": True, "run": run_id(start.run), "run_folder": str(start.run), "address": address})
    response.headers["HX-Redirect"] = address
    return response


def download(site: Site, request: Request, body: dict[str, Any]) -> Response:
    """`/config/ID/file?as=`: the file as it is, or in another format."""
    from launcher.about.convert import convert
    from launcher.formats.registry import having

    judged, target = site.judge.judge(request.path_params["id"]), request.query_params.get("as", "")
    if not target:
        content, file = site.work.kept(judged.entry), judged.entry.file
    elif judged.plain is None or target not in having("writer"):
        raise error(
            "unknown-format", f"must be one of {', '.join(having('writer'))}", got=target[:40], fix="choose one of them"
        )
    else:
        written = convert(judged.plain, target)
        content, file = hidden(written.text)[0].encode(), f"{judged.entry.id}-{target}{written.suffix}"
    disposition = {"content-disposition": f'attachment; filename="{file}"'}
    return Response(content, headers=disposition, media_type="application/octet-stream")
