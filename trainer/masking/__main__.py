"""`python -m trainer.masking --from SOURCE`: on stdin image and mask in turn, each ended by a zero byte."""

from __future__ import annotations

if __name__ == "__main__":
    from trainer.watch.early import leave_on_signals

    leave_on_signals()

import argparse
import functools
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from PIL import Image

from schemas.files.writing import write_atomically
from schemas.problems import ConfigError
from schemas.signals import interruptible, outlast_terminal
from schemas.terminal import say, say_document
from trainer.dataset.images import Unreadable
from trainer.dataset.pictures import read_facts
from trainer.masking.sources import SOURCES, Source, source_of


def masks(images: Sequence[tuple[Path, Path]], make: Source) -> dict[str, Any]:
    """Write the mask of each (image, file to write). Where none can be made, all of the image is trained, and it is
    named: the trainer wants a mask for every image of a folder."""
    whole: list[dict[str, str]] = []
    broken: list[dict[str, str]] = []
    for number, (path, target) in enumerate(images):
        if number % 50 == 49:
            say(f"{number + 1}/{len(images)}", err=True)
        try:
            image = Image.fromarray(make(path))
        except Unreadable as fault:
            broken.append({"file": str(path), "why": str(fault)})
            continue
        except ValueError as fault:
            whole.append({"file": str(path), "why": str(fault)})
            image = Image.new("L", _size(path), 255)
        stream = io.BytesIO()
        image.save(stream, "PNG")
        data = stream.getvalue()
        write_atomically(target, functools.partial(_put, data))
    return {"ok": True, "written": len(images) - len(broken), "whole": whole, "left_out": broken, "problems": []}


def _put(data: bytes, file: IO[bytes]) -> None:
    file.write(data)


def _size(path: Path) -> tuple[int, int]:
    facts = read_facts(path)
    return facts.width, facts.height


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m trainer.masking", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--from", dest="kind", choices=SOURCES, required=True)
    parser.add_argument("--masks", type=Path)
    parser.add_argument("--grow", type=float, default=1.4)
    given = parser.parse_args(words)
    paths = [Path(os.fsdecode(name)) for name in sys.stdin.buffer.read().split(b"\0")[:-1]]
    try:
        make = source_of(given.kind, folder=given.masks, grow=given.grow)
        document = masks(list(zip(paths[::2], paths[1::2], strict=True)), make)
    except ConfigError as fault:
        say_document({"ok": False, "problems": [problem.as_json() for problem in fault.problems]})
        return 1
    except KeyboardInterrupt:
        return 130
    say_document(document)
    return 0


if __name__ == "__main__":
    outlast_terminal()
    with interruptible():
        sys.exit(main())
