"""What a picture file says about itself: size, orientation, transparency, and whether it can be decoded."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

ORIENTATION = 0x0112  # EXIF tag
SIDEWAYS = (5, 6, 7, 8)  # orientations that swap width and height
READERS = 16  # threads; reading headers waits for the disk
OTHER_PICTURES = (".gif", ".tif", ".tiff", ".heic", ".heif", ".jxl", ".avif")


@dataclass(frozen=True)
class Facts:
    """What the header of a picture says; `fault` is set instead when it cannot be read. Size after EXIF orientation."""

    width: int = 0
    height: int = 0
    orientation: int = 1
    alpha: bool = False
    deep: bool = False
    fault: str | None = None


@functools.cache
def extensions() -> frozenset[str]:
    """Lower-case extensions of the pictures that are trained on."""
    from PIL import features

    known = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
    return frozenset(known | ({".avif"} if features.check("avif") else set()))


def pictures_in(folder: str | os.PathLike[str]) -> list[Path]:
    """The pictures directly in `folder`, sorted by name."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.is_file() and not entry.name.startswith(".")]
    known = extensions()
    return [Path(folder, name) for name in sorted(names) if os.path.splitext(name)[1].lower() in known]


def unsupported_in(folder: str | os.PathLike[str]) -> list[str]:
    """Names of pictures in `folder` of a kind that is not trained on."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_file())
    others = set(OTHER_PICTURES) - extensions()
    return [name for name in names if os.path.splitext(name)[1].lower() in others]


def orientation(image: Image) -> int:
    """EXIF orientation 1..8 of an opened picture, from its header alone; 1 when it says nothing sensible."""
    from PIL import Image as pillow

    raw = image.info.get("exif")
    if not raw:
        return 1
    exif = pillow.Exif()
    try:
        exif.load(raw)
        value = exif.get(ORIENTATION, 1)
    except (SyntaxError, ValueError, KeyError, TypeError, OSError):
        return 1
    return value if value in range(1, 9) else 1


def read_facts(path: Path, *, verify: bool = False) -> Facts:
    """The header of `path`; with `verify` the pixels are decoded too."""
    from PIL import Image as pillow
    from PIL import UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", pillow.DecompressionBombWarning)
            with pillow.open(path) as image:
                turn = orientation(image)
                size = image.size[::-1] if turn in SIDEWAYS else image.size
                alpha = image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
                deep = image.mode[0] in "IF"
                if verify:
                    image.load()
    except UnidentifiedImageError:
        return Facts(fault="is not a picture that can be read")
    except FileNotFoundError:
        return Facts(fault="is missing")
    except pillow.DecompressionBombError as fault:
        return Facts(fault=str(fault))
    except (OSError, SyntaxError, ValueError, EOFError) as fault:
        return Facts(fault=f"cannot be read: {fault}")
    return Facts(size[0], size[1], turn, alpha, deep)


def read_all(paths: Iterable[Path], *, verify: bool = False) -> dict[Path, Facts]:
    """`read_facts` of every path, in parallel."""
    unique = list(dict.fromkeys(paths))
    workers = min(READERS, len(unique), (os.cpu_count() or 1) if verify else READERS)
    if workers <= 1:
        return {path: read_facts(path, verify=verify) for path in unique}
    with ThreadPoolExecutor(workers) as pool:
        return dict(zip(unique, pool.map(functools.partial(read_facts, verify=verify), unique), strict=True))
