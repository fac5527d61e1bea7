"""Put on PYTHONPATH by the torture: ends a process with SIGKILL inside one of its calls to the disk.

STRIKE is WHO:CALL:NUMBER:RANK, such as trainer:fsync:7:0: the module that was started with -m, the call in `os`, which
one of them, and the process of the run. The product knows nothing of it.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

WHO, CALL, NUMBER, RANK = (os.environ.get("STRIKE", "") + ":::").split(":")[:4]


def struck(real: Any, number: int) -> Any:
    """`real`, whose call of that number is the last: half of them happen before the end comes, half do not."""
    count = 0

    def call(*words: Any, **more: Any) -> Any:
        nonlocal count
        count += 1
        if count == number and number % 2:
            os.kill(os.getpid(), signal.SIGKILL)
        done = real(*words, **more)
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return done

    return call


def started(module: str) -> bool:
    """Whether this interpreter is `python -m MODULE`; the starter between has that word among its arguments, too."""
    words = sys.orig_argv
    return "-m" in words and words[words.index("-m") + 1] == module


if WHO and started(WHO) and os.environ.get("RANK", "0") == RANK:
    for name in ("rename", "replace") if CALL == "rename" else (CALL,):
        setattr(os, name, struck(getattr(os, name), int(NUMBER)))
