"""Several workers (`pytest -n auto`) compute with one thread each: more would wait for one another.

Under nohup SIGHUP is ignored, here and in all that is started from here; tests of signals want it as a terminal has it.
"""

from __future__ import annotations

import os
import signal

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
