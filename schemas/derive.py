"""What follows from the option table: the trainer's command line, the JSON Schema, the reference page."""

from __future__ import annotations

import argparse
from typing import Any

from schemas.config import Option, TrainConfig, table, to_flat
from schemas.optimizers import OPTIMIZERS
from schemas.options import DeprecatedOptions
from schemas.schedulers import SCHEDULERS, TORCH_SCHEDULERS

JSON_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string"}

# Open lists: what editors offer where other text is allowed too.
EXAMPLES: dict[str, list[Any]] = {
    "optimizer_type": list(OPTIMIZERS),
    "lr_scheduler": list(SCHEDULERS),
    "lr_scheduler_type": list(TORCH_SCHEDULERS),
    "network_module": ["networks.lora", "networks.lora_fa", "networks.dylora", "lycoris.kohya"],
    "network_args": [["conv_dim=8", "conv_alpha=4"], ["algo=locon", "preset=full"]],
    "optimizer_args": [["weight_decay=0.1", "betas=0.9,0.99"]],
    "resolution": ["512,512", "768,768", "1024,1024"],
    "caption_extension": [".txt", ".caption"],
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """One flag an option under the reference's spelling; values stay text and are read by `schemas.config`."""
    groups: dict[type, argparse._ArgumentGroup] = {}
    for option in table().values():
        if option.group not in groups:
            groups[option.group] = parser.add_argument_group((option.group.__doc__ or "").rstrip("."))
        shape: dict[str, Any] = {"action": "store_true"} if option.kind is bool else {"metavar": _metavar(option)}
        if option.many:
            shape["nargs"] = "*"
        groups[option.group].add_argument(
            f"--{option.name}", default=argparse.SUPPRESS, help=_help(option).replace("%", "%%"), **shape
        )


def typed_words(config: TrainConfig) -> list[str]:
    """The options of a config as words that `add_flags` and `from_flat` read back to the same; secrets left out."""
    words: list[str] = []
    for name, value in to_flat(config).items():
        if value is None or name in ("config_file", "output_config"):
            continue
        if isinstance(value, bool):
            words += [f"--{name}"] if value else []
        elif isinstance(value, list) and len(value) != 1:  # one word with = may begin with a dash
            words += [f"--{name}", *(str(one) for one in value)]
        else:
            words.append(f"--{name}={value[0] if isinstance(value, list) else value}")
    return words


def _metavar(option: Option) -> str:
    return "|".join(option.choices) if option.choices else JSON_TYPES[option.kind][:3].upper()


def _help(option: Option) -> str:
    return option.doc if option.default in (None, False, (), "") else f"{option.doc} [{option.default}]"


def json_schema() -> dict[str, Any]:
    """Draft 2020-12 schema of the trainer's config; as its reader does, it takes options in sections too."""
    options = {name: property_schema(option) for name, option in table().items()}
    section = {"type": "object", "properties": options, "additionalProperties": False}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "sd-scripts training config",
        "description": "Arguments of the trainer under their long names. Sections mean nothing; missing is default.",
        "type": "object",
        "properties": {"$schema": {"type": "string", "description": "Where an editor finds this schema."}, **options},
        "additionalProperties": section,
    }


def property_schema(option: Option) -> dict[str, Any]:
    """The schema of one option's strict value."""
    one: dict[str, Any] = {"type": JSON_TYPES[option.kind]}
    if option.choices:
        one["enum"] = [option.kind(choice) for choice in option.choices]
    bounds = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum"}
    one |= {name: option.marks[mark] for mark, name in bounds.items() if mark in option.marks}
    schema: dict[str, Any] = {"type": "array", "items": one} if option.many else one
    default = list(option.default) if isinstance(option.default, tuple) else option.default
    found = {"title": option.name, "description": option.doc, **schema}
    if default is not None:
        found["default"] = default
    if option.name in EXAMPLES:
        found["examples"] = EXAMPLES[option.name]
    if option.secret:
        found["writeOnly"] = True
    if option.group is DeprecatedOptions:
        found["deprecated"] = True
    return found
