"""What launcher and trainer have in common as processes: signals that ask them to stop, a terminal that may close."""

from __future__ import annotations

import io
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Literal

# A service manager, a batch system or a terminal sends its signal to every process of a run, and each passes it on.
ONE_WISH = 2.0  # seconds in which signals are one
INTERRUPTED = 130
STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
# Set for a trainer whose stdin is a pipe that nobody writes into: it ends when the launcher wants the run to stop, and
# when the launcher is gone, however that came. Unlike a signal it cannot come too early or twice.
LIFELINE = "KOHYAKIT_LIFELINE"

Handler = Callable[[int, FrameType | None], Any]


class Wishes:
    """Counts how often somebody wanted a stop: signals within two seconds of the first are one wish."""

    def __init__(self) -> None:
        self.count = 0
        self._since = 0.0

    def hear(self) -> bool:
        """Counts a signal that comes now; whether it is a wish of its own."""
        now = time.monotonic()
        if self.count and now - self._since < ONE_WISH:
            return False
        self.count, self._since = self.count + 1, now
        return True


def install(handler: Handler) -> dict[int, Any]:
    """Puts `handler` on every stopping signal and gives back what was there, for `restore`.

    SIGHUP stays ignored where it is: that is what nohup is for. Outside the main thread nothing is done.
    """
    before: dict[int, Any] = {}
    try:
        for number in STOPPING:
            if number == getattr(signal, "SIGHUP", None) and signal.getsignal(number) == signal.SIG_IGN:
                continue
            before[number] = signal.signal(number, handler)
    except ValueError:
        pass
    return before


def restore(before: dict[int, Any]) -> None:
    """Puts handlers back."""
    for number, handler in before.items():
        signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def ignore_hangup() -> dict[int, Any]:
    """From here on a closed terminal is no wish to stop; the handler that was there, for `restore`."""
    number = getattr(signal, "SIGHUP", None)
    return {} if number is None else {number: signal.signal(number, signal.SIG_IGN)}


@contextmanager
def interruptible() -> Iterator[None]:
    """Every stopping signal is a KeyboardInterrupt, once: a second one must not meet the first one's tidying up."""
    wishes = Wishes()

    def hear(number: int, frame: FrameType | None) -> None:
        if wishes.hear():
            raise KeyboardInterrupt

    before = install(hear)
    try:
        yield
    finally:
        restore(before)


@contextmanager
def held_off() -> Iterator[None]:
    """Stopping signals are not heard: for what takes milliseconds and must not be cut."""
    before = install(signal.SIG_IGN)  # type: ignore[arg-type]
    try:
        yield
    finally:
        restore(before)


@contextmanager
def blocked() -> Iterator[None]:
    """Stopping signals wait, also for a process that is started in here, until that one lets them in."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def let_in() -> None:
    """Takes signals that the process was started without, and those that have come meanwhile."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)


class _Lasting(io.FileIO):
    """Writes as long as somebody reads; a terminal that was closed or a full disk is no reason to end."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data) or 0
        except OSError:
            return len(data)


def outlast_terminal() -> None:
    """From here on stdout and stderr may go away (closed terminal, dead launcher) without ending this process."""
    names: tuple[Literal["stdout", "stderr"], ...] = ("stdout", "stderr")
    for name in names:
        stream = getattr(sys, name)
        try:
            if os.name == "nt" or not isinstance(stream, io.TextIOWrapper):
                continue
            stream.flush()
            raw = _Lasting(stream.fileno(), "wb", closefd=False)
        except (OSError, ValueError, AttributeError):
            continue
        lasting = io.TextIOWrapper(
            io.BufferedWriter(raw),
            encoding=stream.encoding,
            errors=stream.errors,
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
        setattr(sys, name, lasting)
