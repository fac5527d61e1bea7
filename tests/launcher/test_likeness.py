"""The search for images that show the same, with known copies: recall, precision, kinds, crowds."""

from __future__ import annotations

import io
import random
import time
from collections import Counter
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from launcher.photos import likeness
from launcher.photos.likeness import Look, duplicates, look
from trainer.likeness.search import search

IN_A_PROCESS = likeness.in_a_process  # tests search in their own process; this is the real one
GREY, SHADES = likeness.GREY, likeness.SHADES


def drawn(rng: np.random.Generator) -> Image.Image:
    """Something with the statistics of a photo: shades of every size, the large ones stronger."""
    page = np.zeros((192, 192, 3), np.float32)
    for cells, strength in ((3, 50), (6, 40), (12, 25), (24, 15), (48, 8)):
        noise = Image.fromarray((rng.random((cells, cells, 3)) * 255).astype(np.uint8))
        page += (np.asarray(noise.resize((192, 192), Image.Resampling.BICUBIC), np.float32) - 128) * strength / 60
    return Image.fromarray(np.clip(page + 128, 0, 255).astype(np.uint8))


def pressed(image: Image.Image) -> Image.Image:
    stream = io.BytesIO()
    image.resize((150, 150)).save(stream, "JPEG", quality=40)
    return Image.open(io.BytesIO(stream.getvalue())).convert("RGB")


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "near": pressed,
    "near ": lambda image: ImageEnhance.Color(ImageEnhance.Brightness(image).enhance(0.8)).enhance(0),
    "mirrored": lambda image: ImageOps.mirror(pressed(image)),
    "cropped": lambda image: image.crop((24, 10, 180, 182)),
    "cropped ": lambda image: image.crop((0, 0, 150, 192)),
    "mirrored ": lambda image: ImageOps.mirror(image.crop((10, 10, 185, 185))),
}


def test_every_known_copy_is_found_with_its_kind_and_nothing_else() -> None:
    rng = np.random.default_rng(1)
    originals = [drawn(rng) for _ in range(60)]
    images, wanted = list(originals), set()
    for place, image in enumerate(originals):
        name = [*COPIES][place % len(COPIES)]
        wanted.add((name.strip(), place, len(images)))
        images.append(COPIES[name](image))
    assert set(duplicates([look(image) for image in images])) == wanted


def test_flat_images_are_the_same_only_in_the_same_colour() -> None:
    colours = ["black", "white", "red", "red", "#f80000"]
    found = duplicates([look(Image.new("RGB", (64 + n, 64), colour)) for n, colour in enumerate(colours)])
    assert {(i, j) for _, i, j in found} == {(2, 3), (2, 4), (3, 4)}


def test_a_crowd_of_copies_is_told_against_its_first() -> None:
    image = drawn(np.random.default_rng(2))
    found = duplicates([look(image)] * 100 + [look(drawn(np.random.default_rng(3)))])
    assert found == [("exact", 0, place) for place in range(1, 100)]


def test_thousands_of_images_take_seconds() -> None:
    rng = np.random.default_rng(4)
    greys = np.stack([np.kron(rng.integers(0, 255, (12, 12)), np.ones((4, 4))) for _ in range(3000)]).astype(np.uint8)
    greys[-50:] = greys[:50, :, ::-1]
    shades = np.repeat(greys[:, ::3, ::3, None], 3, axis=3)
    began = time.monotonic()
    found = search([bytes([place % 256, place // 256]) for place in range(3000)], greys, shades)
    assert Counter(kind for kind, _, _ in found) == {"mirrored": 50}
    assert time.monotonic() - began < 20


def test_the_search_runs_in_a_process_without_numpy_here() -> None:
    same = Look(random.Random(1).randbytes(32), bytes(range(256)) * 9, bytes(SHADES * SHADES * 3))
    assert IN_A_PROCESS([same, same]) == [["exact", 0, 1]]
