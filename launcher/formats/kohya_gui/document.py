"""The text of a form JSON: bytes to text, text to keys with their lines, and what can be wrong before that."""

from __future__ import annotations

import bisect
import codecs
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from schemas.files.documents import fix_at, needs_work, workable
from schemas.problems import ConfigError, Problem, error

MOST_KEYS = 10_000
LARGEST_FILE = 8_000_000  # characters; the largest real one has 12,000
WHITE = re.compile(r"[ \t\n\r]*")
NEWLINE = re.compile(r"\r\n|\r|\n")
DECODER = json.JSONDecoder()
BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
FIXES = (
    ("property name enclosed in double quotes", "remove the comma before }, or put the key in double quotes"),
    ("Expecting ',' delimiter", "put a comma after the value before it"),
    ("Expecting ':' delimiter", "put a colon between key and value"),
    ("Invalid \\escape", "write \\\\ for each backslash, or use / in paths"),
    ("Invalid control character", "close the text with a double quote in the same line"),
    ("Unterminated string", "close the text with a double quote"),
)


@dataclass(frozen=True)
class Document:
    """A parsed file: values by key (the last one where a key repeats, as JSON readers do), first line of each key."""

    values: dict[str, Any]
    lines: dict[str, int] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()


def decode(data: bytes, *, file: str | None = None) -> str:
    """The text of a file: UTF-8, or UTF-16/32 as Windows tools write it. ConfigError where it is no text."""
    for mark, name in BOMS:
        if data.startswith(mark):
            return _decoded(data[len(mark) :], name, file)
    if data[:1] == b"\0" and data[1:2] not in (b"\0", b""):
        return _decoded(data, "utf-16-be", file)
    if data[1:2] == b"\0" and data[2:3] != b"\0":
        return _decoded(data, "utf-16-le", file)
    return _decoded(data, "utf-8", file)


def _decoded(data: bytes, name: str, file: str | None) -> str:
    try:
        return data.decode(name)
    except UnicodeDecodeError as fault:
        line = data.count(b"\n", 0, fault.start) + 1
        must = f"is not {name.upper()} text (byte {fault.start})"
        raise error("not-text", must, file=file, line=line, fix="save the file as UTF-8") from None


def parse(text: str, *, file: str | None = None) -> Document:
    """The top level of a JSON object, scanned key by key so that every key has its line.

    Raises ConfigError `not-json` (with line and column), `not-an-object`, `too-large`; repeated keys are Problems.
    """
    text = text.removeprefix("\ufeff")
    if len(text) > LARGEST_FILE:
        raise error("too-large", f"is far larger than any training config ({len(text)} characters)", file=file)
    starts = [0, *(match.end() for match in NEWLINE.finditer(text))]
    try:
        found = _scan(text, starts, file)
        return replace(found, values=workable(found.values)) if needs_work(text) else found
    except json.JSONDecodeError as fault:
        raise _not_json(fault.msg, fault.pos, starts, file, text) from None
    except (RecursionError, ValueError):
        fix = "a training config is one flat object"
        raise error("not-json", "is nested far too deep", file=file, fix=fix) from None


def _scan(text: str, starts: list[int], file: str | None) -> Document:
    values: dict[str, Any] = {}
    lines: dict[str, int] = {}
    repeated: dict[str, list[int]] = {}
    at = skip_white(text, 0)
    if text[at : at + 1] != "{":
        return _no_object(text, at, file)
    at = skip_white(text, at + 1)
    closed = text[at : at + 1] == "}"
    while not closed:
        if text[at : at + 1] != '"':
            raise json.JSONDecodeError("Expecting property name enclosed in double quotes", text, at)
        place = at
        key, at = DECODER.raw_decode(text, at)
        key = key.encode("utf-8", "replace").decode()
        at = skip_white(text, at)
        if text[at : at + 1] != ":":
            raise json.JSONDecodeError("Expecting ':' delimiter", text, at)
        at = skip_white(text, at + 1)
        try:
            value, at = DECODER.raw_decode(text, at)
        except json.JSONDecodeError:
            raise
        except ValueError:  # a whole number of thousands of digits
            raise json.JSONDecodeError("Number too long", text, at) from None
        line = bisect.bisect_right(starts, place)
        if key in values:
            repeated.setdefault(key, [lines[key]]).append(line)
        values[key] = value
        lines.setdefault(key, line)
        at = skip_white(text, at)
        closed = text[at : at + 1] == "}"
        if not closed:
            if text[at : at + 1] != ",":
                raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
            at = skip_white(text, at + 1)
    rest = skip_white(text, at + 1)
    if rest != len(text):
        raise json.JSONDecodeError("Extra data", text, rest)
    if len(values) > MOST_KEYS:
        raise error("too-large", f"holds far more keys than any training config ({len(values)})", file=file)
    return Document(values, lines, tuple(_repeats(repeated, file)))


def _repeats(repeated: dict[str, list[int]], file: str | None) -> Iterator[Problem]:
    for key, (first, *more) in repeated.items():
        times = "twice" if len(more) == 1 else f"{len(more) + 1} times"
        must = f"stands in the file {times} (first in line {first}); the last one counts"
        place: dict[str, Any] = {"key": key, "file": file, "line": more[-1]}
        yield Problem(code="duplicate-key", must=must, severity="warning", fix="keep one of them", **place)


def skip_white(text: str, at: int) -> int:
    """Where the next thing of a JSON text begins."""
    return next(WHITE.finditer(text, at)).end()  # which may be empty, and is always found


def _no_object(text: str, at: int, file: str | None) -> Document:
    value, _ = DECODER.raw_decode(text, at)
    kind = "a list" if isinstance(value, list) else "a single value"
    raise error("not-an-object", f"holds {kind}; a form JSON is one object: {{...}}", file=file, line=1)


def _not_json(message: str, at: int, starts: list[int], file: str | None, text: str) -> ConfigError:
    if message.startswith("Expecting ',' delimiter") and text[at:].strip():
        text = text[:at].rstrip()  # where the comma is missing: at the end of the value before
        at = max(len(text) - 1, 0)
    line = bisect.bisect_right(starts, at)
    column = at - starts[line - 1] + 1
    fix = fix_at(text, at) or next((fix for start, fix in FIXES if start in message), "mend that line")
    must = f"is not JSON: line {line}, column {column}: {message[:1].lower()}{message[1:]}"
    return error("not-json", must, file=file, line=line, column=column, fix=fix)
