"""`python -m launcher` is the command `kohyakit`."""

from __future__ import annotations

import os
import signal
import sys


def main() -> None:
    """Entry point of the console script. A Ctrl-C during the first imports is no traceback either."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        from launcher.cli import main as run

        run()
    except KeyboardInterrupt:
        os.write(2, b"interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
