"""The queue's folder: `queue.json`, and one folder a job with its file, its log and its result. Locks and order."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launcher.queue.jobs import OPEN, Job, job_in
from launcher.run.files import write_json
from schemas.files.run_folder import read_object, same_place
from schemas.files.run_lock import Lock
from schemas.files.writing import remove, sweep
from schemas.problems import ConfigError, error

HEAD, JOB, LOG, RESULT = "queue.json", "job.json", "log.txt", "result.json"
CHANGES, RUNNER = ".changes.lock", ".runner.lock"
PATIENCE = 10.0  # seconds that a change waits for another one; a change takes milliseconds
_threads = threading.Lock()  # the file lock is of the process: two threads of one would both have it


@dataclass(frozen=True)
class Damaged:
    """A job whose file cannot be read; it is listed, and neither run nor removed by itself."""

    id: int
    path: Path
    reason: str


def default_folder() -> Path:
    """Where the queue of this user lies."""
    if sys.platform == "win32":
        home = os.environ.get("LOCALAPPDATA") or os.path.expanduser(r"~\AppData\Local")
    elif sys.platform == "darwin":
        home = os.path.expanduser("~/Library/Application Support")
    else:
        home = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(home) / "kohyakit" / "queue"


@dataclass(frozen=True)
class Queue:
    """A queue in a folder. Every change is made under its lock and written whole or not at all."""

    path: Path

    @classmethod
    def at(cls, folder: Path | None) -> Queue:
        """ConfigError `not-a-folder` where a file has that name."""
        path = (folder or default_folder()).absolute()
        if path.exists() and not path.is_dir():
            raise error("not-a-folder", "is a file, not a folder", file=str(path), fix="--queue DIR with another name")
        strange = path.is_dir() and not (path / HEAD).exists() and any(not _own(one.name) for one in path.iterdir())
        if strange:
            raise error("not-a-queue", "holds other files, and no queue", file=str(path), fix="--queue NEW_FOLDER")
        return cls(path)

    # Reading

    def head(self) -> dict[str, Any]:
        """Of the whole queue: the last id given, whether it is paused, whether its runner is to stop."""
        held = read_object(self.path / HEAD)
        last = held.get("last_id")
        numbers = [number for number, _ in self._folders()]
        return {
            "last_id": max([last if type(last) is int else 0, *numbers]),
            "paused": held.get("paused") is True,
            "stop_asked": held.get("stop_asked") is True,
            "stopped": held.get("stopped") if isinstance(held.get("stopped"), str) else None,
        }

    def entries(self) -> list[Job | Damaged]:
        """Every job in the order of the queue; damaged ones last."""
        jobs: list[Job] = []
        damaged: list[Damaged] = []
        for number, folder in self._folders():
            job = job_in(read_object(folder / JOB))
            if isinstance(job, str):
                damaged.append(Damaged(number, folder / JOB, job))
            else:
                jobs.append(replace(job, id=number))
        return [*sorted(jobs, key=lambda job: (job.place, job.id)), *damaged]

    def jobs(self) -> list[Job]:
        return [entry for entry in self.entries() if isinstance(entry, Job)]

    def job(self, number: int) -> Job:
        """ConfigError `no-such-job`, `job-damaged`."""
        for entry in self.entries():
            if entry.id == number and isinstance(entry, Job):
                return entry
            if entry.id == number and isinstance(entry, Damaged):
                raise error("job-damaged", entry.reason, file=str(entry.path), fix=f"kohyakit queue remove {number}")
        numbers = ", ".join(str(job.id) for job in self.jobs()) or "none"
        raise error("no-such-job", f"is not in the queue, which has: {numbers}", got=number, fix="kohyakit queue list")

    def folder(self, number: int) -> Path:
        return self.path / f"{number:04d}"

    def _folders(self) -> list[tuple[int, Path]]:
        try:
            names = sorted(os.listdir(self.path))
        except OSError:
            return []
        return [(int(name), self.path / name) for name in names if name.isdecimal() and (self.path / name).is_dir()]

    # Changing

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Nobody else changes the queue meanwhile. ConfigError `queue-busy` where another change does not end."""
        lock, until = Lock(self.path / CHANGES), time.monotonic() + PATIENCE
        with _threads:
            while lock.take([os.getpid()]) is None:
                if time.monotonic() > until:
                    said = f"is being changed by another process for more than {PATIENCE:g} seconds"
                    raise error("queue-busy", said, file=str(self.path), fix="try again")
                time.sleep(0.02)
            try:
                yield
            finally:
                lock.free()

    def save(self, job: Job) -> Job:
        write_json(self.folder(job.id) / JOB, job.as_file())
        return job

    def set_head(self, **changes: Any) -> None:
        write_json(self.path / HEAD, {**self.head(), **changes})

    def add(self, job: Job, *, first: bool = False) -> Job:
        """Puts a job at the end, or before all others, under a number that no job had before."""
        with self.changing():
            for other in self.jobs():
                if other.state in OPEN and same_place(Path(other.run_folder), Path(job.run_folder)):
                    said = f"is already queued as {other.id}"
                    fix = f"kohyakit queue remove {other.id}, or --set output_name=NAME for a second run"
                    raise error("already-queued", said, key="output_name", got=job.run_folder, fix=fix)
            number = self.head()["last_id"] + 1
            self.set_head(last_id=number)
            places = [other.place for other in self.jobs()]
            place = min(places, default=1) - 1 if first else max(places, default=0) + 1
            return self.save(replace(job, id=number, place=place))

    def move(self, number: int, *, before: int | None = None, first: bool = False) -> Job:
        """To the front, before another job, or else to the end."""
        with self.changing():
            job = self.job(number)
            others = [other.place for other in self.jobs() if other.id != number]
            if first:
                place = min(others, default=1) - 1
            elif before is not None:
                behind = self.job(before).place
                ahead = max((place for place in others if place < behind), default=behind - 2)
                place = (ahead + behind) / 2
            else:
                place = max(others, default=0) + 1
            return self.save(replace(job, place=place))

    def remove(self, number: int) -> None:
        """Takes a job out; its run, results and states stay. ConfigError while it runs."""
        with self.changing():
            folder = self.folder(number)
            if not folder.is_dir():
                self.job(number)
            if any(job.id == number and job.state == "running" for job in self.jobs()):
                raise error("job-running", "is running", got=number, fix=f"kohyakit queue pause {number}, then remove")
            self.set_head(last_id=self.head()["last_id"])  # its number is not given again
            remove(folder)

    def runner_lock(self) -> Lock:
        """Held by the one process that starts the queue's runs. Never to be looked at by the process that has it."""
        return Lock(self.path / RUNNER)

    def hold_for_runner(self) -> Lock:
        """ConfigError `queue-in-use` while another process works on this queue."""
        lock = self.runner_lock()
        if lock.take([os.getpid()]) is None:
            raise self.in_use(read_object(lock.path))
        sweep([self.path, *(folder for _, folder in self._folders())])
        return lock

    def in_use(self, said: dict[str, Any]) -> ConfigError:
        process = next(iter(said.get("pids") or []), "?")
        what = f"is being worked on by process {process} on {said.get('host', '?')}; nothing was started twice"
        fix = "what is added here is run by that process; --queue DIR for a queue of its own"
        return error("queue-in-use", what, file=str(self.path), fix=fix)


def _own(name: str) -> bool:
    return name.isdecimal() or name.startswith(".") or name == HEAD
