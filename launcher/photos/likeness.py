"""What is compared of an image, and the process that finds those that show the same."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from schemas.files.documents import parse_json
from schemas.problems import error

GREY, SHADES = 48, 16  # sides of the thumbnails, as trainer.likeness reads them

Pair = tuple[str, int, int]  # kind ("exact", "near", "cropped", "mirrored"), and two places, the first smaller


@dataclass(frozen=True)
class Look:
    """What is compared of an image: a hash of its pixels, a grey and a colour thumbnail."""

    digest: bytes
    grey: bytes  # GREY x GREY
    shades: bytes  # SHADES x SHADES RGB


def look(image: Image.Image) -> Look:
    """The look of an upright RGB or RGBA image."""
    rgb = image.convert("RGB")
    digest = hashlib.sha256(f"{rgb.size}".encode() + rgb.tobytes()).digest()
    reduced = rgb.reduce(max(1, min(rgb.size) // (4 * GREY)))  # quick, and fine enough for what follows
    grey = reduced.convert("L").resize((GREY, GREY), Image.Resampling.BOX)
    return Look(digest, grey.tobytes(), reduced.resize((SHADES, SHADES), Image.Resampling.BOX).tobytes())


def duplicates(looks: Sequence[Look]) -> list[Pair]:
    """Every pair that shows the same, by its second place, then its first; of crowds of copies not every one."""
    if len(looks) < 2:
        return []
    return [(str(kind), int(i), int(j)) for kind, i, j in in_a_process(looks)]


def in_a_process(looks: Sequence[Look]) -> list[list[Any]]:
    """`python -m trainer.likeness`: the search needs numpy, which this process does without."""
    from launcher.commands.demo import environment

    data = b"".join(one.digest + one.grey + one.shades for one in looks)
    command = [sys.executable, "-P", "-m", "trainer.likeness", str(len(looks))]
    several = {name: value for name, value in environment().items() if not name.startswith("OMP_")}
    done = subprocess.run(command, input=data, stdout=subprocess.PIPE, env=several)
    if done.returncode:
        raise error(
            "search-failed",
            f"the search for duplicates ended with {done.returncode}",
            fix="there may be too little memory: check fewer images at once",
        )
    found: list[list[Any]] = parse_json(done.stdout)
    return found
