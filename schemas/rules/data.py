"""Rules on pictures, captions, buckets, caches and validation, as far as a config alone shows them."""

from __future__ import annotations

from collections.abc import Iterator

from schemas.config import TrainConfig
from schemas.datasets import parse_range, parse_resolution
from schemas.families import FAMILIES, SMALLEST_STEP, facts_of
from schemas.problems import Problem
from schemas.rules.registry import rule

CAPTION_CHANGES = (
    "shuffle_caption",
    "caption_dropout_rate",
    "caption_tag_dropout_rate",
    "token_warmup_step",
    "enable_wildcard",
    "caption_dropout_every_n_epochs",
)


@rule
def sizes(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """resolution is one number or width,height; face_crop_aug_range two numbers, the smaller first."""
    yield from parse_resolution(config.resolution)[1]
    yield from parse_range(config.face_crop_aug_range)[1]


@rule
def data_sources(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """A dataset_config goes before every other description of the data."""
    if config.dataset_config:
        for name in ("train_data_dir", "reg_data_dir", "in_json"):
            if getattr(config, name):
                yield Problem(
                    code="no-effect",
                    severity="warning",
                    key=name,
                    got=getattr(config, name),
                    must="has no effect: dataset_config describes the data",
                )
    elif config.in_json:
        for name in ("color_aug", "random_crop"):
            if getattr(config, name):
                yield Problem(
                    code="augmentation-with-metadata",
                    severity="warning",
                    key=name,
                    got=True,
                    must="is unusual with in_json, whose pictures are often prepared to size",
                )
    elif config.dataset_repeats != 1:
        yield Problem(
            code="no-effect",
            severity="note",
            key="dataset_repeats",
            got=config.dataset_repeats,
            must="has no effect without in_json: the folder's number counts",
        )
    if config.persistent_data_loader_workers and not config.max_data_loader_n_workers:
        yield Problem(
            code="persistent-without-workers",
            key="persistent_data_loader_workers",
            got=True,
            must="needs max_data_loader_n_workers above 0",
            fix="--set persistent_data_loader_workers=false",
        )


@rule
def bucket_limits(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """Bucket sides are multiples of 64, some families 32; the resolution lies between their limits (section 3.1)."""
    if not config.enable_bucket:
        return
    step = facts.bucket_step if (facts := facts_of(family)) else SMALLEST_STEP
    if config.bucket_reso_steps % step:
        yield Problem(
            code="bucket-step",
            key="bucket_reso_steps",
            got=config.bucket_reso_steps,
            must=f"must be a multiple of {step}",
            fix=f"--set bucket_reso_steps={max(step, 64)}",
        )
    if config.bucket_no_upscale:
        for name, usual in (("min_bucket_reso", 256), ("max_bucket_reso", 1024)):
            if getattr(config, name) != usual:
                yield Problem(
                    code="no-effect",
                    severity="note",
                    key=name,
                    got=getattr(config, name),
                    must="has no effect with bucket_no_upscale, except as a limit of resolution",
                )
    yield from _resolution_among_buckets(config, family)


def _resolution_among_buckets(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    facts = facts_of(family)
    wide = facts if facts and facts.side > 512 else None  # trained on shapes around its usual resolution
    sides, _ = parse_resolution(config.resolution)
    if sides is None or config.dataset_config:
        return
    if min(sides) < config.bucket_reso_steps:
        yield Problem(
            code="bucket-limits",
            key="bucket_reso_steps",
            got=config.bucket_reso_steps,
            must=f"must not be above the smaller side of resolution ({min(sides)})",
            fix="--set bucket_reso_steps=64",
        )
    elif min(sides) < config.min_bucket_reso:
        yield Problem(
            code="bucket-limits",
            key="min_bucket_reso",
            got=config.min_bucket_reso,
            must=f"must not be above the smaller side of resolution ({min(sides)})",
            fix=f"--set min_bucket_reso={min(256, min(sides))}",
        )
    if max(sides) > config.max_bucket_reso:
        yield Problem(
            code="bucket-limits",
            key="max_bucket_reso",
            got=config.max_bucket_reso,
            must=f"must not be below the larger side of resolution ({max(sides)})",
            fix=f"--set max_bucket_reso={2 * max(sides)}",
        )
    elif wide and not config.bucket_no_upscale and config.max_bucket_reso <= max(sides):
        yield Problem(
            code="narrow-buckets",
            severity="warning",
            key="max_bucket_reso",
            got=config.max_bucket_reso,
            must=f"leaves out {wide.title}'s usual shapes such as 1152x896, so that long pictures lose much",
            fix=f"--set max_bucket_reso={2 * max(sides)}",
        )


@rule
def cached_latents(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """Cached pictures cannot vary in colour or cut."""
    for name in ("color_aug", "random_crop"):
        if config.cache_latents and getattr(config, name):
            yield Problem(
                code="cache-excludes",
                key=name,
                got=True,
                must="excludes cache_latents",
                fix=f"--set {name}=false, or --set cache_latents=false --set cache_latents_to_disk=false",
            )
    if config.skip_cache_check and not config.cache_latents_to_disk and not config.cache_text_encoder_outputs_to_disk:
        yield Problem(
            code="no-effect",
            severity="note",
            key="skip_cache_check",
            got=True,
            must="has no effect without a cache on disk",
        )


@rule
def cached_captions(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """Cached captions cannot vary or be trained; not every family has them (sections 10.2 and 17, traps T5)."""
    if not config.cache_text_encoder_outputs:
        return
    key = "cache_text_encoder_outputs"
    facts = facts_of(family)
    if facts and not facts.caches_text:
        able = ", ".join(one.title for one in FAMILIES.values() if one.caches_text)
        yield Problem(
            code="sdxl-only",
            key=key,
            got=True,
            must=f"is for {able} only, the model is {family}",
            fix=f"--set {key}=false --set {key}_to_disk=false",
        )
    if not config.network_train_unet_only:
        yield Problem(
            code="cache-excludes",
            key=key,
            got=True,
            must="needs network_train_unet_only",
            fix="--set network_train_unet_only=true",
        )
    for name in CAPTION_CHANGES:
        if getattr(config, name):
            yield Problem(
                code="cache-excludes",
                key=name,
                got=getattr(config, name),
                must=f"excludes {key}: it changes captions while training",
                fix=f"--set {name}=0, or --set {key}=false --set {key}_to_disk=false",
            )


@rule
def masks(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """masked_loss needs masks; masks from folders exclude random_crop (traps T43)."""
    if config.masked_loss and not config.alpha_mask and not config.dataset_config:
        yield Problem(
            code="no-masks",
            severity="warning",
            key="masked_loss",
            got=True,
            must="has no effect: neither alpha_mask nor a dataset_config with conditioning_data_dir gives masks",
            fix="--set alpha_mask=true for transparent pictures",
        )
    if config.masked_loss and config.random_crop and config.dataset_config:
        yield Problem(
            code="masks-exclude-random-crop",
            key="random_crop",
            got=True,
            must="is refused with masks from a folder",
            fix="--set random_crop=false",
        )


@rule
def validation(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """The other validation options need a share of the pictures; metadata datasets are not split (traps T10)."""
    names = ("validate_every_n_steps", "validate_every_n_epochs", "max_validation_steps", "validation_seed")
    if not config.validation_split and not config.dataset_config:
        for name in names:
            if getattr(config, name) is not None:
                yield Problem(
                    code="no-effect",
                    severity="note",
                    key=name,
                    got=getattr(config, name),
                    must="has no effect without validation_split",
                )
    elif config.validation_split and config.in_json and not config.dataset_config:
        yield Problem(
            code="validation-of-metadata",
            severity="warning",
            key="validation_split",
            got=config.validation_split,
            must="pictures listed in in_json are not split in the reference",
        )


@rule
def saving_and_previews(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """Previews need a prompt file; keeping the last n copies needs copies (traps T20)."""
    marks = [
        name for name in ("sample_at_first", "sample_every_n_steps", "sample_every_n_epochs") if getattr(config, name)
    ]
    if marks and not config.sample_prompts:
        yield Problem(
            code="missing-option",
            severity="warning",
            key="sample_prompts",
            must=f"names no prompt file, so that {marks[0]} makes no previews",
            fix=f"--set sample_prompts=FILE.txt, or to go without --set {marks[0]}=",
        )
    if config.sample_prompts and not config.sample_prompts.lower().endswith((".txt", ".toml", ".json")):
        yield Problem(
            code="prompt-file-type",
            key="sample_prompts",
            got=config.sample_prompts,
            must="must be a file ending in .txt, .toml or .json",
            fix="put the prompts into a .txt, one a line",
        )
    if config.sample_every_n_epochs and config.sample_every_n_steps:
        yield Problem(
            code="no-effect",
            severity="note",
            key="sample_every_n_steps",
            got=config.sample_every_n_steps,
            must="has no effect: sample_every_n_epochs goes first",
        )
    for unit in ("epochs", "steps"):
        every = getattr(config, f"save_every_n_{unit}") or (unit == "epochs" and config.save_n_epoch_ratio)
        for name in (f"save_last_n_{unit}", f"save_last_n_{unit}_state"):
            if getattr(config, name) and not every:
                yield Problem(
                    code="no-effect",
                    severity="note",
                    key=name,
                    got=getattr(config, name),
                    must=f"has no effect without save_every_n_{unit}",
                )
    if config.save_model_as != "safetensors":
        yield Problem(
            code="no-header",
            severity="warning",
            key="save_model_as",
            got=config.save_model_as,
            must="keeps nothing of how the file was trained",
            fix="--set save_model_as=safetensors",
        )
