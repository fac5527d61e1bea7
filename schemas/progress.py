"""How far long work is: a bar with rate and time left on a terminal, elsewhere a plain line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO, TypeVar

from schemas.terminal import clear, overwrite, say

Item = TypeVar("Item")
WIDTH = 24  # of the bar, in columns
FIRST_AFTER = 0.5  # seconds; shorter work shows no bar
REDRAWN_EVERY = 0.1


class Progress:
    """Called with (done, of how many); with the last one, and with the next line that is said, the bar goes.

    tell: takes the plain lines. seconds: between two of them; work that is shorter has none.
    """

    def __init__(
        self,
        label: str,
        *,
        tell: Callable[[str], Any] | None = None,
        stream: TextIO | None = None,
        hint: str = "",
        seconds: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._label, self._hint, self._seconds, self._clock = label, hint, seconds, clock
        self._stream = stream or sys.stderr
        self._tell = tell or self._write
        self._terminal = self._stream.isatty()
        self._began = self._last = clock()

    def __call__(self, done: int, total: int) -> None:
        now = self._clock()
        if self._terminal:
            if done >= total:
                clear()
            elif now - self._began >= FIRST_AFTER and now - self._last >= REDRAWN_EVERY:
                self._last = now
                overwrite(f"{self._label} {bar(done, total)} {self._facts(done, total, now)}", self._stream)
        elif now - self._last >= self._seconds and done < total:
            self._last = now
            hint = f"; {self._hint}" if self._hint else ""
            self._tell(f"{self._label}: {self._facts(done, total, now)}{hint}")

    def _facts(self, done: int, total: int, now: float) -> str:
        passed = now - self._began
        if not done or passed <= 0:
            return f"{done} of {total}"
        return f"{done} of {total}, {rate(done / passed)}, {hours(passed / done * (total - done))} left"

    def _write(self, line: str) -> None:
        say(line, file=self._stream)


def over(items: Sequence[Item], progress: Progress) -> Iterator[Item]:
    """The items one by one, each counted as done when the next is asked for."""
    for number, item in enumerate(items, 1):
        yield item
        progress(number, len(items))


def bar(done: int, total: int) -> str:
    """[#####.......]"""
    filled = WIDTH * done // total if total else WIDTH
    return "[" + "#" * filled + "." * (WIDTH - filled) + "]"


def rate(each_second: float) -> str:
    """Items a second, or seconds an item where that is the larger number."""
    return f"{each_second:.1f}/s" if each_second >= 1 else f"{1 / each_second:.1f} s each"


def hours(seconds: float) -> str:
    """h:mm:ss."""
    whole = int(seconds)
    return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"
