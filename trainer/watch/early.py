"""The first thing that a process of the trainer imports: a Ctrl-C while torch is imported is one line, no traceback."""

from __future__ import annotations

import os
import signal
from types import FrameType

INTERRUPTED = 130
EARLY = "interrupted before the first step"


def leave(number: int = 0, frame: FrameType | None = None) -> None:
    """Ends the process at once: within an import an exception can be lost, or end in somebody else's traceback."""
    if os.environ.get("RANK", "0") == "0":
        try:
            os.write(2, EARLY.encode() + b"\n")
        except OSError:  # a closed terminal
            pass
    os._exit(INTERRUPTED)


def leave_on_signals() -> None:
    """Until something has begun that an interrupt has to tidy up."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and not (name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN):
            signal.signal(number, leave)
