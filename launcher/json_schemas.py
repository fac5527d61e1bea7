"""The JSON Schema of each format that is a document, made from the tables that its reader runs on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

DRAFT = "https://json-schema.org/draft/2020-12/schema"
SIZE: dict[str, Any] = {
    "oneOf": [
        {"type": "integer", "minimum": 1},
        {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 2},
    ]
}


def kohya_gui() -> dict[str, Any]:
    """The LoRA tab's form; a snapshot is one too."""
    from launcher.formats.kohya_gui.schema import schema

    return schema()


def sd_scripts() -> dict[str, Any]:
    """The training TOML, without sections."""
    from schemas.derive import json_schema

    return json_schema()


def dataset() -> dict[str, Any]:
    """The dataset_config document; every setting may also stand a level higher."""
    from trainer.dataset.document import DATASET_KEYS, KIND_KEYS, OWN_KEYS, SUBSET_KEYS

    shared = _shapes({**SUBSET_KEYS, **{name: kind for keys in KIND_KEYS.values() for name, kind in keys.items()}})
    sizes = _shapes(DATASET_KEYS)
    own = _shapes({name: kind for keys in OWN_KEYS.values() for name, kind in keys.items()})
    subset = {"type": "object", "properties": {**shared, **own}, "additionalProperties": False}
    subsets = {"type": "array", "items": subset, "minItems": 1}
    one = {"type": "object", "properties": {**shared, **sizes, "subsets": subsets}, "additionalProperties": False,
           "required": ["subsets"]}  # fmt: skip
    return {
        "$schema": DRAFT,
        "title": "sd-scripts dataset_config",
        "type": "object",
        "properties": {
            "general": {"type": "object", "properties": {**shared, **sizes}, "additionalProperties": False},
            "datasets": {"type": "array", "items": one, "minItems": 1},
        },
        "required": ["datasets"],
        "additionalProperties": False,
    }


def _shapes(keys: Mapping[str, str]) -> dict[str, Any]:
    from trainer.dataset.document import FILTERS

    number = {"type": "number"}
    shapes: dict[str, Any] = {
        "int": {"type": "integer"},
        "bool": {"type": "boolean"},
        "str": {"type": "string"},
        "float": number,
        "pair": {"type": "array", "items": number, "minItems": 2, "maxItems": 2},
        "table": {"type": "object"},
        "filter": {"enum": list(FILTERS)},
        "resolution": SIZE,
    }
    return {name: shapes[kind] for name, kind in sorted(keys.items())}


def civitai() -> dict[str, Any]:
    """The training parameters as the site shows them; ranges are the widest that it ever had."""
    from launcher.formats.civitai import ARGUMENTS, ORDER, RANGES
    from schemas.config import table
    from schemas.derive import JSON_TYPES

    kinds = {"engine": "string", "numRepeats": "integer", "targetSteps": "integer", "resolution": "integer"}
    properties: dict[str, Any] = {}
    for key in ORDER:
        option = table().get(ARGUMENTS.get(key, ""))
        shape: dict[str, Any] = {"type": kinds.get(key) or (JSON_TYPES[option.kind] if option else "string")}
        if key in RANGES:
            shape |= dict(zip(("minimum", "maximum"), RANGES[key], strict=True))
        properties[key] = ({"description": option.doc} if option else {}) | shape
    return {"$schema": DRAFT, "title": "CivitAI training parameters", "type": "object", "properties": properties}


SCHEMAS: dict[str, Callable[[], dict[str, Any]]] = {
    "kohya-gui": kohya_gui,
    "snapshot": kohya_gui,
    "sd-scripts": sd_scripts,
    "dataset": dataset,
    "civitai": civitai,
}
