"""The tree in ARCHITECTURE.md: every folder with its files, one remark a file from its docstring."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WIDE, REMARK = 30, 96  # columns
FOLDERS = {
    "schemas": "what an option is, once; imports the standard library only",
    "launcher": "from any file to a running process; never imports torch",
    "trainer": "from a config file to a LoRA; never imports launcher",
    "presets": "ordinary Kohya GUI files, accepted by name wherever a file is",
    "benchmarks": "what a result must contain, and the programs that measure it; in the checkout only",
    "docs": "pages for reading on",
    "tests": "mirrors the tree; golden/ holds the reference's inputs and outputs",
}
PAGES = {
    "README.md": "what it is, and the first LoRA",
    "ARCHITECTURE.md": "this page",
    "CHANGELOG.md": "what changed, by version",
    "LICENSE": "Apache 2.0",
    "pyproject.toml": "dependencies and the settings of every tool, each exception with its reason",
    ".ci/run": "what a fresh machine does: install, test, lint, check types",
}


def tree() -> str:
    """The tree as a Markdown code block."""
    lines = [_line(name, said, 0) for name, said in PAGES.items()]
    for name, said in FOLDERS.items():
        lines += ["", *_folder(ROOT / name, said, 0, deep=name != "tests")]
    return "```\n" + "\n".join(lines) + "\n```\n"


def _folder(folder: Path, said: str, depth: int, *, deep: bool) -> Iterator[str]:
    yield _line(f"{folder.name}/", said, depth)
    for path in sorted(folder.iterdir(), key=lambda path: (path.is_dir(), path.name)) if deep else []:
        if path.is_dir() and (path / "__init__.py").is_file():
            yield from _folder(path, _remark(path / "__init__.py"), depth + 1, deep=True)
        elif path.suffix in (".py", ".md") and path.name != "__init__.py":
            yield _line(path.name, _remark(path), depth + 1)
        elif folder.name == "presets" and path.suffix == ".json":
            yield _line(path.name, _short(json.loads(path.read_text(encoding="utf-8"))["training_comment"]), depth + 1)


def _remark(path: Path) -> str:
    """The first sentence of a module's docstring, or a page's title."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return next((line.lstrip("# ") for line in text.splitlines() if line.startswith("#")), "")
    said = (ast.get_docstring(ast.parse(text)) or "").splitlines()
    return _short(said[0] if said else "")


def _short(text: str) -> str:
    """The first sentence, or as many of its clauses as fit."""
    first = re.split(r"(?<=[a-z0-9)`])(?<!et al)[.](?: |$)", re.sub(r" \((?:reference )?sections? [^)]*\)", "", text))[
        0
    ]
    if len(first) <= REMARK:
        return first.rstrip(".")
    ends = [match.start() for match in re.finditer(r"[:;,] | [(]", first) if match.start() <= REMARK]
    ends = [end for end in ends if first.count("(", 0, end) == first.count(")", 0, end)]
    return first[: max(ends)] if ends else first[: first.rfind(" ", 0, REMARK)] + " ..."


def _line(name: str, said: str, depth: int) -> str:
    return f"{'  ' * depth + name:<{WIDE}} {said}".rstrip()
