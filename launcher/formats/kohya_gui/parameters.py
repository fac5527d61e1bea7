"""Free words of the form: `additional_parameters` for the trainer, `extra_accelerate_launch_args` for the launcher."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from launcher.formats.kohya_gui.table import hidden
from schemas.config import BadValue, Option, read_value
from schemas.config import table as options
from schemas.problems import Severity, nearest

NUMBER = re.compile(r"-\d+(\.\d*)?|-\.\d+")
FAIR_PAIRS = re.compile(r"(\S+=\S+( \S+=\S+)*)?")


@dataclass
class Words:
    """Parsed words: arguments by name, those of other model families as text, findings as (code, must, severity)."""

    arguments: dict[str, Any] = field(default_factory=dict)
    foreign: dict[str, list[str]] = field(default_factory=dict)
    findings: list[tuple[str, str, Severity]] = field(default_factory=list)


def trainer_words(words: Sequence[str], *, foreign: bool = False) -> Words:
    """The trainer's command line read as its parser would: exact names or unique beginnings, `--x y` or `--x=y`.

    `foreign`: unknown names belong to a trainer of another family and are kept instead of refused.
    """
    found = Words()
    at = 0
    while at < len(words):
        word = words[at]
        at += 1
        if not word.startswith("--"):
            said = f"{hidden('', word)}: no option takes this word; a value cannot hold blanks here"
            found.findings.append(("stray-word", said, "error"))
            continue
        name, equals, inline = word[2:].partition("=")
        values = [inline] if equals else []
        while not equals and at < len(words) and not is_flag(words[at]):
            option = _option(name)
            if option is not None and not _takes_more(option, len(values)):
                break
            values.append(words[at])
            at += 1
        _set(found, name, values, bool(equals), foreign)
    quoted = [word for word in words if shlex.quote(word) != word]
    if quoted:
        said = f"Kohya hands {hidden('', quoted[0])} to its trainer inside single quotes, which breaks it; read without"
        found.findings.append(("quoted-word", said, "warning"))
    return found


def is_flag(word: str) -> bool:
    """Whether an argument parser takes the word for an option (a negative number is none)."""
    return word.startswith("-") and len(word) > 1 and not NUMBER.fullmatch(word)


def _takes_more(option: Option, given: int) -> bool:
    return option.many or (option.kind is not bool and given == 0)


def _option(name: str) -> Option | None:
    known = {full: option for full, option in options().items() if not option.kit}
    if name in known:
        return known[name]
    starts = [full for full in known if full.startswith(name)] if name else []
    return known[starts[0]] if len(starts) == 1 else None


def _set(found: Words, name: str, values: list[str], equals: bool, foreign: bool) -> None:
    option = _option(name)
    if option is None:
        if foreign:
            found.foreign[name] = values
            return
        guess = nearest(name, options())
        said = f"--{name} is not an option of the trainer" + (f"; did you mean --{guess}?" if guess else "")
        found.findings.append(("unknown-option", said, "error"))
        return
    if option.name == "config_file":
        said = "--config_file: Kohya's trainer would read that file only and nothing of this form; read without it"
        found.findings.append(("other-config-file", said, "warning"))
        return
    if option.kind is bool and not option.many:
        if equals:
            found.findings.append(("bad-value", f"--{option.name} takes no value", "error"))
        found.arguments[option.name] = True
        return
    if not values and not option.many:
        found.findings.append(("bad-value", f"--{option.name} needs a value", "error"))
        return
    try:
        found.arguments[option.name], _ = read_value(option, values if option.many else values[0])
    except BadValue as bad:
        shown = hidden(option.name, " ".join(values))
        found.findings.append(("bad-value", f"--{option.name} {shown}: {bad}", "error"))


def launcher_words(words: Sequence[str]) -> dict[str, Any]:
    """Options of `accelerate launch` by name: text, or True for a bare flag."""
    found: dict[str, Any] = {}
    name = ""
    for word in words:
        if is_flag(word):
            name, equals, value = word.lstrip("-").partition("=")
            found[name] = value if equals else True
        elif name:
            found[name] = word
    return found


def pairs_problem(text: str) -> str | None:
    """What Kohya has against the text of optimizer_args or lr_scheduler_args, None when it takes it."""
    if FAIR_PAIRS.fullmatch(text):
        return None
    return "must be name=value words with exactly one blank between two; Kohya refuses to start"
