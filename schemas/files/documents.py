"""JSON and TOML of strangers as values: every fault of theirs is a ValueError, and what comes out can be worked with.

The parsers of the standard library end in RecursionError where brackets are thousands deep, and pass on halves of
surrogate pairs, which no file and no terminal takes.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from typing import Any

from schemas.argument import with_point
from schemas.files import textfile
from schemas.problems import ConfigError

DEEPEST = 64  # levels; a training config has four
DEEP = f"is nested more than {DEEPEST} levels deep"
DIGITS = "holds a number of thousands of digits"
# a number with a decimal comma, as the value of a key
NUMBER = re.compile(r":\s*(?P<number>[+-]?\d+,\d+(?:[eE][+-]?\d+)?)(?=\s*[,}\n])")
HALF = re.compile("[\ud800-\udfff]")


def parse_json(text: str | bytes, *, flat: bool = False, **hooks: Any) -> Any:
    """The value of a JSON text; ValueError (json.JSONDecodeError where the place is known) says what is wrong.

    `flat`: the caller looks at every value itself and takes no nested ones; halves of pairs are left to it too.
    """
    text = text.decode("utf-8") if isinstance(text, bytes) else text
    try:
        found = json.loads(text, **hooks)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise ValueError(DEEP) from None
    except ValueError:
        raise ValueError(DIGITS) from None
    return found if flat or not needs_work(text) else workable(found, halves="\\ud" in text or "\\uD" in text)


def parse_toml(text: str) -> dict[str, Any]:
    """The table of a TOML text; ValueError (tomllib.TOMLDecodeError where the place is known) says what is wrong."""
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise
    except RecursionError:
        raise ValueError(DEEP) from None
    except ValueError:
        raise ValueError(DIGITS) from None
    check_depth(found)
    return found


def fix_at(text: str, at: int) -> str | None:
    """What to write where JSON cannot be read at `at`, because a number stands there with a decimal comma."""
    start = text.rfind("\n", 0, at) + 1
    for match in NUMBER.finditer(text, start):
        if match.start() > at:
            break
        point = with_point(match["number"])
        if match.end() >= at and point is not None:
            return f"write the number with a point: {point}"
    return None


def object_in(path: str | os.PathLike[str], *, what: str, limit: int = textfile.CONFIG) -> dict[str, Any]:
    """The JSON object in a file; empty where there is none, or none that can be read."""
    try:
        found = parse_json(textfile.read_text(path, limit=limit, what=what))
    except (ConfigError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def needs_work(text: str) -> bool:
    """Whether a JSON text may hold deep nesting or halves of surrogate pairs: a quick look at its characters."""
    return text.count("[") + text.count("{") > DEEPEST or "\\ud" in text or "\\uD" in text


def workable(found: Any, *, halves: bool = True) -> Any:
    """`found`, with U+FFFD for each half of a surrogate pair where it may hold `halves`; ValueError if too deep."""
    check_depth(found)
    return _whole(found) if halves else found


def check_depth(found: Any) -> None:
    """ValueError where a document is nested too deep for code that walks through it."""
    level, depth = [found], 0
    while level:
        depth += 1
        if depth > DEEPEST:
            raise ValueError(DEEP)
        below = []
        for one in level:
            inside = one.values() if isinstance(one, Mapping) else one if isinstance(one, list) else ()
            below += [value for value in inside if isinstance(value, (dict, list))]
        level = below


def whole(text: str) -> str:
    """`text` with U+FFFD for each half of a surrogate pair."""
    return HALF.sub("\ufffd", text)


def _whole(value: Any) -> Any:
    if isinstance(value, str):
        return whole(value)
    if isinstance(value, dict):
        return {_whole(name): _whole(one) for name, one in value.items()}
    return [_whole(one) for one in value] if isinstance(value, list) else value
