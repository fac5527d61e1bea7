"""What a run has left, read for its report: log, record, saved files, previews, prompts. Changes nothing."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any

from launcher.check.data import PROMPTS
from launcher.check.paths import DEFAULT_NAME
from launcher.run.resume import Found
from schemas.argument import whole_of
from schemas.config import TrainConfig, read, table
from schemas.files import run_folder
from schemas.files.run_folder import read_record
from schemas.files.saved_names import SAVED
from schemas.problems import ConfigError, error
from trainer.plan.marks import read_preview_name

RUN_OF_DIGITS = re.compile(r"\D")
SELF_STOPPED = 3  # exit code of a run that failed, as opposed to one that was refused or interrupted


@dataclass(frozen=True)
class Step:
    """One line of log.jsonl; a loss that is no number is NaN. Seconds of the step, memory in bytes."""

    step: int
    epoch: int
    loss: float
    lr: dict[str, float]
    seconds: float
    memory: float
    images_per_second: float = math.nan
    mfu: float = math.nan


@dataclass(frozen=True)
class Copy:
    """A saved LoRA; `step` is the update after which it was written."""

    path: Path
    step: int
    epoch: int | None
    size: int


@dataclass(frozen=True)
class Preview:
    """A picture of sample/; `epoch` is None where it was made at a step that is no epoch's end."""

    path: Path
    index: int
    step: int
    epoch: int | None


@dataclass(frozen=True)
class Run:
    """A run folder and what belongs to it. `name` is the base name of the weights."""

    name: str
    folder: Path
    output: Path
    config: TrainConfig
    record: dict[str, Any]
    steps: list[Step]
    copies: list[Copy]
    previews: list[Preview]
    prompts: list[str]
    held_out: dict[int, float]  # step -> loss on the images that are held out

    @property
    def last(self) -> Step:
        return self.steps[-1]

    @property
    def total(self) -> int:
        """Planned updates; those made, where no plan is known."""
        return int((self.record.get("steps") or {}).get("total") or self.last.step)

    @property
    def per_epoch(self) -> int:
        """Updates in one whole epoch."""
        planned = (self.record.get("steps") or {}).get("updates_per_epoch")
        return max(1, int(planned or math.ceil(self.last.step / max(1, self.last.epoch))))

    def epoch_end(self, epoch: int) -> int:
        return min(epoch * self.per_epoch, max(self.total, self.last.step))

    def epoch_of(self, step: int) -> int:
        """The epoch, from 1, that an update belongs to."""
        return max(1, math.ceil(step / self.per_epoch))

    @property
    def starts(self) -> list[dict[str, Any]]:
        return [start for start in self.record.get("starts") or [] if isinstance(start, dict)]

    @property
    def exit(self) -> int | None:
        """Exit code of the last start; None while it runs, or when it was killed together with its launcher."""
        code = self.starts[-1].get("exit") if self.starts else 0
        return code if isinstance(code, int) else None

    @property
    def cause(self) -> dict[str, Any]:
        """Why the trainer ended the last start over a number that is not finite, as it has recorded it; else empty."""
        kept = self.starts[-1].get("cause") if self.starts else None
        return kept if isinstance(kept, dict) else {}

    @property
    def stopped_itself(self) -> bool:
        """Whether the trainer ended the run over a number that is not finite: it then saves the step it stands at."""
        if self.cause:
            return True
        period = self.config.save_every_n_steps
        planned = bool(period) and self.last.step % (period or 1) == 0
        rescued = any(copy.path.stem == f"{self.name}-step{self.last.step:08d}" for copy in self.copies)
        return self.exit == SELF_STOPPED and rescued and not planned

    @property
    def looks(self) -> float | None:
        """How often a picture has been looked at, on average; regularisation pictures do not count."""
        data = self.record.get("dataset") or {}
        if not data.get("images") or not data.get("repeats"):
            return None
        return float(self.last.step / self.per_epoch * data["repeats"] / data["images"])

    @property
    def family(self) -> str | None:
        family = self.record.get("family")
        return family if isinstance(family, str) else None


def read_run(found: Found, given: str, steps: list[Step] | None = None) -> Run:
    """The run behind a path; ConfigError `no-run` without its folder, `no-log` before its first step.

    `steps` are those of its log, where the caller has read them already; the newest one is enough for the results.
    """
    if found.run is None:
        fix = "name the run folder; of a LoRA alone, kohyakit inspect shows what it says of itself"
        raise error("no-run", "has no run folder beside it", file=given, fix=fix)
    steps = read_log(found.run / "log.jsonl") if steps is None else steps
    if not steps:
        fix = "it begins with the first step; kohyakit launch or kohyakit resume starts the training"
        raise error("no-log", "has no step yet, so there is nothing to report", file=str(found.run), fix=fix)
    config, _ = read(found.run / "config.toml")
    kept = read_record(found.run)
    prompts, held_out = _prompts(found.run, config), read_held_out(found.run)
    bare = Run(found.name, found.run, found.output, config, kept, steps, [], [], prompts, held_out)
    copies = sorted(_copies(bare), key=lambda copy: (copy.step, copy.path.name))
    pictures = sorted(_previews(bare), key=lambda picture: (picture.step, picture.index))
    return replace(bare, copies=copies, previews=pictures)


def read_log(path: Path) -> list[Step]:
    """Every whole record in the order of steps; of one that stands there twice, the later."""
    found = {entry["step"]: step_of(entry) for entry in run_folder.read_log(path.parent)}
    return [found[step] for step in sorted(found)]


def read_held_out(folder: Path) -> dict[int, float]:
    """Step -> loss on the held-out images, in the order of steps; empty where nothing was measured."""
    found = {entry["step"]: _number(entry.get("loss")) for entry in run_folder.read_log(folder, run_folder.VALIDATION)}
    return {step: found[step] for step in sorted(found)}


def step_of(entry: dict[str, Any]) -> Step:
    """One record of the log; what is no number in it is NaN."""
    rates = entry.get("lr") if isinstance(entry.get("lr"), dict) else {}
    return Step(
        entry["step"],
        entry["epoch"] if isinstance(entry.get("epoch"), int) and 0 < entry["epoch"] <= run_folder.MOST_STEPS else 1,
        _number(entry.get("loss")),
        {str(name): _number(rate) for name, rate in (rates or {}).items()},
        _number(entry.get("seconds")),
        _number(entry.get("memory")),
        _number(entry.get("images_per_second")),
        _number(entry.get("mfu")),
    )


def _number(value: Any) -> float:
    try:
        return float(value) if isinstance(value, (int, float)) else math.nan
    except OverflowError:
        return math.nan


def _copies(run: Run) -> Iterator[Copy]:
    """The weights of this name; the name tells the moment, the header what the name does not."""
    for path in run.output.iterdir():
        match = SAVED.fullmatch(path.name)
        if match is None or match["name"] != run.name or match["beside"] or not path.is_file():
            continue
        mark = match["copy"] or ""
        stated = _stated(path)
        if mark.startswith("-step"):
            step, epoch = int(mark[5:]), stated["ss_epoch"] + 1 if "ss_epoch" in stated else None  # epochs done before
        elif mark:
            epoch = int(mark[1:])
            step = stated.get("ss_steps", 0) if stated.get("ss_epoch") == epoch else run.epoch_end(epoch)
        else:
            step, epoch = stated.get("ss_steps", run.last.step), stated.get("ss_epoch")
        yield Copy(path, step, epoch, path.stat().st_size)


def _stated(path: Path) -> dict[str, int]:
    from schemas.files.weights import read_header

    try:
        metadata = read_header(path).metadata if path.suffix == ".safetensors" else {}
    except ConfigError:
        return {}
    found = {name: whole_of(metadata.get(name, "")) for name in ("ss_steps", "ss_epoch")}
    return {name: number for name, number in found.items() if number is not None and number >= 0}


def _previews(run: Run) -> Iterator[Preview]:
    """Pictures that this run's own starts have made; of one made again after a resume, the newest."""
    newest: dict[tuple[bool, int, int], tuple[str, Path]] = {}
    windows = _windows(run)
    folder = run.output / "sample"
    for path in folder.iterdir() if folder.is_dir() else ():
        said = read_preview_name(run.config.output_name, path.name)
        if said is None or (windows and not any(begin <= said.time <= end for begin, end in windows)):
            continue
        place = (said.at_epoch, said.number, said.index)
        newest[place] = max(newest.get(place, ("", path)), (said.time, path))
    for (at_epoch, number, index), (_, path) in newest.items():
        epoch = number if at_epoch else None
        yield Preview(path, index, number if epoch is None else run.epoch_end(epoch), epoch)


def _windows(run: Run) -> list[tuple[str, str]]:
    """Begin and end of every start, as the digits that stand in a preview's name.

    Runs that went on from one another share the names of their previews. An end that was never written is the next
    begin, of this run or of another of the same name.
    """
    own = [_digits(start.get("begin")) for start in run.starts]
    pattern = f"{run.config.output_name or DEFAULT_NAME}"
    others = [
        _digits(start.get("begin"))
        for folder in run.output.glob("*.run")
        if folder.name.startswith(pattern) and folder != run.folder
        for start in (read_record(folder).get("starts") or [])
    ]
    found = []
    for start, begin in zip(run.starts, own, strict=True):
        later = min((other for other in (*own, *others) if other > begin), default="9" * 14)
        found.append((begin, _digits(start.get("end")) if start.get("end") else later))
    return found


def _digits(moment: Any) -> str:
    """2026-01-31T12:00:00+01:00 -> 20260131120000: both are local time."""
    return RUN_OF_DIGITS.sub("", str(moment or "")[:19])


def _prompts(folder: Path, config: TrainConfig) -> list[str]:
    """Texts of the prompt file, from the run folder where it is kept there; none where it cannot be read any more."""
    from trainer.dataset.prompts import read_prompts

    if not config.sample_prompts:
        return []
    held = folder / PROMPTS
    path = held if PurePath(config.sample_prompts).name == PROMPTS and held.is_file() else Path(config.sample_prompts)
    try:
        return [prompt.prompt for prompt in read_prompts(path)]
    except ConfigError:
        return []


def shareable(name: str, value: Any) -> Any:
    """An option's value without secrets and without folders, as in a LoRA's header."""
    option = table().get(name)
    if option is not None and option.secret and value:
        return "***"
    if isinstance(value, (list, tuple)):
        return [shareable(name, item) for item in value]
    if not isinstance(value, str):
        return value
    if option is not None and option.path:
        return last_name(value)
    word, equals, path = value.partition("=")
    return f"{word}={last_name(path)}" if equals and ("/" in path or "\\" in path) else value


def last_name(place: str) -> str:
    """The last name of a path of any system."""
    kind = PureWindowsPath if "\\" in place or place[1:2] == ":" else PurePath
    return kind(place).name or place
