"""log.jsonl of a run as it grows: each line is read once, and a curve of any length is a bounded number of points."""

from __future__ import annotations

import math
import threading
from array import array
from bisect import bisect_left
from pathlib import Path
from typing import Any

from launcher.report.facts import Step, step_of
from schemas.files.run_folder import LOG, record_in
from schemas.files.textfile import open_regular
from schemas.problems import ConfigError

POINTS = 1000  # of a curve, each with the mean, the lowest and the highest of its steps
RECENT = 50  # steps that the present speed is taken from


class GrowingLog:
    """What a log holds so far. `update` reads what has been added; one that was cut back for a resume is read again."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self._lock = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        self.steps, self.losses, self.seconds = array("q"), array("d"), array("d")
        self.rates: dict[str, array[float]] = {}
        self.last: Step | None = None
        self._place = (0, 0)  # inode, bytes read
        self._rest = b""
        self.generation = getattr(self, "generation", 0) + 1

    def update(self) -> bool:
        """Whether anything was added."""
        with self._lock:
            before = len(self.steps)
            try:
                with open_regular(self.run / LOG, what="log of a run") as stream:
                    self._read(stream)
            except ConfigError:
                if self.steps:
                    self._forget()
                return False
            return len(self.steps) != before

    def _read(self, stream: Any) -> None:
        import os

        found = os.fstat(stream.fileno())
        if found.st_ino != self._place[0] or found.st_size < self._place[1]:
            self._forget()
            self._place = (found.st_ino, 0)
        stream.seek(self._place[1])
        data = stream.read()
        self._place = (found.st_ino, self._place[1] + len(data))
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            entry = record_in(line)
            if entry is not None:
                self._take(step_of(entry))

    def _take(self, step: Step) -> None:
        while self.steps and self.steps[-1] >= step.step:  # of a step that stands there twice, the later
            self.steps.pop()
            for values in (self.losses, self.seconds, *self.rates.values()):
                values.pop()
        self.steps.append(step.step)
        self.losses.append(step.loss)
        self.seconds.append(step.seconds)
        for name in step.lr:
            if name not in self.rates:
                self.rates[name] = array("d", [math.nan] * (len(self.steps) - 1))
        for name, column in self.rates.items():
            column.append(step.lr.get(name, math.nan))
        self.last = step

    def pace(self) -> float | None:
        """Seconds of a step, the middle one of the last few."""
        found = sorted(one for one in self.seconds[-RECENT:] if math.isfinite(one))
        return found[len(found) // 2] if found else None

    def curve(self, after: int = 0, points: int = POINTS) -> dict[str, Any]:
        """Steps behind `after` in at most so many bins: step of each bin's end, mean, low, high, rates at its end."""
        with self._lock:
            first = bisect_left(self.steps, after + 1)
            count = len(self.steps) - first
            width = max(1, -(-count // points))
            found: dict[str, Any] = {
                "step": [],
                "mean": [],
                "low": [],
                "high": [],
                "rates": {name: [] for name in self.rates},
            }
            for start in range(first, len(self.steps), width):
                stop = min(start + width, len(self.steps))
                losses = [one for one in self.losses[start:stop] if math.isfinite(one)]
                found["step"].append(self.steps[stop - 1])
                found["mean"].append(sum(losses) / len(losses) if losses else None)
                found["low"].append(min(losses, default=None))
                found["high"].append(max(losses, default=None))
                for name, column in self.rates.items():
                    rate = column[stop - 1]
                    found["rates"][name].append(rate if math.isfinite(rate) else None)
            return {**found, "width": width, "generation": self.generation}
