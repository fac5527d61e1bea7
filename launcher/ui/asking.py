"""Commands that the page asks for their `--json` in a process of their own: the queue, and the measuring of epochs.

Their documents and words are a contract, so nothing of them is imported here; one that is not there has no button.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen, TimeoutExpired
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from launcher.commands.demo import PACKAGES
from launcher.ui.judging import launch_words
from launcher.ui.runs import Found, detached
from launcher.ui.site import Site, answer, json_body, known
from schemas.blanking import blanked
from schemas.files.documents import parse_json
from schemas.files.textfile import CONFIG, read_bytes
from schemas.problems import ConfigError, Problem, error, errors

PATIENCE = 60.0  # seconds; these commands take one or two
QUEUE_WORDS = ("pause", "resume", "retry", "remove")


def ask(words: list[str]) -> dict[str, Any]:
    """The document of `kohyakit WORDS --json`; ConfigError with what it refuses."""
    line = [sys.executable, "-P", "-m", "launcher", *words, "--json"]
    child = Popen(line, stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL, env=_variables())
    try:
        said, _ = child.communicate(timeout=PATIENCE)
    except TimeoutExpired:
        child.kill()
        child.communicate()
        raise error("no-answer", f"kohyakit {words[0]} has not answered", fix="type it in a terminal") from None
    try:
        found = parse_json(said)
    except (ValueError, UnicodeError):
        found = None
    if not isinstance(found, dict):
        raise error("no-answer", f"kohyakit {words[0]} ended with code {child.returncode}", fix="type it in a terminal")
    if child.returncode:
        raise ConfigError(_problems(found) or [Problem(code="refused", must=f"ended with code {child.returncode}")])
    return found


def _problems(document: dict[str, Any]) -> list[Problem]:
    found = []
    for one in document.get("problems") or []:
        if isinstance(one, dict) and isinstance(one.get("must"), str):
            facts: dict[str, Any] = {name: one.get(name) for name in ("key", "got", "fix", "line")}
            found.append(Problem(code=str(one.get("code") or "refused"), must=one["must"], **facts))
    return found


def _variables() -> dict[str, str]:
    path = os.pathsep.join([str(PACKAGES), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path}


# The queue


def waiting() -> dict[str, Any] | None:
    """The document of `queue list`; None where there is no queue."""
    return ask(["queue", "list"]) if known("queue") else None


def queue(site: Site, request: Request, body: dict[str, Any]) -> Response:
    """`/api/queue`: the runs at work, and what waits."""
    active = [site.runs.about(one) for one in site.runs.all() if one.active]
    return answer({"runs": active, "waiting": waiting()})


def page(site: Site, request: Request, body: dict[str, Any]) -> Response:
    """`/queue`"""
    found = [site.runs.about(one) for one in site.runs.all()]
    active = [one for one in found if one["state"] in ("running", "starting")]
    over = [one for one in found if one not in active][:40]
    try:
        waits, fault = waiting(), None
    except ConfigError as refusal:
        waits, fault = None, refusal.problems[0].must
    return site.html("queue.html", active=active, over=over, waits=waits and blanked(waits), fault=fault)


def add(site: Site, request: Request, body: dict[str, Any]) -> Response:
    """`POST /api/config/ID/queue`: the config waits its turn; it is checked now, as a launch is."""
    judged = site.judge.judge(request.path_params["id"], fresh=True)
    if judged.conflict is not None:
        raise judged.conflict
    wrong = errors(list(judged.problems))
    if wrong or judged.plan is None:
        raise ConfigError(wrong)
    found = ask(["queue", "add", str(site.work.path(judged.entry)), *launch_words(judged.entry)])
    response = answer({**found, "address": "/queue"})
    response.headers["HX-Redirect"] = "/queue"
    return response


def change(site: Site, request: Request, body: dict[str, Any]) -> Response:
    """`POST /api/queue/pause | resume | retry | remove` id=, or `run`: works through it in a process of its own."""
    what, number = request.path_params["what"], json_body(body, "id")
    if what == "run":
        site.runs.start(["queue", "run"], site.work.hidden / "queue.run")
        time.sleep(0.5)  # so that the page that is loaded next shows it
        return answer({"ok": True})
    if what not in QUEUE_WORDS or (number and not number.isdigit()) or (not number and what in ("retry", "remove")):
        raise error(
            "bad-value", "is no wish of a queue", got=f"{what} {number}"[:40], fix="see `kohyakit queue --help`"
        )
    return answer(ask(["queue", what, *([number] if number else [])]))


# Which epoch to keep


def _places(site: Site, found: Found) -> tuple[Path, Path, Path]:
    folder = site.work.hidden / "compare"
    return folder / f"{found.id}.json", folder / f"{found.id}.part", folder / f"{found.id}.log"


MEASURING: dict[str, Popen[bytes]] = {}


def measured(site: Site, found: Found) -> dict[str, Any]:
    """{"can", "under_way", "verdict", "epochs", "fault"} of `kohyakit compare`, as far as it has been asked."""
    child, (document, part, _) = MEASURING.get(found.id), _places(site, found)
    under_way = child is not None and child.poll() is None
    if child is not None and not under_way:
        del MEASURING[found.id]
        if child.returncode in (0, 1) and part.is_file():
            part.replace(document)
    elif child is None and _read(part) is not None:  # its server has ended meanwhile, and it has not
        part.replace(document)
    said = _read(document)
    fault = None
    if said is not None and said.get("ok") is False:
        problems = _problems(said)
        fault, said = (problems[0].must if problems else "it could not be measured"), None
    return {"can": known("compare"), "under_way": under_way, "fault": fault, "verdict": (said or {}).get("verdict"),
            "epochs": (said or {}).get("epochs") or []}  # fmt: skip


def _read(file: Path) -> dict[str, Any] | None:
    try:
        found = parse_json(read_bytes(file, limit=CONFIG, what="comparison"))
    except (ConfigError, ValueError, UnicodeError):
        return None
    return blanked(found) if isinstance(found, dict) else None


def measure(site: Site, request: Request, body: dict[str, Any]) -> Response:
    """`POST /api/run/ID/compare`: measures the saved epochs on this machine; what is measured already is kept."""
    found = site.runs.get(request.path_params["id"])
    if not known("compare"):
        raise error("no-option", "there is no such command here", got="compare", fix="look at the previews")
    if measured(site, found)["under_way"]:
        return answer({"ok": True})
    _, part, log = _places(site, found)
    part.parent.mkdir(parents=True, exist_ok=True)
    for place in (part, log):
        place.unlink(missing_ok=True)
        place.touch()
    out, err = (os.open(place, os.O_WRONLY) for place in (part, log))
    try:
        words = [sys.executable, "-P", "-m", "launcher", "compare", str(found.folder), "--json"]
        MEASURING[found.id] = Popen(words, stdin=DEVNULL, stdout=out, stderr=err, env=_variables(), **detached())
    finally:
        os.close(out)
        os.close(err)
    return answer({"ok": True})
