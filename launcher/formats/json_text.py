"""Strict JSON objects: the dialects that tools write and nobody pastes by hand."""

from __future__ import annotations

import json
from typing import Any

from schemas.files.documents import fix_at, parse_json
from schemas.problems import error


def parse(text: str, file: str | None = None) -> dict[str, Any]:
    """The object in `text`; ConfigError `not-json` with the line."""
    try:
        values = parse_json(text)
    except json.JSONDecodeError as fault:
        must, line = f"is not JSON: {fault.msg}", fault.lineno
        if fault.msg.startswith("Expecting ',' delimiter") and text[fault.pos :].strip():
            line = text[: fault.pos].rstrip().count("\n") + 1  # where the comma is missing
        raise error("not-json", must, file=file, line=line, fix=fix_at(text, fault.pos) or "mend that line") from None
    except ValueError as fault:
        raise error("not-json", str(fault), file=file, fix="correct it") from None
    if not isinstance(values, dict):
        raise error("not-json", "must be one JSON object", file=file, line=1, fix="choose the right file")
    return values
