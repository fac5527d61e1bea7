"""A queue as `queue list` shows it: one document, for JSON, the terminal and the page."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from launcher.queue.folder import LOG, Damaged, Queue


def document(queue: Queue) -> dict[str, Any]:
    """`runner` is the process that works on it: null where none does. Not to be asked by that process itself."""
    head, entries = queue.head(), queue.entries()
    return {
        "queue": str(queue.path),
        "runner": _runner(queue),
        "paused": head["paused"],
        "stopped": head["stopped"],
        "jobs": [
            {**entry.as_json(), "log": str(queue.folder(entry.id) / LOG)}
            for entry in entries
            if not isinstance(entry, Damaged)
        ],
        "damaged": [
            {"id": entry.id, "file": str(entry.path), "reason": entry.reason}
            for entry in entries
            if isinstance(entry, Damaged)
        ],
    }


def _runner(queue: Queue) -> dict[str, Any] | None:
    said = queue.runner_lock().holder()
    if said is None:
        return None
    pids = said.get("pids")
    return {"pid": pids[0] if isinstance(pids, list) and pids else None, "host": said.get("host")}


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """The same for people: a line a run, and a second one where there is something to know."""
    runner = found["runner"]
    state = "paused" if found["paused"] else f"run by process {runner['pid']} on {runner['host']}" if runner else "idle"
    yield f"{found['queue']}: {len(found['jobs'])} run{'' if len(found['jobs']) == 1 else 's'}, {state}"
    if found["stopped"]:
        yield f"    stopped: {found['stopped']}"
    widest = max((len(job["name"]) for job in found["jobs"]), default=0)
    for job in found["jobs"]:
        total = job["total"] or "?"
        steps = f"{job['step'] or 0:>7,} of {total:,}" if isinstance(total, int) else f"{job['step'] or 0:>7,}"
        yield f"{job['id']:>4}  {job['state']:<8}{job['name']:<{widest}}  {steps}  {_short(job['run_folder'])}"
        if job["reason"]:
            yield f"      {job['reason']}"
        if job["fix"]:
            yield f"      fix: {job['fix']}"
    for one in found["damaged"]:
        yield f"{one['id']:>4}  damaged: {one['file']} {one['reason']}"
        yield f"      fix: kohyakit queue remove {one['id']}"


def _short(path: str) -> str:
    """Relative where that is shorter."""
    try:
        below = os.path.relpath(path)
    except ValueError:  # another drive
        return path
    return below if len(below) < len(path) else path
