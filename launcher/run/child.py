"""The trainer's process: its own process group, its output passed on as it comes, signals handed to it once."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from schemas.signals import INTERRUPTED, LIFELINE, Wishes, blocked, install, restore

KEPT_LINES = 400
POSIX = os.name == "posix"
FAILED = 3
TRACEBACK = b"Traceback (most recent call last)"


@dataclass(frozen=True)
class Finished:
    """How a child ended: `code` as the trainer gave it, and its last lines."""

    code: int
    lines: tuple[str, ...]
    signals: int = 0


class LineFilter:
    """Passes bytes on at once, but holds tracebacks back until their last line says whose they are.

    Whenever the trainer's exit code is not 0, `accelerate launch` ends with a traceback of its own, and with a report
    if there are several processes; these are dropped.
    """

    def __init__(self, write: Callable[[bytes], Any]) -> None:
        self.write = write
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._rest = b""  # a line that has no end yet, of which `_shown` bytes are written
        self._shown = 0
        self._held: list[bytes] = []
        self._rules = 0  # lines of === still to come that close the distributed starter's own report

    def feed(self, data: bytes) -> None:
        """Takes what was read; a lone carriage return ends a line too (progress bars)."""
        pieces = (self._rest + data).splitlines(keepends=True)
        self._rest = pieces.pop() if pieces and not pieces[-1].endswith((b"\n", b"\r")) else b""
        for line in pieces:
            self._take(line)
        if not self._held and not self._rules and self._rest[:9] != TRACEBACK[: len(self._rest[:9])]:
            self.write(self._rest[self._shown :])
            self._shown = len(self._rest)

    def close(self) -> None:
        """Lets go of everything."""
        if self._rest:
            self._take(self._rest)
        self.write(b"".join(self._held))
        self._rest, self._held = b"", []

    def _take(self, line: bytes) -> None:
        text = line.decode("utf-8", "replace").rstrip()
        if text:
            self.lines.append(text)
        fresh, self._shown = line[self._shown :], 0
        if self._rules:
            self._rules -= text.startswith("=====")
        elif line.startswith(TRACEBACK):
            self.write(b"".join(self._held))
            self._held = [line]
        elif not self._held:
            self.write(fresh)
        else:
            self._held.append(line)
            if not line.startswith((b" ", b"\r", b"\n")):
                if re.match(r"[\w.]*ChildFailedError:", text):
                    self._rules = 2
                elif not re.match(r"[\w.]*CalledProcessError: Command ", text):
                    self.write(b"".join(self._held))
                self._held = []


def run_child(
    words: list[str], environment: Mapping[str, str], write: Callable[[bytes], Any], *, terminal: bool = False
) -> Finished:
    """Runs `words` until it and whatever still writes into its output have ended.

    The first wish to stop is passed to the trainer, which finishes its step and saves; the second kills. Our own
    trainer (KOHYAKIT_LAUNCHED) hears of it by its lifeline alone, also if this process is killed; `accelerate launch`
    between them is started deaf to signals, because it would kill the trainer or leave before it. Other programs get
    a signal.
    """
    reader, writer = _output(terminal)
    options: dict[str, Any] = (
        {"start_new_session": True} if POSIX else {"creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)}
    )
    lines, variables, lifeline = LineFilter(write), dict(environment), None
    if "KOHYAKIT_LAUNCHED" in variables:
        options["stdin"], lifeline = os.pipe()
        variables[LIFELINE] = "stdin"
    with Signals(lifeline) as signals:
        with blocked() if lifeline is not None else nullcontext():
            child = subprocess.Popen(
                words, env=variables, stdout=writer, stderr=writer, **{"stdin": subprocess.DEVNULL, **options}
            )
        os.close(writer)
        if lifeline is not None:
            os.close(options["stdin"])
        signals.take(child)
        for data in _pieces(reader, signals.wakeup, signals.look):
            lines.feed(data)
        lines.close()
        os.close(reader)
        code = child.wait()
    return Finished(exit_code(code, lines.lines, signals.heard), tuple(lines.lines), signals.heard)


def _pieces(reader: int, wakeup: int, look: Callable[[], None]) -> Iterator[bytes]:
    """Output as it comes, until its last writer has closed it. A signal just before a read wakes it by `wakeup`.

    Every second or so it has a `look` at what else may have happened.
    """
    while True:
        if POSIX:
            ready, _, _ = select.select([reader, wakeup], [], [], 1.0)
            look()
            if wakeup in ready:
                os.read(wakeup, 512)
            if reader not in ready:
                continue
        try:
            data = os.read(reader, 65536)
        except OSError:  # a pseudo-terminal ends with EIO
            return
        if not data:
            return
        yield data


def _output(terminal: bool) -> tuple[int, int]:
    """(end to read, end for the child): a pseudo-terminal where the user has one, so that progress bars work."""
    if terminal and POSIX:
        import fcntl
        import pty
        import termios

        reader, writer = pty.openpty()
        try:
            fcntl.ioctl(writer, termios.TIOCSWINSZ, fcntl.ioctl(sys.stdout.fileno(), termios.TIOCGWINSZ, b"\0" * 8))
        except (OSError, ValueError):
            pass
        return reader, writer
    return os.pipe()


class Signals:
    """Wishes to stop on their way to the child: the first is passed on, the second kills. Counted in `heard`.

    `lifeline` is the end to close of a pipe whose other end the trainer watches.
    """

    def __init__(self, lifeline: int | None = None) -> None:
        self.child: subprocess.Popen[bytes] | None = None
        self.wakeup, self._bell = os.pipe()
        os.set_blocking(self._bell, False)
        self._lifeline = lifeline
        self._wishes = Wishes()
        self._kept: dict[int, Any] = {}
        self._kept_bell = -1

    @property
    def heard(self) -> int:
        return self._wishes.count

    def __enter__(self) -> Signals:
        self._kept = install(self._hear)
        if self._kept:
            self._kept_bell = signal.set_wakeup_fd(self._bell, warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        if self._kept:
            signal.set_wakeup_fd(self._kept_bell)
        restore(self._kept)
        self._let_go()
        os.close(self.wakeup)
        os.close(self._bell)

    def take(self, child: subprocess.Popen[bytes]) -> None:
        """The child that signals go to, also one that came while it was being started."""
        self.child = child
        if self.heard:
            self._stop(child, signal.SIGINT)

    def look(self) -> None:
        """Trainers whose starter has died are asked to stop: several wait for each other through it, without end."""
        if self.child is not None and self.child.poll() is not None:
            self._let_go()

    def _hear(self, number: int, frame: object) -> None:
        if not self._wishes.hear() or self.child is None:
            return
        if self.heard == 1:
            self._stop(self.child, number)
        else:
            _kill(self.child)

    def _stop(self, child: subprocess.Popen[bytes], number: int) -> None:
        if self._lifeline is None:
            _pass_on(child, number)
            return
        self._let_go()
        if not _below(child.pid):  # no trainer yet: nothing has begun
            _kill(child)

    def _let_go(self) -> None:
        lifeline, self._lifeline = self._lifeline, None
        if lifeline is not None:
            os.close(lifeline)


def _pass_on(child: subprocess.Popen[bytes], number: int) -> None:
    """To the trainer and not to `accelerate launch`, which would leave before the trainer has saved."""
    for pid in _below(child.pid, deep=False) or [child.pid]:
        try:
            os.kill(pid, number if POSIX else getattr(signal, "CTRL_BREAK_EVENT", number))
        except OSError:
            pass


@contextmanager
def handed_down() -> Iterator[Wishes]:
    """Signals go to the processes below this one, which end in order; a terminal has sent them its own already."""
    wishes = Wishes()

    def hear(number: int, frame: object) -> None:
        wishes.hear()
        for pid in _below(os.getpid(), deep=False):
            try:
                os.kill(pid, signal.SIGTERM)
            except OSError:
                pass

    before = install(hear)
    try:
        yield wishes
    finally:
        restore(before)


def _below(pid: int, *, deep: bool = True) -> list[int]:
    """Processes that `pid` has started, and if `deep` those that these have started."""
    import psutil

    try:
        return [process.pid for process in psutil.Process(pid).children(recursive=deep)]
    except psutil.Error:
        return []


def _kill(child: subprocess.Popen[bytes]) -> None:
    """The child and all below it: of several trainers each has a session of its own."""
    below = _below(child.pid)
    if POSIX:
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except OSError:
            pass
    else:
        child.kill()
    for pid in below:
        try:
            os.kill(pid, signal.SIGKILL if POSIX else signal.SIGTERM)
        except OSError:
            pass


def exit_code(code: int, lines: Any, signals: int = 0) -> int:
    """The trainer's own exit code: `accelerate launch` turns every failure into 1 and names the real one in words.

    Of a run that was asked to stop only what the trainer itself calls a failure is one.
    """
    real = _real(code, lines)
    return INTERRUPTED if signals and real not in (0, FAILED) else real


def _real(code: int, lines: Any) -> int:
    if code in (0, INTERRUPTED):
        return code
    text = "\n".join(list(lines)[-60:])
    for pattern in (
        r"returned non-zero exit status (\d+)",
        r"died with <Signals\.\w+: (\d+)>",
        r"exitcode\s*:\s*(-?\d+)",
    ):
        found = re.findall(pattern, text)
        if found:
            real = int(found[0])
            return -real if "Signals" in pattern else real
    return code
