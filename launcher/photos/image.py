"""One picture the way training will see it: whole, upright, 8-bit RGB or RGBA in sRGB."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass

from PIL import Image, ImageCms

from trainer.dataset.images import has_alpha, opened, orientation, upright

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
MATTE = (255, 255, 255)  # what training lays transparent parts on


@dataclass(frozen=True)
class Picture:
    """A decoded picture: `image` is upright and RGB or RGBA; `notes` say what was done to it."""

    image: Image.Image
    orientation: int  # EXIF value, 1 is upright
    format: str  # Pillow's name of the file's format
    frames: int
    notes: tuple[str, ...]


def open_picture(source: str | os.PathLike[str] | bytes) -> Picture:
    """Decode a picture whole. Raises Unreadable when it is broken, cut off, too large or no image."""
    with opened(source) as file:
        file.load()
        notes = []
        frames = int(getattr(file, "n_frames", 1))
        if frames > 1:
            notes.append(f"first of {frames} frames")
        turn = orientation(file)
        if turn != 1:
            notes.append("turned upright as its EXIF data says")
        whole = upright(file, turn)
        profile = file.info.get("icc_profile")
        image, said = to_rgb(whole)
        if profile and file.mode not in ("L", "LA", "P", "1"):
            image, coloured = _to_srgb(image, whole if file.mode == "CMYK" else image, profile)
            said += coloured
        return Picture(image, turn, file.format or "", frames, tuple(notes + said))


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


def as_trained(image: Image.Image) -> Image.Image:
    """RGB; transparent parts as training shows them."""
    if image.mode != "RGBA":
        return image.convert("RGB")
    return Image.alpha_composite(Image.new("RGBA", image.size, (*MATTE, 255)), image).convert("RGB")


def thumbnail(image: Image.Image, size: tuple[int, int], quality: int) -> bytes:
    """A JPEG of an RGB or RGBA image within `size`, as training shows it, without any metadata."""
    small = as_trained(image)
    small.thumbnail(size)
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=quality)
    return stream.getvalue()


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
