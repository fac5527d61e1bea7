"""Writes every generated page and the JSON Schemas: `python docs/generate.py`; `--check` only tells what is stale."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":  # run as a script, Python looks in docs/ only
    sys.path[0] = str(ROOT)

from docs.pages import arguments, formats, options, tree  # noqa: E402
from launcher.formats import json_schemas  # noqa: E402
from launcher.formats.registry import having  # noqa: E402
from launcher.run import failures  # noqa: E402
from schemas import interop  # noqa: E402
from schemas.terminal import say  # noqa: E402

# Pages that are made as a whole, and those of which one part is, between two marks.
PAGES: dict[str, Callable[[], str]] = {
    "docs/arguments.md": arguments.page,
    "docs/failures.md": failures.page,
    "docs/formats.md": formats.page,
    "docs/options.md": options.page,
}
PARTS: dict[str, tuple[str, Callable[[], str]]] = {
    "ARCHITECTURE.md": ("tree", tree.tree),
    "docs/interop.md": ("readings", interop.page),
}


def generated() -> dict[str, str]:
    """The text of every generated file, by its path from the root."""
    made = {path: page() for path, page in PAGES.items()}
    made |= {path: _with_part(path, name, part()) for path, (name, part) in PARTS.items()}
    return made | {f"schemas/{name}.schema.json": json_schemas.text(name) for name in having("published")}


def _with_part(path: str, name: str, text: str) -> str:
    """A page with `text` between its marks; ValueError where they are gone."""
    start, end = f"<!-- {name}: python docs/generate.py -->\n", f"<!-- end of {name} -->"
    before, found, rest = (ROOT / path).read_text(encoding="utf-8").partition(start)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{path}: the marks {start.strip()} and {end} are not both there")
    return f"{before}{start}\n{text.strip()}\n\n{end}{after}"


def stale(texts: dict[str, str]) -> list[str]:
    """Generated files that do not say what the tables say."""
    return [path for path, text in texts.items() if _now(path) != text]


def _now(path: str) -> str | None:
    return (ROOT / path).read_text(encoding="utf-8") if (ROOT / path).is_file() else None


def main(words: list[str]) -> int:
    if words not in ([], ["--check"]):
        say("usage: python docs/generate.py [--check]", err=True)
        return 2
    texts = generated()
    found = stale(texts)
    for path in found:
        if words:
            say(f"{path} is stale: run python docs/generate.py", err=True)
        else:
            (ROOT / path).write_text(texts[path], encoding="utf-8")
            say(path)
    return 1 if words and found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
