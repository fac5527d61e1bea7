"""dataset_config documents: reading them, and everything that can be wrong in one (reference section 2.6)."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from schemas.config import TrainConfig
from schemas.datasets import SETTINGS, Kind, Setting, may_stand, wrong
from schemas.files.documents import check_depth, parse_json, parse_toml
from schemas.files.places import fault_of_path
from schemas.files.textfile import CONFIG, read_text
from schemas.problems import Problem, error, nearest


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
    yield from _table_problems(general, may_stand("general"), "general")
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
    only_here = {name: value for name, value in dataset.items() if name != "subsets"}
    yield from _table_problems(only_here, may_stand("dataset", kind), place)
    for number, subset in enumerate(subsets):
        here = f"{place}/subsets/{number}"
        yield from _table_problems(subset, may_stand("subset", kind), here)
        for name, setting in SETTINGS.items():
            if kind in setting.needed and not subset.get(name):
                yield {"code": "missing-key", "key": f"{here}/{name}", "must": "must be given", "fix": f"add {name}"}


def dataset_kind(subsets: list[Mapping[str, Any]], config: TrainConfig) -> Kind | None:
    """How the subsets of one dataset are to be read; None when they are of two kinds."""
    if config.masked_loss and all("conditioning_data_dir" in subset for subset in subsets):
        return "controlnet"
    described = ["metadata_file" in subset for subset in subsets]
    if all(described):
        return "finetuning"
    return None if any(described) else "dreambooth"


def _table_problems(values: Mapping[str, Any], known: Mapping[str, Setting], place: str) -> Iterator[dict[str, Any]]:
    for name, value in values.items():
        key = f"{place}/{name}"
        if name not in known:
            yield _unknown(key, name, known)
        elif value is not None and (must := wrong(name, value)):
            fix = f"remove {name} for the default, or write what is allowed"
            if known[name].form == "path":
                mended = (fault_of_path(value) or ("", ""))[1] if isinstance(value, str) else ""
                plain = f"write {name} without quotes, blanks at the ends and control characters"
                fix = f"{name} = '{mended}'" if mended else plain
            yield {"code": "bad-value", "key": key, "got": value, "must": must, "fix": fix}
        elif known[name].idle:
            must = f"has no effect: {known[name].idle}"
            yield {"code": "no-effect", "severity": "warning", "key": key, "got": value, "must": must,
                   "fix": f"remove {name}"}  # fmt: skip


def _unknown(key: str, name: str, known: Iterable[str]) -> dict[str, Any]:
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
