"""Strict JSON objects: the dialects that tools write and nobody pastes by hand."""

from __future__ import annotations

import json
from typing import Any

from schemas.documents import parse_json
from schemas.problems import error


def parse(text: str, file: str | None = None) -> dict[str, Any]:
    """The object in `text`; ConfigError `not-json` with the line."""
    try:
        values = parse_json(text)
    except json.JSONDecodeError as fault:
        must = f"is not JSON: {fault.msg}"
        raise error("not-json", must, file=file, line=fault.lineno, fix="mend that line") from None
    except ValueError as fault:
        raise error("not-json", str(fault), file=file, fix="correct it") from None
    if not isinstance(values, dict):
        raise error("not-json", "must be one JSON object", file=file, line=1, fix="choose the right file")
    return values
