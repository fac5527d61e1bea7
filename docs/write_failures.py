"""Writes docs/failures.md from the catalogue of known failures: `python docs/write_failures.py`."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "failures.md"


def main() -> int:
    sys.path.insert(0, str(ROOT))
    from launcher.run.failures import page

    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
