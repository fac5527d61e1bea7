"""Every fact lives once: who may name a family, and where a problem code is raised."""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from schemas.families import FAMILIES
from tests.test_house import ROOT, SOURCES, functions, tree

# Where a family is called by its name; everybody else asks its row. The toy models are files of single families.
NAMING = ("schemas/families.py", "trainer/families/", "trainer/toy/", "launcher/formats/", "presets/",
          "benchmarks/")  # fmt: skip
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


# Problem codes

CODES = ROOT / "tests" / "golden" / "problem_codes.txt"
# Codes that mean a kind of finding rather than one: they may be raised wherever that happens.
GENERIC = {
    "bad-name", "cannot-read", "empty-file", "file-too-large", "job-damaged", "no-model", "no-option", "no-run",
    "not-a-checkpoint", "not-a-folder", "not-usable", "nothing-there", "truncated-file", "unknown-model", "wrong-shape",
    "bad-value", "bad-metadata", "bad-tensor", "bad-weight", "cache-excludes", "family-mismatch", "file-exists",
    "foreign-path", "missing-folder", "missing-option", "missing-package", "missing-tensor", "needs-consent",
    "no-effect", "no-file",
    "no-folder", "no-images", "no-state", "no-subsets", "not-downloaded", "not-finite", "not-json", "not-readable",
    "not-toml", "not-writable", "nothing-left", "nothing-to-train", "other-network-kind", "rank-mismatch",
    "results-exist", "rewritten", "run-in-use", "same-stem", "target-exists", "unfinished-state", "unknown-family",
    "unknown-format", "unknown-key", "unknown-lora-names", "unknown-option", "unreadable-image", "unsupported-family",
    "untrusted-module", "unusual-spelling", "usage", "wrong-family", "wrong-input",
}  # fmt: skip
# Each of these is judged in two places still: of a config, and of a dataset, a file or a loaded layer.
TWICE = {
    "not-mergeable", "no-low-rank", "no-such-form", "not-on-this-machine",
    "bad-network-dim", "bucket-limits", "bucket-step", "masks-exclude-random-crop", "narrow-buckets", "no-peft-copy",
    "prompt-file-type", "bad-repository", "warmup-without-use", "numbered-folder", "transparency", "wrong-level",
}  # fmt: skip


@cache
def raised() -> dict[str, set[str]]:
    """code -> the files that raise it: what is given to a parameter named `code`, or under that key."""
    places: dict[str, set[int]] = defaultdict(set, problem={0})  # preflight hands one on under that name
    for path in SOURCES:
        for node in functions(path):
            names = [one.arg for one in (*node.args.posonlyargs, *node.args.args) if one.arg != "self"]
            if "code" in names:
                places[node.name].add(names.index("code"))
    found: dict[str, set[str]] = defaultdict(set)
    for path in SOURCES:
        name = path.relative_to(ROOT).as_posix()
        for node in ast.walk(tree(path)):
            given: list[ast.expr] = []
            if isinstance(node, ast.Call):
                given = [word.value for word in node.keywords if word.arg == "code"]
                called = ast.unparse(node.func).rpartition(".")[2]
                given += [node.args[place] for place in places.get(called, ()) if place < len(node.args)]
            elif isinstance(node, ast.Dict):
                pairs = zip(node.keys, node.values, strict=True)
                given = [value for key, value in pairs if isinstance(key, ast.Constant) and key.value == "code"]
            if name == "launcher/check/show.py":  # looks for findings, makes none
                continue
            for code in (code for top in given for code in codes(top)):
                found[code].add(name)
    return found


def codes(value: ast.expr) -> Iterator[str]:
    """The codes that an expression may be; the condition between two of them is none."""
    if isinstance(value, ast.IfExp):
        yield from (*codes(value.body), *codes(value.orelse))
    elif isinstance(value, ast.Constant) and isinstance(value.value, str) and re.fullmatch(KEBAB, value.value):
        yield value.value


KEBAB = r"[a-z][a-z0-9]*(-[a-z0-9]+)*"


def test_a_problem_code_is_raised_in_one_file() -> None:
    several = {code: sorted(files) for code, files in raised().items() if len(files) > 1}
    assert {code: files for code, files in several.items() if code not in GENERIC | TWICE} == {}
    assert sorted((GENERIC | TWICE) - several.keys()) == [], "raised in one file by now: strike them from the lists"


def test_problem_codes_are_those_that_scripts_may_rely_on() -> None:
    """They are stable names: one that goes or changes breaks somebody's script."""
    assert CODES.read_text(encoding="utf-8").split() == sorted(raised()), "run: python -m tests.test_facts"


if __name__ == "__main__":
    CODES.write_text("".join(f"{code}\n" for code in sorted(raised())), encoding="utf-8")
    sys.stdout.write(f"{CODES}\n")
