"""The one door through which images are opened: fixed formats, regular files, bounded sizes, messages that name causes.

Nothing else calls Pillow's open: with its full list of plug-ins it starts programs (Ghostscript for PostScript).
"""

from __future__ import annotations

import functools
import io
import os
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, BinaryIO

from schemas.files.textfile import regular_stream
from schemas.problems import ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")  # Pillow's names; all decoded in this process
MOST_PIXELS = 300_000_000  # phones make 200 million
LARGEST_FILE = 1 << 30  # bytes
HEAD = 32  # bytes that tell what a file is
ORIENTATION = 0x0112  # EXIF tag
TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
SIDEWAYS = (5, 6, 7, 8)  # orientations that swap width and height

# What Pillow raises for a damaged file.
_FAULTS = (OSError, ValueError, SyntaxError, EOFError, MemoryError, OverflowError, struct.error, TypeError, IndexError,
           KeyError, AttributeError, ZeroDivisionError, RuntimeError)  # fmt: skip


class Unreadable(OSError):
    """An image that cannot be used; the text says why and fits behind the file's name."""


@functools.cache
def _pillow() -> ModuleType:
    """Pillow's Image module, set up once for the whole process: threads must not change it back and forth."""
    from PIL import Image, ImageFile, PngImagePlugin

    class Stream(PngImagePlugin.PngStream):
        """PNG without its texts: a workflow of megabytes beside the pixels is no reason to refuse an image."""

        def _passed_over(self, pos: int, length: int) -> bytes:
            assert self.fp is not None
            return ImageFile._safe_read(self.fp, length)

        chunk_tEXt = chunk_zTXt = chunk_iTXt = _passed_over

    PngImagePlugin.PngStream = Stream  # type: ignore[misc]
    Image.MAX_IMAGE_PIXELS = MOST_PIXELS
    warnings.filterwarnings("ignore", module=r"PIL\.")
    return Image


@contextmanager
def opened(source: str | os.PathLike[str] | bytes) -> Iterator[Image]:
    """The image in a file, or in bytes; its pixels are decoded when they are asked for. Raises Unreadable only."""
    pillow = _pillow()
    try:
        stream: BinaryIO = io.BytesIO(source) if isinstance(source, bytes) else _regular(source)
        with stream:
            head = stream.read(HEAD)
            stream.seek(0)
            try:
                with pillow.open(stream, formats=FORMATS) as image:
                    if image.width * image.height > MOST_PIXELS:
                        raise Unreadable(_too_large(f"{image.width:,} x {image.height:,} pixels"))
                    yield image
            except pillow.DecompressionBombError:
                raise Unreadable(_too_large("more pixels")) from None
            except Unreadable:
                raise
            except _FAULTS as fault:
                raise Unreadable(_said(fault, head)) from None
    except Unreadable:
        raise
    except OSError as fault:  # of the disk
        raise Unreadable(f"cannot be read: {fault.strerror or fault}") from None


def _regular(path: str | os.PathLike[str]) -> BinaryIO:
    if not os.path.lexists(path):
        raise Unreadable("is missing")
    try:
        return regular_stream(path, limit=LARGEST_FILE, what="an image")
    except ConfigError as fault:
        raise Unreadable(fault.problems[0].must) from None


def _too_large(size: str) -> str:
    return f"has {size}, where at most {MOST_PIXELS:,} pixels are decoded"


def _said(fault: BaseException, head: bytes) -> str:
    """Why an image could not be decoded; Pillow's own words where they are words and name no object in memory."""
    from PIL import UnidentifiedImageError

    if isinstance(fault, MemoryError):
        return "cannot be read whole: there is not enough memory for it"
    kind = kind_of(head)
    if isinstance(fault, UnidentifiedImageError):
        if kind in FORMATS:
            return f"cannot be read whole: it begins as {kind} and is damaged or cut off"
        return f"is not an image that can be read: {other_kind(head)}"
    text = str(fault)
    if not text or "object at 0x" in text:
        text = f"its {kind} data is damaged" if kind else type(fault).__name__
    return f"cannot be read whole: {text}"


_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF8", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"8BPS", "Photoshop"),
)
_BRANDS = {b"avif": "AVIF", b"avis": "AVIF"} | dict.fromkeys((b"heic", b"heix", b"hevc", b"mif1", b"msf1"), "HEIC")
_BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)  # sizes; "BM" alone also begins words


def kind_of(head: bytes) -> str | None:
    """Which kind of image begins with these bytes (at least HEAD of them); None for anything else."""
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12])
    if head[:4] == b"RIFF":
        return "WEBP" if head[8:12] == b"WEBP" else None
    if head[:2] == b"BM":
        return "BMP" if int.from_bytes(head[14:18], "little") in _BMP_HEADERS else None
    return next((kind for signature, kind in _SIGNATURES if head.startswith(signature)), None)


def kind_of_file(path: str | os.PathLike[str]) -> str | None:
    """`kind_of` a file's beginning; None where it cannot be read."""
    try:
        with regular_stream(path, limit=LARGEST_FILE, what="an image") as stream:
            return kind_of(stream.read(HEAD))
    except (ConfigError, OSError):
        return None


def other_kind(head: bytes) -> str:
    """What a file is that is no image we read, as far as its beginning tells."""
    if not head:
        return "the file is empty"
    if kind := kind_of(head):
        return f"it is {kind}; export it as PNG or JPEG"
    words = (
        (b"%!PS", "it is PostScript"),
        (b"\xc5\xd0\xd3\xc6", "it is PostScript"),
        (b"%PDF", "it is a PDF"),
        (b"PK\x03\x04", "it is a zip archive"),
        (b"version https://git-l", "it is a pointer of Git LFS; fetch the image itself with `git lfs pull`"),
    )
    begun = head.lstrip().lower()
    if begun.startswith((b"<svg", b"<?xml", b"<!doctype", b"<html")):
        return "it is a web page or SVG"
    known = next((text for signature, text in words if head.startswith(signature)), None)
    return known or f"it is none of {', '.join(FORMATS)}"


def orientation(image: Image) -> int:
    """EXIF orientation 1..8 of an opened image, from its header alone; 1 when it says nothing sensible."""
    raw = image.info.get("exif")
    if not raw:
        return 1
    exif = _pillow().Exif()
    try:
        exif.load(raw)
        value = exif.get(ORIENTATION, 1)
    except _FAULTS:
        return 1
    return value if value in range(1, 9) else 1


def upright(image: Image, turn: int) -> Image:
    """`image` turned or mirrored as an EXIF orientation says."""
    return image.transpose(_pillow().Transpose[TURNS[turn]]) if turn in TURNS else image


def has_alpha(image: Image) -> bool:
    """Whether the image's format carries transparency; the pixels may all be opaque."""
    return image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
