"""What each dataset and subset is told: dataset_config files, in_json and folder mode, resolved to values."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from schemas.config import TrainConfig
from schemas.datasets import Kind, Size, option_of, parse_range, parse_resolution
from schemas.problems import ConfigError, Problem, Severity, Value, error, errors
from trainer.dataset.document import dataset_kind, document_problems, read_document

TRAINING_IMAGES = "training_images"  # where `kohyakit dataset prepare` puts the numbered folders


@dataclass(frozen=True, kw_only=True)
class SubsetSpec:
    """One folder (or metadata file) of pictures and how its pictures and captions are treated."""

    image_dir: str | None = None
    num_repeats: int = 1
    shuffle_caption: bool = False
    caption_separator: str = ","
    keep_tokens: int = 0
    keep_tokens_separator: str = ""
    secondary_separator: str | None = None
    enable_wildcard: bool = False
    color_aug: bool = False
    flip_aug: bool = False
    face_crop_aug_range: tuple[float, float] | None = None
    random_crop: bool = False
    caption_prefix: str | None = None
    caption_suffix: str | None = None
    caption_dropout_rate: float = 0.0
    caption_dropout_every_n_epochs: int = 0
    caption_tag_dropout_rate: float = 0.0
    token_warmup_min: int = 1
    token_warmup_step: float = 0.0
    custom_attributes: Mapping[str, Any] | None = None
    resize_interpolation: str | None = None
    is_reg: bool = False
    class_tokens: str | None = None
    caption_extension: str = ".caption"
    cache_info: bool = False
    alpha_mask: bool = False
    metadata_file: str | None = None
    conditioning_data_dir: str | None = None


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """Subsets that share size and batches. `resolution` is (width, height) in pixels."""

    kind: Kind = "dreambooth"
    resolution: Size | None = None
    batch_size: int = 1
    enable_bucket: bool = False
    min_bucket_reso: int = 256
    max_bucket_reso: int = 1024
    bucket_reso_steps: int = 64
    bucket_no_upscale: bool = False
    resize_interpolation: str | None = None
    validation_seed: int | None = None
    validation_split: float = 0.0
    prior_loss_weight: float = 1.0
    subsets: tuple[SubsetSpec, ...] = ()


# Said by the subset itself (class_tokens also further up); the command line has no word for them.
SAID_NOT_SEARCHED = ("image_dir", "is_reg", "class_tokens", "metadata_file", "conditioning_data_dir")


def resolve_datasets(
    config: TrainConfig, problems: list[Problem], given: Mapping[str, Any] | None = None
) -> list[DatasetSpec]:
    """The datasets that `config` describes; what is wrong is appended to `problems`.

    A dataset_config file wins over in_json, which wins over folders (reference section 2.1). `given` is what the
    dataset_config file holds, where it is known without reading one.
    """
    try:
        if given is not None:
            return resolve_document(given, config, problems)
        if config.dataset_config:
            document = read_document(config.dataset_config, problems)
            return resolve_document(document, config, problems, file=config.dataset_config)
        document = metadata_document(config) if config.in_json else folder_document(config, problems)
    except ConfigError as fault:
        problems.extend(fault.problems)
        return []
    return resolve_document(document, config, problems) if document["datasets"] else []


def resolve_document(
    document: Mapping[str, Any], config: TrainConfig, problems: list[Problem], *, file: str | None = None
) -> list[DatasetSpec]:
    """The datasets of a dataset_config document: every value from subset, dataset, general, command line or default."""
    found = list(document_problems(document, config))
    told = [Problem(file=file, **facts) for facts in found]
    problems.extend(told)
    if errors(told):
        return []
    general = document.get("general") or {}
    try:
        return [_dataset(dataset, general, config) for dataset in document["datasets"]]
    except ConfigError as fault:
        problems.extend(fault.problems)
        return []


def metadata_document(config: TrainConfig) -> dict[str, Any]:
    """The document that in_json stands for: one subset with that metadata file."""
    subset = {"metadata_file": config.in_json, "image_dir": config.train_data_dir}
    return {"datasets": [{"subsets": [subset]}]}


def folder_document(config: TrainConfig, problems: list[Problem]) -> dict[str, Any]:
    """The document that train_data_dir and reg_data_dir stand for: one subset a folder named REPEATS_NAME, sorted."""
    subsets: list[dict[str, Any]] = []
    if not config.train_data_dir:
        raise error(
            "no-data",
            "must be given: nothing says where the pictures are",
            key="train_data_dir",
            fix="set train_data_dir, or dataset_config",
        )
    for name, is_reg in (("train_data_dir", False), ("reg_data_dir", True)):
        folder = getattr(config, name)
        if not folder:
            continue
        if not os.path.isdir(folder):
            problems.append(
                Problem(code="missing-folder", key=name, got=folder, must="must be a folder", fix="check the path")
            )
            continue
        numbered = list(numbered_in(folder))
        problems += left_out(folder, name) if numbered else [nothing_found(folder, name)]
        subsets += [
            {
                "image_dir": os.path.join(folder, inner),
                "num_repeats": repeats,
                "is_reg": is_reg,
                "class_tokens": inner.partition("_")[2],
            }
            for inner, repeats in numbered
        ]
    trained = any(not subset["is_reg"] for subset in subsets)
    return {"datasets": [{"subsets": subsets}] if trained else []}


def numbered_in(folder: str | os.PathLike[str]) -> Iterator[tuple[str, int]]:
    """(name, repeats) of every folder in `folder` that is trained on, sorted by name."""
    for name in folders_in(folder):
        repeats = folder_repeats(name)
        if repeats is not None:
            yield name, repeats


def folders_in(folder: str | os.PathLike[str]) -> list[str]:
    """Names of the folders in `folder`, sorted."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if _is_folder(entry))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def left_out(folder: str, key: str) -> Iterator[Problem]:
    """What lies beside the numbered folders in `folder` and is not trained on."""
    from trainer.dataset.pictures import deeper, pictures_in

    loose = pictures_in(folder)
    if loose:
        yield Problem(
            code="loose-images",
            severity="warning",
            key=key,
            got=[path.name for path in loose[:5]],
            must=f"{len(loose)} images lie directly in {folder}, beside its numbered folders, and are not trained on",
            fix="move them, with their captions, into a numbered folder",
        )
    for name in folders_in(folder):
        if folder_repeats(name) is not None or name.startswith("."):
            continue
        place = os.path.join(folder, name)
        here, below = len(pictures_in(place)), list(deeper(place))
        images = here + sum(count for _, count in below)
        yield Problem(
            code="ignored-folder",
            severity="warning",
            key=key,
            got=place,
            must=f"is left out with its {images} images: its name does not begin with a number of repeats",
            fix=f"rename it, for example 10_{name}" if here else "move it away, or its images into a numbered folder",
        )


def folder_repeats(name: str) -> int | None:
    """The repeats that a folder named REPEATS_NAME asks for; None for any other name."""
    try:
        repeats = int(name.partition("_")[0])
    except ValueError:
        return None
    return repeats if repeats >= 1 else None


def nothing_found(folder: str, key: str) -> Problem:
    """Without training folders there is no run; an empty folder for regularisation is often just left over."""
    from trainer.dataset.pictures import pictures_in

    name = os.path.basename(os.path.normpath(os.path.abspath(folder)))
    pictures = len(pictures_in(folder))
    if pictures and folder_repeats(name) is not None:
        parent = os.path.dirname(os.path.normpath(folder)) or "."
        return Problem(
            code="numbered-folder",
            key=key,
            got=folder,
            must=f"must be the parent of numbered folders, not the numbered folder itself ({pictures} images in it)",
            fix=f"set {key} to {parent}",
        )
    severity: Severity = "error" if key == "train_data_dir" else "warning"
    inner = [os.path.join(folder, one) for one in folders_in(folder)]
    holding = [place for place in inner if any(True for _ in numbered_in(place))]
    if holding:
        best = next((place for place in holding if os.path.basename(place) == TRAINING_IMAGES), holding[0])
        return Problem(
            code="wrong-level",
            severity=severity,
            key=key,
            got=folder,
            must=f"must hold folders named REPEATS_NAME; they lie one level deeper, in {' and '.join(holding[:5])}",
            fix=f"add /{os.path.basename(best)}: set {key} to {best}",
        )
    folders = [os.path.basename(place) for place in inner]
    seen = f"{pictures} images directly in it, folders: {', '.join(folders[:5]) or 'none'}"
    raw = pictures or any(pictures_in(place) for place in inner)
    prepare = f"make one with `kohyakit dataset prepare {shlex.quote(folder)} --name WORD`, then "
    return Problem(
        code="no-images",
        severity=severity,
        key=key,
        got=folder,
        must=f"must hold folders named REPEATS_NAME with pictures; found {seen}",
        fix=(prepare if raw else "") + ("set " if raw else "correct ") + key + (" to what it made" if raw else "")
        + ", or move the pictures into a folder such as 10_name inside it",
    )  # fmt: skip


def _dataset(dataset: Mapping[str, Any], general: Mapping[str, Any], config: TrainConfig) -> DatasetSpec:
    kind = dataset_kind(dataset["subsets"], config) or "dreambooth"
    values = _searched(DatasetSpec, (dataset, general), config, skip=("kind", "subsets"))
    subsets = tuple(_subset(subset, dataset, general, config) for subset in dataset["subsets"])
    values["resolution"] = _parsed(parse_resolution(values.get("resolution")))
    return DatasetSpec(kind=kind, subsets=subsets, **values)


def _subset(
    subset: Mapping[str, Any], dataset: Mapping[str, Any], general: Mapping[str, Any], config: TrainConfig
) -> SubsetSpec:
    values = _searched(SubsetSpec, (subset, dataset, general), config, skip=SAID_NOT_SEARCHED)
    for name in SAID_NOT_SEARCHED:
        places = (subset, dataset, general) if name == "class_tokens" else (subset,)
        found = next((place[name] for place in places if place.get(name) is not None), None)
        if found is not None:
            values[name] = found
    values["face_crop_aug_range"] = _parsed(parse_range(values.get("face_crop_aug_range")))
    return SubsetSpec(**values)


def _parsed(read: tuple[Value, list[Problem]]) -> Value:
    """The value; ConfigError where a document says another than the config, which the rules have seen."""
    value, problems = read
    if problems:
        raise ConfigError(problems)
    return value


def _searched(
    spec: type, tables: tuple[Mapping[str, Any], ...], config: TrainConfig, *, skip: tuple[str, ...]
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for field in fields(spec):
        if field.name in skip:
            continue
        found = next((place[field.name] for place in tables if place.get(field.name) is not None), None)
        values[field.name] = _argument(field.name, config, field.default) if found is None else found
    return values


def _argument(name: str, config: TrainConfig, default: Any) -> Any:
    if name == "caption_extension" and config.caption_extention:
        return config.caption_extention
    option = option_of(name)
    return default if option is None else getattr(config, option.name)
