"""docs/options.md: every option, and the rules between them."""

from __future__ import annotations

import inspect
import re

from schemas.config import GROUPS, Option, table
from schemas.families import only_for
from schemas.rules import RULES, UNSUPPORTED, WITHOUT_EFFECT, Rule

HEAD = """# Options

Every option of the trainer under its sd-scripts name, with sd-scripts' default. Written by `python docs/generate.py`
from `schemas/options.py` and `schemas/rules/`; edit those instead.

Use them as flags (`--network_dim 16`), as lines of a TOML (`network_dim = 16`), or laid over any preset
(`--set network_dim=16`). Kohya GUI files mostly use the same names; `kohyakit explain NAME` says where they differ.

Marks: **resume** may change when a run is resumed; **SDXL** does something for SDXL only; **secret** is never printed
or written; **kohyakit** is not an option of sd-scripts.
"""
RULES_HEAD = """## Combinations

What `kohyakit validate` and the trainer check beyond single values:
"""


def page() -> str:
    """The whole page as Markdown: one section a group, one row an option, then the rules between options."""
    options = table().values()
    sections = [_section(group, [one for one in options if one.group is group]) for group in GROUPS]
    rules = [f"- {_said(rule)}" for rule in RULES]
    return "\n".join([HEAD, *sections, RULES_HEAD, *rules, ""])


def _said(rule: Rule) -> str:
    """A rule's docstring without its references to the project's notes."""
    text = " ".join((inspect.getdoc(rule) or "").split())
    return re.sub(r" \((?:traps|reference|section)[^)]*\)", "", text)


def _section(group: type, options: list[Option]) -> str:
    title = (group.__doc__ or "").rstrip(".")
    rows = "\n".join(_row(option) for option in options)
    return f"## {title}\n\n| option | value | default | what it does |\n|---|---|---|---|\n{rows}\n"


def _row(option: Option) -> str:
    marks = {
        "resume": option.resumable,
        ", ".join(only_for(option)): bool(only_for(option)),
        "secret": option.secret,
        "kohyakit": option.kit,
    }
    said = ", ".join(f"**{mark}**" for mark, holds in marks.items() if holds)
    words = " ".join(part for part in (option.doc, _remark(option.name), said) if part).replace("|", "\\|")
    return f"| `{option.name}` | {_value(option)} | {_default(option)} | {words} |"


def _remark(name: str) -> str:
    if name in UNSUPPORTED:
        return f"*Refused: {UNSUPPORTED[name]}.*"
    if name in WITHOUT_EFFECT:
        return f"*Without effect here: {WITHOUT_EFFECT[name]}.*"
    return ""


def _value(option: Option) -> str:
    if option.choices:
        return ", ".join(f"`{choice}`" for choice in option.choices)
    word = {bool: "flag", int: "whole number", float: "number", str: "text"}[option.kind]
    word = "path" if option.path else "steps, or a share" if option.marks.get("ratio") else word
    bounds = {"ge": "≥", "gt": ">", "le": "≤"}
    limits = ", ".join(f"{sign} {option.marks[mark]}" for mark, sign in bounds.items() if mark in option.marks)
    return " ".join(part for part in ("list of" if option.many else "", word, limits) if part)


def _default(option: Option) -> str:
    if option.default in (None, "", ()):
        return ""
    if option.default is False:
        return "off"
    return f"`{option.default}`"
