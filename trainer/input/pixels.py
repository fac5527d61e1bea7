"""From a picture file to the pixels of a bucket: orientation, transparency, scaling, cutting (reference section 3)."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trainer.dataset.buckets import Choice
from trainer.dataset.images import has_alpha, opened, orientation, upright
from trainer.dataset.spec import Size

Pixels = np.ndarray  # uint8 [H,W,C]

FILTERS = {
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "linear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "cubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
}
MATTE = (255, 255, 255)  # what stands behind transparent pixels


def read(path: Path, *, alpha: bool = False) -> tuple[Pixels, Pixels | None]:
    """(RGB [H,W,3], alpha [H,W,1] or None) of a picture, upright.

    With `alpha` the colours are as stored; without it transparent pixels are laid on white. Raises Unreadable
    when the file cannot be decoded.
    """
    with opened(path) as file:
        turn, clear = orientation(file), has_alpha(file)
        image = _eight_bits(file) if file.mode.startswith("I") else file
        image = image.convert("RGBA" if clear else "RGB")
    image = upright(image, turn)
    if alpha:
        mask = np.asarray(image.getchannel("A"))[..., None] if clear else np.full((*image.size[::-1], 1), 255, np.uint8)
        return np.asarray(image.convert("RGB")), mask
    if clear:
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*MATTE, 255)), image).convert("RGB")
    return np.asarray(image), None


def read_mask(path: Path) -> Pixels:
    """The red channel [H,W,1] of a mask picture."""
    return read(path)[0][..., :1]


def _eight_bits(image: Image.Image) -> Image.Image:
    """A 16-bit grey picture scaled to 8 bits, where Pillow's own conversion would cut bright values off."""
    return Image.fromarray(np.rint(np.clip(np.asarray(image) / 257.0, 0, 255)).astype(np.uint8))


def fit(pixels: Pixels, choice: Choice, offset: Size, interpolation: str | None) -> Pixels:
    """`pixels` scaled to `choice.resized`, then its bucket cut out at `offset` (left, top)."""
    (width, height), (left, top) = choice.bucket, offset
    return resize(pixels, choice.resized, interpolation)[top : top + height, left : left + width]


def resize(pixels: Pixels, size: Size, interpolation: str | None = None) -> Pixels:
    """`pixels` [H,W,C] at `size` (width, height): area to shrink, Lanczos to enlarge, or the named filter."""
    height, width = pixels.shape[:2]
    if (width, height) == size:
        return pixels
    shrinks = size[0] <= width and size[1] <= height
    if shrinks and interpolation in (None, "area"):
        return np.rint(_area(_area(pixels, size[1]).swapaxes(0, 1), size[0]).swapaxes(0, 1)).astype(np.uint8)
    # Enlarging by area is interpolating linearly, as in OpenCV.
    named = FILTERS["lanczos" if interpolation is None else "linear" if interpolation == "area" else interpolation]
    flat = pixels[..., 0] if pixels.shape[2] == 1 else pixels
    return np.asarray(Image.fromarray(flat).resize(size, named)).reshape(size[1], size[0], -1)


def _area(values: np.ndarray, length: int) -> np.ndarray:
    """Means over `length` equal stretches of the first axis; a value on a border counts by its share on each side."""
    count = len(values)
    edges = np.arange(length + 1) * count
    first, share = edges // length, (edges % length / length).astype(np.float32)
    share = share.reshape(-1, *[1] * (values.ndim - 1))
    whole = np.uint32 if values.dtype == np.uint8 else np.float32
    sums = np.add.reduceat(values, first[:-1], axis=0, dtype=whole).astype(np.float32)
    at_edges = values[np.minimum(first, count - 1)].astype(np.float32)
    return (sums - share[:-1] * at_edges[:-1] + share[1:] * at_edges[1:]) * np.float32(length / count)


def recolour(pixels: Pixels, rng: random.Random) -> Pixels:
    """In a third of the cases another hue (up to 16 degrees) or gamma (0.95 to 1.05 of the values 0..255)."""
    if rng.random() >= 0.33:
        return pixels
    if rng.random() < 0.5:
        return shift_hue(pixels, rng.uniform(-8, 8) / 180)
    return np.clip(pixels.astype(np.float32) ** rng.uniform(0.95, 1.05), 0, 255).astype(np.uint8)


def shift_hue(pixels: Pixels, turn: float) -> Pixels:
    """`pixels` with the hue moved by `turn` of the colour circle."""
    values = np.array(Image.fromarray(pixels).convert("HSV"))
    values[..., 0] = (values[..., 0].astype(np.int16) + round(turn * 256)) % 256
    return np.asarray(Image.frombytes("HSV", values.shape[1::-1], values.tobytes()).convert("RGB"))


def planes(pixels: Pixels) -> Tensor:
    """uint8 [C,H,W], a copy."""
    return torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))


def to_tensor(pixels: Pixels) -> Tensor:
    """[3,H,W] in [-1, 1]."""
    return planes(pixels).float().div_(127.5).sub_(1)


def to_mask(pixels: Pixels) -> Tensor:
    """[1,H,W] in [0, 1]."""
    return planes(pixels).float().div_(255)
