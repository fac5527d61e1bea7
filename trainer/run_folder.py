"""Where one run keeps its files: <output_dir>/<output_name>.run/, and what must not be there before it starts."""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import sys
import time
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from schemas import ConfigError, Problem, TrainConfig
from schemas import config as schema
from schemas.writing import TEMPORARY, remove, sweep, write_atomically

DEFAULT_NAME = "last"  # the reference's name for the final file when output_name is unset
LOCK = ".lock"  # there while a run is under way: who works on it
IDLE_SECONDS = 60.0  # a cache file half written for longer has lost its writer, wherever that one ran
OLDER = re.compile(r"\.(?P<name>.+?)(?:\.(?P<pid>\d+))?\.(?:tmp|partial)")  # names that do not tell the machine


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run. Nothing is created before `open`."""

    output: Path
    name: str

    @classmethod
    def of(cls, config: TrainConfig) -> RunFolder:
        return cls(Path(str(config.output_dir)), config.output_name or DEFAULT_NAME)

    @property
    def path(self) -> Path:
        return self.output / f"{self.name}.run"

    @property
    def log(self) -> Path:
        return self.path / "log.jsonl"

    @property
    def samples(self) -> Path:
        return self.output / "sample"

    def refuse_overwriting(self, planned: Iterable[str], states: Sequence[Path]) -> None:
        """ConfigError naming every planned result that is already there, and states that could be gone on from."""
        names = set(os.listdir(self.output)) if self.output.is_dir() else set()
        there = [name for name in planned if name in names]
        there += [f"{self.path.name}/{state.name}" for state in states]
        if there:
            raise ConfigError(
                [
                    Problem(
                        code="results-exist",
                        key="output_name",
                        got=", ".join(there[:5]),
                        must=f"already has results in {self.output}",
                        fix="choose another --output_name, continue with `kohyakit resume`, or give --overwrite",
                    )
                ]
            )

    def open(self, config: TrainConfig) -> None:
        """Makes the folder and keeps the config there, unless the launcher has put the same one there already."""
        self.path.mkdir(parents=True, exist_ok=True)
        kept = self.path / "config.toml"
        if not kept.is_file():
            write_text(kept, schema.write(config))

    def sweep(self, pictures: Iterable[Path], before: Sequence[int]) -> None:
        """Removes the temporary files of earlier starts that were killed, in this folder and beside the pictures.

        Whoever calls this holds the lock, so temporary results of this run's name are nobody's. Elsewhere other runs
        may be writing: there a file goes whose process has ended. Under the names of earlier versions it goes if a
        process of this run's last start (`before`) made it, or if nobody has touched it for a while.
        """
        folders = {picture.parent for picture in pictures}
        sweep([self.output, self.path, self.samples, *folders])
        base = re.escape(self.name)
        ours = re.compile(rf"\.{base}(-\d{{6}}|-step\d{{8}})?\.(safetensors|ckpt|pt)\.\d+\.tmp")
        half = [path for path in _files(self.output) if ours.fullmatch(path.name)]
        for path in _files(self.path):
            if OLDER.fullmatch(path.name) or TEMPORARY.fullmatch(path.name) or path.name == "log.tmp":
                half.append(path)
        shown = re.compile(rf"({base}_)?e?\d{{6}}_\d\d_\d{{14}}(_\d+)?\.tmp")
        half += [path for path in _files(self.samples) if shown.fullmatch(path.name)]
        for folder in folders:
            for path in _files(folder):
                match = OLDER.fullmatch(path.name)
                if match and match["pid"] and match["name"].endswith(".npz"):
                    if int(match["pid"]) in before or _idle(path, int(match["pid"])):
                        half.append(path)
        for path in half:
            remove(path)


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []


def _idle(path: Path, pid: int) -> bool:
    try:
        return not psutil.pid_exists(pid) and time.time() - path.stat().st_mtime > IDLE_SECONDS
    except OSError:
        return False


class Lock:
    """Keeps a second trainer out of a run folder; a killed one's lock opens by itself.

    The system lets go of it with the process; where the file system knows no locks there is none.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK
        self._release: weakref.finalize[..., Lock] | None = None

    def take(self, pids: Sequence[int]) -> list[int]:
        """The processes of the last start if that was killed on this machine; ConfigError while it still runs."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        stream = self._path.open("a+", encoding="utf-8")
        stream.seek(0)
        text = stream.read()
        try:
            said = json.loads(text or "{}")
        except ValueError:
            said = {}
        if not _locked(stream):
            stream.close()
            raise ConfigError(
                [
                    Problem(
                        code="run-in-use",
                        key="output_name",
                        got=str(self._path.parent),
                        must=f"is being trained by process {said.get('pids', ['?'])[0]} on {said.get('host', '?')}",
                        fix="wait for it or stop it, or choose another --output_name",
                    )
                ]
            )
        self._release = weakref.finalize(self, _free, self._path, stream, os.getpid())
        stream.truncate(0)
        stream.write(json.dumps({"host": socket.gethostname(), "pids": list(pids)}))
        stream.flush()
        here = said.get("host") == socket.gethostname()
        return [int(pid) for pid in said.get("pids", []) if here and pid not in pids]

    def free(self) -> None:
        """The work is over, well or not: nothing is left of the lock."""
        if self._release is not None:
            self._release()


def _free(path: Path, stream: IO[str], owner: int) -> None:
    if os.getpid() != owner:  # a data worker, which has only inherited it
        return
    if sys.platform == "win32":  # an open file cannot be removed there
        stream.close()
    path.unlink(missing_ok=True)
    stream.close()


def _locked(stream: IO[str]) -> bool:
    """Whether the lock is ours now; True as well where locks are not to be had."""
    if sys.platform == "win32":
        import msvcrt

        stream.seek(0x7FFFFFF)  # a place beyond the text, which stays readable
        try:
            msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock: data workers would inherit it and outlive us
    except OSError as fault:  # anything else than "taken": not every network file system has locks
        return fault.errno not in (errno.EACCES, errno.EAGAIN)
    return True


def write_text(path: Path, text: str) -> None:
    """UTF-8, whole or not at all."""
    write_atomically(path, lambda stream: stream.write(text.encode("utf-8")))
