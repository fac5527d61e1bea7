"""When a run is asked to stop: by a signal, or because the launcher that started it is gone."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from schemas.signals import LIFELINE, Wishes, install, let_in, restore
from trainer.watch.early import leave

DEAF_SECONDS = 10.0


class StopRequest:
    """SIGINT, SIGTERM, SIGHUP and the launcher's end as a wish to stop.

    Before anything has begun the process ends at once; while models and caches are made it is a KeyboardInterrupt;
    once `saving`, the step is finished and the state saved, and only a second wish is a KeyboardInterrupt.
    """

    def __init__(self, *, begun: bool = True) -> None:
        self.asked = False
        self._begun, self.saves = begun, False
        self._wishes = Wishes()
        self._abandoned = False  # the launcher has let go of the lifeline
        self._before: dict[int, Any] | None = None

    def __enter__(self) -> StopRequest:
        self._before = install(self._hear)
        let_in()
        if os.environ.pop(LIFELINE, None):
            self._hold(_taken_stdin())
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, at: TracebackType | None) -> None:
        restore(self._before or {})
        self._before = None

    def begin(self) -> None:
        """From here on files are written, which an interrupt has to tidy up."""
        self._begun = True

    @contextmanager
    def saving(self) -> Iterator[StopRequest]:
        """From here on a stop is orderly, to the very end of the process if it has entered this before."""
        self.saves = self._begun = True
        if self._before is not None:
            yield self
            return
        with self:
            yield self

    def _hold(self, lifeline: int) -> None:
        """Waits in a thread of its own for the other end to close."""
        main = threading.main_thread().ident

        def wait() -> None:
            try:
                while os.read(lifeline, 512):
                    pass
            except OSError:
                pass
            self._abandoned = True
            if hasattr(signal, "pthread_kill") and main is not None:
                signal.pthread_kill(main, signal.SIGTERM)  # it also wakes the main thread from a system call
            else:
                signal.raise_signal(signal.SIGINT)
            time.sleep(DEAF_SECONDS)
            if self._abandoned and not self.saves:  # nothing to save, and the main thread is deaf: in a library's wait
                leave()

        threading.Thread(target=wait, name="lifeline", daemon=True).start()

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self._abandoned:  # no wish of its own: the launcher has heard a signal that has come here, too
            self._abandoned = False
            if self.asked:
                return
        if not self._wishes.hear():
            return
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        if not self._begun:
            leave()
        if not self.saves:
            raise KeyboardInterrupt


def _taken_stdin() -> int:
    """The lifeline under a number of its own; stdin is empty from here on."""
    lifeline = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return lifeline


def deaf() -> None:
    """The outcome is known: nothing interrupts the last moments of this process."""
    install(signal.SIG_IGN)  # type: ignore[arg-type]
    sys.stdout.flush()
    sys.stderr.flush()
