"""What a run says while it runs: progress on the terminal, log.jsonl, and curves for TensorBoard or wandb."""

from __future__ import annotations

import gc
import json
import math
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from schemas import TrainConfig
from schemas.files.run_folder import VALIDATION, record_in
from schemas.files.writing import write_atomically
from schemas.options import LoggingOptions
from schemas.progress import hours
from schemas.terminal import plain, say
from trainer.plan import cards
from trainer.plan.activations import measured as in_table
from trainer.plan.work import step_flops

if sys.platform != "win32":
    import resource

LEVELS = {"DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40, "CRITICAL": 50}
MEASURED = 20  # steps after which the cost of a run is told
PLAIN_SECONDS = 10.0  # without a terminal, one line at most this often


@dataclass(frozen=True)
class Record:
    """One optimizer step: loss is the mean over its micro-batches and over all processes; memory in bytes."""

    step: int
    epoch: int
    loss: float
    lr: dict[str, float]
    seconds: float
    memory: int
    images_per_second: float = 0.0  # over all processes
    mfu: float | None = None  # share of the card's peak since step UNCOUNTED; None where the card's peak is not known


UNCOUNTED = 10  # first steps of a start: what is compiled, allocated and tuned in them would spoil a mean


class Pace:
    """Images a second and the share of the GPU's peak that a run reaches (MFU, Chowdhery et al. 2022)."""

    def __init__(self, config: TrainConfig, family: str, processes: int) -> None:
        self.config, self.family, self.processes = config, family, processes
        card = cards.find(torch.cuda.get_device_name(), memory_of_card()) if torch.cuda.is_available() else None
        self.peak = cards.peak(card, config.mixed_precision) if card else None
        self._steps, self._flops, self._seconds = 0, 0.0, 0.0

    def step(self, batches: Sequence[Any], began: float) -> dict[str, Any]:
        """Seconds and speed of a step that ends now, of these batches on this process."""
        sizes = [batch.latent_size for batch in batches]
        seconds, self._steps = time.perf_counter() - began, self._steps + 1
        if self._steps == 1:
            gc.freeze()  # what lives after a whole step lives to the end: the collector need not walk through it again
        images = sum(count for count, _ in sizes) * self.processes
        if self.peak is not None and self._steps > UNCOUNTED and in_table(self.family):
            self._flops += sum(step_flops(self.config, self.family, pixels, count) for count, pixels in sizes)
            self._seconds += seconds
        mfu = self._flops / (self._seconds * self.peak) if self.peak and self._seconds else None
        return {"seconds": seconds, "images_per_second": images / seconds if seconds else 0.0, "mfu": mfu}


def memory_of_card() -> int:
    """Bytes of the GPU that this process computes on."""
    return int(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)


def memory_in_use() -> int:
    """Peak bytes: of the GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@dataclass(frozen=True)
class Measured:
    """The mean loss on the held-out images after a step."""

    step: int
    epoch: int
    loss: float


class StepLog:
    """log.jsonl of a run folder, and validation.jsonl beside it once there is a measurement.

    On resume, records past the resumed step are dropped, so steps never repeat.
    """

    def __init__(self, path: Path, *, keep_until: int) -> None:
        self._validation = path.with_name(VALIDATION)
        for file in (path, self._validation):
            kept = [line for line, record in _records(file) if record["step"] <= keep_until]
            if file == path or file.is_file():
                write_atomically(file, lambda stream, kept=kept: stream.write(b"".join(kept)))  # type: ignore[misc]
        # Unbuffered: what a full disk refuses is not tried again when the log is closed.
        self._stream = path.open("ab", buffering=0)

    def write(self, record: Record) -> None:
        """One line; where the disk takes only a part of it, the disk's own error."""
        line = memoryview((json.dumps(asdict(record)) + "\n").encode("utf-8"))
        while line:
            line = line[self._stream.write(line) or 0 :]

    def measured(self, result: Measured) -> None:
        """One line of validation.jsonl."""
        with self._validation.open("ab") as stream:
            stream.write((json.dumps(asdict(result)) + "\n").encode("utf-8"))

    def close(self) -> None:
        self._stream.close()


def _records(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Whole records with their lines: one that a kill or a failing disk has spoilt is left out."""
    if not path.is_file():
        return
    for line in path.read_bytes().splitlines(keepends=True):
        record = record_in(line) if line.endswith(b"\n") else None
        if record is not None:
            yield line, record


def log_epoch(trackers: Iterable[Any], average: float, epoch: int, step: int) -> None:
    """loss/epoch_average over epochs: TensorBoard's x-axis is the epoch, wandb has it as a field (section 14)."""
    for tracker in trackers:
        values: dict[str, float] = {"loss/epoch_average": average}
        if tracker.name == "wandb":
            tracker.log(values | {"epoch": epoch, "global_step": step}, step=step)
        else:
            tracker.log(values, step=epoch)


class Progress:
    """A bar with loss and time left on a terminal, else a plain line now and then.

    console_log_level above INFO keeps the console to warnings; console_log_file gets every line, with its time. The
    loss shown is the mean over the last `window` steps; an epoch long, it is the reference's (section 14).
    """

    def __init__(self, total: int, options: LoggingOptions, *, shown: bool, window: int = 100) -> None:
        self.total, self.options, self._writes = total, options, shown
        self.shown = shown and LEVELS[options.console_log_level or "INFO"] <= LEVELS["INFO"]
        self.losses: deque[float] = deque(maxlen=window)
        self._began = self._last = 0.0
        self._first = 0
        self._bar: Any = None

    @property
    def average(self) -> float:
        """Mean loss of the last `window` steps."""
        return sum(self.losses) / len(self.losses) if self.losses else math.nan

    def begin(self, done: int) -> None:
        """The first step after `done` starts now."""
        self._began, self._first = time.monotonic(), done
        wanted = self.shown and sys.stdout.isatty() and not self.options.console_log_simple
        self._bar = _bar(self.total, done) if wanted else None

    def step(self, record: Record) -> None:
        self.losses.append(record.loss)
        if not self._writes:
            return
        mean, rate = self.average, shown_rate(record.lr)
        if self._bar:
            left = (time.monotonic() - self._began) / (record.step - self._first) * (self.total - record.step)
            said = f"loss {mean:.4f}  lr {rate}  {record.seconds:.2f} s/step  {speed(record)}{self._cost(record, left)}"
            self._bar.update(self._bar.task_ids[0], completed=record.step, said=said, epoch=record.epoch)
        elif record.step == self.total or time.monotonic() - self._last >= PLAIN_SECONDS:
            self._last = time.monotonic()
            left = (self._last - self._began) / (record.step - self._first) * (self.total - record.step)
            line = f"step {record.step}/{self.total}  epoch {record.epoch}  loss {mean:.4f}  lr {rate}"
            timing = f"{record.seconds:.2f} s/step  {speed(record)}  left {hours(left)}"
            self.say(f"{line}  {timing}{self._cost(record, left)}")

    def _cost(self, record: Record, left: float) -> str:
        """What this start will have cost, once its steps have been measured."""
        price = self.options.price_per_hour
        if price is None or record.step - self._first < MEASURED:
            return ""
        return f"  cost {price * (time.monotonic() - self._began + left) / 3600:.2f}"

    def say(self, text: str, severity: str = "note") -> None:
        """A line that does not tear the bar."""
        self._keep(text)
        if self._bar:
            self._bar.console.print(plain(text), highlight=False, markup=False)
        elif self.shown or (self._writes and severity != "note"):
            say(text)

    def _keep(self, text: str) -> None:
        if self._writes and self.options.console_log_file:
            with open(self.options.console_log_file, "a", encoding="utf-8") as stream:
                stream.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {plain(text)}\n")

    def close(self) -> None:
        if self._bar:
            self._bar.stop()


def speed(record: Record) -> str:
    """Images a second, share of the peak, memory."""
    share = "" if record.mfu is None else f"  {record.mfu:.1%} of peak"
    return f"{record.images_per_second:.3g} images/s{share}  {record.memory / 2**30:.1f} GiB"


def shown_rate(rates: Mapping[str, float]) -> str:
    """The U-Net's learning rate, and the text encoder's behind it where that is another; blocks by their largest."""
    unet = [rate for name, rate in rates.items() if not name.startswith("textencoder")]
    text = [rate for name, rate in rates.items() if name.startswith("textencoder")]
    if not unet or not text or max(unet) == max(text):
        return f"{max([*unet, *text], default=0.0):.3g}"
    return f"{max(unet):.3g} (text encoder {max(text):.3g})"


def _bar(total: int, done: int) -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    bar = RichProgress(
        TextColumn("epoch {task.fields[epoch]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[said]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    bar.add_task("steps", total=total, completed=done, said="first step", epoch=1)
    bar.start()
    return bar
