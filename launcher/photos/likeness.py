"""Which pictures show the same: equal pixels, nearly equal, or mirror images of each other."""

from __future__ import annotations

import hashlib
import itertools
import operator
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from PIL import Image, ImageOps

SIDE = 16  # the hash has SIDE x SIDE bits
FAR_BITS = 26  # of 256: a tenth of the comparisons may differ
FAR_SHADE = 10.0  # of 255: mean difference of the colour thumbnails
FAR_SUM = int(FAR_SHADE * SIDE * SIDE * 3)
# Hashes that differ in at most FAR_BITS bits differ in at most one bit of at least one of so many parts (pigeonhole).
_COUNT = FAR_BITS // 2 + 1
_EDGES = [number * SIDE * SIDE // _COUNT for number in range(_COUNT + 1)]
BANDS = [(start, end - start) for start, end in itertools.pairwise(_EDGES)]  # (shift, width)
# Bits side by side in the hash come from far apart: neighbours in a picture are often equal, bands should not be.
SCATTERED = [place * 101 % (SIDE * SIDE) for place in range(SIDE * SIDE)]
AROUND = list(itertools.product((-1, 0, 1), repeat=3))
MOST_PAIRED = (
    32  # of more copies of one image each is told against the first alone: all pairs would be too many to read
)

Shades = tuple[int, int, int]
Kind = Literal["exact", "near", "mirrored"]


@dataclass(frozen=True)
class Look:
    """What is compared of a picture: difference hash (is a pixel brighter than its left neighbour?), also mirrored."""

    digest: bytes
    bits: int
    mirrored_bits: int
    thumbnail: bytes  # SIDE x SIDE RGB

    @cached_property
    def mirrored_thumbnail(self) -> bytes:
        return ImageOps.mirror(Image.frombytes("RGB", (SIDE, SIDE), self.thumbnail)).tobytes()

    @cached_property
    def shades(self) -> Shades:
        """The thumbnail's reds, greens and blues added up: the same for its mirror image."""
        return sum(self.thumbnail[::3]), sum(self.thumbnail[1::3]), sum(self.thumbnail[2::3])


def look(image: Image.Image) -> Look:
    """The look of an upright RGB or RGBA picture."""
    rgb = image.convert("RGB")
    digest = hashlib.sha256(f"{rgb.size}".encode() + rgb.tobytes()).digest()
    small = rgb.resize((SIDE, SIDE), Image.Resampling.BOX)
    grey = rgb.convert("L").resize((SIDE + 1, SIDE), Image.Resampling.BOX)
    return Look(digest, _hash(grey), _hash(ImageOps.mirror(grey)), small.tobytes())


def _hash(grey: Image.Image) -> int:
    """Difference hash of a (SIDE + 1) x SIDE grey picture."""
    shades = grey.tobytes()
    places = (row * (SIDE + 1) + column for row in range(SIDE) for column in range(SIDE))
    brighter = [shades[place + 1] > shades[place] for place in places]
    return int("".join("1" if brighter[place] else "0" for place in SCATTERED), 2)


def duplicates(looks: Sequence[Look]) -> list[tuple[Kind, int, int]]:
    """(kind, i, j) with i < j for every pair that shows the same, by j, then i; see MOST_PAIRED."""
    copies: dict[bytes, list[int]] = defaultdict(list)
    for place, one in enumerate(looks):
        copies[one.digest].append(place)
    pairs: list[tuple[Kind, int, int]] = []
    passed_over: set[int] = set()
    for group in copies.values():
        if len(group) > MOST_PAIRED:
            pairs += [("exact", group[0], other) for other in group[1:]]
            passed_over.update(group[1:])
    index = _Index()
    for j, second in enumerate(looks):
        if j in passed_over:
            continue
        for i in index.candidates(second):
            kind = _compare(looks[i], second)
            if kind:
                pairs.append((kind, i, j))
        index.add(j, second)
    return sorted(pairs, key=lambda pair: (pair[2], pair[1]))


class _Index:
    """Finds the pictures that may be near another without comparing it with all of them."""

    def __init__(self) -> None:
        self._members: dict[int, _Members] = {}  # by hash, a picture's own and its mirror image's
        self._hashes: dict[tuple[int, int], list[int]] = defaultdict(list)  # by number and value of a band

    def add(self, place: int, one: Look) -> None:
        for bits in {one.bits, one.mirrored_bits}:
            if bits not in self._members:
                self._members[bits] = _Members()
                for number, (shift, width) in enumerate(BANDS):
                    self._hashes[number, bits >> shift & (1 << width) - 1].append(bits)
            self._members[bits].add(place, one.shades)

    def candidates(self, one: Look) -> list[int]:
        """Places of every picture added whose hash and mean colour are near enough, in order."""
        bits, hashes = one.bits, set[int]()
        for number, (shift, width) in enumerate(BANDS):
            value = bits >> shift & (1 << width) - 1
            for near in (value, *(value ^ 1 << place for place in range(width))):
                for other in self._hashes.get((number, near), ()):
                    if other not in hashes and (other ^ bits).bit_count() <= FAR_BITS:
                        hashes.add(other)
        return sorted({place for other in hashes for place in self._members[other].near(one.shades)})


class _Members:
    """Pictures of one hash, found by their sums of red, green and blue: flat pictures share a hash by the thousand."""

    def __init__(self) -> None:
        self._all: list[tuple[int, Shades]] = []
        self._cells: dict[Shades, list[tuple[int, Shades]]] = defaultdict(list)

    def add(self, place: int, shades: Shades) -> None:
        self._all.append((place, shades))
        self._cells[_cell(shades)].append((place, shades))

    def near(self, shades: Shades) -> Iterator[int]:
        cells: Iterable[list[tuple[int, Shades]]] = [self._all]
        if len(self._all) > len(AROUND):
            r, g, b = _cell(shades)
            cells = [self._cells[key] for x, y, z in AROUND if (key := (r + x, g + y, b + z)) in self._cells]
        for cell in cells:
            for place, (r, g, b) in cell:
                # No nearer than this on average, whatever the single pixels are.
                if abs(r - shades[0]) + abs(g - shades[1]) + abs(b - shades[2]) <= FAR_SUM:
                    yield place


def _cell(shades: Shades) -> Shades:
    return shades[0] // FAR_SUM, shades[1] // FAR_SUM, shades[2] // FAR_SUM


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
    difference: int = sum(map(abs, map(operator.sub, first, second)))
    return difference / len(first) <= FAR_SHADE
