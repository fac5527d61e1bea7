"""Where one run keeps its files: <output_dir>/<output_name>.run/, and what must not be there before it starts."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from schemas import ConfigError, Problem, TrainConfig
from schemas import config as schema
from schemas.files.run_folder import CONFIG, LOG
from schemas.files.writing import (
    TEMPORARY,
    remove,
    sweep,
    write_atomically,
)

DEFAULT_NAME = "last"  # the reference's name for the final file when output_name is unset
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
        return self.path / LOG

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
        kept = self.path / CONFIG
        if not kept.is_file() or not os.environ.get("KOHYAKIT_LAUNCHED"):
            write_text(kept, schema.write(replace(config, trust=())))  # consent is no file's to give

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


def write_text(path: Path, text: str) -> None:
    """UTF-8, whole or not at all."""
    write_atomically(path, lambda stream: stream.write(text.encode("utf-8")))
