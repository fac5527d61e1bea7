"""The trainer's process: its own process group, its output passed on as it comes, signals handed to it once."""

from __future__ import annotations

import glob
import os
import re
import select
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

KEPT_LINES = 400
POSIX = os.name == "posix"
INTERRUPTED = 130
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

    The first SIGINT or SIGTERM is passed to the trainer, which finishes its step and saves; the second kills.
    """
    reader, writer = _output(terminal)
    own_group: dict[str, Any] = (
        {"start_new_session": True} if POSIX else {"creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)}
    )
    lines = LineFilter(write)
    with Signals() as signals:
        child = subprocess.Popen(
            words, env=dict(environment), stdin=subprocess.DEVNULL, stdout=writer, stderr=writer, **own_group
        )
        os.close(writer)
        signals.take(child)
        for data in _pieces(reader, signals.wakeup):
            lines.feed(data)
        lines.close()
        os.close(reader)
        code = child.wait()
    return Finished(exit_code(code, lines.lines, signals.heard), tuple(lines.lines), signals.heard)


def _pieces(reader: int, wakeup: int) -> Iterator[bytes]:
    """Output as it comes, until its last writer has closed it. A signal just before a read wakes it by `wakeup`."""
    while True:
        if POSIX:
            ready, _, _ = select.select([reader, wakeup], [], [])
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
    """SIGINT and SIGTERM on their way to the child: the first is passed on, the second kills. Counted in `heard`."""

    def __init__(self) -> None:
        self.heard = 0
        self.child: subprocess.Popen[bytes] | None = None
        self.wakeup, self._bell = os.pipe()
        os.set_blocking(self._bell, False)
        self._kept: dict[int, Any] = {}
        self._kept_bell = -1

    def __enter__(self) -> Signals:
        try:
            self._kept_bell = signal.set_wakeup_fd(self._bell, warn_on_full_buffer=False)
            for number in (signal.SIGINT, signal.SIGTERM):
                self._kept[number] = signal.signal(number, self._hear)
        except ValueError:  # not the main thread: nobody sends it signals
            pass
        return self

    def __exit__(self, *_: object) -> None:
        if self._kept:
            signal.set_wakeup_fd(self._kept_bell)
        for number, handler in self._kept.items():
            signal.signal(number, handler)
        os.close(self.wakeup)
        os.close(self._bell)

    def take(self, child: subprocess.Popen[bytes]) -> None:
        """The child that signals go to, also one that came while it was being started."""
        self.child = child
        if self.heard:
            _pass_on(child, signal.SIGINT)

    def _hear(self, number: int, frame: object) -> None:
        self.heard += 1
        if self.child is None:
            return
        if self.heard == 1:
            _pass_on(self.child, number)
        else:
            _kill(self.child)


def _pass_on(child: subprocess.Popen[bytes], number: int) -> None:
    """To the trainer and not to `accelerate launch`, which would leave before the trainer has saved."""
    for pid in _children(child.pid) or [child.pid]:
        try:
            os.kill(pid, number if POSIX else getattr(signal, "CTRL_BREAK_EVENT", number))
        except OSError:
            pass


def _children(pid: int) -> list[int]:
    """Processes that `pid` has started, from /proc where there is one."""
    found = []
    for file in glob.glob("/proc/[0-9]*/stat"):
        try:
            with open(file, encoding="utf-8", errors="replace") as stream:
                parent = stream.read().rpartition(")")[2].split()[1]
        except (OSError, IndexError):
            continue
        if int(parent) == pid:
            found.append(int(file.split("/")[2]))
    if found or os.path.isdir("/proc/self"):
        return found
    import psutil

    try:
        return [process.pid for process in psutil.Process(pid).children()]
    except psutil.Error:
        return []


def _kill(child: subprocess.Popen[bytes]) -> None:
    if POSIX:
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except OSError:
            pass
    else:
        child.kill()


def exit_code(code: int, lines: Any, signals: int = 0) -> int:
    """The trainer's own exit code: `accelerate launch` turns every failure into 1 and names the real one in words."""
    if code in (0, INTERRUPTED):
        return code
    if signals:
        return INTERRUPTED if signals == 1 or code < 0 else code
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
