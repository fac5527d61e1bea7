"""What lies in a folder of images, and what an image file says about itself: size, orientation, transparency."""

from __future__ import annotations

import functools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from trainer.dataset.images import SIDEWAYS, Unreadable, has_alpha, kind_of_file, opened, orientation
from trainer.dataset.names import Names

READERS = 16  # threads; reading headers waits for the disk
DECODERS = 4  # threads at most; each holds a whole image
DEEPEST = 3  # levels below a folder that are looked at for images which nobody trains on
USUAL = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif")  # the reference's own list
OTHER_PICTURES = (".gif", ".tif", ".tiff", ".heic", ".heif", ".jxl", ".avif")
# No images whatever they hold: texts, caches, and files that a program has put aside or not finished.
PASSED_OVER = frozenset(
    (".txt", ".caption", ".cap", ".tags", ".npz", ".json", ".jsonl", ".toml", ".yaml", ".yml", ".csv", ".md", ".html")
) | frozenset((".log", ".py", ".zip", ".safetensors", ".pt", ".bak", ".old", ".orig", ".tmp", ".part", ".crdownload"))

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Facts:
    """What the header of a picture says; `fault` is set instead when it cannot be read. Size after EXIF orientation."""

    width: int = 0
    height: int = 0
    orientation: int = 1
    alpha: bool = False
    deep: bool = False
    fault: str | None = None


@dataclass(frozen=True)
class Listing:
    """What lies directly in a folder. `images` are trained on; `unusual` of them only here, not by the reference."""

    images: tuple[Path, ...]
    unusual: tuple[str, ...]
    others: tuple[str, ...]  # images of kinds that are not trained on
    folders: tuple[str, ...]
    names: Names


@functools.cache
def kinds() -> frozenset[str]:
    """The kinds of images that are trained on."""
    from PIL import features

    return frozenset({"PNG", "JPEG", "WEBP", "BMP"} | ({"AVIF"} if features.check("avif") else set()))


@functools.cache
def extensions() -> frozenset[str]:
    """Lower-case extensions of the pictures that are trained on, by the reference too."""
    return frozenset(USUAL) - (frozenset() if "AVIF" in kinds() else {".avif"})


def list_folder(folder: str | os.PathLike[str]) -> Listing:
    """The images directly in `folder`, sorted by name: by extension as in the reference, by content beyond it."""
    with os.scandir(folder) as entries:
        found = sorted((entry.name, _is_folder(entry)) for entry in entries)
    images: list[Path] = []
    unusual: list[str] = []
    others: list[str] = []
    for name, is_folder in found:
        extension = os.path.splitext(name)[1].lower()
        if is_folder or name.startswith(".") or name.endswith("~") or extension in PASSED_OVER:
            continue
        path = Path(folder, name)
        if extension in extensions():
            images.append(path)
            continue
        kind = kind_of_file(path)
        if kind in kinds():
            images.append(path)
            unusual.append(name)
        elif kind or extension in OTHER_PICTURES:
            others.append(name)
    folders = tuple(name for name, is_folder in found if is_folder)
    return Listing(tuple(images), tuple(unusual), tuple(others), folders, Names(name for name, _ in found))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def pictures_in(folder: str | os.PathLike[str]) -> list[Path]:
    """The pictures directly in `folder`, sorted by name."""
    return list(list_folder(folder).images)


def deeper(folder: str | os.PathLike[str]) -> Iterator[tuple[Path, int]]:
    """(folder, images) of every folder below `folder` that holds images, a few levels deep; hidden ones left out."""
    for name, inner, _ in os.walk(folder):
        here = Path(name)
        depth = len(here.relative_to(folder).parts)
        inner[:] = sorted(one for one in inner if not one.startswith(".")) if depth < DEEPEST else []
        count = len(list_folder(here).images) if depth else 0
        if count:
            yield here, count


# Headers that have been read before, by path and what tells that the file is still the same one. None: nothing is kept,
# as a command reads each file once; a server, which plans the same folder at every change of a value, sets it.
remembered: dict[Path, tuple[tuple[int, int, int], Facts]] | None = None
MOST_REMEMBERED = 100_000


def _signature(path: Path) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_size, found.st_mtime_ns, found.st_ino


def read_facts(path: Path, *, verify: bool = False) -> Facts:
    """The header of `path`; with `verify` the pixels are decoded too."""
    if remembered is None or verify:
        return _read_facts(path, verify=verify)
    signature, known = _signature(path), remembered.get(path)
    if signature is not None and known is not None and known[0] == signature:
        return known[1]
    found = _read_facts(path)
    if signature is not None:
        if len(remembered) >= MOST_REMEMBERED:
            remembered.clear()
        remembered[path] = signature, found
    return found


def _read_facts(path: Path, *, verify: bool = False) -> Facts:
    try:
        with opened(path) as image:
            turn = orientation(image)
            size = image.size[::-1] if turn in SIDEWAYS else image.size
            alpha = has_alpha(image)
            deep = image.mode[0] in "IF"
            if verify:
                if image.format == "JPEG":
                    image.draft(image.mode, (image.width // 8, image.height // 8))  # an eighth has all the data too
                image.load()
    except Unreadable as fault:
        return Facts(fault=str(fault))
    return Facts(size[0], size[1], turn, alpha, deep)


def read_all(
    paths: Iterable[Path], *, verify: bool = False, progress: Callable[[int, int], object] | None = None
) -> dict[Path, Facts]:
    """`read_facts` of every path, in parallel; `progress` hears (done, of how many)."""
    unique = list(dict.fromkeys(paths))
    facts: dict[Path, Facts] = {}
    read = functools.partial(read_facts, verify=verify)
    known = remembered is not None and not verify and all(path in remembered for path in unique)
    results = map(read, unique) if known else ahead(read, unique, decoders() if verify else READERS)
    for path, found in zip(unique, results, strict=True):
        facts[path] = found
        if progress:
            progress(len(facts), len(unique))
    return facts


def decoders() -> int:
    """Threads that decode at once."""
    return min(DECODERS, os.cpu_count() or 1)


def ahead(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """The results in order, computed by threads a few items ahead: memory stays flat however many items there are."""
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(max(1, workers)) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > 4 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
