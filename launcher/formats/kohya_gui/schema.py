"""The JSON Schema of the form's JSON, made from the table, and validation against it."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from launcher.formats.kohya_gui.table import STRICT, Key, hidden, keys, mend, must
from schemas.problems import Problem

NUMBER = r"^\s*([+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?)?\s*$"
WHOLE = r"^\s*([+-]?\d+(\.0*)?)?\s*$"


def schema() -> dict[str, Any]:
    """Draft 2020-12 schema: every key of every age, as leniently typed as Kohya takes it."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Kohya_ss GUI preset, LoRA tab",
        "description": "One flat object. A missing key stands for the form's default; unknown keys are ignored.",
        "type": "object",
        "properties": {"$schema": {"type": "string"}} | {name: _property(key) for name, key in keys().items()},
        "additionalProperties": True,
    }


def _property(key: Key) -> dict[str, Any]:
    found: dict[str, Any] = {"title": key.name, "description": key.meaning()}
    if key.name != "save_as_bool":
        found |= _shape(key)
    if not key.current:
        found["deprecated"] = True
        return {name: value for name, value in found.items() if name in ("title", "description", "deprecated")}
    if key.default is not None:
        found["default"] = key.default
    if key.secret:
        found["writeOnly"] = True
    return found


def _shape(key: Key) -> dict[str, Any]:
    if key.type == "bool":
        return {"enum": [True, False, 0, 1, "", "true", "True", "1", None]}
    if key.numeric:
        pattern = WHOLE if key.type == "int" else NUMBER
        whole = {"multipleOf": 1} if key.type == "int" and key.bad_text is None else {}
        hint = {} if key.range == (None, None) else {"$comment": f"the form's slider: {key.range[0]} to {key.range[1]}"}
        kinds = {"type": ["number", "string", "boolean", "null"], "not": {"const": True}}
        return {**kinds, "pattern": pattern, **whole, **hint}
    if key.choices and (key.name in STRICT or key.role == "launch"):
        old: dict[str, list[Any]] = {"LoRA_type": ["LoCon"], "xformers": ["", True, False]}
        more = old.get(key.name, ["", False])
        return {"enum": [*key.choices, *(word for word in more if word not in key.choices), None]}
    examples = {"examples": list(key.choices)} if key.choices else {}
    return {"type": ["string", "number", "boolean", "null"], "not": {"const": True}, **examples}


@functools.cache
def _validator() -> Any:
    import jsonschema

    return jsonschema.Draft202012Validator(schema())


def validate_document(
    document: Any, lines: Mapping[str, int] | None = None, *, file: str | None = None
) -> list[Problem]:
    """What jsonschema finds wrong in a parsed file, one Problem a key, worded like those of `read`."""
    found: dict[str | None, Problem] = {}
    for fault in _validator().iter_errors(document):
        name = str(fault.absolute_path[0]) if fault.absolute_path else None
        key = keys().get(name or "")
        if name in found:
            continue
        said = must(key) if key is not None else "must be one object: {...}"
        raw = document[name] if name is not None else None
        fix = mend(key, raw) if key is not None else None
        found[name] = Problem(
            code="bad-value", must=said, key=name, got=hidden(name or "", raw), fix=fix, file=file,
            line=(lines or {}).get(name or ""),
        )  # fmt: skip
    return list(found.values())
