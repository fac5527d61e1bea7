"""`python -m launcher` is the command `kohyakit`."""

from __future__ import annotations

import os
import signal
import sys

INTERRUPTED = 130


def main() -> None:
    """Entry point of the console script. A Ctrl-C during the first imports is no traceback either."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        from launcher.cli import main as run

        run()
    except KeyboardInterrupt:
        os.write(2, b"interrupted\n")
    except SystemExit as end:
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # the answer is given; nothing is left to interrupt
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), signal.SIG_IGN)
        if end.code != INTERRUPTED:
            raise
        sys.stdout.flush()
        sys.stderr.flush()
    # Python itself would end with SIGINT where the KeyboardInterrupt had come within an exec, as dataclasses use it.
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    main()
