"""What is only looked at: an option, a LoRA file, two configs side by side; and the commands' documents under /api/."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from launcher.about import explain as explaining
from launcher.about.diff import as_json as difference
from launcher.about.diff import compare
from launcher.check.preflight import check_file
from launcher.check.resolve import (
    Resolved,
    preset_path,
    resolve,
    split_sets,
    table_of_presets,
)
from launcher.ui import form
from launcher.ui.folders import within
from launcher.ui.judging import planned, sets_of
from launcher.ui.site import MISSING, REFUSED, Site, answer
from schemas.blanking import blanked
from schemas.config import table
from schemas.problems import ConfigError, Problem, error, nearest


def named(site: Site, word: str, sets: dict[str, str] | None = None) -> Resolved:
    """The config that a word of an address means: `config:ID`, a preset's name, or a path inside the folders."""
    kind, colon, name = word.partition(":")
    if colon and kind == "config":
        entry = site.work.entry(name)
        text = site.judge.judge(name).text
        return resolve(str(site.work.path(entry)), {**sets_of(entry), **(sets or {})}, text=text)
    if colon and kind == "run":
        return resolve(str(site.runs.get(name).folder / "config.toml"), sets)
    if preset_path(word) is not None and not Path(word).exists():
        return resolve(word, sets)
    return resolve(str(site.folders.inside(word)), sets)


def _asked(site: Site, request: Request) -> tuple[str, Resolved]:
    """The config that a query asks about, and the file as the document names it."""
    query = request.query_params
    word = f"config:{query['config']}" if query.get("config") else query.get("file") or ""
    resolved = named(site, word, split_sets(query.getlist("set")))
    return str(resolved.draft.file), resolved


def validate(site: Site, request: Request, body: dict[str, Any]) -> Response:
    """`/api/validate?file=` or `?config=`: the document of `validate --json`."""
    try:
        file, resolved = _asked(site, request)
    except ConfigError as fault:
        if any(one.code in (*REFUSED, *MISSING) for one in fault.problems):
            raise
        problems = [one.as_json() for one in fault.problems]
        unreadable = {"file": request.query_params.get("file"), "format": None, "family": None, "kind": None}
        return answer({"files": [{**unreadable, "ok": False, "problems": problems, "keys": {}}]})
    fenced, outside = within(resolved, site.folders)
    checked = check_file(fenced)
    document = checked.as_json(file)
    document["problems"] = [*(one.as_json() for one in outside), *document["problems"]]
    return answer({"files": [{**document, "ok": document["ok"] and not outside}]})


def plan(site: Site, request: Request, body: dict[str, Any]) -> Response:
    """`/api/plan?file=` or `?config=`, `&vram=8`: the document of `plan --json`."""
    _, resolved = _asked(site, request)
    fenced, outside = within(resolved, site.folders)
    vram = request.query_params.get("vram")
    if vram is None and request.query_params.get("config"):
        vram = site.work.entry(request.query_params["config"]).words.get("vram")
    try:
        gigabytes = float(vram) if vram else None
    except ValueError:
        raise error("bad-value", "must be a number of GB", key="vram", got=vram, fix="8") from None
    document = planned(fenced, gigabytes).as_json()
    document["problems"] = [*(one.as_json() for one in outside), *document["problems"]]
    return answer(document)


def convert(site: Site, request: Request, body: dict[str, Any]) -> Response:
    """`/api/convert?config=&to=`: the document of `convert --json`; writes nothing."""
    from launcher.about.convert import convert as converted
    from launcher.formats.registry import having
    from schemas.blanking import without_secrets

    target = request.query_params.get("to", "")
    if target not in having("writer"):
        raise error(
            "unknown-format",
            f"must be one of {', '.join(having('writer'))}",
            key="to",
            got=target[:40],
            fix="choose one",
        )
    _, resolved = _asked(site, request)
    written = converted(resolved, target)
    return answer({
        "format": target, "from": resolved.draft.format, "family": resolved.draft.family,
        "text": without_secrets(written.text), "files": [], "lost": written.lost,
        "problems": [one.as_json() for one in resolved.problems],
    })  # fmt: skip


def diff(site: Site, request: Request, body: dict[str, Any]) -> Response:
    """`/api/diff?a=&b=`: the document of `diff --json`."""
    a, b = request.query_params.get("a", ""), request.query_params.get("b", "")
    return answer(difference(a, b, *compare(named(site, a), named(site, b))))


def diff_page(site: Site, request: Request, body: dict[str, Any]) -> Response:
    """`/config/ID/diff?with=`"""
    name, other = request.path_params["id"], request.query_params.get("with", "")
    entry = site.work.entry(name)
    found: dict[str, Any] = {}
    problems: list[Problem] = []
    if other:
        try:
            training, beside = compare(named(site, f"config:{name}"), named(site, other))
            found = blanked(difference(entry.file, other, training, beside))
        except ConfigError as fault:
            problems = fault.problems
    choices = [(f"config:{one.id}", one.file) for one in site.work.entries() if one.id != name][:30]
    choices += [(row["name"], f"preset {row['name']}") for row in table_of_presets()]
    choices += [(f"run:{one.id}", f"run {one.name}") for one in site.runs.all()[:30]]
    return site.html("diff.html", entry=entry, other=other, found=found, choices=choices, problems=problems,
                     label=form.label, options=table(), shown=form.shown)  # fmt: skip


def explain(site: Site, request: Request, body: dict[str, Any]) -> Response:
    """`/api/explain/OPTION`: the document of `explain --json`."""
    return answer(_facts(request.path_params["key"]))


def _facts(key: str) -> dict[str, Any]:
    found = explaining.lookup(key)
    if found is None:
        guess = nearest(key, table()) or nearest(key, explaining.known_names())
        fix = f"did you mean {guess}?" if guess else "look through the list of options"
        raise error("no-option", "is no option of any format", got=key[:80], fix=fix)
    return found


def explain_page(site: Site, request: Request, body: dict[str, Any]) -> Response:
    """`/explain/OPTION`"""
    facts = _facts(request.path_params["key"])
    return site.html("explain.html", facts=facts, label=form.label, shown=form.shown)


def inspect(site: Site, request: Request, body: dict[str, Any]) -> Response:
    """`/api/inspect?file=`: the document of `inspect --json`."""
    return answer(_inspected(site, request))


def _inspected(site: Site, request: Request) -> dict[str, Any]:
    from launcher.about import inspect as lora

    place = site.folders.inside(request.query_params.get("file", ""))
    resolved = resolve(str(place), format="lora")
    found: dict[str, Any] = blanked(lora.document(str(place), resolved))
    return found


def lora_page(site: Site, request: Request, body: dict[str, Any]) -> Response:
    """`/lora?file=`"""
    if not request.query_params.get("file"):
        return site.html("lora.html", facts=None, file=None)
    facts = _inspected(site, request)
    from launcher.about.inspect import HEADER_FACTS

    known = {name: entry for name, entry in facts["config"].items() if entry["known"] != "unknown"}
    said = {
        name: facts["metadata"][name] for name in HEADER_FACTS if facts["metadata"].get(name) not in (None, "None", "")
    }
    default = {name: option.default for name, option in table().items()}
    return site.html(
        "lora.html", facts=facts, file=facts["file"], known=known, said=said, default=default, shown=form.shown
    )


def presets(site: Site, request: Request, body: dict[str, Any]) -> Response:
    """`/api/presets`: the document of `presets --json`."""
    return answer({"presets": table_of_presets()})
