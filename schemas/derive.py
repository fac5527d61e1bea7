"""What follows from the option table: the trainer's command line, the JSON Schema, the reference page."""

from __future__ import annotations

import argparse
from typing import Any

from schemas.config import Option, table

JSON_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string"}


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


def _metavar(option: Option) -> str:
    return "|".join(option.choices) if option.choices else JSON_TYPES[option.kind][:3].upper()


def _help(option: Option) -> str:
    return option.doc if option.default in (None, False, (), "") else f"{option.doc} [{option.default}]"


def json_schema() -> dict[str, Any]:
    """Draft 2020-12 schema of the trainer's flat config."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "kohyakit training config (sd-scripts names)",
        "type": "object",
        "additionalProperties": False,
        "properties": {name: property_schema(option) for name, option in table().items()},
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
    head = {"title": option.name, "description": option.doc}
    return head | schema | ({} if default is None else {"default": default})
