"""The index of near duplicates finds what comparing all pairs would."""

from __future__ import annotations

import random
import time

import pytest
from PIL import Image, ImageOps

from launcher.photos import likeness
from launcher.photos.likeness import Look, duplicates, look


def pictures(rng: random.Random, count: int) -> list[Image.Image]:
    """Random pictures of few shades, some flat, some copied, brightened, blurred by scaling, or mirrored."""
    made: list[Image.Image] = []
    for _ in range(count):
        kind = rng.randrange(6)
        if kind == 0 or not made:
            grid = rng.randrange(1, 9)
            small = Image.frombytes("RGB", (grid, grid), rng.randbytes(3 * grid * grid))
            made.append(small.resize((48, 40), Image.Resampling.BICUBIC))
            continue
        other = rng.choice(made)
        shift = rng.randrange(-14, 15)
        made.append(
            [
                other,
                ImageOps.mirror(other),
                other.point(lambda value, shift=shift: max(0, min(255, value + shift))),
                other.resize((31, 33)),
                ImageOps.mirror(other.resize((60, 60))),
            ][kind - 1]
        )
    return made


def all_pairs(looks: list[Look]) -> list[tuple[str, int, int]]:
    return [
        (kind, i, j)
        for j, second in enumerate(looks)
        for i, first in enumerate(looks[:j])
        if (kind := likeness._compare(first, second))
    ]


@pytest.mark.parametrize("seed", range(4))
def test_the_index_finds_exactly_what_all_pairs_give(seed: int) -> None:
    looks = [look(image) for image in pictures(random.Random(seed), 120)]
    found = duplicates(looks)
    assert found == all_pairs(looks)
    assert {kind for kind, _, _ in found} == {"exact", "near", "mirrored"}


def test_a_crowd_of_copies_is_told_against_its_first() -> None:
    one = look(Image.frombytes("RGB", (4, 4), bytes(range(48))))
    count = likeness.MOST_PAIRED + 5
    assert duplicates([one] * count) == [("exact", 0, place) for place in range(1, count)]


def test_thousands_of_pictures_take_seconds_not_minutes() -> None:
    rng = random.Random(0)
    looks = [
        Look(rng.randbytes(32), rng.getrandbits(256), rng.getrandbits(256), bytes([rng.randrange(256)] * 768))
        for _ in range(4000)
    ]
    began = time.process_time()
    duplicates(looks)
    assert time.process_time() - began < 8  # all pairs: eight million comparisons, tens of seconds
