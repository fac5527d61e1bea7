"""Every fact lives once: who may name a family, and where a problem code is raised."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from schemas.families import FAMILIES
from tests.test_house import ROOT, SOURCES, tree

# Where a family is called by its name; everybody else asks its row. The toy models are files of single families.
NAMING = ("schemas/families.py", "trainer/families/", "trainer/toy/", "launcher/format", "presets/", "benchmarks/")
# A preset's or a file's name, and the problem code `sdxl-only`, only begin with one.
A_FAMILY = re.compile(rf"\b({'|'.join(FAMILIES)})\b(?![-.])")


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of every string in a file."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def test_families_are_named_in_their_rows_only() -> None:
    found = [
        f"{name}:{line}: {text[:60]}"
        for path in SOURCES
        if not (name := path.relative_to(ROOT).as_posix()).startswith(NAMING)
        for line, text in texts(path)
        if A_FAMILY.search(text)
    ]
    assert found == []
