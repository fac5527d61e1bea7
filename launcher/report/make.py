"""From a path to a written report."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from launcher.report.advice import (
    Suggestion,
    Trend,
    advise,
    trend,
)
from launcher.report.data import NOTHING, data_of
from launcher.report.facts import Run, read_run
from launcher.report.sheet import (
    Embedded,
    embed,
    fitting,
    moments,
)
from launcher.report.write import (
    MARK,
    Page,
    page,
    state,
)
from launcher.run.files import write_text
from launcher.run.resume import find
from schemas.files.textfile import open_regular
from schemas.problems import ConfigError, error


@dataclass(frozen=True)
class Report:
    """What was written and what it says; the commands here name files as seen from the current folder."""

    path: Path
    run: Run
    trend: Trend | None
    pictures: Embedded
    suggestions: list[Suggestion]

    def as_json(self) -> dict[str, Any]:
        """The document of `report --json`."""
        run, change = self.run, self.trend
        return {
            "ok": True,
            "report": str(self.path),
            "run_folder": str(run.folder),
            "state": state(run),
            "steps": {"last": run.last.step, "total": run.total, "epoch": run.last.epoch},
            "loss": {
                "first": finite(run.steps[0].loss),
                "last": finite(run.last.loss),
                "trend": {"before": change.before, "after": change.after, "word": change.word} if change else None,
            },
            "looks": run.looks,
            "held_out": [{"step": step, "loss": finite(loss)} for step, loss in run.held_out.items()],
            "files": [
                {"file": str(copy.path), "step": copy.step, "epoch": copy.epoch, "bytes": copy.size}
                for copy in run.copies
            ],
            "previews": {"found": len(run.previews), "embedded": self.pictures.shown, "bytes": self.pictures.size},
            "suggestions": [said.as_json() for said in self.suggestions],
            "problems": [],
        }


def finite(value: float) -> float | None:
    """JSON has no word for NaN and infinity."""
    return value if value - value == 0 else None


def make_report(given: str, output: Path | None = None, *, images: bool = True) -> Report:
    """Reads the run that `given` names and writes its page; an older report is replaced, any other file is not."""
    found = find(given)
    run = read_run(found, given)
    path = output or run.folder / "report.html"
    _refuse_strangers(path)
    every = moments(run)
    columns = fitting(every)
    pictures = embed(preview for column in columns for preview in column.previews.values())
    health = _health(run)
    base, typed_in = _base(run)
    change = trend([step.loss for step in run.steps])
    shown = Page(run, every, columns, pictures, change, advise(run, base, health), typed_in,
                 data_of(run) if images else NOTHING)  # fmt: skip
    try:
        write_text(path, page(shown))
    except OSError as fault:
        fix = "-o OUT.html in a folder that you may write to"
        raise error("not-writable", f"cannot be written: {fault.strerror}", file=str(path), fix=fix) from None
    return Report(path, run, change, pictures, advise(run, run.output, health))


def _refuse_strangers(path: Path) -> None:
    """A file that is no report of ours stays."""
    if path.is_dir():
        raise error("file-exists", "is a folder", file=str(path), fix="name a file, such as report.html")
    if not path.absolute().parent.is_dir():
        raise error("no-folder", "is in a folder that does not exist", file=str(path), fix="make it first")
    if path.exists():
        with open_regular(path, what="report") as stream:
            if stream.read(len(MARK)) != MARK.encode():
                raise error("file-exists", "exists already and is no report", file=str(path), fix="another name")


def _health(run: Run) -> Mapping[str, Any] | None:
    """Soundness of the newest weights; None where there are none that can be read."""
    from launcher.about.inspect import health
    from schemas.files.weights import read_header

    if not run.copies or run.copies[-1].path.suffix != ".safetensors":
        return None
    try:
        return health(read_header(run.copies[-1].path)).as_json()
    except (ConfigError, OSError, ValueError):
        return None


def _base(run: Run) -> tuple[PurePath, str]:
    """The folder of the results as the page's commands name it, without folders above, and where they are typed."""
    try:
        below = PurePath(os.path.relpath(run.output))
    except ValueError:  # another drive
        below = PurePath("..")
    if ".." not in below.parts:
        return below, "The commands are typed in the folder in which this report was asked for."
    return PurePath(), f"The commands are typed in the folder of the results, {run.output.absolute().name}."
