"""docs/formats.md: every key of every format, and what becomes of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from launcher.formats.registry import having

HEAD = """# Formats

What each format may hold, and what becomes of it. Written by `python docs/generate.py` from the tables that the
readers run on; edit those instead. `kohyakit validate --keys FILE` tells the fate of every key of one file,
`kohyakit explain KEY` everything about one key, `kohyakit schema FORMAT` prints the JSON Schema.

**Used** keys reach the trainer, the launcher or the choice of the model. **Idle** ones are known and change nothing
here, with the reason in their fate. **Refused** ones stop the run when they are set to more than their default.
Keys that no tool wrote are reported with the nearest known name.
"""


def page() -> str:
    """The whole page as Markdown: a table of the formats, then the keys of those with lists of their own."""
    return "\n".join([HEAD, *_overview(), *_sections()]).rstrip("\n") + "\n"


def _overview() -> Iterator[str]:
    yield "| format | what it is | written by `convert` | known | used | idle | refused |"
    yield "|---|---|---|---|---|---|---|"
    for name, row in having("keys").items():
        found = row.part("keys")()
        written = "yes" if row.writer else f"with {row.beside}" if row.beside else ""
        counts = f"{found.known} | {len(found.used)} | {len(found.idle)} | {len(found.refused)}"
        yield f"| `{name}` | {row.title} | {written} | {counts} |"
    yield ""


def _sections() -> Iterator[str]:
    for name, row in having("section").items():
        found = row.part("keys")()
        yield f"## {name}\n"
        used = sorted(found.used, key=lambda key: (key.lower(), key))
        yield "Used: " + ", ".join(f"`{key}`" for key in used) + ".\n"
        yield from _reasons("Idle", found.idle)
        yield from _reasons("Refused", found.refused)


def _reasons(title: str, reasons: Mapping[str, str]) -> Iterator[str]:
    if reasons:
        yield f"| {title.lower()} | why |\n|---|---|"
        yield from (
            f"| `{key}` | {why} |" for key, why in sorted(reasons.items(), key=lambda item: (item[0].lower(), item[0]))
        )
        yield ""
