"""Runs, wherever they were started: found by their folders and locks, started as processes that outlive the server."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import DEVNULL, Popen
from typing import Any

from launcher.commands.demo import PACKAGES
from launcher.report.facts import (
    Run,
    last_name,
    read_held_out,
    read_run,
)
from launcher.report.facts import Step as LoggedStep
from launcher.run.files import write_text
from launcher.run.resume import find
from launcher.ui.folders import Folders
from launcher.ui.log import GrowingLog
from schemas.blanking import blanked, without_secrets
from schemas.config import TrainConfig
from schemas.config import read as read_config
from schemas.files.documents import parse_json
from schemas.files.run_folder import CONFIG, LOG, read_record
from schemas.files.run_lock import launcher_lock, trainer_lock
from schemas.files.textfile import open_regular, read_text
from schemas.problems import ConfigError, error

DEEP, MOST_FOLDERS, LOOK_SECONDS = 4, 4000, 1.0  # of the search for run folders
REMEMBERED = 5.0  # seconds that its result is used again
TAIL = 256 * 1024  # bytes of a process's output that are shown
WORDS = {
    "running": "running", "starting": "starting", "finished": "finished", "interrupted": "stopped, state kept",
    "refused": "refused: nothing was trained", "failed": "failed", "killed": "ended without a word",
    "new": "no step yet",
}  # fmt: skip
EXITS = {0: "finished", 1: "refused", 130: "interrupted"}
PASSED_OVER = {"node_modules", "site-packages", "__pycache__", "venv"}
BREAKS = re.compile(r"[\r\n]+")


@dataclass(frozen=True)
class Start:
    """A process that this page has started; it may be over, and the server that started it may be gone."""

    id: str
    run: Path
    words: tuple[str, ...]
    begin: float
    pid: int
    config: str | None
    log: Path


@dataclass(frozen=True)
class Found:
    """A run as it stands now."""

    id: str
    folder: Path
    state: str
    start: Start | None = None
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.folder.name.removesuffix(".run")

    @property
    def exit(self) -> int | None:
        starts = [one for one in self.record.get("starts") or [] if isinstance(one, dict)]
        code = starts[-1].get("exit") if starts else None
        return code if isinstance(code, int) else None

    @property
    def active(self) -> bool:
        return self.state in ("running", "starting")


def run_id(folder: Path) -> str:
    """A run's name in addresses: its own, and a few digits of where it lies."""
    real = os.path.realpath(folder)
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", folder.name.removesuffix(".run"))[:40] or "run"
    return f"{name}-{hashlib.sha256(os.fsencode(real)).hexdigest()[:8]}"


class Runs:
    """Every run in the named folders, and those that this page has started."""

    def __init__(self, hidden: Path, folders: Folders) -> None:
        self.place, self.folders = hidden / "starts", folders
        self._children: dict[int, Popen[bytes]] = {}
        self._logs: dict[Path, GrowingLog] = {}
        self._seen: tuple[float, list[Path]] = (-1e9, [])
        self._lock = threading.Lock()

    # Finding

    def starts(self) -> list[Start]:
        """Newest first."""
        found = [start for path in self.place.glob("*.json") if (start := _read_start(path)) is not None]
        return sorted(found, key=lambda start: -start.begin)

    def all(self) -> list[Found]:
        """Every run: those at work first, then the newest."""
        newest: dict[str, Start] = {}
        for start in self.starts():
            newest.setdefault(os.path.realpath(start.run), start)
        paths = {os.path.realpath(path): path for path in self._run_folders()}
        paths |= {real: start.run for real, start in newest.items()}
        found = [self._found(path, newest.get(real)) for real, path in paths.items()]
        return sorted(found, key=lambda one: (not one.active, -_changed(one)))

    def get(self, name: str) -> Found:
        """ConfigError `no-run`."""
        newest: dict[str, Start] = {}
        for start in self.starts():
            newest.setdefault(run_id(start.run), start)
        if name in newest:
            return self._found(newest[name].run, newest[name])
        for again in (False, True):
            for path in self._run_folders(again=again):
                if run_id(path) == name:
                    return self._found(path, None)
        fix = "see the list of runs on the start page; the folder may have been moved or renamed"
        raise error("no-run", "is no run in the folders that this page was started with", got=name[:80], fix=fix)

    def _run_folders(self, *, again: bool = False) -> list[Path]:
        with self._lock:
            when, found = self._seen
            if again or time.monotonic() - when > REMEMBERED:
                found = list(_walk(self.folders.roots))
                self._seen = time.monotonic(), found
            return found

    def _found(self, folder: Path, start: Start | None) -> Found:
        kept = read_record(folder)
        return Found(run_id(folder), folder, self._state(folder, start, kept), start, kept)

    def _state(self, folder: Path, start: Start | None, kept: dict[str, Any]) -> str:
        busy = launcher_lock(folder).holder() is not None or trainer_lock(folder).holder() is not None
        if busy:
            return "running" if self.log(folder).last is not None or (folder / LOG).is_file() else "starting"
        if start is not None and self._alive(start.pid, start.begin):
            return "starting"
        starts = [one for one in kept.get("starts") or [] if isinstance(one, dict)]
        if start is not None and (not starts or _before(starts[-1], start.begin)):
            return "refused"  # it ended before it could write its record
        if not starts:
            return "new" if not (folder / LOG).is_file() else "killed"
        code = starts[-1].get("exit")
        return "killed" if code is None else EXITS.get(code, "failed") if isinstance(code, int) else "failed"

    def _alive(self, pid: int, since: float) -> bool:
        import psutil

        child = self._children.get(pid)
        if child is not None:
            return child.poll() is None  # asks the system, so that no ended child stays a zombie
        try:
            process = psutil.Process(pid)
            return bool(process.status() != psutil.STATUS_ZOMBIE and process.create_time() < since + 5)
        except psutil.Error:
            return False

    # Reading

    def log(self, folder: Path) -> GrowingLog:
        """Its log, up to date."""
        with self._lock:
            found = self._logs.setdefault(folder, GrowingLog(folder))
        found.update()
        return found

    def about(self, found: Found) -> dict[str, Any]:
        """What a list and the head of its page show; one entry of `/api/runs`."""
        log = self.log(found.folder)
        steps = found.record.get("steps") or {}
        total = steps.get("total") if isinstance(steps, dict) else None
        last, pace = log.last, log.pace()
        done = last.step if last else 0
        left = pace * (total - done) if pace and isinstance(total, int) and found.active else None
        words = WORDS[found.state]
        if found.state == "failed":
            words = f"failed with exit code {found.exit}"
        return {
            "id": found.id,
            "name": found.name,
            "folder": str(found.folder),
            "output": str(found.folder.parent),
            "state": found.state,
            "words": words,
            "step": done,
            "total": total,
            "epoch": last.epoch if last else None,
            "epochs": steps.get("epochs") if isinstance(steps, dict) else None,
            "loss": last.loss if last and last.loss == last.loss and abs(last.loss) < 1e30 else None,
            "seconds_left": left,
            "images_per_second": _images(found, steps) / pace if pace else None,
            "memory": last.memory if last and last.memory == last.memory else None,
            "config": found.start.config if found.start else None,
            "begin": found.start.begin if found.start else _changed(found),
            "family": found.record.get("family"),
        }

    def config(self, found: Found) -> TrainConfig | None:
        """What it trains by, where that can be read."""
        try:
            return read_config(found.folder / CONFIG)[0]
        except ConfigError:
            return None

    def results(self, found: Found) -> Run | None:
        """Its saved files and previews; None before the first step."""
        last = self.log(found.folder).last
        try:
            steps: list[LoggedStep] = [last] if last is not None else []
            return read_run(find(str(found.folder)), str(found.folder), steps)
        except (ConfigError, OSError):
            return None

    def held_out(self, found: Found) -> dict[int, float]:
        """Step -> loss on the images that are held out."""
        return {step: loss for step, loss in read_held_out(found.folder).items() if loss == loss and abs(loss) < 1e30}

    def output(self, found: Found, lines: int = 400, wanted: str = "") -> list[str]:
        """The last lines of its process's output, secrets blanked; of a progress bar its newest state."""
        if found.start is None:
            return []
        try:
            with open_regular(found.start.log, what="output of a run") as stream:
                stream.seek(0, 2)
                stream.seek(max(0, stream.tell() - TAIL))
                text = stream.read().decode("utf-8", "replace")
        except ConfigError:
            return []
        found_lines = [without_secrets(one.rstrip()) for one in BREAKS.split(text) if one.strip()]
        needle = wanted.lower()
        return [one for one in found_lines if needle in one.lower()][-lines:]

    # Doing

    def start(self, words: Sequence[str], run: Path, config: str | None = None) -> Start:
        """Starts `kohyakit WORDS` in a session of its own: it goes on when this server, or its terminal, ends."""
        begin = time.time()
        name = f"{time.strftime('%Y%m%d-%H%M%S', time.localtime(begin))}-{os.getpid()}-{threading.get_ident() % 997}"
        self.place.mkdir(parents=True, exist_ok=True)
        log = self.place / f"{name}.log"
        log.touch()
        path = os.pathsep.join([str(PACKAGES), *filter(None, [os.environ.get("PYTHONPATH")])])
        variables = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
        handle = os.open(log, os.O_WRONLY | os.O_APPEND)
        try:
            child = Popen(
                [sys.executable, "-P", "-m", "launcher", *words],
                stdin=DEVNULL,
                stdout=handle,
                stderr=handle,
                env=variables,
                **detached(),
            )
        finally:
            os.close(handle)
        self._children[child.pid] = child
        kept = {
            "run": os.path.abspath(run),
            "words": blanked(list(words)),
            "begin": begin,
            "pid": child.pid,
            "config": config,
        }
        write_text(self.place / f"{name}.json", json.dumps(kept))
        return Start(name, Path(os.path.abspath(run)), tuple(words), begin, child.pid, config, log)

    def stop(self, found: Found) -> None:
        """Asks it to end: it finishes its step and saves its state. A second wish, seconds later, ends it at once."""
        said = launcher_lock(found.folder).holder()
        pids = [pid for pid in (said or {}).get("pids") or [] if isinstance(pid, int)]
        if said is not None and said.get("host") != socket.gethostname():
            must = f"runs on another machine, {last_name(str(said.get('host')))}"
            raise error("other-machine", must, got=found.name, fix="stop it there")
        if said is None and found.start is not None and self._alive(found.start.pid, found.start.begin):
            pids = [found.start.pid]
        if not pids:
            raise error("not-running", "is not running", got=found.name, fix="see its state; resume goes on with it")
        for pid in pids:
            try:
                os.kill(pid, signal.SIGINT)
            except (ProcessLookupError, PermissionError):
                continue

    def keep(self, found: Found, file: str) -> Path:
        """A saved LoRA copied into `kept/` beside the results, under its own name; nothing there is overwritten."""
        results = self.results(found)
        chosen = next((one for one in (results.copies if results else ()) if one.path.name == file), None)
        if chosen is None:
            raise error("no-file", "is no saved file of this run", got=file[:120], fix="choose one of the list")
        folder = found.folder.parent / "kept"
        place, number = folder / chosen.path.name, 1
        while place.exists():
            if place.stat().st_size == chosen.size and _same(place, chosen.path):
                return place
            number += 1
            place = folder / f"{chosen.path.stem}-{number}{chosen.path.suffix}"
        _copy(chosen.path, place)
        return place

    def seconds_a_step(self, family: str | None, config: TrainConfig) -> float | None:
        """From the newest run of the same family, size and batch on this machine that has left a log."""
        for one in self.all()[:20]:
            if one.record.get("family") != family or family is None:
                continue
            other = self.config(one)
            alike = (
                "train_batch_size",
                "resolution",
                "gradient_checkpointing",
                "network_train_unet_only",
                "mixed_precision",
            )
            if other is not None and all(getattr(other, name) == getattr(config, name) for name in alike):
                pace = self.log(one.folder).pace()
                if pace:
                    return pace
        return None


def detached() -> dict[str, Any]:
    """Options of a process that goes on when this one, or its terminal, ends."""
    if os.name == "posix":
        return {"start_new_session": True}
    return {"creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)}


def _read_start(path: Path) -> Start | None:
    try:
        kept = parse_json(read_text(path, limit=2**20, what="record of a start"))
        run, pid = Path(kept["run"]), int(kept["pid"])
        words = tuple(str(word) for word in kept["words"])
        return Start(path.stem, run, words, float(kept["begin"]), pid, kept.get("config"), path.with_suffix(".log"))
    except (ConfigError, ValueError, KeyError, TypeError):
        return None


def _walk(roots: Sequence[Path]) -> Iterator[Path]:
    """Run folders below the roots, not deeper than people put them, and not for long."""
    end, count = time.monotonic() + LOOK_SECONDS, 0
    level = list(dict.fromkeys(roots))
    seen: set[str] = set()
    for _ in range(DEEP + 1):
        below: list[Path] = []
        for folder in level:
            count += 1
            if count > MOST_FOLDERS or time.monotonic() > end:
                return
            try:
                entries = sorted(
                    (one for one in os.scandir(folder) if one.is_dir(follow_symlinks=False)), key=lambda one: one.name
                )
            except OSError:
                continue
            for entry in entries:
                if entry.name.endswith(".run"):
                    real = os.path.realpath(entry.path)
                    if real not in seen and (Path(entry.path) / CONFIG).is_file():
                        seen.add(real)
                        yield Path(entry.path)
                elif not entry.name.startswith(".") and entry.name not in PASSED_OVER:
                    below.append(Path(entry.path))
        level = below


def _changed(found: Found) -> float:
    try:
        return max(found.start.begin if found.start else 0.0, (found.folder / CONFIG).stat().st_mtime)
    except OSError:
        return found.start.begin if found.start else 0.0


def _before(start: dict[str, Any], begin: float) -> bool:
    """Whether a start of the record is older than `begin`."""
    import datetime

    try:
        return datetime.datetime.fromisoformat(str(start.get("begin"))).timestamp() < begin - 1
    except ValueError:
        return False


def _images(found: Found, steps: Any) -> float:
    """Images of one step."""
    options = found.record.get("options") or {}
    batch = options.get("train_batch_size", 1) if isinstance(options, dict) else 1
    summed = options.get("gradient_accumulation_steps", 1) if isinstance(options, dict) else 1
    processes = steps.get("processes", 1) if isinstance(steps, dict) else 1
    try:
        return float(batch) * float(summed) * float(processes or 1)
    except (TypeError, ValueError):
        return 1.0


def _same(one: Path, other: Path) -> bool:
    with open_regular(one, what="LoRA file") as left, open_regular(other, what="LoRA file") as right:
        while piece := left.read(2**20):
            if piece != right.read(2**20):
                return False
    return True


def _copy(source: Path, target: Path) -> None:
    import shutil

    from schemas.files.writing import write_atomically

    with open_regular(source, what="LoRA file") as stream:
        write_atomically(target, lambda out: shutil.copyfileobj(stream, out))
