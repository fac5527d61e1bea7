"""Aspect-ratio buckets: which sizes there are, where a picture goes, how it is scaled and cut (reference section 3)."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from schemas.datasets import Size
from schemas.families import FAMILIES, SMALLEST_STEP
from schemas.problems import ConfigError, Problem, error
from trainer.dataset.spec import DatasetSpec


@dataclass(frozen=True)
class Choice:
    """Where a picture goes, in pixels: `bucket` and `resized` (width, height), `crop` (left, top) of a centre cut.

    `crop_ltrb` is what a model that learns sizes is told instead: the image's contain fit in the bucket, in floats.
    """

    bucket: Size
    resized: Size
    crop: Size
    crop_ltrb: tuple[float, float, float, float]


def limits(spec: DatasetSpec) -> Size:
    """(shortest, longest) bucket side in multiples of the step: the first floored (one at least), the second raised."""
    step = spec.bucket_reso_steps
    return max(step, spec.min_bucket_reso // step * step), math.ceil(spec.max_bucket_reso / step) * step


@functools.cache
def bucket_list(resolution: Size, shortest: int, longest: int, step: int) -> tuple[Size, ...]:
    """All sizes (width, height) of at most the area of `resolution`, sorted (reference section 3.2)."""
    area = resolution[0] * resolution[1]
    square = max(step, int(math.sqrt(area) // step * step))  # a resolution below the step is refused
    sizes = {(square, square)}
    for width in range(shortest, longest + 1, step):
        height = min(longest, area // width // step * step)
        if height >= shortest:
            sizes |= {(width, height), (height, width)}
    return tuple(sorted(sizes))


def spec_buckets(spec: DatasetSpec) -> tuple[Size, ...] | None:
    """The sizes a dataset may use; None when they follow from the pictures (bucket_no_upscale)."""
    resolution = resolved(spec)
    if not spec.enable_bucket:
        return (resolution,)
    return None if spec.bucket_no_upscale else bucket_list(resolution, *limits(spec), spec.bucket_reso_steps)


def resolved(spec: DatasetSpec) -> Size:
    """The resolution; ConfigError when there is none."""
    if spec.resolution is None:
        raise error("no-resolution", "must be given", key="resolution", fix="set resolution, for example 512")
    return spec.resolution


def choose(width: int, height: int, spec: DatasetSpec) -> Choice:
    """The bucket, scaling and cut of a picture of that size. ConfigError `tiny-image` when no bucket can hold it."""
    buckets = spec_buckets(spec)
    if buckets is None:
        bucket, size = _own_bucket(width, height, resolved(spec), spec.bucket_reso_steps)
        if min(bucket) < 1:
            raise _too_small((width, height), size, spec.bucket_reso_steps)
    else:
        bucket = (width, height) if (width, height) in buckets else _nearest(width / height, buckets)
        size = cover(width, height, bucket)
    crop = ((size[0] - bucket[0]) // 2, (size[1] - bucket[1]) // 2)
    return Choice(bucket, size, crop, contain(width, height, bucket))


def _too_small(picture: Size, scaled: Size, step: int) -> ConfigError:
    """A long picture may be large and yet have a side below a step once it is scaled to the resolution's area."""
    got, shrunk = f"{picture[0]}x{picture[1]}", scaled != picture
    return error(
        "tiny-image",
        f"must have sides of at least {step} pixels with bucket_no_upscale"
        + (f", and has {scaled[0]}x{scaled[1]} once scaled down to the area of resolution" if shrunk else ""),
        got=got,
        fix=f"{'crop' if shrunk else 'enlarge'} or remove the image, or --set bucket_no_upscale=false"
        + " (or in the dataset_config that sets it)",
    )


def _nearest(ratio: float, buckets: tuple[Size, ...]) -> Size:
    return min(buckets, key=lambda bucket: abs(bucket[0] / bucket[1] - ratio))


def cover(width: int, height: int, bucket: Size) -> Size:
    """The smallest size of the picture's shape that fills `bucket`."""
    wider = width / height > bucket[0] / bucket[1]
    scale = bucket[1] / height if wider else bucket[0] / width
    return int(width * scale + 0.5), int(height * scale + 0.5)


def _own_bucket(width: int, height: int, resolution: Size, step: int) -> tuple[Size, Size]:
    """(bucket, resized) of a picture that is only ever shrunk (reference section 3.3)."""
    area, ratio = resolution[0] * resolution[1], width / height
    if width * height > area:
        ideal_width = math.sqrt(area * ratio)
        first_width, second_height = _floor(ideal_width, step), _floor(area / ideal_width, step)
        first_height, second_width = _floor(first_width / ratio, step), _floor(second_height * ratio, step)
        if min(first_width, first_height, second_width, second_height) < 1:
            return (0, 0), (int(ideal_width + 0.5), int(area / ideal_width + 0.5))
        if abs(first_width / first_height - ratio) < abs(second_width / second_height - ratio):
            size = first_width, int(first_width / ratio + 0.5)
        else:
            size = int(second_height * ratio + 0.5), second_height
    else:
        size = width, height
    return (size[0] // step * step, size[1] // step * step), size


def _floor(side: float, step: int) -> int:
    return int(side + 0.5) // step * step


def contain(width: int, height: int, bucket: Size) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of the largest rectangle of the picture's shape inside `bucket`, centred."""
    ratio = width / height
    if bucket[0] / bucket[1] > ratio:
        inner_width, inner_height = bucket[1] * ratio, float(bucket[1])
    else:
        inner_width, inner_height = float(bucket[0]), bucket[0] / ratio
    left, top = (bucket[0] - inner_width) // 2, (bucket[1] - inner_height) // 2
    return left, top, left + inner_width, top + inner_height


def refusals(spec: DatasetSpec, place: str) -> Iterator[Problem]:
    """What is wrong with the sizes of a dataset before any picture is seen; `place` names it."""
    if spec.resolution is None:
        yield Problem(
            code="no-resolution",
            key="resolution",
            must=f"must be given: {place} has none",
            fix="set resolution, for example 512",
        )
        return
    if not spec.enable_bucket:
        return
    shortest, longest = limits(spec)
    if (shortest, longest) != (spec.min_bucket_reso, spec.max_bucket_reso):
        yield Problem(
            code="bucket-limits-rounded",
            severity="note",
            key="min_bucket_reso",
            got=[spec.min_bucket_reso, spec.max_bucket_reso],
            must=f"are rounded to multiples of {spec.bucket_reso_steps}: {shortest} and {longest}",
        )
    yield from _among_buckets(spec, place)
    if spec.bucket_reso_steps % SMALLEST_STEP:
        coarser = (f"{one.title}: {one.bucket_step}" for one in FAMILIES.values() if one.bucket_step > SMALLEST_STEP)
        told = f"{SMALLEST_STEP} ({', '.join(coarser)})"
        yield Problem(
            code="bucket-step",
            key="bucket_reso_steps",
            got=spec.bucket_reso_steps,
            must=f"must be a multiple of {told} in {place}",
            fix="set bucket_reso_steps to 64",
        )


def _among_buckets(spec: DatasetSpec, place: str) -> Iterator[Problem]:
    """Whether the resolution lies between the limits of its buckets."""
    assert spec.resolution is not None
    shortest, longest = limits(spec)
    if min(spec.resolution) < spec.bucket_reso_steps:
        yield Problem(
            code="bucket-limits",
            key="bucket_reso_steps",
            got=spec.bucket_reso_steps,
            must=f"must not be above the smaller side of resolution ({min(spec.resolution)}) in {place}",
            fix="set bucket_reso_steps to 64",
        )
    elif min(spec.resolution) < shortest:
        yield Problem(
            code="bucket-limits",
            key="min_bucket_reso",
            got=spec.min_bucket_reso,
            must=f"must not be above the smaller side of resolution ({min(spec.resolution)}) in {place}",
            fix=f"set min_bucket_reso to {min(256, *spec.resolution)}",
        )
    if max(spec.resolution) > longest:
        yield Problem(
            code="bucket-limits",
            key="max_bucket_reso",
            got=spec.max_bucket_reso,
            must=f"must not be below the larger side of resolution ({max(spec.resolution)}) in {place}",
            fix=f"set max_bucket_reso to {2 * max(spec.resolution)}",
        )
    elif longest == max(spec.resolution) and not spec.bucket_no_upscale and shortest < longest:
        yield Problem(
            code="narrow-buckets",
            severity="warning",
            key="max_bucket_reso",
            got=spec.max_bucket_reso,
            must=f"leaves out all shapes with a side above {longest}, so that long pictures lose much",
            fix=f"set max_bucket_reso to {2 * longest}",
        )
