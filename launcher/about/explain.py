"""Everything known about one option, drawn from the tables that the program itself runs on."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any

from launcher.formats.registry import FORMATS, vocabularies
from schemas.config import Option, table

REFERENCES = re.compile(r" \((?:traps|reference|section)[^)]*\)")  # the project's notes, which readers do not have


def lookup(key: str) -> dict[str, Any] | None:
    """Facts about an argument, about another format's key, a network_args key or a launch word; None if unknown.

    Dashes for underscores and a leading -- are forgiven.
    """
    bare = key.strip().lstrip("-")
    for name in (bare, bare.replace("-", "_")):
        found = _lookup(name) if name else None
        if found is not None:
            return found
    return None


def known_names() -> list[str]:
    """Every name that can be explained."""
    from launcher.check import consent
    from schemas.network_args import NETWORK_ARGS

    groups: list[Iterable[str]] = [table()]
    for vocabulary in vocabularies().values():
        groups += [vocabulary.arguments, vocabulary.meanings, vocabulary.others]
    groups += [NETWORK_ARGS, consent.FLAGS, consent.VALUES, consent.REACHING]
    return list(dict.fromkeys(name for group in groups for name in group))


def _lookup(key: str) -> dict[str, Any] | None:
    from schemas.network_args import NETWORK_ARGS

    argument = _argument_of(key)
    facts: dict[str, Any] = {"key": key, "argument": argument}
    if argument is not None:
        facts |= _argument(table()[argument])
    if key in NETWORK_ARGS:
        facts["network_arg"] = _network_arg(key)
    facts |= _meanings(key) | _launch_word(key)
    if argument is None and len(facts) == 2:
        return None
    facts["names"] = _names(argument)
    return facts


def _argument_of(key: str) -> str | None:
    given = [key, *(vocabulary.arguments.get(key) for vocabulary in vocabularies().values())]
    found = next((name for name in given if name in table()), None)
    return None if found == "network_args" != key else found  # one of its keys is not the list itself


def _argument(option: Option) -> dict[str, Any]:
    from schemas.derive import property_schema
    from schemas.families import only_for
    from schemas.rules import UNSUPPORTED, WITHOUT_EFFECT

    name = option.name
    return {
        "meaning": option.doc,
        "group": (option.group.__doc__ or "").rstrip("."),
        "schema": property_schema(option),
        "default": _plain(option.default),
        "defaults": _defaults(name),
        "may_change_on_resume": option.resumable,
        "sdxl_only": bool(only_for(option)),
        "only_for": only_for(option),
        "secret": option.secret,
        "kit": option.kit,
        "support": UNSUPPORTED.get(name) or WITHOUT_EFFECT.get(name),
        "unsupported": name in UNSUPPORTED,
        "rules": _rules(name),
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _defaults(argument: str) -> dict[str, Any]:
    """Format -> what counts there when the option is not given."""
    found = {} if table()[argument].kit else {"sd-scripts": _plain(table()[argument].default)}
    for name, vocabulary in vocabularies().items():
        if argument in vocabulary.defaults:
            found[name] = vocabulary.defaults[argument]
    return found


def _network_arg(key: str) -> dict[str, Any]:
    from schemas.network_args import NETWORK_ARGS, modules_with

    row = NETWORK_ARGS[key]
    return {"meaning": row.meaning, "type": row.type, "default": row.default, "modules": modules_with(key)}


def _meanings(key: str) -> dict[str, Any]:
    """Format -> what it does with the key."""
    said = {name: vocabulary.meanings.get(key) for name, vocabulary in vocabularies().items()}
    return {name.replace("-", "_"): meaning for name, meaning in said.items() if meaning}


def _launch_word(key: str) -> dict[str, Any]:
    """Words of accelerate launch."""
    from launcher.check import consent

    if key in consent.REACHING:
        return {"accelerate": f"{consent.REACHING[key]}; a file's word for it needs --trust {key}"}
    if key not in consent.FLAGS | consent.VALUES:
        return {}
    kind = "a flag" if key in consent.FLAGS else "an option"
    heeded = "" if key in consent.HEEDED else "; without effect on the bundled trainer"
    return {"accelerate": f"{kind} of accelerate launch{heeded}"}


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
            items = [item for entry in value for item in (entry if isinstance(entry, tuple) else (entry,))]
            found |= {item for item in items if isinstance(item, str)}
        elif inspect.iscode(value):
            found |= _named(value)
    return found


def _names(argument: str | None) -> dict[str, list[str]]:
    """Format -> names of this option there, where they differ from the argument's."""
    if argument in (None, "network_args"):
        return {}
    found = {
        name: [key for key, target in vocabulary.arguments.items() if target == argument and key != argument]
        for name, vocabulary in vocabularies().items()
    }
    return {name: names for name, names in found.items() if names}


def lines(facts: Mapping[str, Any]) -> list[str]:
    """The same for people, after the key itself."""
    found = []
    if facts["argument"] and facts["argument"] != facts["key"]:
        found.append(f"  is {facts['argument']} for the trainer")
    if facts["argument"]:
        found += _argument_lines(facts)
    if facts.get("network_arg"):
        row = facts["network_arg"]
        found += [f"  in network_args: {row['meaning']}", _line("type", row["type"]), _line("default", row["default"])]
        found.append(_line("read by", ", ".join(row["modules"])))
    form = facts.get("kohya_gui")
    if form:
        if form["meaning"] and form["meaning"] != facts.get("meaning"):
            found.append(_line("Kohya GUI", form["meaning"]))
        if "defaults" not in facts:
            found.append(_line("default", f"{_shown(form['default'])} (Kohya GUI)"))
        ages = [f"{word} {form[name]}" for name, word in (("since", "since"), ("retired", "retired in")) if form[name]]
        if ages:
            found.append(_line("in the GUI", ", ".join(ages)))
        if form["renamed_to"]:
            found.append(_line("today", form["renamed_to"]))
    told = [name.replace("-", "_") for name in FORMATS]
    found += [_line(name, facts[name]) for name in (*told, "accelerate") if isinstance(facts.get(name), str)]
    found += [_line("named", f"{', '.join(names)} ({name})") for name, names in facts["names"].items()]
    return found + [_line("check", text) for text in facts.get("rules", ())]


def _argument_lines(facts: Mapping[str, Any]) -> list[str]:
    shape = facts["schema"]
    kind = " | ".join(map(str, shape["enum"])) if "enum" in shape else str(shape["type"])
    limits = [
        f"{word} {shape[name]}"
        for name, word in (("minimum", "at least"), ("exclusiveMinimum", "more than"), ("maximum", "at most"))
        if name in shape
    ]
    found = [f"  {facts['meaning']}", _line("type", " ".join([kind, *limits]))]
    found += [
        _line("default", f"{_shown(value)} ({FORMATS[name].called or name})")
        for name, value in facts["defaults"].items()
    ]
    found.append(_line("belongs to", facts["group"]))
    if facts["support"]:
        found.append(_line("refused" if facts["unsupported"] else "no effect", facts["support"]))
    marks = {
        "may_change_on_resume": "may change when a run is resumed",
        "only_for": f"for {', '.join(facts['only_for'])} only",
        "secret": "a secret: never printed or written",
        "kit": "kohyakit's own, from the command line only",
    }
    return found + [_line("note", text) for name, text in marks.items() if facts[name]]


def _line(word: str, text: Any) -> str:
    return f"  {word:<10} {text}"


def _shown(value: Any) -> Any:
    return "unset" if value in (None, "", []) and value is not False and value != 0 else value
