"""Whether batches, buckets and epochs fit one another: what would train, but not as its numbers say."""

from __future__ import annotations

from collections.abc import Iterator

from schemas.config import TrainConfig
from schemas.problems import Problem
from trainer.dataset.order import Assignment
from trainer.plan.steps import Steps


def remarks(assignment: Assignment, steps: Steps, config: TrainConfig) -> Iterator[Problem]:
    """Batches that can never be full, accumulation beyond the epoch, an epoch of a single batch."""
    large = [problem for dataset in range(len(assignment.batch_sizes)) for problem in _batches(assignment, dataset)]
    yield from large
    group = config.gradient_accumulation_steps
    if group > steps.batches_per_epoch:
        yield Problem(
            code="accumulation-too-long",
            severity="warning",
            key="gradient_accumulation_steps",
            got=group,
            must=f"an epoch has only {steps.batches_per_epoch} batches: each step sums up {steps.batches_per_epoch}, "
            f"and their gradient counts {steps.batches_per_epoch}/{group}",
            fix=f"--set gradient_accumulation_steps={max(1, steps.batches_per_epoch // 4)}",
        )
    elif steps.batches_per_epoch == 1 and not large:
        yield Problem(
            code="short-epoch",
            severity="warning",
            key="train_batch_size",
            got=max(assignment.batch_sizes),
            must="an epoch is a single batch, so that every epoch is one step",
            fix=f"--set train_batch_size={max(1, max(assignment.batch_sizes) // 4)}, or more repeats",
        )


def _batches(assignment: Assignment, dataset: int) -> Iterator[Problem]:
    """One dataset's batches against its buckets."""
    size = assignment.batch_sizes[dataset]
    counts = [len(members) for key, members in assignment.buckets.items() if key[0] == dataset]
    if not counts or size == 1:
        return
    exposures, places = sum(counts), sum(-(-count // size) * size for count in counts)
    fix = f"--set train_batch_size={max(1, min(4, max(counts) // 4))}, or more images or repeats"
    if size > max(counts):
        buckets = "the only bucket" if len(counts) == 1 else f"the largest of {len(counts)} buckets"
        must = (
            f"is never reached: {buckets} holds {max(counts)} exposures an epoch, so an epoch has {len(counts)} steps"
        )
    elif 2 * exposures < places:
        must = f"leaves most batches unfilled: {len(counts)} buckets share {exposures} exposures, {places} would fit"
    else:
        return
    yield Problem(code="batch-too-large", severity="warning", key="train_batch_size", got=size, must=must, fix=fix)
