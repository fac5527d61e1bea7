"""The `name=value` lists: network_args (text) and optimizer_args, lr_scheduler_args (Python literals)."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from typing import Any

from schemas.argument import with_point
from schemas.config import TrainConfig
from schemas.network_args import typed
from schemas.problems import ConfigError, Problem

LONGEST = 2000  # characters of one value: far above any real one, far below what could exhaust the parser
DEEPEST = 20  # brackets inside brackets
WORDS = {"true": True, "false": False, "none": None, "null": None}
BARE = re.compile(r"[A-Za-z_][\w.:/\\-]*\Z")


def parse_network_args(items: Iterable[str]) -> dict[str, str]:
    """name -> text of each `name=value`, split at the first `=` (section 7.1); ConfigError lists bad items."""
    found, problems = network_args(items)
    if problems:
        raise ConfigError(problems)
    return found


def network_args(items: Iterable[str]) -> tuple[dict[str, str], list[Problem]]:
    """The same with the findings returned instead of raised."""
    found: dict[str, str] = {}
    problems: list[Problem] = []
    for item in items:
        name, sign, value = item.partition("=")
        if not sign or not name.strip():
            problems.append(_not_a_pair("network_args", item))
        else:
            found[name.strip()] = value.strip()
    return found, problems


def network_values(config: TrainConfig, family: str | None = None) -> tuple[dict[str, Any], list[Problem]]:
    """name -> typed value of the config's network_args, with every finding: no pair, wrong kind, out of bounds."""
    texts, problems = network_args(config.network_args)
    values, found = typed(config.network_module or "networks.lora", texts, family)
    return values, problems + found


def parse_literal_args(items: Iterable[str], key: str) -> tuple[dict[str, Any], list[Problem]]:
    """name -> value of each `name=value`, values being Python literals (reference section 8.2).

    Beyond the reference, true, false, none and bare words are taken, with a note. `key` is the option they stand in.
    """
    found: dict[str, Any] = {}
    problems: list[Problem] = []
    for item in items:
        text = item.strip()
        if text.endswith(","):
            text = text[:-1].rstrip()
            problems.append(_note(key, item, "the comma at its end is left out"))
        name, sign, value = (part.strip() for part in text.partition("="))
        if not sign or not name.isidentifier() or not value:
            problems.append(_not_a_pair(key, item))
            continue
        if name in found:
            problems.append(
                Problem(
                    code="argument-twice",
                    severity="warning",
                    key=key,
                    got=item,
                    must=f"gives {name} a second time; the last one counts",
                    fix=f"keep one {name}",
                )
            )
        try:
            found[name], note = _literal(value)
        except ValueError:
            problems.append(
                Problem(
                    code="bad-literal",
                    key=key,
                    got=item,
                    must="must have a Python literal after =, such as 0.1, True, (0.9, 0.99) or 'text'",
                    fix=_apart(text) or _pointed(name, value) or f"put the text in quotes: {name}='{value}'",
                )
            )
            continue
        if note:
            problems.append(_note(key, item, note))
    return found, problems


def _apart(text: str) -> str | None:
    """The list to write instead of one text that holds several arguments."""
    items = re.split(r"[\s,]+(?=[A-Za-z_]\w*\s*=)", text)
    if len(items) < 2:
        return None
    return "write them apart: [" + ", ".join(f'"{item}"' for item in items) + "]"


def _pointed(name: str, value: str) -> str | None:
    point = with_point(value)
    return f"write a point: {name}={point}" if point else None


def _literal(text: str) -> tuple[Any, str | None]:
    if len(text) > LONGEST or max(text.count(bracket) for bracket in "([{") > DEEPEST:
        raise ValueError("too long")
    try:
        return ast.literal_eval(text), None
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        pass
    if text.lower() in WORDS:
        return WORDS[text.lower()], f"{text} is read as {WORDS[text.lower()]}"
    if BARE.match(text):
        return text, f"{text} is read as text"
    raise ValueError("no literal")


def _not_a_pair(key: str, item: str) -> Problem:
    return Problem(
        code="not-name-value",
        key=key,
        got=item,
        must="must be name=value",
        fix=f"write {item.split('=')[0] or 'name'}=VALUE",
    )


def _note(key: str, item: str, must: str) -> Problem:
    return Problem(code="argument-spelling", severity="note", key=key, got=item, must=must)
