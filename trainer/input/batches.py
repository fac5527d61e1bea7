"""Batches for the loop: decoded pictures or cached latents, captions, sizes, weights and masks."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from schemas.config import TrainConfig
from schemas.problems import ConfigError, Problem
from schemas.signals import STOPPING
from trainer.dataset.draws import Drawn, Moment, draw
from trainer.dataset.files import Sample, Scan
from trainer.dataset.images import Unreadable
from trainer.dataset.order import Assignment, BatchIndex, batches_per_epoch, epoch_batches, sample_rng, shard
from trainer.families import Sizes
from trainer.input import pixels as pictures
from trainer.input.cache import LatentCache, unreadable


@dataclass
class Batch:
    """One batch of one bucket. `masks` [B,1,H,W] in [0,1] multiply the loss; absent when no sample has one.

    Either `pixels` [B,3,H,W] in [-1,1] or `latents` [B,C,h,w], not yet scaled. `weights` [B] multiply the loss of
    each sample. `samples` index into the scan; `attributes` are the subsets' custom_attributes.
    """

    pixels: Tensor | None
    latents: Tensor | None
    captions: list[str]
    sizes: Sizes
    weights: Tensor
    masks: Tensor | None
    samples: tuple[int, ...]
    attributes: tuple[Mapping[str, Any], ...] = ()

    @property
    def latent_size(self) -> tuple[int, int]:
        """(images, latent pixels of one)."""
        if self.latents is not None:
            return len(self.latents), self.latents[0, 0].numel()
        assert self.pixels is not None
        return len(self.pixels), self.pixels[0, 0].numel() // 64


@dataclass(frozen=True)
class _Order:
    """What a worker is asked for: everything it needs to know, so that it keeps no state of its own."""

    batch: BatchIndex
    epoch: int
    step: int


@dataclass(frozen=True)
class _Fault:
    """A ConfigError on its way out of a worker, which could not carry it otherwise."""

    problems: list[Problem]


@dataclass(frozen=True)
class _Made:
    """One sample, ready to be stacked."""

    image: Tensor  # pixels or latents
    caption: str
    mask: Tensor | None
    size: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]  # original (h,w), crop (top,left), target (h,w)


class _Maker(Dataset[Batch | _Fault]):
    """Makes one batch; runs in a worker or in the trainer itself, with the same result."""

    def __init__(
        self, scan: Scan, assignment: Assignment, config: TrainConfig, seed: int, cache: LatentCache | None, steps: int
    ) -> None:
        self.scan, self.assignment, self.config = scan, assignment, config
        self.seed, self.cache, self.max_train_steps = seed, cache, steps

    def __getitem__(self, order: _Order) -> Batch | _Fault:
        try:
            return self._batch(order)
        except ConfigError as fault:
            return _Fault(fault.problems)

    def _batch(self, order: _Order) -> Batch:
        indices = order.batch.samples
        made = [self._sample(index, order, slot) for slot, index in enumerate(indices)]
        samples = [self.scan.samples[index] for index in indices]
        images = torch.stack([one.image for one in made])
        original, crop, target = (torch.tensor([one.size[part] for one in made]) for part in range(3))
        prior = self.scan.specs[order.batch.dataset].prior_loss_weight
        return Batch(
            pixels=None if self.cache else images,
            latents=images if self.cache else None,
            captions=[one.caption for one in made],
            sizes=Sizes(original=original, crop=crop, target=target),
            weights=torch.tensor([prior if sample.is_reg else 1.0 for sample in samples], dtype=torch.float32),
            masks=_stack_masks([one.mask for one in made], order.batch.bucket),
            samples=indices,
            attributes=tuple(self.scan.subset(sample).custom_attributes or {} for sample in samples),
        )

    def _sample(self, index: int, order: _Order, slot: int) -> _Made:
        sample, choice = self.scan.samples[index], self.assignment.choices[index]
        rng = sample_rng(self.seed, order.epoch, order.batch.position, slot)
        moment = Moment(order.epoch, order.step, self.max_train_steps)
        cached = self.cache is not None
        drawn = draw(sample, self.scan.specs[sample.dataset], choice, rng, moment, cached=cached)
        if self.cache:
            image, mask = self.cache.get(index, drawn.flipped), self._cached_mask(self.cache, index, drawn.flipped)
            target = image.shape[1] * self.cache.side, image.shape[2] * self.cache.side
        else:
            image, mask = self._decoded(sample, drawn, rng)
            target = image.shape[1], image.shape[2]
        return _Made(image, drawn.caption, mask, drawn.told(sample, target))

    def _decoded(self, sample: Sample, drawn: Drawn, rng: random.Random) -> tuple[Tensor, Tensor | None]:
        subset, choice = self.scan.subset(sample), drawn.choice
        masked = subset.alpha_mask and sample.mask is None
        try:
            colours, mask = pictures.read(sample.path, alpha=masked)
            if sample.mask:
                mask = pictures.read_mask(sample.mask)
        except Unreadable as fault:
            raise unreadable(sample, fault) from None
        colours = pictures.fit(colours, choice, choice.crop, subset.resize_interpolation)
        if subset.color_aug:
            colours = pictures.recolour(colours, rng)
        image = pictures.to_tensor(colours)
        cover = None
        if mask is not None:
            cover = pictures.to_mask(pictures.fit(mask, choice, choice.crop, subset.resize_interpolation))
        return (image.flip(-1), None if cover is None else cover.flip(-1)) if drawn.flipped else (image, cover)

    def _cached_mask(self, cache: LatentCache, index: int, flipped: bool) -> Tensor | None:
        sample, mask = self.scan.samples[index], cache.mask(index)
        if sample.mask:
            choice, subset = self.assignment.choices[index], self.scan.subset(sample)
            try:
                raw = pictures.read_mask(sample.mask)
            except Unreadable as fault:
                raise unreadable(sample, fault) from None
            mask = pictures.to_mask(pictures.fit(raw, choice, choice.crop, subset.resize_interpolation))
        return mask.flip(-1) if mask is not None and flipped else mask


def _stack_masks(masks: Sequence[Tensor | None], bucket: tuple[int, int]) -> Tensor | None:
    """[B,1,H,W]; samples without a mask count fully."""
    if all(mask is None for mask in masks):
        return None
    return torch.stack([torch.ones(1, bucket[1], bucket[0]) if mask is None else mask for mask in masks])


class _Orders:
    """The sampler of a DataLoader whose orders are replaced every epoch, so that workers can stay."""

    def __init__(self) -> None:
        self.orders: list[_Order] = []

    def __iter__(self) -> Iterator[_Order]:
        return iter(self.orders)

    def __len__(self) -> int:
        return len(self.orders)


@dataclass
class BatchLoader:
    """The batches of one process. What is in a batch depends on seed, epoch and position only, never on the workers."""

    scan: Scan
    assignment: Assignment
    config: TrainConfig
    _: KW_ONLY
    seed: int
    processes: int = 1
    rank: int = 0
    cache: LatentCache | None = None
    max_train_steps: int = 1

    def __post_init__(self) -> None:
        self._sampler = _Orders()
        # With latents in memory a batch takes microseconds: sending it between processes would cost more.
        cheap = self.cache is not None and self.cache.in_memory and not any(sample.mask for sample in self.scan.samples)
        workers = 0 if cheap else min(self.config.max_data_loader_n_workers, _processors(), len(self))
        maker = _Maker(self.scan, self.assignment, self.config, self.seed, self.cache, self.max_train_steps)
        self._loader: DataLoader[Any] = DataLoader(
            maker,
            batch_size=None,
            sampler=self._sampler,
            num_workers=workers,
            collate_fn=_as_is,
            worker_init_fn=_quiet,
            generator=torch.Generator(),  # so that the global one is left alone
            persistent_workers=self.config.persistent_data_loader_workers and workers > 0,
        )

    def __len__(self) -> int:
        """Batches of one epoch in this process."""
        return -(-batches_per_epoch(self.assignment) // self.processes)

    def epoch(self, epoch: int, start: int = 0, step: int = 0, shift: int = 0) -> Iterator[Batch]:
        """The batches of 1-based `epoch` from the `start`-th of this process on.

        `step` counts the optimizer steps made before that batch; captions that depend on it follow from there.
        `shift` deals the epoch's batches out from another one on (see `order.shard`).
        """
        batches = shard(epoch_batches(self.assignment, self.seed, epoch), self.processes, self.rank, shift)
        each = self.config.gradient_accumulation_steps
        self._sampler.orders = [
            _Order(batches[number], epoch, step + number // each - start // each)
            for number in range(start, len(batches))
        ]
        for made in self._loader:
            if isinstance(made, _Fault):
                raise ConfigError(made.problems)
            yield made


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _as_is(made: Any) -> Any:
    return made


def _quiet(worker: int) -> None:
    """Workers leave signals to the trainer, which still wants their batches to finish its step.

    SIGTERM too: batch systems send it to every process of a job. Workers end when the trainer lets them or is gone.
    """
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
