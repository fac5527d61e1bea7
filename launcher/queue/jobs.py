"""One queued run as its file says it: what to start, where it stands, and why it stands there."""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from schemas.files.run_folder import (
    CONFIG,
    last_step,
    read_record,
    states_in,
)

State = Literal["waiting", "running", "paused", "held", "done", "failed"]
STATES: tuple[str, ...] = get_args(State)
OPEN = ("waiting", "running", "paused", "held")  # states of a job that may still write into its run folder
CLOCK = 1.0  # seconds: times are kept to the second


@dataclass(frozen=True)
class Job:
    """A queued run.

    `words` are those after `kohyakit` at its first start, `cwd` is the folder that its relative paths are meant from.
    `fingerprint` is of the file as it was queued; None for presets and runs. `owner` is whoever put it here for
    purposes of its own, such as a sweep; the queue does not read it.
    """

    id: int
    file: str
    words: tuple[str, ...]
    cwd: str
    run_folder: str
    place: float
    added: str
    state: State = "waiting"
    fingerprint: str | None = None
    processes: int = 1
    device: Literal["gpu", "cpu"] = "cpu"
    total: int | None = None
    pause_asked: bool = False
    reason: str | None = None
    fix: str | None = None
    starts: tuple[Mapping[str, Any], ...] = ()
    owner: Mapping[str, Any] = field(default_factory=dict)

    @property
    def run(self) -> Path:
        return Path(self.run_folder)

    @property
    def name(self) -> str:
        return self.run.name.removesuffix(".run")

    @property
    def shown_state(self) -> str:
        return "pausing" if self.state == "running" and self.pause_asked else self.state

    def stands(self, state: State, reason: str | None = None, fix: str | None = None) -> Job:
        """The same job in another state, with what a person should know of it."""
        return replace(self, state=state, reason=reason, fix=fix, pause_asked=False)

    def as_file(self) -> dict[str, Any]:
        """What its file holds."""
        return asdict(self)

    def as_json(self) -> dict[str, Any]:
        """Its entry in `queue list --json`."""
        begun = recorded_start(self) is not None
        found = {name: value for name, value in asdict(self).items() if name not in ("place", "pause_asked")}
        return {**found, "name": self.name, "state": self.shown_state, "step": last_step(self.run) if begun else None}


KINDS: dict[str, tuple[type, ...]] = {
    "id": (int,), "file": (str,), "words": (list,), "cwd": (str,), "run_folder": (str,), "place": (int, float),
    "added": (str,), "state": (str,), "fingerprint": (str, type(None)), "processes": (int,), "device": (str,),
    "total": (int, type(None)), "pause_asked": (bool,), "reason": (str, type(None)), "fix": (str, type(None)),
    "starts": (list,), "owner": (dict,),
}  # fmt: skip


def job_in(document: Mapping[str, Any]) -> Job | str:
    """The job of a document; in words what is wrong with one that holds none."""
    if not document:
        return "is missing, or is no JSON object"
    for name, kinds in KINDS.items():
        if name not in document:
            return f"has no {name!r}"
        if not isinstance(document[name], kinds) or (isinstance(document[name], bool) and bool not in kinds):
            return f"says {name} {str(document[name])[:40]!r}"
    if document["state"] not in STATES or document["device"] not in ("gpu", "cpu"):
        return f"says state {document['state']!r} on {document['device']!r}"
    if not all(isinstance(word, str) for word in document["words"]):
        return "says words that are no texts"
    if not all(isinstance(start, dict) and moment(start.get("begin")) is not None for start in document["starts"]):
        return "says a start without its time"
    found = {name: document[name] for name in KINDS}
    return Job(**{**found, "words": tuple(found["words"]), "starts": tuple(found["starts"])})


def moment(text: Any) -> float | None:
    """Seconds since 1970 of a time as records keep it; None where it is none."""
    try:
        return datetime.datetime.fromisoformat(text).timestamp()
    except (TypeError, ValueError):
        return None


def recorded_start(job: Job) -> Mapping[str, Any] | None:
    """The newest start in the run folder's record, if this job or one after it made it; older runs are not its own."""
    first = moment(job.starts[0]["begin"]) if job.starts else None
    starts = read_record(job.run).get("starts") or []
    begun = moment(starts[-1].get("begin")) if starts else None
    if first is None or begun is None or begun < first - CLOCK:
        return None
    found: Mapping[str, Any] = starts[-1]
    return found


def next_words(job: Job) -> list[str] | None:
    """The words after `kohyakit` that bring the job forward: as queued, or `resume`; None where the run is finished."""
    start = recorded_start(job)
    if start is None or not (job.run / CONFIG).is_file():
        return list(job.words)
    if start.get("exit") == 0:
        return None
    if job.words[0] == "launch" and not states_in(job.run) and last_step(job.run):
        return [*job.words, *(["--overwrite"] if "--overwrite" not in job.words else [])]  # cut off in its first minute
    return ["resume", job.run_folder, "--to-end", *_consent(job.words)]


def _consent(words: tuple[str, ...]) -> list[str]:
    """What no file of a run keeps: the trust that was given on the command line."""
    found = []
    for word, following in itertools.pairwise(words):
        if word == "--trust":
            found += [word, following]
        elif word == "--set" and following.startswith("trust="):
            found += [part for name in following[6:].split() for part in ("--trust", name)]
    return found
