"""Everything known about one option, drawn from the tables that the program itself runs on."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any

from schemas.config import Option, table

REFERENCES = re.compile(r" \((?:traps|reference|section)[^)]*\)")  # the project's notes, which readers do not have
SITE_WORDS = {  # CivitAI's keys that are no argument by another name
    "numRepeats": "repeats of each picture; the number in the folder's name",
    "targetSteps": "steps as the site computes them: pictures x repeats x epochs / batch size; not a setting",
    "steps": "ai-toolkit form: length of the run; becomes max_train_steps",
    "trainTextEncoder": "ai-toolkit form: whether the text encoders learn; false becomes network_train_unet_only",
    "loraType": "lora or lycoris (LoKr); becomes network_module and its arguments",
}
FORMATS = {"sd-scripts": "sd-scripts", "kohya-gui": "Kohya GUI"}


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
    from launcher.formats import civitai, easy_training
    from launcher.formats.kohya_gui import keys
    from schemas.network_args import NETWORK_ARGS

    groups: tuple[Iterable[str], ...] = (
        table(), keys(), civitai.ARGUMENTS, civitai.AI_TOOLKIT, civitai.NOT_ARGUMENTS, civitai.ORDER, NETWORK_ARGS,
        easy_training.OLD, SITE_WORDS, consent.FLAGS, consent.VALUES, consent.REACHING,
    )  # fmt: skip
    return list(dict.fromkeys(name for group in groups for name in group))


def _lookup(key: str) -> dict[str, Any] | None:
    from launcher.formats.kohya_gui import keys
    from schemas.network_args import NETWORK_ARGS

    form = keys().get(key)
    argument = _argument_of(key)
    facts: dict[str, Any] = {"key": key, "argument": argument}
    if argument is not None:
        facts |= _argument(table()[argument])
    if key in NETWORK_ARGS:
        facts["network_arg"] = _network_arg(key)
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
    facts |= _civitai(key) | _launch_word(key)
    if argument is None and len(facts) == 2:
        return None
    facts["names"] = _names(argument)
    return facts


def _argument_of(key: str) -> str | None:
    from launcher.formats import civitai, easy_training
    from launcher.formats.kohya_gui import keys

    form = keys().get(key)
    site = civitai.AI_TOOLKIT.get(key, key)
    candidates = (key, civitai.ARGUMENTS.get(site), form.argument if form else None, easy_training.OLD.get(key))
    found = next((name for name in candidates if name in table()), None)
    return None if found == "network_args" != key else found  # one of its keys is not the list itself


def _argument(option: Option) -> dict[str, Any]:
    from schemas.derive import property_schema
    from schemas.rules import UNSUPPORTED, WITHOUT_EFFECT

    name = option.name
    return {
        "meaning": option.doc,
        "group": (option.group.__doc__ or "").rstrip("."),
        "schema": property_schema(option),
        "default": _plain(option.default),
        "defaults": _defaults(name),
        "may_change_on_resume": option.resumable,
        "sdxl_only": bool(option.marks.get("sdxl")),
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
    from launcher.formats.kohya_gui import keys

    found = {} if table()[argument].kit else {"sd-scripts": _plain(table()[argument].default)}
    form = [key for key in keys().values() if key.argument == argument and key.current]
    form.sort(key=lambda key: key.name != argument)
    if form:
        found["kohya-gui"] = form[0].default
    return found


def _network_arg(key: str) -> dict[str, Any]:
    from schemas.network_args import NETWORK_ARGS, modules_with

    row = NETWORK_ARGS[key]
    return {"meaning": row.meaning, "type": row.type, "default": row.default, "modules": modules_with(key)}


def _civitai(key: str) -> dict[str, Any]:
    """What the site's form does with the key."""
    from launcher.formats import civitai

    if key in civitai.AI_TOOLKIT:
        return {"civitai": f"ai-toolkit form's name of {civitai.AI_TOOLKIT[key]}"}
    if key in civitai.NOT_ARGUMENTS:
        return {"civitai": civitai.NOT_ARGUMENTS[key]}
    if key in SITE_WORDS:
        return {"civitai": SITE_WORDS[key]}
    return {"civitai": f"the site's name of {civitai.ARGUMENTS[key]}"} if key in civitai.ARGUMENTS else {}


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
    from launcher.formats import civitai, easy_training
    from launcher.formats.kohya_gui import keys

    if argument in (None, "network_args"):
        return {}
    site = [name for name, target in civitai.ARGUMENTS.items() if target == argument]
    toolkit = [name for name, target in civitai.AI_TOOLKIT.items() if target in site]
    found: Mapping[str, list[str]] = {
        "kohya-gui": [name for name, row in keys().items() if row.argument == argument and name != argument],
        "civitai": [*site, *toolkit],
        "easy-training": [name for name, target in easy_training.OLD.items() if target == argument],
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
    found += [_line(name, facts[name]) for name in ("civitai", "accelerate") if facts.get(name)]
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
    found += [_line("default", f"{_shown(value)} ({FORMATS[name]})") for name, value in facts["defaults"].items()]
    found.append(_line("belongs to", facts["group"]))
    if facts["support"]:
        found.append(_line("refused" if facts["unsupported"] else "no effect", facts["support"]))
    marks = {
        "may_change_on_resume": "may change when a run is resumed",
        "sdxl_only": "for SDXL only",
        "secret": "a secret: never printed or written",
        "kit": "kohyakit's own, from the command line only",
    }
    return found + [_line("note", text) for name, text in marks.items() if facts[name]]


def _line(word: str, text: Any) -> str:
    return f"  {word:<10} {text}"


def _shown(value: Any) -> Any:
    return "unset" if value in (None, "", []) and value is not False and value != 0 else value
