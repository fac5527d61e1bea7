"""Which pictures show the same: equal pixels, nearly equal, or mirror images of each other."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageOps

SIDE = 16  # the hash has SIDE x SIDE bits
FAR_BITS = 26  # of 256: a tenth of the comparisons may differ
FAR_SHADE = 10.0  # of 255: mean difference of the colour thumbnails

Kind = Literal["exact", "near", "mirrored"]


@dataclass(frozen=True)
class Look:
    """What is compared of a picture: difference hash (is a pixel brighter than its left neighbour?), also mirrored."""

    digest: bytes
    bits: int
    mirrored_bits: int
    thumbnail: bytes  # SIDE x SIDE RGB
    mirrored_thumbnail: bytes


def look(image: Image.Image) -> Look:
    """The look of an upright RGB or RGBA picture."""
    rgb = image.convert("RGB")
    digest = hashlib.sha256(f"{rgb.size}".encode() + rgb.tobytes()).digest()
    small = rgb.resize((SIDE, SIDE), Image.Resampling.BOX)
    grey = rgb.convert("L").resize((SIDE + 1, SIDE), Image.Resampling.BOX)
    return Look(digest, _hash(grey), _hash(ImageOps.mirror(grey)), small.tobytes(), ImageOps.mirror(small).tobytes())


def _hash(grey: Image.Image) -> int:
    """Difference hash of a (SIDE + 1) x SIDE grey picture."""
    shades = grey.tobytes()
    bits = 0
    for row in range(SIDE):
        line = shades[row * (SIDE + 1) : (row + 1) * (SIDE + 1)]
        for left, right in itertools.pairwise(line):
            bits = bits << 1 | (right > left)
    return bits


def duplicates(looks: Sequence[Look]) -> list[tuple[Kind, int, int]]:
    """(kind, i, j) with i < j for every pair that shows the same."""
    pairs: list[tuple[Kind, int, int]] = []
    for j, second in enumerate(looks):
        for i, first in enumerate(looks[:j]):
            kind = _compare(first, second)
            if kind:
                pairs.append((kind, i, j))
    return pairs


def _compare(first: Look, second: Look) -> Kind | None:
    if first.digest == second.digest:
        return "exact"
    if (first.bits ^ second.bits).bit_count() <= FAR_BITS and _near(first.thumbnail, second.thumbnail):
        return "near"
    if (first.mirrored_bits ^ second.bits).bit_count() <= FAR_BITS and _near(
        first.mirrored_thumbnail, second.thumbnail
    ):
        return "mirrored"
    return None


def _near(first: bytes, second: bytes) -> bool:
    return sum(abs(a - b) for a, b in zip(first, second, strict=True)) / len(first) <= FAR_SHADE
