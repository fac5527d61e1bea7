"""`python -m benchmarks.dataset folder|search|recall`: how fast `dataset` works, and which look-alikes it finds.

`folder` prepares and checks photos; `search` looks for look-alikes among many thumbnails; `recall` makes known copies
of images and counts which are found, for our search and, where it is installed, for imagehash's perceptual hash.
`--photos DIR` takes real photographs, cut into tiles; without it images are drawn.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from launcher.photos.likeness import GREY, SHADES, duplicates, look
from trainer.dataset.images import Unreadable, opened
from trainer.dataset.pictures import pictures_in
from trainer.likeness.search import search

TILE = 160  # pixels of the tiles that photographs are cut into: each is an image of its own
SIDE = 256
HASH_BITS = 10  # of 64 that two of imagehash's hashes may differ in, as its users commonly have it


def drawn(number: int, side: int = SIDE) -> Image.Image:
    """Noise of several sizes, the large ones stronger: the statistics of photos."""
    draws = np.random.default_rng(number)
    page = np.zeros((side, side, 3), np.float32)
    for cells, strength in ((3, 50), (6, 40), (12, 25), (24, 15), (48, 8)):
        noise = Image.fromarray((draws.random((cells, cells, 3)) * 255).astype(np.uint8))
        page += (np.asarray(noise.resize((side, side), Image.Resampling.BICUBIC), np.float32) - 128) * strength / 60
    return Image.fromarray(np.clip(page + 128, 0, 255).astype(np.uint8))


def tiles(folder: Path) -> Iterator[Image.Image]:
    """Squares cut out of every photograph of a folder; those without any structure are left out."""
    for path in pictures_in(folder):
        try:
            with opened(path) as file:
                image = file.convert("RGB")
        except Unreadable:
            continue
        for top in range(0, image.height - TILE + 1, TILE):
            for left in range(0, image.width - TILE + 1, TILE):
                tile = image.crop((left, top, left + TILE, top + TILE)).resize((SIDE, SIDE))
                if np.asarray(tile.convert("L")).std() > 8:
                    yield tile


def pressed(image: Image.Image, quality: int) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    with opened(stream.getvalue()) as file:
        return file.convert("RGB")


def cropped(image: Image.Image, most: float, draws: random.Random) -> Image.Image:
    """Up to `most` of each side cut off."""
    width, height = image.size
    left, top, right, bottom = (draws.uniform(0, most) for _ in range(4))
    return image.crop((int(width * left), int(height * top), int(width * (1 - right)), int(height * (1 - bottom))))


def shifted(image: Image.Image) -> Image.Image:
    """Warmer, as another white balance makes it."""
    gains = (1.15, 1.0, 0.8)
    bands = [
        band.point(lambda v, gain=gain: min(255, int(v * gain)))
        for band, gain in zip(image.split(), gains, strict=True)
    ]
    return Image.merge("RGB", bands)


Change = Callable[[Image.Image, random.Random], Image.Image]
CHANGES: dict[str, Change] = {
    "recompressed (JPEG 40, smaller)": lambda image, draws: pressed(image.resize((200, 200)), 40),
    "brighter or darker by 30 %": lambda image, draws: ImageEnhance.Brightness(image).enhance(draws.choice((0.7, 1.3))),
    "grey": lambda image, draws: ImageEnhance.Color(image).enhance(0),
    "another white balance": lambda image, draws: shifted(image),
    "mirrored": lambda image, draws: ImageOps.mirror(pressed(image, 70)),
    "cropped, up to 10 % of each side": lambda image, draws: cropped(image, 0.1, draws),
    "cropped, up to 20 % of each side": lambda image, draws: cropped(image, 0.2, draws),
    "a strip cut off (5 to 25 %)": lambda image, draws: image.crop(
        (0, 0, int(image.width * draws.uniform(0.75, 0.95)), image.height)
    ),
    "mirrored and cropped": lambda image, draws: ImageOps.mirror(cropped(image, 0.1, draws)),
}


def by_search(images: Sequence[Image.Image]) -> set[tuple[int, int]]:
    return {(i, j) for _, i, j in duplicates([look(image) for image in images])}


def by_imagehash(images: Sequence[Image.Image]) -> set[tuple[int, int]]:
    """Pairs whose perceptual hashes differ in few bits, the mirror images' hashes too; the usual way."""
    import imagehash

    own = [imagehash.phash(image) for image in images]
    turned = [imagehash.phash(ImageOps.mirror(image)) for image in images]
    return {
        (i, j)
        for j in range(len(images))
        for i in range(j)
        if own[i] - own[j] <= HASH_BITS or turned[i] - own[j] <= HASH_BITS
    }


def recall(photos: Path | None, count: int) -> None:
    """A table: of each kind of copy how many are found; and what is found that is none."""
    draws = random.Random(0)
    originals = list(tiles(photos)) if photos else [drawn(number) for number in range(count)]
    draws.shuffle(originals)
    originals = originals[:count]
    images = list(originals)
    truth: dict[tuple[int, int], str] = {}
    for number, image in enumerate(originals):
        name = list(CHANGES)[number % len(CHANGES)]
        truth[number, len(images)] = name
        images.append(CHANGES[name](image, draws))
    total = Counter(truth.values())
    print(f"{len(originals)} images, {len(truth)} copies")
    for method, find in (("search", by_search), ("imagehash", by_imagehash)):
        try:
            found = find(images)
        except ImportError:
            print(f"{method}: not installed")
            continue
        hits = Counter(truth[pair] for pair in found if pair in truth)
        for name in CHANGES:
            print(f"{method:10} {name:36} {hits[name]:4} of {total[name]:4}  {hits[name] / max(1, total[name]):.0%}")
        right = sum(hits.values())
        print(f"{method:10} precision {right} of {len(found)} ({right / max(1, len(found)):.1%}), "
              f"recall {right} of {len(truth)} ({right / len(truth):.1%})")  # fmt: skip


def folder(count: int, side: int) -> None:
    """Images a second of prepare and check, and their peak memory, on `count` photos of `side` pixels."""
    with tempfile.TemporaryDirectory() as place:
        source = Path(place, "photos")
        source.mkdir()
        base = [drawn(number, side) for number in range(20)]
        for number in range(count):
            image = base[number % len(base)].rotate(number // len(base) * 7 % 360)
            image.save(source / f"{number:05}.jpg", quality=88)
        target = Path(place, "set")
        for words in (
            ["prepare", str(source), "--name", "ohwx", "--to", str(target), "--repeats", "1"],
            ["check", str(target)],
            ["check", str(target), "--sheet", str(Path(place, "sheet.html"))],
        ):
            seconds, memory = timed(["dataset", *words, "--json"])
            print(f"{' '.join(words[:1] + words[2:3] * (len(words) == 4)):16} {count / seconds:7.1f} images/s  "
                  f"{seconds:6.1f} s  {memory / 2**20:.0f} MiB at most")  # fmt: skip
        print(f"sheet: {Path(place, 'sheet.html').stat().st_size / 2**20:.0f} MiB")


def timed(words: Sequence[str]) -> tuple[float, int]:
    """(seconds, bytes of memory at most) of a kohyakit command in a process of its own."""
    program = (
        "import json, resource, subprocess, sys, time\n"
        "began = time.monotonic()\n"
        "subprocess.run([sys.executable, '-m', 'launcher', *sys.argv[1:]], stdout=subprocess.DEVNULL)\n"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss\n"
        "print(json.dumps([time.monotonic() - began, used * 1024]))\n"
    )
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, env=dict(os.environ))
    seconds, memory = json.loads(done.stdout)
    return seconds, memory


def many(count: int) -> None:
    """Seconds of the search among `count` thumbnails, a twentieth of them copies."""
    draws = np.random.default_rng(0)
    parts = []
    for start in range(0, count, 5000):
        size = min(5000, count - start)
        page = np.full((size, GREY, GREY), 128, np.float32)
        for cells, strength in ((3, 60), (6, 40), (12, 25), (24, 15)):
            noise = draws.normal(size=(size, cells, cells)).astype(np.float32) * strength
            page += noise.repeat(GREY // cells, 1).repeat(GREY // cells, 2)
        parts.append(np.clip(page, 0, 255).astype(np.uint8))
    greys = np.concatenate(parts)
    copies = count // 20
    for place in range(copies):
        one = greys[place]
        greys[count - 1 - place] = one[:, ::-1] if place % 2 else np.clip(one * np.float32(1.1), 0, 255)
    shades = np.repeat(greys[:, :: GREY // SHADES, :: GREY // SHADES, None], 3, axis=3)
    began, used = time.monotonic(), time.process_time()
    found = search([number.to_bytes(8, "big") for number in range(count)], greys, shades)
    right = sum(i + j == count - 1 for _, i, j in found)
    print(f"{count} thumbnails: {time.monotonic() - began:.1f} s ({time.process_time() - used:.1f} s of computing), "
          f"{right} of {copies} copies found, {len(found) - right} others")  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["folder", "search", "recall"])
    parser.add_argument("--count", type=int, help="images; 2000 for folder, 20000 for search, 450 for recall")
    parser.add_argument("--side", type=int, default=1024, help="pixels of the photos of folder")
    parser.add_argument("--photos", type=Path, help="real photographs for recall")
    given = parser.parse_args()
    if given.what == "folder":
        folder(given.count or 2000, given.side)
    elif given.what == "search":
        many(given.count or 20_000)
    else:
        recall(given.photos, given.count or 450)
    return 0


if __name__ == "__main__":
    sys.exit(main())
