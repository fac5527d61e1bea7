"""dataset_config documents: reading them, and everything that can be wrong in one (reference section 2.6)."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from schemas.config import TrainConfig, table
from schemas.files.documents import check_depth, parse_json, parse_toml
from schemas.files.places import fault_of_path
from schemas.files.textfile import CONFIG, read_text
from schemas.problems import Problem, error, nearest

Kind = Literal["dreambooth", "finetuning", "controlnet"]

LARGEST_DOCUMENT = 1 << 26  # bytes
FILTERS = ("lanczos", "nearest", "bilinear", "linear", "bicubic", "cubic", "area", "box")

DATASET_KEYS = {
    "batch_size": "int",
    "resolution": "resolution",
    "enable_bucket": "bool",
    "min_bucket_reso": "int",
    "max_bucket_reso": "int",
    "bucket_reso_steps": "int",
    "bucket_no_upscale": "bool",
    "resize_interpolation": "filter",
    "network_multiplier": "float",
    "validation_seed": "int",
    "validation_split": "float",
}
SUBSET_KEYS = {
    "num_repeats": "int",
    "shuffle_caption": "bool",
    "caption_separator": "str",
    "keep_tokens": "int",
    "keep_tokens_separator": "str",
    "secondary_separator": "str",
    "enable_wildcard": "bool",
    "caption_prefix": "str",
    "caption_suffix": "str",
    "caption_dropout_rate": "float",
    "caption_dropout_every_n_epochs": "int",
    "caption_tag_dropout_rate": "float",
    "token_warmup_min": "int",
    "token_warmup_step": "float",
    "color_aug": "bool",
    "flip_aug": "bool",
    "face_crop_aug_range": "pair",
    "random_crop": "bool",
    "resize_interpolation": "filter",
    "custom_attributes": "table",
}
# Allowed at every level, but only for this kind of dataset.
KIND_KEYS: dict[Kind, dict[str, str]] = {
    "dreambooth": {"caption_extension": "str", "class_tokens": "str", "cache_info": "bool"},
    "finetuning": {},
    "controlnet": {"caption_extension": "str", "cache_info": "bool"},
}
# Allowed in a subset only.
OWN_KEYS: dict[Kind, dict[str, str]] = {
    "dreambooth": {"image_dir": "path", "is_reg": "bool", "alpha_mask": "bool"},
    "finetuning": {"metadata_file": "path", "image_dir": "path", "alpha_mask": "bool"},
    "controlnet": {"image_dir": "path", "conditioning_data_dir": "path"},
}
NEEDED: dict[Kind, tuple[str, ...]] = {
    "dreambooth": ("image_dir",),
    "finetuning": ("metadata_file",),
    "controlnet": ("image_dir", "conditioning_data_dir"),
}
# Names that the command line spells differently.
ARGUMENTS = {"batch_size": "train_batch_size", "num_repeats": "dataset_repeats"}
MUST = {
    "int": "must be a whole number",
    "bool": "must be true or false",
    "str": "must be text",
    "path": "must be text",
    "float": "must be a number",
    "pair": "must be two numbers",
    "table": "must be a table",
    "filter": "must be one of " + ", ".join(FILTERS),
    "resolution": "must be a whole number or [width, height]",
}


def read_document(path: str, problems: list[Problem]) -> dict[str, Any]:
    """The tables of a dataset_config file (.toml or .json)."""
    extension = os.path.splitext(path)[1].lower()
    if extension not in (".toml", ".json"):
        raise error(
            "dataset-extension",
            "must end in .toml or .json",
            file=path,
            key="dataset_config",
            got=extension,
            fix="rename the file after its format",
        )
    text = read_text(path, limit=CONFIG, what="dataset_config")
    try:
        document = parse_json(text) if extension == ".json" else _read_toml(text, path, problems)
    except ValueError as fault:
        raise error(
            f"not-{extension[1:]}", f"is not {extension[1:].upper()}: {fault}", file=path, fix="mend that line"
        ) from None
    if not isinstance(document, dict):
        raise error("bad-value", "must hold a table", file=path, got=document, fix="see the dataset_config format")
    return document


def _read_toml(text: str, path: str, problems: list[Problem]) -> dict[str, Any]:
    try:
        return parse_toml(text)
    except tomllib.TOMLDecodeError as fault:
        import toml  # the reference's reader, which is laxer

        try:
            document: dict[str, Any] = toml.loads(text)
            check_depth(document)
        except (ValueError, IndexError, KeyError, TypeError, AttributeError, RecursionError):
            raise fault from None
        problems.append(Problem(code="lax-toml", severity="note", file=path, must=f"is not standard TOML: {fault}"))
        return document


def document_problems(document: Mapping[str, Any], config: TrainConfig) -> Iterator[dict[str, Any]]:
    """Facts of one Problem for each thing the reference's strict schema refuses; `key` is the path of the setting."""
    datasets, general = document.get("datasets"), document.get("general") or {}
    for name in document.keys() - {"general", "datasets"}:
        yield _unknown(name, name, ("general", "datasets"))
    if not isinstance(general, Mapping):
        yield {
            "code": "bad-value",
            "key": "general",
            "got": general,
            "must": "must be a table",
            "fix": "write [general]",
        }
        return
    if not isinstance(datasets, list) or not datasets or not all(isinstance(one, Mapping) for one in datasets):
        yield {
            "code": "no-datasets",
            "key": "datasets",
            "got": datasets,
            "must": "must be a list of at least one dataset",
            "fix": "write [[datasets]] with [[datasets.subsets]] in it",
        }
        return
    everywhere = DATASET_KEYS | SUBSET_KEYS | KIND_KEYS["dreambooth"]
    yield from _table_problems(general, everywhere, "general")
    for number, dataset in enumerate(datasets):
        yield from _dataset_problems(dataset, f"datasets/{number}", config)


def _dataset_problems(dataset: Mapping[str, Any], place: str, config: TrainConfig) -> Iterator[dict[str, Any]]:
    subsets = dataset.get("subsets")
    if not isinstance(subsets, list) or not subsets or not all(isinstance(one, Mapping) for one in subsets):
        yield {
            "code": "no-subsets",
            "key": f"{place}/subsets",
            "got": subsets,
            "must": "must be a list of at least one subset",
            "fix": "write [[datasets.subsets]] with image_dir in it",
        }
        return
    kind = dataset_kind(subsets, config)
    if kind is None:
        yield {
            "code": "mixed-subsets",
            "key": place,
            "must": "must not mix subsets with and without metadata_file",
            "fix": "put them into two [[datasets]]",
        }
        return
    shared = SUBSET_KEYS | KIND_KEYS[kind]
    only_here = {name: value for name, value in dataset.items() if name != "subsets"}
    yield from _table_problems(only_here, DATASET_KEYS | shared, place)
    for number, subset in enumerate(subsets):
        here = f"{place}/subsets/{number}"
        yield from _table_problems(subset, shared | OWN_KEYS[kind], here)
        for name in NEEDED[kind]:
            if not subset.get(name):
                yield {"code": "missing-key", "key": f"{here}/{name}", "must": "must be given", "fix": f"add {name}"}


def dataset_kind(subsets: list[Mapping[str, Any]], config: TrainConfig) -> Kind | None:
    """How the subsets of one dataset are to be read; None when they are of two kinds."""
    if config.masked_loss and all("conditioning_data_dir" in subset for subset in subsets):
        return "controlnet"
    described = ["metadata_file" in subset for subset in subsets]
    if all(described):
        return "finetuning"
    return None if any(described) else "dreambooth"


def _table_problems(values: Mapping[str, Any], known: Mapping[str, str], place: str) -> Iterator[dict[str, Any]]:
    for name, value in values.items():
        key = f"{place}/{name}"
        if name not in known:
            yield _unknown(key, name, known)
        elif known[name] == "path" and isinstance(value, str):
            yield from _path_problems(name, key, value)
        elif value is not None and not (_fits(known[name], value) and _in_bounds(name, value)):
            yield {
                "code": "bad-value",
                "key": key,
                "got": value,
                "must": MUST[known[name]] + _bounds(name),
                "fix": f"remove {name} for the default, or write what is allowed",
            }


def _path_problems(name: str, key: str, value: str) -> Iterator[dict[str, Any]]:
    fault = fault_of_path(value)
    if fault is not None:
        fix = (
            f"{name} = '{fault[1]}'"
            if fault[1]
            else f"write {name} without quotes, blanks at the ends and control characters"
        )
        yield {"code": "bad-value", "key": key, "got": value, "must": fault[0], "fix": fix}


def _unknown(key: str, name: str, known: Mapping[str, str] | tuple[str, ...]) -> dict[str, Any]:
    places = {
        "conditioning_data_dir": "set masked_loss, and give every subset of the dataset one",
        "validation_split": "put it into [[datasets]]",
        "validation_seed": "put it into [[datasets]]",
        "is_reg": "put it into [[datasets.subsets]]",
        "alpha_mask": "put it into [[datasets.subsets]]",
    }
    guess = nearest(name, known)
    fix = places.get(name) or (f"did you mean {guess}?" if guess else "remove it")
    return {"code": "unknown-option", "key": key, "must": "is not known at this place", "fix": fix}


def _fits(kind: str, value: Any) -> bool:
    """Whether a file's value has the strict type; whole numbers pass as floats, other than in the reference."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    number = whole or isinstance(value, float)
    pair = isinstance(value, (list, tuple)) and len(value) == 2
    match kind:
        case "resolution":
            return (whole and value > 0) or (pair and all(type(side) is int and side > 0 for side in value))
        case "pair":
            return pair and all(type(end) in (int, float) for end in value)
        case "filter":
            return value in FILTERS
        case "table":
            return isinstance(value, Mapping)
    return {"int": whole, "float": number, "bool": isinstance(value, bool)}.get(kind, isinstance(value, str))


def _marks(name: str) -> Mapping[str, Any]:
    option = table().get(ARGUMENTS.get(name, name))
    return option.marks if option else {}


def _in_bounds(name: str, value: Any) -> bool:
    marks = _marks(name)
    return not isinstance(value, (int, float)) or marks.get("ge", value) <= value <= marks.get("le", value)


def _bounds(name: str) -> str:
    said = [
        f"{word} {_marks(name)[mark]}" for mark, word in (("ge", "at least"), ("le", "at most")) if mark in _marks(name)
    ]
    return (" of " + " and ".join(said)) if said else ""
