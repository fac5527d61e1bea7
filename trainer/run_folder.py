"""Where one run keeps its files: <output_dir>/<output_name>.run/, and what must not be there before it starts."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from schemas import ConfigError, Problem, TrainConfig
from schemas import config as schema

DEFAULT_NAME = "last"  # the reference's name for the final file when output_name is unset


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

    def refuse_overwriting(self, planned: Iterable[str]) -> None:
        """ConfigError naming every planned result that is already there."""
        there = [name for name in planned if (self.output / name).exists()]
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


def write_text(path: Path, text: str) -> None:
    """Temporary name, flush, fsync, rename: a half-written file is never taken for a whole one."""
    scratch = path.with_name(f".{path.name}.tmp")
    with scratch.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(scratch, path)
