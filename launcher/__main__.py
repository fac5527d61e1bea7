"""`python -m launcher` is the command `kohyakit`."""

from __future__ import annotations

from launcher.cli import main

if __name__ == "__main__":
    main()
