"""Cuts around a face whose place the file name tells (reference section 3.6)."""

from __future__ import annotations

import random
from dataclasses import dataclass

from schemas.datasets import Size

LARGE = 0.1  # of a side of the cut: from there on a face is moved a little where the range leaves room


@dataclass(frozen=True)
class Face:
    """Centre and size in pixels of the picture."""

    x: int
    y: int
    width: int
    height: int


def face_in(stem: str) -> Face | None:
    """The face that the last four parts of NAME_X_Y_WIDTH_HEIGHT tell of; None for any other name."""
    parts = stem.split("_")
    if len(parts) < 5 or not all(part.isdecimal() for part in parts[-4:]):
        return None
    face = Face(*map(int, parts[-4:]))
    return face if face.width and face.height else None


def cut_around(
    face: Face, size: Size, window: Size, times: tuple[float, float], *, anywhere: bool, rng: random.Random
) -> tuple[Size, Size]:
    """((width, height) to scale a picture of `size` to, (left, top) of the `window` in it).

    The window's shorter side becomes `times` (least, most) the face's longer one, as far as the picture fills the
    window without being enlarged. The face stands in its middle; with `anywhere` (random_crop) somewhere in it.
    """
    (width, height), side = size, max(face.width, face.height)
    cover = max(window[0] / width, window[1] / height)
    low, high = (max(cover, min(1.0, min(window) / (side * factor))) for factor in (times[1], times[0]))
    scale = rng.uniform(low, high)
    resized = max(window[0], int(width * scale + 0.5)), max(window[1], int(height * scale + 0.5))
    varied = times[0] != times[1]
    axes = zip((face.x, face.y), (face.width, face.height), resized, window, strict=True)
    left, top = (
        _start(centre * scale, extent * scale, whole, part, anywhere=anywhere, varied=varied, rng=rng)
        for centre, extent, whole, part in axes
    )
    return resized, (left, top)


def _start(
    centre: float, extent: float, whole: int, part: int, *, anywhere: bool, varied: bool, rng: random.Random
) -> int:
    """Where, along one axis, a cut of `part` pixels begins, so that it lies within `whole`."""
    jitter = 0.0
    if anywhere:
        reach = max(0.0, part - extent) / 2  # the face stays inside
        jitter = rng.triangular(-reach, reach)
    elif varied and extent >= LARGE * part:
        jitter = rng.uniform(-extent / 20, extent / 20)
    return min(max(round(centre - part / 2 + jitter), 0), whole - part)
