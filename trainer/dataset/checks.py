"""What can be wrong with pictures once their headers are read, told before training instead of hours into it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from schemas.config import TrainConfig
from schemas.families import SMALLEST_STEP, facts_of
from schemas.problems import ConfigError, Problem
from trainer.dataset.buckets import choose
from trainer.dataset.captions import fixed, longest_lines, random_settings, still_text
from trainer.dataset.faces import face_in
from trainer.dataset.pictures import Facts
from trainer.dataset.spec import DatasetSpec, SubsetSpec

if TYPE_CHECKING:
    from trainer.dataset.files import Sample

SHOWN = 5  # names given as examples
WINDOW, LENGTHS = 75, (150, 225)  # tokens that are read by default, and where max_token_length is set
WEIGHTS = re.compile(r"\\([()\[\]\\])|[()\[\]]|:[+-]?[.\d]+(?=\))")  # what brackets and weights leave of a caption
WEIGHT = re.compile(r"\\.|\(|:([+-]?[.\d]+)\)|\)", re.DOTALL)  # what opens and closes brackets in weighted captions


def unreadable(path: Path, fault: str) -> Problem:
    """An image that cannot be used."""
    return Problem(
        code="unreadable-image", file=str(path), key="image_dir", must=fault, fix="replace or remove the file"
    )


def picture(sample: Sample, facts: Mapping[Path, Facts], spec: DatasetSpec) -> Iterator[Problem]:
    """Why a picture cannot be trained on."""
    for path in (sample.path, sample.mask):
        if path and facts[path].fault:
            yield unreadable(path, str(facts[path].fault))
            return
    if spec.resolution is not None:
        try:
            choose(sample.width, sample.height, spec)
        except ConfigError as fault:
            yield from (Problem(**{**vars(problem), "file": str(sample.path)}) for problem in fault.problems)
    if sample.mask and (facts[sample.mask].width, facts[sample.mask].height) != (sample.width, sample.height):
        mask = facts[sample.mask]
        yield Problem(
            code="mask-size",
            file=str(sample.mask),
            key="conditioning_data_dir",
            got=f"{mask.width}x{mask.height}",
            must=f"must have the picture's size, {sample.width}x{sample.height}",
            fix="make the mask from the picture itself",
        )


def subsets(
    specs: Sequence[DatasetSpec], samples: Sequence[Sample], facts: Mapping[Path, Facts], config: TrainConfig
) -> Iterator[Problem]:
    """Warnings and notes on whole subsets, and settings that exclude each other there."""
    for dataset, spec in enumerate(specs):
        for number, subset in enumerate(spec.subsets):
            members = [sample for sample in samples if (sample.dataset, sample.subset) == (dataset, number)]
            yield from _excluded(subset, config)
            yield from _attributes(subset)
            yield from _captions(subset)
            if config.weighted_captions:
                yield from _weights(members)
            if members:
                yield from _tokens(subset, members, config)
                yield from _files(subset, members, facts)
                yield from _faces(spec, subset, members, config)
                yield from _cut(spec, subset, members)


def _excluded(spec: SubsetSpec, config: TrainConfig) -> Iterator[Problem]:
    for name in ("color_aug", "random_crop"):
        # A plain config is told so by schemas.rules.
        cached = config.cache_latents or config.cache_latents_to_disk
        if cached and getattr(spec, name) and not getattr(config, name):
            yield Problem(
                code="cache-excludes",
                key=name,
                got=True,
                file=spec.image_dir,
                must="excludes cache_latents",
                fix=f"set {name} to false, or leave latents uncached",
            )
    if spec.random_crop and spec.conditioning_data_dir and not config.random_crop:
        yield Problem(
            code="masks-exclude-random-crop",
            key="random_crop",
            got=True,
            file=spec.image_dir,
            must="is refused with masks from a folder",
            fix="set random_crop to false",
        )
    if config.cache_text_encoder_outputs or config.cache_text_encoder_outputs_to_disk:
        for name in random_settings(spec):
            if not getattr(config, name):
                yield Problem(
                    code="cache-excludes",
                    key=name,
                    got=getattr(spec, name),
                    file=spec.image_dir,
                    must="excludes cache_text_encoder_outputs: it changes captions while training",
                    fix=f"leave {name} out",
                )
    if spec.cache_info:
        yield Problem(
            code="no-effect",
            severity="note",
            key="cache_info",
            got=True,
            file=spec.image_dir,
            must="has no effect: captions and sizes are read afresh, so that they are never out of date",
        )


def _attributes(spec: SubsetSpec) -> Iterator[Problem]:
    unread = sorted(set(spec.custom_attributes or {}) - {"diff_output_preservation"})
    if unread:
        yield Problem(
            code="no-effect",
            severity="note",
            key="custom_attributes",
            got=unread,
            file=spec.image_dir,
            must="has no effect: of these attributes only diff_output_preservation is known, in the reference too",
        )


def _captions(spec: SubsetSpec) -> Iterator[Problem]:
    moves = spec.shuffle_caption or spec.token_warmup_step or spec.caption_tag_dropout_rate
    if not spec.caption_separator and (moves or spec.keep_tokens_separator):
        yield Problem(
            code="bad-value",
            key="caption_separator",
            got="",
            must="must not be empty where captions are taken apart into tags",
            fix='set caption_separator to ","',
        )
    if spec.keep_tokens_separator and not moves:
        yield Problem(
            code="separator-removed",
            severity="note",
            key="keep_tokens_separator",
            got=spec.keep_tokens_separator,
            must="is taken out of the captions; the reference trains it as text here",
        )
    if spec.caption_separator not in ("", ",") and (moves or spec.keep_tokens_separator):
        yield Problem(
            code="joined-by-separator",
            severity="note",
            key="caption_separator",
            got=spec.caption_separator,
            must="also joins the tags again; the reference joins them by a comma",
        )


def bad_weight(caption: str) -> str | None:
    """The first weight of a weighted caption, such as 1.2.3 in (word:1.2.3), that is no number."""
    opened = 0
    for found in WEIGHT.finditer(caption):
        if found[1] is not None and opened:
            try:
                float(found[1])
            except ValueError:
                return found[1]
        if found[0][0] != "\\":
            opened = opened + 1 if found[0] == "(" else max(0, opened - 1)
    return None


def _weights(samples: Sequence[Sample]) -> Iterator[Problem]:
    for sample in samples:
        weight = bad_weight(sample.caption)
        if weight is not None:
            yield Problem(
                code="bad-weight",
                key="weighted_captions",
                file=str(sample.path),
                got=sample.caption[:100],
                must=f"has a weight in its caption that is no number: {weight}",
                fix="write it as in (word:1.2)",
            )


def _tokens(spec: SubsetSpec, samples: Sequence[Sample], config: TrainConfig) -> Iterator[Problem]:
    """Captions of which the model reads the beginning only."""
    limit = config.max_token_length or WINDOW
    still = still_text(spec)
    long: list[tuple[int, str]] = []
    for sample in samples:
        tokens = max(
            _token_count(text, limit, config)
            for text in (fixed(line, still) for line in longest_lines(sample.caption, spec))
        )
        if tokens > limit:
            long.append((tokens, sample.path.name))
    if not long:
        return
    most = max(long)[0]
    longer = [length for length in LENGTHS if length > limit]
    enough = next((length for length in longer if length >= most), None)
    fix = f"set max_token_length to {enough or longer[-1]}" if longer else "shorten them"
    yield Problem(
        code="caption-tokens",
        severity="warning",
        key="max_token_length",
        got=[f"{name}: {tokens} tokens" for tokens, name in sorted(long, reverse=True)[:SHOWN]],
        file=spec.image_dir or spec.metadata_file,
        must=f"{len(long)} captions have more than the {limit} tokens that are read; what is beyond is cut off",
        fix=fix if enough or not longer else f"{fix}, and shorten those that are longer still",
    )


def _token_count(text: str, limit: int, config: TrainConfig) -> int:
    if text.isascii() and len(text) <= limit:
        return 0  # a token has at least one letter
    from trainer.dataset.clip_text import token_count

    if config.weighted_captions:
        text = WEIGHTS.sub(lambda found: found[1] or "", text)
    return token_count(text, 0 if config.v2 else None)


def _files(spec: SubsetSpec, samples: Sequence[Sample], facts: Mapping[Path, Facts]) -> Iterator[Problem]:
    place = spec.image_dir or spec.metadata_file
    stems = Counter(sample.path.with_suffix("") for sample in samples)
    shared = [sample.path.name for sample in samples if stems[sample.path.with_suffix("")] > 1]
    if shared:
        yield Problem(
            code="same-stem",
            severity="warning",
            key="image_dir",
            got=shared[:SHOWN],
            file=place,
            must=f"{len(shared)} images differ in their extension only and share captions",
            fix="rename them",
        )
    turned = [sample.path.name for sample in samples if sample.orientation != 1]
    if turned:
        yield Problem(
            code="exif-rotated",
            severity="note",
            key="image_dir",
            got=turned[:SHOWN],
            file=place,
            must=f"{len(turned)} images are turned upright as their EXIF data says; the reference does not",
        )
    clear = [sample.path.name for sample in samples if sample.alpha]
    if clear and not spec.alpha_mask:
        yield Problem(
            code="transparency",
            severity="note",
            key="alpha_mask",
            got=clear[:SHOWN],
            file=place,
            must=f"{len(clear)} images have an alpha channel: transparent parts become white, where the "
            "reference trains on the colours hidden there",
            fix="set alpha_mask to leave those parts out of the loss",
        )
    deep = [sample.path.name for sample in samples if facts[sample.path].deep]
    if deep:
        yield Problem(
            code="deep-colour",
            severity="note",
            key="image_dir",
            got=deep[:SHOWN],
            file=place,
            must=f"{len(deep)} images have more than 8 bits a channel and are scaled to 8; the reference clips them",
        )


def _faces(spec: DatasetSpec, subset: SubsetSpec, samples: Sequence[Sample], config: TrainConfig) -> Iterator[Problem]:
    """Cuts around faces need pictures that are neither in buckets nor cached, and names that tell of a face."""
    if not subset.face_crop_aug_range:
        return
    cached = config.cache_latents or config.cache_latents_to_disk
    if spec.enable_bucket or cached:
        name = "enable_bucket" if spec.enable_bucket else "cache_latents"
        yield Problem(
            code="no-effect",
            severity="warning",
            key="face_crop_aug_range",
            got=list(subset.face_crop_aug_range),
            file=subset.image_dir,
            must=f"has no effect with {name}, as in the reference",
            fix="leave enable_bucket and cache_latents out to cut around faces",
        )
        return
    without = [sample.path.name for sample in samples if face_in(sample.path.stem) is None]
    if without:
        yield Problem(
            code="no-face",
            severity="warning",
            key="face_crop_aug_range",
            got=without[:SHOWN],
            file=subset.image_dir,
            must=f"finds no face in {len(without)} file names, whose pictures are cut as without it",
            fix="name them NAME_X_Y_WIDTH_HEIGHT: the face's centre and size in pixels",
        )


def _cut(spec: DatasetSpec, subset: SubsetSpec, samples: Sequence[Sample]) -> Iterator[Problem]:
    if spec.enable_bucket or spec.resolution is None:
        return
    cut = bool(subset.face_crop_aug_range)
    other = [
        sample.path.name
        for sample in samples
        if (sample.width, sample.height) != spec.resolution and not (cut and face_in(sample.path.stem))
    ]
    if other:
        size = "x".join(map(str, spec.resolution))
        yield Problem(
            code="resized-without-buckets",
            severity="note",
            key="enable_bucket",
            got=other[:SHOWN],
            file=subset.image_dir,
            must=f"{len(other)} images are not {size}: they are scaled to cover it and cut at "
            "the centre, cached or not; the reference does so only when latents are cached, and fails otherwise",
            fix="set enable_bucket to keep their shapes",
        )


def bucket_steps(specs: Sequence[DatasetSpec], config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """Bucket sides that the base model's family does not take; those of a plain config are told by schemas.rules."""
    facts = facts_of(family)
    if facts is None or not config.dataset_config:
        return
    for number, spec in enumerate(specs):
        # what no family takes is told where the file is read
        step = spec.bucket_reso_steps
        if spec.enable_bucket and step % facts.bucket_step and step % SMALLEST_STEP == 0:
            yield Problem(
                code="bucket-step",
                key="bucket_reso_steps",
                got=spec.bucket_reso_steps,
                must=f"must be a multiple of {facts.bucket_step} for {family} in datasets/{number}",
                fix=f"set bucket_reso_steps to {facts.bucket_step}",
            )


def no_images(specs: Sequence[DatasetSpec]) -> Iterator[Problem]:
    """Nothing was found anywhere."""
    places = [subset.image_dir or subset.metadata_file for spec in specs for subset in spec.subsets]
    yield Problem(
        code="no-images",
        key="image_dir",
        got=places[:SHOWN],
        must="must hold pictures; none were found there",
        fix="put .png, .jpg, .webp or .bmp files there, or correct the path",
    )


def nothing_to_train(validation: Sequence[Sample]) -> Iterator[Problem]:
    """There are pictures, but all are kept for validation or regularisation."""
    key = "validation_split" if validation else "reg_data_dir"
    yield Problem(code="no-images", key=key, must="leaves no picture to train on", fix="add training pictures")
