"""explain: everything known about one option, drawn from the tables that the program itself runs on."""

from __future__ import annotations

import inspect
import re
from typing import Any

import click

from launcher.commands import command, print_json

REFERENCES = re.compile(r" \((?:traps|reference|section)[^)]*\)")  # the project's notes, which readers do not have


@command("explain")
@click.argument("key")
def explain(key: str, as_json: bool) -> int:
    """One option: meaning, type, defaults, names in other formats, traps. KEY may be any format's name for it."""
    from launcher.resolve import UsageError
    from schemas.config import table
    from schemas.problems import nearest

    facts = lookup(key)
    if facts is None:
        from launcher.formats.kohya_gui import keys

        guess = nearest(key, [*table(), *keys()])
        raise UsageError(f"{key}: no such option" + (f", did you mean {guess}?" if guess else ""))
    if as_json:
        print_json(facts)
    else:
        for line in _lines(facts):
            click.echo(line)
    return 0


def lookup(key: str) -> dict[str, Any] | None:
    """Facts about an argument, or about a key of another format that leads to one."""
    from launcher.formats import civitai
    from launcher.formats.kohya_gui import keys
    from schemas.config import table

    form = keys().get(key)
    argument = key if key in table() else civitai.ARGUMENTS.get(key) or (form.argument if form else None)
    if form is None and argument not in table():
        return None
    facts: dict[str, Any] = {"key": key, "argument": argument if argument in table() else None}
    if argument in table():
        facts |= _argument(str(argument))
    facts["names"] = _names(str(argument), key)
    if form is not None:
        facts["kohya_gui"] = {
            "meaning": form.meaning(),
            "type": form.type,
            "default": form.default,
            "choices": list(form.choices),
            "since": form.since,
            "retired": form.retired,
            "renamed_to": form.renamed_to,
        }
    return facts


def _argument(name: str) -> dict[str, Any]:
    from schemas.config import table
    from schemas.derive import property_schema
    from schemas.rules import UNSUPPORTED, WITHOUT_EFFECT

    option = table()[name]
    default = option.default
    return {
        "meaning": option.doc,
        "group": (option.group.__doc__ or "").rstrip("."),
        "schema": property_schema(option),
        "default": list(default) if isinstance(default, tuple) else default,
        "may_change_on_resume": option.resumable,
        "sdxl_only": bool(option.marks.get("sdxl")),
        "secret": option.secret,
        "support": UNSUPPORTED.get(name) or WITHOUT_EFFECT.get(name),
        "rules": _rules(name),
    }


def _rules(name: str) -> list[str]:
    """The docstrings of all rules whose code names the option."""
    from schemas.rules import RULES

    said = [" ".join((inspect.getdoc(rule) or "").split()) for rule in RULES if name in _named(rule.__code__)]
    return [REFERENCES.sub("", text) for text in said]


def _named(code: Any) -> set[str]:
    found = set(code.co_names)
    for value in code.co_consts:
        if isinstance(value, str):
            found.add(value)
        elif isinstance(value, tuple):
            found |= {
                item
                for entry in value
                for item in (entry if isinstance(entry, tuple) else (entry,))
                if isinstance(item, str)
            }
        elif inspect.iscode(value):
            found |= _named(value)
    return found


def _names(argument: str, key: str) -> dict[str, list[str]]:
    """Format -> names of this option there, where they differ from the argument's."""
    from launcher.formats import civitai
    from launcher.formats.kohya_gui import keys

    found = {
        "kohya-gui": [name for name, row in keys().items() if row.argument == argument and name != argument],
        "civitai": [name for name, target in civitai.ARGUMENTS.items() if target == argument],
    }
    return {name: names for name, names in found.items() if names}


def _lines(facts: dict[str, Any]) -> list[str]:
    lines = [click.style(facts["key"], bold=True)]
    if facts["argument"] and facts["argument"] != facts["key"]:
        lines.append(f"  is {facts['argument']} for the trainer")
    if facts["argument"]:
        shape = facts["schema"]
        kind = " | ".join(map(str, shape["enum"])) if "enum" in shape else shape["type"]
        limits = [
            f"{word} {shape[name]}"
            for name, word in (("minimum", "at least"), ("exclusiveMinimum", "more than"), ("maximum", "at most"))
            if name in shape
        ]
        lines += [f"  {facts['meaning']}", f"  {'type':<10} {' '.join([kind, *limits])}"]
        lines.append(
            f"  {'default':<10} {facts['default'] if facts['default'] not in (None, '', []) else 'unset'} (sd-scripts)"
        )
    form = facts.get("kohya_gui")
    if form:
        lines.append(f"  {'':<10} {form['default'] if form['default'] not in (None, '') else 'unset'} (Kohya GUI)")
        if form["meaning"] and form["meaning"] != facts.get("meaning"):
            lines.append(f"  {'Kohya GUI':<10} {form['meaning']}")
        ages = [f"{word} {form[name]}" for name, word in (("since", "since"), ("retired", "retired in")) if form[name]]
        if ages:
            lines.append(f"  {'in the GUI':<10} {', '.join(ages)}")
        if form["renamed_to"]:
            lines.append(f"  {'today':<10} {form['renamed_to']}")
    for name, names in facts["names"].items():
        lines.append(f"  {'named':<10} {', '.join(names)} ({name})")
    if facts.get("support"):
        lines.append(f"  {'here':<10} {facts['support']}")
    if facts.get("may_change_on_resume"):
        lines.append(f"  {'resume':<10} may change when a run is resumed")
    for text in facts.get("rules", ()):
        lines.append(f"  {'check':<10} {text}")
    return lines
