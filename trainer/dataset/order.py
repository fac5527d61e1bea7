"""Which pictures are trained together, and in which order: a function of seed and epoch alone (reference section 4)."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from schemas.config import TrainConfig
from schemas.datasets import Size
from trainer.dataset.buckets import Choice, choose
from trainer.dataset.files import Scan

BucketKey = tuple[int, int, int]  # dataset, width, height


@dataclass(frozen=True)
class BatchIndex:
    """One batch: samples of one bucket of one dataset. `position` counts the epoch's batches over all processes."""

    dataset: int
    bucket: Size
    samples: tuple[int, ...]
    position: int = 0


@dataclass
class _Shuffled:
    """The state of the reference's shuffles for one dataset: each epoch shuffles what the one before left."""

    epoch: int
    order: list[tuple[BucketKey, int]]
    slots: dict[BucketKey, list[int]]

    def advance(self, seed: int) -> None:
        rng = random.Random(seed)
        rng.shuffle(self.order)
        for slots in self.slots.values():
            rng.shuffle(slots)


@dataclass(frozen=True)
class Assignment:
    """Every sample's place. `buckets` lists sample indices, each `repeats` times; only buckets in use, sorted.

    `rotations` holds, for a bucket where regularisation pictures are left over, its places for them and all that may
    take turns there.
    """

    choices: tuple[Choice, ...]
    buckets: dict[BucketKey, list[int]]
    batch_sizes: tuple[int, ...]
    rotations: Mapping[BucketKey, tuple[list[int], list[int]]] = field(default_factory=dict)
    _shuffles: dict[tuple[int, int], _Shuffled] = field(default_factory=dict, repr=False, compare=False)


def assign(scan: Scan, config: TrainConfig) -> Assignment:
    """The bucket of every sample of `scan`."""
    choices = tuple(choose(sample.width, sample.height, scan.specs[sample.dataset]) for sample in scan.samples)
    buckets: dict[BucketKey, list[int]] = {}
    spare: dict[BucketKey, list[int]] = {}
    for index, (sample, choice) in enumerate(zip(scan.samples, choices, strict=True)):
        key = (sample.dataset, *choice.bucket)
        if sample.repeats:
            buckets.setdefault(key, []).extend([index] * sample.repeats)
        if sample.is_reg:
            times = scan.specs[sample.dataset].subsets[sample.subset].num_repeats
            spare.setdefault(key, []).extend([index] * max(times, sample.repeats))
    rotations = {}
    for key, members in buckets.items():
        places = [place for place, index in enumerate(members) if scan.samples[index].is_reg]
        if places and len(spare[key]) > len(places):
            rotations[key] = places, spare[key]
    sizes = tuple(spec.batch_size for spec in scan.specs)
    return Assignment(choices, dict(sorted(buckets.items())), sizes, rotations)


def batches_per_epoch(assignment: Assignment) -> int:
    """Batches of one epoch over all processes: the last of each bucket may be short, none is dropped."""
    return sum(math.ceil(len(members) / assignment.batch_sizes[key[0]]) for key, members in assignment.buckets.items())


def epoch_batches(assignment: Assignment, seed: int, epoch: int) -> list[BatchIndex]:
    """The batches of 1-based `epoch`, as the reference's dataset of that seed orders them.

    With several datasets their batches are mixed, so that none comes last.
    """
    batches = [
        batch
        for dataset in range(len(assignment.batch_sizes))
        for batch in _dataset_batches(assignment, dataset, seed, epoch)
    ]
    if len(assignment.batch_sizes) > 1:
        random.Random(f"{seed}/{epoch}").shuffle(batches)
    return [BatchIndex(key[0], (key[1], key[2]), samples, position) for position, (key, samples) in enumerate(batches)]


def _dataset_batches(
    assignment: Assignment, dataset: int, seed: int, epoch: int
) -> list[tuple[BucketKey, tuple[int, ...]]]:
    size = assignment.batch_sizes[dataset]
    shuffled = _shuffled(assignment, dataset, seed, epoch)
    members = {key: _members(assignment, key, epoch) for key in shuffled.slots}
    return [
        (key, tuple(members[key][slot] for slot in shuffled.slots[key][number * size : (number + 1) * size]))
        for key, number in shuffled.order
    ]


def _shuffled(assignment: Assignment, dataset: int, seed: int, epoch: int) -> _Shuffled:
    """The shuffles up to `epoch`; the last ones are kept, so that going on costs one shuffle."""
    state = assignment._shuffles.get((dataset, seed))
    if state is None or state.epoch > epoch:
        size = assignment.batch_sizes[dataset]
        slots = {key: list(range(len(found))) for key, found in assignment.buckets.items() if key[0] == dataset}
        order = [(key, number) for key, found in slots.items() for number in range(math.ceil(len(found) / size))]
        state = _Shuffled(0, order, slots)
        state.advance(0)  # the reference shuffles once before it knows the seed
        assignment._shuffles[dataset, seed] = state
    while state.epoch < epoch:
        state.epoch += 1
        state.advance(seed + state.epoch)
    return state


def _members(assignment: Assignment, key: BucketKey, epoch: int) -> list[int]:
    """The samples of a bucket in `epoch`: left-over regularisation pictures take turns in the places there are."""
    members = assignment.buckets[key]
    if key not in assignment.rotations:
        return members
    members = list(members)
    places, pool = assignment.rotations[key]
    first = (epoch - 1) * len(places)
    for number, place in enumerate(places):
        members[place] = pool[(first + number) % len(pool)]
    return members


def shard(batches: Sequence[BatchIndex], processes: int, rank: int, shift: int = 0) -> list[BatchIndex]:
    """The batches of one process: rank r takes r, r + P, ...; the last round wraps, so that all have equally many.

    With `shift` it takes r + shift, ...: an epoch begun on another number of processes goes on where it stood.
    """
    rounds = math.ceil(len(batches) / processes)
    return [batches[(number * processes + rank + shift) % len(batches)] for number in range(rounds)]


def sample_rng(seed: int, epoch: int, position: int, slot: int) -> random.Random:
    """The randomness of one sample: the same whatever the workers do and wherever a run was resumed."""
    return random.Random(f"{seed}/{epoch}/{position}/{slot}")


def bucket_info(scan: Scan, assignment: Assignment, dataset: int) -> dict[str, Any] | None:
    """The `bucket_info` of a dataset's metadata; None without buckets (reference section 3.3)."""
    if not scan.specs[dataset].enable_bucket:
        return None
    sizes = sorted((key[1:], len(members)) for key, members in assignment.buckets.items() if key[0] == dataset)
    errors = [
        abs(choice.bucket[0] / choice.bucket[1] - sample.width / sample.height)
        for sample, choice in zip(scan.samples, assignment.choices, strict=True)
        if sample.dataset == dataset and sample.repeats
    ]
    return {
        "buckets": {
            str(number): {"resolution": list(size), "count": count} for number, (size, count) in enumerate(sizes)
        },
        "mean_img_ar_error": sum(errors) / len(errors) if errors else 0.0,
    }
