"""Notices during a run that the driver moves the GPU's memory to main memory: no error comes, only slowness."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launcher.run.failures import SPILL

SLOWER = 10.0  # times the usual step
FIRST, LAST = 10, 3  # steps that say what is usual, steps in a row that must be slow
FULL = 0.95  # of the card
SECONDS = 5.0  # between two looks at the log


class SpillWatch:
    """Reads log.jsonl as it grows. `capacity` is the smallest card's memory in bytes; None watches nothing."""

    def __init__(self, log: Path, capacity: int | None, say: Callable[[str], Any]) -> None:
        self.log, self.capacity, self.say = log, capacity, say
        self.steps: list[tuple[float, float]] = []  # seconds, memory
        self.told = False
        self._place = log.stat().st_size if log.is_file() else 0
        self._next = 0.0

    def look(self, now: float | None = None) -> None:
        """Takes in new steps, seldom enough to cost nothing, and says once what it sees."""
        now = time.monotonic() if now is None else now
        if self.told or self.capacity is None or now < self._next:
            return
        self._next = now + SECONDS
        self._read()
        if self.spilling(self.capacity):
            self.told = True
            self.say(f"warning: {SPILL}; stop with Ctrl-C, then see what makes it fit: kohyakit plan FILE --vram GB")

    def spilling(self, capacity: int) -> bool:
        """Whether the last steps used more than the card holds, or were slow on a full card."""
        last = self.steps[-LAST:]
        if len(last) < LAST:
            return False
        if all(memory > capacity for _, memory in last):
            return True
        if len(self.steps) < FIRST + LAST or any(memory < FULL * capacity for _, memory in last):
            return False
        usual = statistics.median(seconds for seconds, _ in self.steps[1 : FIRST + 1])  # the first one warms up
        return min(seconds for seconds, _ in last) > SLOWER * usual

    def _read(self) -> None:
        try:
            with self.log.open("rb") as stream:
                if self._place > stream.seek(0, 2):
                    self._place = 0  # a resumed run has cut its log
                stream.seek(self._place)
                text = stream.read()
        except OSError:
            return
        whole = text[: text.rfind(b"\n") + 1]
        self._place += len(whole)
        for line in whole.splitlines():
            try:
                record = json.loads(line)
                self.steps.append((float(record["seconds"]), float(record["memory"])))
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
                continue
