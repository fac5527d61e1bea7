"""What chance makes of a sample each time it is trained on: its text, whether it is mirrored, which part is cut out."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from schemas.datasets import Size
from trainer.dataset.buckets import Choice
from trainer.dataset.captions import process
from trainer.dataset.faces import Face, cut_around, face_in
from trainer.dataset.files import Sample
from trainer.dataset.spec import DatasetSpec, SubsetSpec


@dataclass(frozen=True)
class Moment:
    """Where a run stands: 1-based epoch, optimizer steps done, and steps of the whole run."""

    epoch: int
    step: int
    max_train_steps: int


@dataclass(frozen=True)
class Drawn:
    """One sample at one moment. `choice` holds the scaling and the cut that are really made."""

    caption: str
    flipped: bool
    choice: Choice
    around_face: bool = False

    def told(self, sample: Sample, target: Size) -> tuple[Size, Size, Size]:
        """What a model of sizes is told: original (height, width), crop (top, left), target (height, width)."""
        if self.around_face:  # reference section 3.5
            return target, (0, 0), target
        left, top, right, _ = self.choice.crop_ltrb
        return (sample.height, sample.width), (int(top), int(target[1] - right if self.flipped else left)), target


def draw(
    sample: Sample, spec: DatasetSpec, choice: Choice, rng: random.Random, moment: Moment, *, cached: bool
) -> Drawn:
    """Everything about `sample` that `rng` decides, but for its colours; `choice` is where its bucket puts it.

    `cached`: the latents are there already, so that only caption and mirroring are left to be drawn.
    """
    subset = spec.subsets[sample.subset]
    caption = process(
        sample.caption,
        subset,
        rng=rng,
        epoch=moment.epoch,
        step=moment.step,
        max_train_steps=moment.max_train_steps,
    )
    flipped = subset.flip_aug and rng.random() < 0.5
    if cached:
        return Drawn(caption, flipped, choice)
    face = face_of(sample, spec, subset)
    if face and subset.face_crop_aug_range:
        resized, place = cut_around(
            face,
            (sample.width, sample.height),
            choice.bucket,
            subset.face_crop_aug_range,
            anywhere=subset.random_crop,
            rng=rng,
        )
        return Drawn(caption, flipped, replace(choice, resized=resized, crop=place), around_face=True)
    if subset.random_crop:
        choice = replace(choice, crop=anywhere(choice, rng))
    return Drawn(caption, flipped, choice)


def face_of(sample: Sample, spec: DatasetSpec, subset: SubsetSpec) -> Face | None:
    """The face that a sample is cut around; buckets leave no room for that (reference section 3.6)."""
    return face_in(sample.path.stem) if subset.face_crop_aug_range and not spec.enable_bucket else None


def anywhere(choice: Choice, rng: random.Random) -> Size:
    """(left, top) of a cut anywhere within what is left over (random_crop)."""
    (width, height), (inner_width, inner_height) = choice.resized, choice.bucket
    return rng.randint(0, width - inner_width), rng.randint(0, height - inner_height)
