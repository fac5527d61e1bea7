"""Writes the table of who reads which network into docs/interop.md, from its rows: `python docs/write_interop.py`."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "interop.md"
START, END = "<!-- readings: python docs/write_interop.py -->\n", "<!-- end of readings -->"


def page() -> str:
    """The whole page with the table of today's rows."""
    sys.path.insert(0, str(ROOT))
    from schemas import interop

    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    return f"{before}{START}\n{interop.page()}\n\n{END}{rest.partition(END)[2]}"


def main() -> int:
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
