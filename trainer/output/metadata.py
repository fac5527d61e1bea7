"""The header of a trained LoRA: ss_* and modelspec.* as the reference writes them (section 12), and kohyakit_config."""

from __future__ import annotations

import base64
import datetime
import importlib.metadata
import json
import logging
import mimetypes
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any

from schemas.config import TrainConfig, table, to_flat
from schemas.files.textfile import CONFIG, read_bytes
from schemas.problems import ConfigError
from trainer.dataset.files import Scan, tag_frequency
from trainer.dataset.order import Assignment, bucket_info
from trainer.dataset.spec import DatasetSpec, parse_resolution

log = logging.getLogger("trainer")

# ss_ + the argument's own name and value.
PLAIN = (
    "output_name", "learning_rate", "unet_lr", "gradient_checkpointing", "gradient_accumulation_steps",
    "lr_warmup_steps", "lr_scheduler", "network_module", "network_dim", "network_alpha", "network_dropout",
    "mixed_precision", "full_fp16", "v2", "clip_skip", "max_token_length", "cache_latents", "seed", "lowram",
    "noise_offset", "multires_noise_iterations", "multires_noise_discount", "adaptive_noise_scale",
    "zero_terminal_snr", "training_comment", "max_grad_norm", "caption_dropout_rate",
    "caption_dropout_every_n_epochs", "caption_tag_dropout_rate", "face_crop_aug_range", "prior_loss_weight",
    "min_snr_gamma", "scale_weight_norms", "ip_noise_gamma", "noise_offset_random_strength",
    "ip_noise_gamma_random_strength", "loss_type", "huber_schedule", "huber_scale", "huber_c", "fp8_base",
    "fp8_base_unet", "validation_seed", "validation_split", "max_validation_steps", "validate_every_n_epochs",
    "validate_every_n_steps", "resize_interpolation",
)  # fmt: skip
# The same, written only where no dataset_config describes the data.
PLAIN_DATA = (
    "color_aug", "flip_aug", "random_crop", "shuffle_caption", "enable_bucket", "bucket_no_upscale", "min_bucket_reso",
    "max_bucket_reso", "keep_tokens",
)  # fmt: skip
KEPT_WITHOUT_METADATA = ("ss_v2", "ss_base_model_version", "ss_network_module", "ss_network_dim", "ss_network_alpha",
                         "ss_network_args")  # fmt: skip
SUBSET_FIELDS = (
    "color_aug", "flip_aug", "random_crop", "shuffle_caption", "keep_tokens", "keep_tokens_separator",
    "secondary_separator", "enable_wildcard", "caption_prefix", "caption_suffix", "resize_interpolation",
)  # fmt: skip
MODELSPEC_TEXTS = ("author", "description", "license", "tags", "usage_hint", "merged_from", "trigger_phrase",
                   "preprocessor", "is_negative_embedding")  # fmt: skip


@dataclass(frozen=True)
class BaseFile:
    """A model file the run was built on; hashes are None for a name that is not a path."""

    name: str
    old_hash: str | None = None
    new_hash: str | None = None

    @classmethod
    def of(cls, path: str, hashes: tuple[str, str] | None) -> BaseFile:
        """`hashes` as `checkpoint.model_hashes` gives them for an existing path, else None."""
        if hashes is None:
            return cls(path)
        return cls(Path(path).name or path, *hashes)


@dataclass(frozen=True)
class DatasetFacts:
    """One dataset as the header tells it; pictures are counted with repeats in num_*, without in the subsets.

    Regularisation pictures count with the repeats of their folder, before they are fitted to the training pictures.
    """

    spec: DatasetSpec
    images: tuple[int, ...]  # pictures of each subset
    num_train_images: int
    num_reg_images: int
    tag_frequency: Mapping[str, Mapping[str, int]]
    bucket_info: Mapping[str, Any] | None

    @classmethod
    def of(cls, scan: Scan, assignment: Assignment) -> tuple[DatasetFacts, ...]:
        """The facts of every dataset of a scan."""
        return tuple(
            cls(
                spec,
                tuple(
                    sum((sample.dataset, sample.subset) == (number, subset) for sample in scan.samples)
                    for subset in range(len(spec.subsets))
                ),
                sum(sample.repeats for sample in scan.samples if sample.dataset == number and not sample.is_reg),
                sum(
                    spec.subsets[sample.subset].num_repeats
                    for sample in scan.samples
                    if sample.dataset == number and sample.is_reg
                ),
                tag_frequency(scan, number),
                bucket_info(scan, assignment, number),
            )
            for number, spec in enumerate(scan.specs)
        )


@dataclass(frozen=True)
class RunFacts:
    """What a run knows before its first step. `family` is `Family.metadata(config)`; times are Unix seconds."""

    config: TrainConfig
    family: Mapping[str, str]
    datasets: tuple[DatasetFacts, ...]
    batches_per_epoch: int  # of one process
    epochs: int
    total_steps: int
    processes: int
    optimizer: str  # module.Class or module.Class(k=v,k2=v2)
    session_id: int
    started_at: float
    num_validation_images: int = 0
    model: BaseFile | None = None
    vae: BaseFile | None = None
    extra: Mapping[str, str] = field(default_factory=dict)


def build_metadata(facts: RunFacts, *, steps: int, epoch: int, finished_at: float) -> dict[str, str]:
    """Every text of the header of a file saved after `steps` in `epoch`, except the sshs hashes."""
    config = facts.config
    texts = {name: text if isinstance(text, str) else str(text) for name, text in _ss(facts).items()}
    texts |= {"ss_steps": str(steps), "ss_epoch": str(epoch), "ss_training_finished_at": str(finished_at)}
    if config.no_metadata:
        texts = {name: text for name, text in texts.items() if name in KEPT_WITHOUT_METADATA}
    else:
        texts["kohyakit_config"] = json.dumps(shareable(config), ensure_ascii=False)
    texts |= facts.extra
    return texts | modelspec(facts, finished_at)


def _ss(facts: RunFacts) -> dict[str, Any]:
    config = facts.config
    two = "xl" in facts.family["ss_base_model_version"]
    text_rates = config.text_encoder_lr if two else config.text_encoder_lr[:1]  # of one encoder the first counts
    values: dict[str, Any] = {f"ss_{name}": getattr(config, name) for name in PLAIN}
    values |= {
        "ss_session_id": facts.session_id,
        "ss_training_started_at": facts.started_at,
        "ss_text_encoder_lr": list(text_rates) if len(set(text_rates)) > 1 else next(iter(text_rates), None),
        "ss_num_train_images": sum(dataset.num_train_images for dataset in facts.datasets),
        "ss_num_reg_images": sum(dataset.num_reg_images for dataset in facts.datasets),
        "ss_num_validation_images": facts.num_validation_images,
        "ss_num_batches_per_epoch": facts.batches_per_epoch,
        "ss_num_epochs": facts.epochs,
        "ss_max_train_steps": facts.total_steps,
        "ss_debiased_estimation": config.debiased_estimation_loss,
        "ss_optimizer": facts.optimizer,
        "ss_sd_scripts_commit_hash": "unknown",
        "ss_base_model_version": facts.family["ss_base_model_version"],
    }
    if config.lr_scheduler.startswith("adafactor:"):  # the optimizer makes its own rates (reference section 8.3)
        values |= dict.fromkeys(("ss_learning_rate", "ss_unet_lr", "ss_text_encoder_lr"))
    if config.network_args:
        given = dict(word.partition("=")[::2] for word in config.network_args)
        values["ss_network_args"] = json.dumps({**given, "dropout": given.get("dropout", config.network_dropout)})
    for name, file in (("sd_model", facts.model), ("vae", facts.vae)):
        if file is not None:
            values[f"ss_{name}_name"] = file.name
            if file.old_hash is not None:
                values |= {f"ss_{name}_hash": file.old_hash, f"ss_new_{name}_hash": file.new_hash}
    return values | (_described(facts) if config.dataset_config else _plain_data(facts))


def _plain_data(facts: RunFacts) -> dict[str, Any]:
    """The data of a run without dataset_config."""
    config = facts.config
    values: dict[str, Any] = {f"ss_{name}": getattr(config, name) for name in PLAIN_DATA}
    first = facts.datasets[0] if facts.datasets else None
    if not config.enable_bucket:  # there are none, whatever their limits would be
        values |= dict.fromkeys(("ss_min_bucket_reso", "ss_max_bucket_reso"))
    return values | {
        "ss_batch_size_per_device": config.train_batch_size,
        "ss_total_batch_size": config.train_batch_size * facts.processes * config.gradient_accumulation_steps,
        "ss_resolution": first.spec.resolution if first else parse_resolution(config.resolution),
        "ss_dataset_dirs": json.dumps(_folders(facts.datasets, reg=False), ensure_ascii=False),
        "ss_reg_dataset_dirs": json.dumps(_folders(facts.datasets, reg=True), ensure_ascii=False),
        "ss_tag_frequency": json.dumps(_tags(facts.datasets), ensure_ascii=False),
        "ss_bucket_info": json.dumps(first.bucket_info if first else None),
    }


def _folders(datasets: Iterable[DatasetFacts], *, reg: bool) -> dict[str, Any]:
    """{folder: repeats and pictures}; a name that comes again gets a number."""
    found: dict[str, Any] = {}
    for dataset in datasets:
        for subset, images in zip(dataset.spec.subsets, dataset.images, strict=True):
            if subset.is_reg == reg:
                place = subset.metadata_file or subset.image_dir or ""
                base = name = last_name(place)
                number = 2
                while name in found:
                    name, number = f"{base} ({number})", number + 1
                found[name] = {"n_repeats": subset.num_repeats, "img_count": images}
    return found


def _tags(datasets: Iterable[DatasetFacts]) -> dict[str, Any]:
    """{folder: {tag: pictures}} of all datasets; the first dataset with a folder name wins."""
    found: dict[str, Any] = {}
    for dataset in datasets:
        for folder, tags in dataset.tag_frequency.items():
            found.setdefault(folder, dict(tags))
    return found


def _described(facts: RunFacts) -> dict[str, Any]:
    """The data of a run with dataset_config: everything by dataset and subset."""
    return {
        "ss_datasets": json.dumps([_dataset(dataset) for dataset in facts.datasets], ensure_ascii=False),
        "ss_tag_frequency": json.dumps(_tags(facts.datasets), ensure_ascii=False),
        "ss_dataset_dirs": json.dumps(_folders(facts.datasets, reg=False), ensure_ascii=False),
    }


def _dataset(facts: DatasetFacts) -> dict[str, Any]:
    spec = facts.spec
    return {
        "is_dreambooth": spec.kind == "dreambooth",
        "batch_size_per_device": spec.batch_size,
        "num_train_images": facts.num_train_images,
        "num_reg_images": facts.num_reg_images,
        "resolution": spec.resolution,
        "enable_bucket": spec.enable_bucket,
        "min_bucket_reso": spec.min_bucket_reso if spec.enable_bucket else None,
        "max_bucket_reso": spec.max_bucket_reso if spec.enable_bucket else None,
        "tag_frequency": facts.tag_frequency,
        "bucket_info": facts.bucket_info,
        "resize_interpolation": spec.resize_interpolation,
        "subsets": [_subset(facts, number) for number in range(len(spec.subsets))],
    }


def _subset(facts: DatasetFacts, number: int) -> dict[str, Any]:
    subset = facts.spec.subsets[number]
    values: dict[str, Any] = {"img_count": facts.images[number], "num_repeats": subset.num_repeats}
    values |= {name: getattr(subset, name) for name in SUBSET_FIELDS}
    if subset.image_dir:
        values["image_dir"] = last_name(subset.image_dir)
    if subset.metadata_file:
        return values | {"metadata_file": last_name(subset.metadata_file)}
    return values | {"class_tokens": subset.class_tokens, "is_reg": subset.is_reg}


def modelspec(facts: RunFacts, finished_at: float) -> dict[str, str]:
    """The model card keys of section 12.3; unset ones are left out."""
    config = facts.config
    resolution = parse_resolution(config.resolution) or _usual_resolution(facts)
    low, high = config.min_timestep, config.max_timestep
    card: dict[str, Any] = {
        "sai_model_spec": "1.0.1",
        "title": config.metadata_title or config.output_name or f"LoRA@{finished_at}",
        "resolution": f"{resolution[0]}x{resolution[1]}",
        "date": datetime.datetime.fromtimestamp(finished_at).isoformat(timespec="seconds"),
        "prediction_type": "v" if config.v_parameterization else "epsilon",
        "implementation_version": f"kohyakit/{version()}",
        "encoder_layer": config.clip_skip,
        "thumbnail": _thumbnail(config.metadata_thumbnail),
    }
    if low is not None or high is not None:
        card["timestep_range"] = f"{0 if low is None else low},{1000 if high is None else high}"
    card |= {name: getattr(config, f"metadata_{name}") for name in MODELSPEC_TEXTS}
    found = {f"modelspec.{name}": str(value) for name, value in card.items() if value is not None}
    return found | {name: text for name, text in facts.family.items() if name.startswith("modelspec.")}


def _usual_resolution(facts: RunFacts) -> tuple[int, int]:
    side = 768 if facts.config.v2 and facts.config.v_parameterization else 512
    if "xl" in facts.family.get("modelspec.architecture", ""):
        side = 1024
    return side, side


def _thumbnail(place: str | None) -> str | None:
    """A data URL of a picture file; a data URL stays as it is."""
    if place is None or place.startswith("data:"):
        return place
    try:
        picture = base64.b64encode(read_bytes(place, limit=CONFIG, what="thumbnail")).decode()
    except ConfigError as fault:
        log.warning("metadata_thumbnail: %s; the header goes without it", fault.problems[0].lines()[0])
        return None
    return f"data:{mimetypes.guess_type(place)[0] or 'image/jpeg'};base64,{picture}"


def version() -> str:
    """The version of kohyakit, "unknown" in a bare checkout."""
    try:
        return importlib.metadata.version("kohyakit")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def last_name(place: str) -> str:
    """The last name of a path written for this or another system; text without a folder stays."""
    kind = PureWindowsPath if "\\" in place or place[1:2] == ":" else PurePath
    return kind(place).name or place


def shareable(config: TrainConfig) -> dict[str, Any]:
    """The options that differ from their default, without secrets; of every path only the last name is left."""
    flat = to_flat(config)
    for name, value in flat.items():
        if table()[name].path and value:
            flat[name] = [last_name(item) for item in value] if isinstance(value, list) else last_name(value)
        elif isinstance(value, list):
            flat[name] = [_bare_word(item) for item in value]
    return flat


def _bare_word(word: Any) -> Any:
    """A name=value word whose value is a path, cut to its last name."""
    if not isinstance(word, str):
        return word
    name, equals, value = word.partition("=")
    return f"{name}={last_name(value)}" if equals and ("/" in value or "\\" in value) else word
