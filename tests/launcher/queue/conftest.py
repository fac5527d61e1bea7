"""A queue whose runs are pretended: what each start leaves and how it ends is told to it."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.queue import devices, runner
from launcher.queue.devices import CPU, Slot
from launcher.queue.folder import Queue
from launcher.queue.jobs import Job
from launcher.queue.runner import Runner
from launcher.run import record
from tests.launcher.conftest import add_state


class Child:
    """A started run: lives until `end` gives it its exit code."""

    numbers = iter(range(10**6, 2 * 10**6))

    def __init__(self, words: list[str], folder: Path, cwd: str, environment: dict[str, str]) -> None:
        self.words, self.folder, self.cwd, self.environment = words, folder, cwd, environment
        self.pid = next(self.numbers)
        self.returncode: int | None = None
        self.signals = 0

    def poll(self) -> int | None:
        return self.returncode

    def begin(self, run: Path, step: int = 4) -> None:
        """What a run leaves once it trains: config, record, a line a step, a state."""
        run.mkdir(parents=True, exist_ok=True)
        (run / "config.toml").write_text("seed = 1\n", encoding="utf-8")
        kept = json.loads((run / "run.json").read_text()) if (run / "run.json").exists() else {"starts": []}
        kept["starts"].append({"begin": record.now(), "end": None, "exit": None})
        (run / "run.json").write_text(json.dumps(kept), encoding="utf-8")
        with (run / "log.jsonl").open("a") as log:
            log.write(json.dumps({"step": step}) + "\n")
        if not (run / f"state-{step:08d}").exists():
            add_state(run, step)

    def end(self, code: int, run: Path | None = None, **document: Any) -> None:
        (self.folder / "result.json").write_text(json.dumps({"ok": code == 0, "exit": code, **document}))
        if run is not None and (run / "run.json").exists():
            kept = json.loads((run / "run.json").read_text())
            kept["starts"][-1]["exit"] = code
            (run / "run.json").write_text(json.dumps(kept), encoding="utf-8")
        self.returncode = code


class Machine:
    """The runs that were started, the GPUs that answer, and a disk that may be full."""

    def __init__(self) -> None:
        self.children: list[Child] = []
        self.gpus: dict[str, Slot] = {}

    def start(self, words: list[str], folder: Path, cwd: str, environment: dict[str, str]) -> Child:
        self.children.append(Child(words, folder, cwd, environment))
        return self.children[-1]

    @property
    def last(self) -> Child:
        return self.children[-1]

    def born(self, pid: int) -> float | None:
        return 1.0 if any(child.pid == pid and child.returncode is None for child in self.children) else None

    def signal(self, pid: int, number: int) -> None:
        for child in self.children:
            child.signals += child.pid == pid


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Machine:
    found = Machine()
    monkeypatch.setattr(runner, "_child", found.start)
    monkeypatch.setattr(runner, "_born", found.born)
    monkeypatch.setattr(devices, "present", lambda: dict(found.gpus))
    monkeypatch.setattr("os.kill", found.signal)
    return found


@pytest.fixture
def queue(tmp_path: Path) -> Queue:
    return Queue.at(tmp_path / "queue")


@pytest.fixture
def put(queue: Queue, tmp_path: Path) -> Callable[..., Job]:
    """Queues a run that nobody looks into; its file is a real one."""

    def one(name: str, **facts: Any) -> Job:
        from launcher.queue.add import fingerprint

        file = tmp_path / f"{name}.toml"
        file.write_text(f'output_name = "{name}"\n', encoding="utf-8")
        given: dict[str, Any] = {
            "words": ("launch", str(file)), "cwd": str(tmp_path), "run_folder": str(tmp_path / "out" / f"{name}.run"),
            "fingerprint": fingerprint(str(file)), **facts,
        }  # fmt: skip
        return queue.add(Job(id=0, file=str(file), place=0, added=record.now(), **given))

    return one


class Told(list[str]):
    """What a runner says."""

    def __call__(self, line: str) -> None:
        self.append(line)

    @property
    def text(self) -> str:
        return "\n".join(self)


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def work(queue: Queue, pretended: Machine, told: Told) -> Callable[..., Runner]:
    """A runner on a CPU, or on the slots given."""
    return lambda *slots, **words: Runner(queue, list(slots) or [Slot(CPU)], told, **words)


def full_disk(*words: Any, **more: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "queue/0001/job.json")
