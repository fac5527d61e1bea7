"""What debug_dataset shows: the first epoch, batch by batch, as it would be trained on. Loads no model."""

from __future__ import annotations

from collections.abc import Iterator

from schemas import TrainConfig
from trainer.dataset.draws import Moment, draw
from trainer.dataset.files import Scan
from trainer.dataset.order import assign, batches_per_epoch, epoch_batches, sample_rng
from trainer.plan.steps import count


def listing(found: Scan, config: TrainConfig) -> Iterator[str]:
    """Lines on every sample of epoch 1: file, size, bucket, scaling and cut, mirroring, weight, caption."""
    assignment = assign(found, config)
    batches = batches_per_epoch(assignment)
    steps, seed = count(config, batches), int(config.seed or 0)
    said = f"seed {seed}" if config.seed is not None else "seed 0; none is given, so that a run draws its own"
    pictures = len({sample.path for sample in found.samples})
    yield f"debug_dataset: epoch 1 of {steps.epochs}, {batches} batches of {pictures} images, {said}"
    for batch in epoch_batches(assignment, seed, 1):
        width, height = batch.bucket
        yield f"batch {batch.position + 1}/{batches}  bucket {width}x{height}"
        step = batch.position // config.gradient_accumulation_steps
        for slot, index in enumerate(batch.samples):
            rng = sample_rng(seed, 1, batch.position, slot)
            sample, spec = found.samples[index], found.specs[batch.dataset]
            drawn = draw(sample, spec, assignment.choices[index], rng, Moment(1, step, steps.total),
                         cached=config.cache_latents)  # fmt: skip
            (wide, high), (left, top) = drawn.choice.resized, drawn.choice.crop
            marks = [f"  {mark}" for mark, holds in (
                ("cut around the face", drawn.around_face), ("mirrored", drawn.flipped),
                (f"regularisation, weight {spec.prior_loss_weight:g}", sample.is_reg),
                (f"mask {sample.mask}", sample.mask),
            ) if holds]  # fmt: skip
            yield (f"    {sample.path}  {sample.width}x{sample.height}, scaled to {wide}x{high}, "
                   f"cut at {left},{top}{''.join(marks)}")  # fmt: skip
            yield f"        caption: {drawn.caption!r}"
    for sample in found.validation:
        yield f"kept for validation: {sample.path}  {sample.width}x{sample.height}  caption: {sample.caption!r}"
    yield "debug_dataset: nothing was trained"
