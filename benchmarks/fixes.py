"""`python -m benchmarks.fixes FOLDER [--most N]`: applies every suggested fix and checks that it ends its finding.

Each config file is checked as `validate` and as `plan` do, over a small real base model and folder of images. A fix
that can be applied by a machine (`--set K=V`, `--trust NAME`, `--overwrite`) must take its finding away and bring no
new error; alternatives must each do so alone. "correct X" says nothing and counts as a failure.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shlex
import struct
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from PIL import Image

from launcher.check.preflight import check_file, check_run
from launcher.check.resolve import Resolved, UsageError, resolve
from launcher.commands import with_trust
from schemas.problems import ConfigError, Problem

Sets = dict[str, str]
Mark = tuple[str, str]  # code and argument of a finding

UNET = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "sd15": {UNET: (4, 768), "cond_stage_model.transformer.text_model.final_layer_norm.weight": (4,)},
    "sd2": {UNET: (4, 1024), "cond_stage_model.model.ln_final.weight": (4,)},
    "sdxl": {UNET: (4, 2048), "conditioner.embedders.1.model.ln_final.weight": (4,)},
}
GROUP = re.compile(r"""--(set|trust)\s+((?:"(?:[^"\\]|\\.)*"|'[^']*'|[^\s"'])+)|--(overwrite)\b""")
OPEN = re.compile(r"=\.\.\.|(?:=|/|^|\s)(?:PATH|FILE|FOLDER|NAME|MODEL|WORD|TEXT|N)(?:\b|$)")
EMPTY = re.compile(r"^correct [\w./\[\]-]+$")


class World:
    """A base model of each family and a folder of images, all tiny, below `place`."""

    def __init__(self, place: Path) -> None:
        self.place = place
        images = place / "data" / "2_frog"
        images.mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (64, 64), (60 * number, 90, 30)).save(images / f"{number}.png")
            (images / f"{number}.txt").write_text(f"frog, {number}", encoding="utf-8")
        for family, shapes in SHAPES.items():
            header: dict[str, object] = {}
            end = 0
            for name, shape in shapes.items():
                size = 4 * math.prod(shape)
                header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
                end += size
            text = json.dumps(header).encode()
            (place / f"{family}.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(end))

    def sets(self, family: str | None) -> Sets:
        """The inputs that a file of somebody else's leaves open here."""
        return {
            "pretrained_model_name_or_path": str(self.place / f"{family if family in SHAPES else 'sd15'}.safetensors"),
            "train_data_dir": str(self.place / "data"),
            "output_dir": str(self.place / "out"),
            "output_name": "frog",
        }


def groups(fix: str) -> Iterator[list[tuple[str, str]]]:
    """The alternatives of a fix that can be applied as they stand, each as (option, word) pairs."""
    for part in re.split(r",? or (?=[^=]*--)", fix):
        found: list[tuple[str, str]] = []
        for match in GROUP.finditer(part):
            word = " ".join(shlex.split(match[2])).rstrip(",;") if match[2] else ""
            found.append((match[1] or match[3], word))
        if found and not any(OPEN.search(word) for _, word in found):
            yield found


def applied(sets: Sets, group: list[tuple[str, str]]) -> Sets:
    """`sets` with one alternative added, as the command line would be."""
    more = dict(sets)
    for option, word in group:
        if option == "set":
            name, _, value = word.partition("=")
            more[name] = value
        elif option == "trust":
            more = with_trust(more, [word])
        else:
            more["overwrite"] = "true"
    return more


def _checked(file: Path, sets: Sets, *, run: bool) -> tuple[Resolved | None, list[Problem]]:
    try:
        resolved = resolve(str(file), sets)
        checked = check_run(resolved) if run else check_file(resolved)
        return checked.resolved, checked.problems
    except ConfigError as fault:
        return None, fault.problems


def _marks(resolved: Resolved | None, problems: list[Problem]) -> dict[Mark, Problem]:
    """Findings by what they are about: a key of the file and the argument that has its value are the same."""
    arguments = {one.key: name for name, one in resolved.settings.items() if one.key} if resolved else {}
    found: dict[Mark, Problem] = {}
    for problem in problems:
        key = (problem.key or "").removeprefix("--set ")
        found.setdefault((problem.code, arguments.get(key, key)), problem)
    return found


def _after(file: Path, sets: Sets, mark: Mark, before: Mapping[Mark, Problem], *, run: bool) -> str | None:
    """What is wrong with a fix, or None."""
    try:
        resolved, problems = _checked(file, sets, run=run)
    except UsageError as fault:
        return f"is refused: {fault}"
    marks = _marks(resolved, problems)
    old = before[mark]
    if mark in marks or any((one.code, one.key) == (old.code, old.key) for one in problems):
        return "leaves its finding standing"
    known = {one for one, problem in before.items() if problem.severity == "error"}
    for one, problem in marks.items():
        promised = problem.code == "missing-package" and f"first: {problem.fix}" in (old.fix or "")
        if problem.severity == "error" and one not in known and not promised:
            return f"brings {problem.code}: {problem.key}: {problem.must}"
    return None


def failures(file: Path, world: World, sets: Mapping[str, str] | None = None) -> Iterator[str]:
    """Every fix of `file` that fails, a line each."""
    given = dict(sets or {})
    try:
        family = resolve(str(file), given).draft.family
    except (ConfigError, UsageError):
        family = None
    for run in (False, True):
        laid = {**world.sets(family), **given} if run else given
        try:
            resolved, problems = _checked(file, laid, run=run)
        except UsageError:
            continue  # the command line itself is wrong: nothing was advised
        before = _marks(resolved, problems)
        for mark, problem in before.items():
            fix = problem.fix or ""
            if EMPTY.match(fix):
                yield f"{file.name}: {mark}: {fix!r} says nothing"
            for group in groups(fix):
                wrong = _after(file, applied(laid, group), mark, before, run=run)
                if wrong:
                    yield f"{file.name}: {mark} {problem.severity}: {fix!r}: {group} {wrong}"


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fixes", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--most", type=int, metavar="N", help="look at so many files only")
    given = parser.parse_args(words)
    files = sorted(path for path in given.folder.rglob("*") if path.is_file())[: given.most]
    failed = 0
    with tempfile.TemporaryDirectory() as place:
        world = World(Path(place))
        for file in files:
            for line in dict.fromkeys(failures(file, world)):
                failed += 1
                print(line)
    print(f"{len(files)} files, {failed} fixes that fail")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
