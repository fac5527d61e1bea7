"""A run as it goes on: numbers, curves, previews, log; stop, resume, continue, compare, keep."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from launcher.report.advice import Suggestion, advise, trend
from launcher.report.data import NOTHING
from launcher.report.facts import Run, read_run
from launcher.report.sheet import Embedded, moments
from launcher.report.write import Page, parts
from launcher.run.command import quoted
from launcher.run.resume import find
from launcher.ui.asking import measured
from launcher.ui.runs import Found, run_id
from launcher.ui.site import Site, answer, json_body, refused, site_of
from schemas.blanking import blanked
from schemas.problems import ConfigError, error

TICK = 1.0  # seconds between two looks at a run
LOG_LINES = 300
LARGEST_PREVIEW = 64 * 2**20
SHOWN_PARTS = ("What to try next", "Saved files", "Settings", "Starts", "Made with")
KINDS = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}


def runs(site: Site, request: Request, body: dict[str, Any]) -> Response:
    """`/api/runs`"""
    return answer({"runs": [site.runs.about(one) for one in site.runs.all()]})


def page(site: Site, request: Request, body: dict[str, Any]) -> Response:
    """`/run/ID`"""
    found = site.runs.get(request.path_params["id"])
    return site.html("run.html", **_shown(site, found))


def _shown(site: Site, found: Found) -> dict[str, Any]:
    about = site.runs.about(found)
    return {
        "run": about,
        "curve": json.dumps(curves(site, found)),
        "previews": previews(site, found),
        "output": site.runs.output(found, LOG_LINES),
        "has_log": found.start is not None,
        "ended": not found.active,
        "after": site.runs.log(found.folder).steps[-1] if site.runs.log(found.folder).steps else 0,
        "differs": _settings(found),
        "words": blanked(quoted(["kohyakit", *found.start.words])) if found.start else None,
    }


def _settings(found: Found) -> list[dict[str, str]]:
    """What is not at its default, from the run's own record."""
    from launcher.report.facts import shareable
    from launcher.ui.form import label, shown

    options = found.record.get("options")
    origins = found.record.get("origins") or {}
    rows = []
    for name, value in options.items() if isinstance(options, dict) else ():
        origin = origins.get(name) if isinstance(origins, dict) else None
        by = origin.get("origin", "") if isinstance(origin, dict) else ""
        rows.append(
            {"name": name, "label": label(name), "value": str(blanked(shown(shareable(name, value)))), "by": by}
        )
    return rows


def show(site: Site, request: Request, body: dict[str, Any]) -> Response:
    """`/api/run/ID`"""
    found = site.runs.get(request.path_params["id"])
    return answer({**site.runs.about(found), "previews": previews(site, found), "record": found.record})


def curves(site: Site, found: Found, after: int = 0) -> dict[str, Any]:
    """What the charts draw."""
    made = site.runs.log(found.folder).curve(after)
    held = {step: loss for step, loss in site.runs.held_out(found).items() if step > after}
    steps = found.record.get("steps")
    per_epoch = steps.get("updates_per_epoch") if isinstance(steps, dict) else None
    return {**made, "held_out": [[step, loss] for step, loss in held.items()], "per_epoch": per_epoch}


def curve(site: Site, request: Request, body: dict[str, Any]) -> Response:
    """`/api/run/ID/curve?after=`"""
    after = request.query_params.get("after", "0")
    return answer(curves(site, site.runs.get(request.path_params["id"]), int(after) if after.isdigit() else 0))


def output(site: Site, request: Request, body: dict[str, Any]) -> Response:
    """`/api/run/ID/log?filter=`: the last lines of what its process has printed."""
    found = site.runs.get(request.path_params["id"])
    wanted = request.query_params.get("filter", "")
    return answer({"lines": site.runs.output(found, LOG_LINES, wanted), "known": found.start is not None})


def previews(site: Site, found: Found) -> dict[str, Any]:
    """Previews by prompt and moment, and the files saved at each moment."""
    run = site.runs.results(found)
    if run is None:
        return {"prompts": [], "moments": []}
    columns: list[dict[str, Any]] = []
    for moment in moments(run):
        shown = {index: f"{one.path.name}" for index, one in moment.previews.items()}
        files = [
            {"file": copy.path.name, "bytes": copy.size, "kept": _is_kept(found, copy.path)} for copy in moment.copies
        ]
        columns.append(
            {"step": moment.step, "epoch": moment.epoch, "title": moment.title, "previews": shown, "files": files}
        )
    count = 1 + max((index for one in columns for index in one["previews"]), default=-1)
    texts = [run.prompts[index] if index < len(run.prompts) else f"prompt {index + 1}" for index in range(count)]
    return {"prompts": [str(blanked(text)) for text in texts], "moments": columns}


def _is_kept(found: Found, file: Path) -> bool:
    return (found.folder.parent / "kept" / file.name).is_file()


def part(site: Site, request: Request, body: dict[str, Any]) -> Response:
    """`/run/ID/part/...`: previews, or the sections of the report, loaded after the page and again when they change."""
    found = site.runs.get(request.path_params["id"])
    wanted = request.path_params["part"]
    if wanted == "previews":
        return site.html("previews_part.html", run=site.runs.about(found), previews=previews(site, found))
    if wanted == "report":
        return site.html("report_part.html", sections=report_sections(found), run=site.runs.about(found))
    raise error("no-file", "there is no such part", got=wanted[:40], fix="reload the page")


def report_sections(found: Found) -> dict[str, str]:
    """The sections of `kohyakit report`, by heading; their HTML is made, and escaped, by the report itself."""
    try:
        run = read_run(find(str(found.folder)), str(found.folder))
        said = _advice(run)
    except (ConfigError, OSError):
        return {}
    every = moments(run)
    nothing = Embedded({}, 0, 0, 0)
    shown = Page(run, every, [], nothing, trend([step.loss for step in run.steps]), said, "", NOTHING)
    made = parts(shown)
    return {heading: made[heading]() for heading in SHOWN_PARTS if heading in made}


def _advice(run: Run) -> list[Suggestion]:
    return advise(run, run.output, None)


def preview(site: Site, request: Request, body: dict[str, Any]) -> Response:
    """`/run/ID/preview?file=`: one of its previews, and no other file."""
    from schemas.files.textfile import read_bytes

    found = site.runs.get(request.path_params["id"])
    name, run = request.query_params.get("file", ""), site.runs.results(found)
    one = next((shown for shown in (run.previews if run else ()) if shown.path.name == name), None)
    if one is None or one.path.suffix.lower() not in KINDS or not site.folders.holds(one.path):
        raise error("no-file", "is no preview of this run", got=name[:120], fix="reload the page")
    content = read_bytes(one.path, limit=LARGEST_PREVIEW, what="preview")
    headers = {"cache-control": "private, max-age=3600"}
    return Response(content, media_type=KINDS[one.path.suffix.lower()], headers=headers)


def compare_page(site: Site, request: Request, body: dict[str, Any]) -> Response:
    """`/run/ID/compare?a=&b=`: two moments over each other, a slider between them."""
    found = site.runs.get(request.path_params["id"])
    shown = previews(site, found)
    columns = [one for one in shown["moments"] if one["previews"]]
    a, b = request.query_params.get("a", ""), request.query_params.get("b", "")
    steps = [str(one["step"]) for one in columns]
    b = b if b in steps else (steps[-1] if steps else "")
    a = a if a in steps else (steps[max(0, len(steps) - 2)] if steps else "")
    held = site.runs.held_out(found)
    chosen = {str(one["step"]): one for one in columns}
    return site.html(
        "compare.html",
        run=site.runs.about(found),
        prompts=shown["prompts"],
        columns=columns,
        moments=shown["moments"],
        a=a,
        b=b,
        left=chosen.get(a),
        right=chosen.get(b),
        held_out=held,
        best=min(held, key=lambda step: held[step]) if held else None,
        measured=measured(site, found),
    )


def compared(site: Site, request: Request, body: dict[str, Any]) -> Response:
    """`/api/run/ID/compare`"""
    found = site.runs.get(request.path_params["id"])
    held = [{"step": step, "loss": loss} for step, loss in site.runs.held_out(found).items()]
    return answer({"run": found.id, **previews(site, found), "held_out": held, **measured(site, found)})


def stop(site: Site, request: Request, body: dict[str, Any]) -> Response:
    """`POST /api/run/ID/stop`: it finishes its step and saves its state."""
    found = site.runs.get(request.path_params["id"])
    site.runs.stop(found)
    return answer({"ok": True, "run": found.id})


def resume(site: Site, request: Request, body: dict[str, Any]) -> Response:
    """`POST /api/run/ID/resume`: exactly from its state; with epochs= or steps= as a new run from its weights."""
    from schemas.files.run_lock import in_use

    found = site.runs.get(request.path_params["id"])
    busy = in_use(found.folder)
    if busy is not None:
        raise busy
    words = ["resume", str(found.folder)]
    for name in ("epochs", "steps"):
        value = json_body(body, name).strip()
        if value:
            if not value.isdigit() or not 0 < int(value) < 10**7:
                raise error("bad-value", "must be a whole number of at least 1", key=name, got=value, fix="3")
            words += [f"--{name}", value]
    _known_beforehand(found, words)
    start = site.runs.start(words, found.folder, found.start.config if found.start else None)
    address = f"/run/{run_id(start.run)}"
    response = answer({"ok": True, "run": run_id(start.run), "address": address})
    response.headers["HX-Redirect"] = address
    return response


def _known_beforehand(found: Found, words: list[str]) -> None:
    """ConfigError with what `resume` would refuse, before a process is started for it."""
    from launcher.run.resume import go_on

    numbers = {words[place][2:]: int(words[place + 1]) for place in range(2, len(words), 2)}
    go_on(str(found.folder), {}, epochs=numbers.get("epochs"), steps=numbers.get("steps"), to_end=False)


def keep(site: Site, request: Request, body: dict[str, Any]) -> Response:
    """`POST /api/run/ID/keep` file=: a copy in `kept/` beside the results."""
    found = site.runs.get(request.path_params["id"])
    place = site.runs.keep(found, json_body(body, "file"))
    return answer({"ok": True, "kept": str(place)})


async def events(request: Request) -> Response:
    """`/api/run/ID/events?after=`: server-sent events `state`, `steps`, `results`, `log`, as they come."""
    site, name = site_of(request), request.path_params["id"]
    after = request.query_params.get("after", "0")
    try:
        await run_in_threadpool(site.runs.get, name)
    except ConfigError as fault:
        return refused(fault.problems)
    stream = _events(request, site, name, int(after) if after.isdigit() else 0)
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(stream, media_type="text/event-stream", headers=headers)


async def _events(request: Request, site: Site, name: str, after: int) -> AsyncIterator[bytes]:
    seen: dict[str, Any] = {"after": after, "generation": None}
    yield b"retry: 2000\n\n"
    while not await request.is_disconnected():
        try:
            for kind, document in await run_in_threadpool(_news, site, name, seen):
                yield f"event: {kind}\ndata: {json.dumps(document)}\n\n".encode()
        except ConfigError:
            yield b"event: gone\ndata: {}\n\n"
            return
        await asyncio.sleep(TICK)


def _news(site: Site, name: str, seen: dict[str, Any]) -> list[tuple[str, Any]]:
    """What has happened since the last look, which `seen` remembers."""
    found, news = site.runs.get(name), list[tuple[str, Any]]()
    about = site.runs.about(found)
    about = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in about.items()
    }
    log = site.runs.log(found.folder)
    if seen["generation"] not in (None, log.generation):  # cut back for a resume: drawn anew
        seen["after"] = 0
        news.append(("restart", {}))
    seen["generation"] = log.generation
    fresh = curves(site, found, seen["after"])
    if fresh["step"]:
        seen["after"] = fresh["step"][-1]
        news.append(("steps", fresh))
    if about != seen.get("about"):
        seen["about"] = about
        news.append(("state", about))
    mark = _changed(found)
    if mark != seen.get("results"):
        if "results" in seen:
            news.append(("results", {}))
        seen["results"] = mark
    lines = site.runs.output(found, 60)
    if lines != seen.get("lines"):
        seen["lines"] = lines
        news.append(("log", {"lines": lines}))
    return news


def _changed(found: Found) -> tuple[float, ...]:
    """When its results last changed, without reading them."""
    marks = []
    for folder in (found.folder.parent, found.folder.parent / "sample"):
        try:
            marks.append(folder.stat().st_mtime)
        except OSError:
            marks.append(0.0)
    return tuple(marks)
