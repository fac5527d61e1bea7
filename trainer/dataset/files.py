"""From settings to samples: every picture with its caption, size and repeats, and every fault of the files at once."""

from __future__ import annotations

import math
import os
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from schemas.config import TrainConfig
from schemas.problems import Problem
from trainer.dataset import checks
from trainer.dataset.buckets import refusals
from trainer.dataset.pictures import Facts, read_all
from trainer.dataset.spec import DatasetSpec, SubsetSpec, resolve_datasets
from trainer.dataset.subsets import Picture, pictures_of

Hears = Callable[[int, int], object]  # (done, of how many)
CHECKING = ("checking images", "skip_image_check leaves this out")  # what a check of all pixels is called


@dataclass(frozen=True)
class Sample:
    """One picture of a subset. Size in pixels after EXIF orientation; `caption` as stored, before `captions.process`.

    `repeats` is 0 for a regularisation picture that waits for its turn. `mask` is the picture of a loss mask.
    """

    path: Path
    width: int
    height: int
    caption: str
    repeats: int
    is_reg: bool
    dataset: int
    subset: int
    has_caption: bool
    mask: Path | None = None
    orientation: int = 1
    alpha: bool = False


@dataclass(frozen=True)
class Scan:
    """What the files hold. `validation` samples are in no way part of `samples`."""

    specs: tuple[DatasetSpec, ...]
    samples: tuple[Sample, ...]
    problems: list[Problem] = field(default_factory=list)
    validation: tuple[Sample, ...] = ()

    def subset(self, sample: Sample) -> SubsetSpec:
        return self.specs[sample.dataset].subsets[sample.subset]


def scan(config: TrainConfig, *, verify: bool | Hears = False, document: Mapping[str, Any] | None = None) -> Scan:
    """The samples that `config` describes; all faults are in `.problems`, nothing is raised or written.

    Reads captions and picture headers; with `verify`, true or what hears (done, of how many), it decodes every
    picture, to find truncated ones. `document` stands in for the dataset_config file.
    """
    problems: list[Problem] = []
    specs = tuple(_without_duplicates(spec, problems) for spec in resolve_datasets(config, problems, document))
    for number, spec in enumerate(specs):
        problems += _size_problems(spec, f"datasets/{number}", config)
    found = [
        (dataset, subset, picture)
        for dataset, spec in enumerate(specs)
        for subset, settings in enumerate(spec.subsets)
        for picture in pictures_of(settings, config, problems)
    ]
    masks = [picture.mask for _, _, picture in found if picture.mask]
    paths = [*(picture.path for _, _, picture in found), *masks]
    facts = read_all(paths, verify=bool(verify), progress=verify if callable(verify) else None)
    good: list[Sample] = []
    for dataset, subset, picture in found:
        sample = _sample(picture, facts[picture.path], dataset, subset, specs[dataset].subsets[subset])
        faults = list(checks.picture(sample, facts, specs[dataset]))
        problems += faults
        if not faults:
            good.append(sample)
    problems += checks.subsets(specs, good, facts, config)
    training, validation = _split(specs, good, config)
    samples = tuple(_balanced(specs, training, problems))
    if specs and not found and not any(problem.severity == "error" for problem in problems):
        problems += checks.no_images(specs)
    elif specs and found and not any(not sample.is_reg for sample in samples) and len(good) == len(found):
        problems += checks.nothing_to_train(validation)
    return Scan(specs, samples, problems, tuple(validation))


def damaged(scan: Scan, progress: Hears | None = None) -> list[Problem]:
    """Images and masks of a scan that cannot be decoded whole; each is read once, in parallel."""
    samples = (*scan.samples, *scan.validation)
    paths = [path for sample in samples for path in (sample.path, sample.mask) if path]
    facts = read_all(paths, verify=True, progress=progress)
    return [checks.unreadable(path, fact.fault) for path, fact in facts.items() if fact.fault]


def held_out(scan: Scan) -> Scan:
    """The validation pictures as a scan of their own, without anything random (traps T46)."""
    still = {
        "flip_aug": False,
        "color_aug": False,
        "random_crop": False,
        "face_crop_aug_range": None,
        "shuffle_caption": False,
        "caption_dropout_rate": 0.0,
        "caption_dropout_every_n_epochs": 0,
        "caption_tag_dropout_rate": 0.0,
        "token_warmup_step": 0.0,
    }
    specs = tuple(
        replace(spec, subsets=tuple(replace(subset, **still) for subset in spec.subsets))  # type: ignore[arg-type]
        for spec in scan.specs
    )
    return Scan(specs, scan.validation)


def _sample(picture: Picture, facts: Facts, dataset: int, subset: int, spec: SubsetSpec) -> Sample:
    return Sample(
        picture.path,
        facts.width,
        facts.height,
        picture.caption,
        spec.num_repeats,
        spec.is_reg,
        dataset,
        subset,
        picture.has_caption,
        picture.mask,
        facts.orientation,
        facts.alpha,
    )


def _without_duplicates(spec: DatasetSpec, problems: list[Problem]) -> DatasetSpec:
    kept: dict[tuple[str, str], SubsetSpec] = {}
    for subset in spec.subsets:
        folder = subset.metadata_file or subset.image_dir or ""
        place = (os.path.realpath(folder), "metadata" if subset.metadata_file else "folder")
        if place in kept:
            problems.append(
                Problem(
                    code="duplicate-subset",
                    severity="warning",
                    key="image_dir",
                    got=folder,
                    must="is named twice in one dataset; the first is used",
                    fix="remove the second",
                )
            )
        else:
            kept[place] = subset
    return replace(spec, subsets=tuple(kept.values()))


def _size_problems(spec: DatasetSpec, place: str, config: TrainConfig) -> Iterable[Problem]:
    """Faults of sizes; those of a plain config are told by `schemas.rules` already."""
    found = list(refusals(spec, place))
    plain = ("no-resolution", "bucket-limits-rounded")
    return found if config.dataset_config else [problem for problem in found if problem.code in plain]


def _split(
    specs: Sequence[DatasetSpec], samples: Sequence[Sample], config: TrainConfig
) -> tuple[list[Sample], list[Sample]]:
    """(training, validation): one split of each subset, seeded by validation_seed or else seed (traps T10)."""
    training: list[Sample] = []
    validation: list[Sample] = []
    for dataset, spec in enumerate(specs):
        seed = spec.validation_seed if spec.validation_seed is not None else config.seed or 0
        for subset in range(len(spec.subsets)):
            members = [sample for sample in samples if (sample.dataset, sample.subset) == (dataset, subset)]
            split = 0.0 if spec.subsets[subset].is_reg else spec.validation_split
            order = list(range(len(members)))
            random.Random(seed).shuffle(order)
            kept = set(order[: math.ceil(len(members) * (1 - split))])
            training += [sample for number, sample in enumerate(members) if number in kept]
            validation += [replace(sample, repeats=1) for number, sample in enumerate(members) if number not in kept]
    return training, validation


def _balanced(specs: Sequence[DatasetSpec], samples: Sequence[Sample], problems: list[Problem]) -> Iterator[Sample]:
    """The samples, repeats of regularisation pictures fitted to those of the training pictures (section 2.4)."""
    for dataset in range(len(specs)):
        members = [sample for sample in samples if sample.dataset == dataset]
        wanted = sum(sample.repeats for sample in members if not sample.is_reg)
        regs = [sample for sample in members if sample.is_reg]
        repeats = balance([sample.repeats for sample in regs], wanted)
        waiting = repeats.count(0)
        if waiting and wanted:
            problems.append(
                Problem(
                    code="reg-rotated",
                    severity="note",
                    key="reg_data_dir",
                    got=f"{waiting} of {len(regs)} left over",
                    must=f"holds more than the {wanted} training pictures (with repeats); they take turns from "
                    "epoch to epoch, where the reference never uses those left over",
                )
            )
        yield from (sample for sample in members if not sample.is_reg)
        yield from (replace(sample, repeats=times) for sample, times in zip(regs, repeats, strict=True))


def balance(repeats: Sequence[int], wanted: int) -> list[int]:
    """Repeats of regularisation pictures: each its own until `wanted` is reached; if it is not, one more in turn."""
    balanced, total = [0] * len(repeats), 0
    for number, times in enumerate(repeats):
        if total >= wanted:
            break
        balanced[number], total = times, total + times
    for turn in range(max(0, wanted - total) if repeats else 0):
        balanced[turn % len(repeats)] += 1
    return balanced


def tag_frequency(scan: Scan, dataset: int) -> dict[str, dict[str, int]]:
    """{folder name: {tag: pictures}} for a dataset's metadata: tags between commas, lower case, without repeats."""
    counts: dict[str, Counter[str]] = {}
    for sample in (*scan.samples, *scan.validation):
        if sample.dataset == dataset:
            tags = (tag.strip().lower() for tag in sample.caption.split(","))
            counts.setdefault(sample.path.parent.name, Counter()).update(tag for tag in tags if tag)
    return {name: dict(found) for name, found in counts.items()}
