"""Opening one picture the way training will see it: whole, upright, 8-bit RGB or RGBA in sRGB."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

TRAINABLE = (".png", ".jpg", ".jpeg", ".webp", ".bmp")  # what Kohya's trainer takes without plugins
READABLE = (*TRAINABLE, ".gif", ".tif", ".tiff", ".avif")
UNREADABLE = {
    ".heic": "HEIC",
    ".heif": "HEIC",
    ".jxl": "JPEG XL",
    ".raw": "raw",
    ".dng": "raw",
    ".cr2": "raw",
    ".nef": "raw",
    ".arw": "raw",
}
CAPTIONS = (".txt", ".caption", ".cap")
MOST_PIXELS = 300_000_000
ORIENTATION = 0x0112  # the EXIF tag

FAULTS = (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError, EOFError, MemoryError)


@dataclass(frozen=True)
class Picture:
    """A decoded picture: `image` is upright and RGB or RGBA; `notes` say what was done to it."""

    image: Image.Image
    orientation: int  # EXIF value, 1 is upright
    format: str  # Pillow's name of the file's format
    frames: int
    notes: tuple[str, ...]


def open_picture(content: bytes) -> Picture:
    """Decode a picture whole. OSError and its kind (see FAULTS) when it is broken, cut off or too large."""
    with _guarded(), Image.open(io.BytesIO(content)) as file:
        file.load()
        notes = []
        frames = int(getattr(file, "n_frames", 1))
        if frames > 1:
            notes.append(f"first of {frames} frames")
        orientation = int(file.getexif().get(ORIENTATION, 1) or 1)
        if orientation not in (0, 1):
            notes.append("turned upright as its EXIF data says")
        upright = ImageOps.exif_transpose(file)
        profile = file.info.get("icc_profile")
        image, said = to_rgb(upright)
        if profile and file.mode not in ("L", "LA", "P", "1"):
            image, coloured = _to_srgb(image, upright if file.mode == "CMYK" else image, profile)
            said += coloured
        return Picture(image, orientation, file.format or "", frames, tuple(notes + said))


def to_rgb(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """RGB, or RGBA where the picture has transparency; 16-bit greys are scaled, not clipped."""
    if image.mode.startswith("I") or image.mode == "F":
        top = image.getextrema()[1]
        scale = 255 / 65535 if isinstance(top, (int, float)) and top > 255 else 1
        grey = image.convert("F").point(lambda value: value * scale).convert("L")
        return grey.convert("RGB"), ["16 bits reduced to 8"] if scale != 1 else []
    if has_alpha(image):
        return image.convert("RGBA"), []
    return image.convert("RGB"), []


def has_alpha(image: Image.Image) -> bool:
    """Whether the picture's format carries transparency; the pixels may all be opaque."""
    return image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info


def is_transparent(image: Image.Image) -> bool:
    """Whether any pixel of an RGBA picture lets something through."""
    if image.mode != "RGBA":
        return False
    extrema = image.getchannel("A").getextrema()
    return bool(extrema[0] < 255)  # type: ignore[operator]  # one channel: a pair of numbers


def _to_srgb(image: Image.Image, coloured: Image.Image, profile: bytes) -> tuple[Image.Image, list[str]]:
    """Colours moved from the embedded profile to sRGB; phones write Display P3."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        name = ImageCms.getProfileDescription(source).strip()
        if "srgb" in name.lower():
            return image, []
        plain = coloured if coloured.mode == "CMYK" else coloured.convert("RGB")
        moved = ImageCms.profileToProfile(plain, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image, ["its colour profile could not be used"]
    if moved is None:
        return image, ["its colour profile could not be used"]
    if image.mode == "RGBA":
        moved.putalpha(image.getchannel("A"))
    return moved, [f"colours moved from {name or 'its profile'} to sRGB"]


@contextmanager
def _guarded() -> Iterator[None]:
    """Pillow's own bomb limit, set to ours for the while, without its warning halfway there."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = MOST_PIXELS // 2  # Pillow refuses at twice this
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before
