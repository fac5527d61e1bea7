"""The keys of Kohya's LoRA form: type, form default, what each becomes, and how its value is read. Data: keys.json."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from launcher.formats.registry import Vocabulary
from schemas.argument import with_point
from schemas.config import table as options
from schemas.problems import Severity, nearest
from schemas.terminal import shell_word

Role = Literal["argument", "network", "launch", "box", "form", "parameters", "tab"]
LARGEST = 2**63 - 1  # a TOML integer
LONGEST_TEXT, LONG_TEXTS = 20_000, ("sample_prompts", "training_comment", "metadata_thumbnail")
WHOLE = re.compile(r"[+-]?\d+", re.ASCII)
SECRET_WORDS = re.compile(r"hf_[A-Za-z0-9]{8,}|sk-[\w-]{16,}|gh[opsu]_\w{16,}")
SECRET_FLAGS = re.compile(r"(--(?:wandb_api_key|huggingface_token)(?:\s*=\s*|\s+))\S+")
STRICT = ("LoRA_type", "noise_offset_type", "xformers")  # a word outside their choices stops Kohya or is lost
SECRET_WHOLE = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Key:
    """One key. `only` and `never`: model families it counts for; `bad_text`: what Kohya reads from other text."""

    name: str
    type: Literal["bool", "int", "float", "str", "path"]
    role: Role
    default: Any = None
    argument: str | None = None
    choices: tuple[Any, ...] = ()
    open: bool = False
    range: tuple[float | None, float | None] = (None, None)
    only: tuple[str, ...] = ()
    never: tuple[str, ...] = ()
    bad_text: float | None = None
    secret: bool = False
    renamed_to: str | None = None
    retired: str | None = None
    tab: str | None = None
    since: str | None = None
    rule: str = ""

    @property
    def current(self) -> bool:
        """Whether today's LoRA form has it."""
        return self.role != "tab" and self.retired is None

    @property
    def numeric(self) -> bool:
        return self.type in ("int", "float")

    def counts_for(self, family: str) -> bool:
        """Whether the key has a meaning for that kind of model ("sd" stands for SD1.5 and SD2)."""
        return (not self.only or family in self.only) and family not in self.never

    def meaning(self) -> str:
        """One or two sentences for people."""
        option = options().get(self.argument or "")
        words = [option.doc if option and self.role == "argument" and not self.only else "", self.rule]
        if self.only and "sdxl" not in self.only:
            words.append(f"For {', '.join(self.only)} models.")
        if self.retired:
            words.append(f"Retired in {self.retired}.")
        if self.tab:
            words.append(f"A key of another tab ({self.tab}); the LoRA tab does not read it.")
        return " ".join(word for word in words if word) or f"sd-scripts' {self.argument or self.name}."


@functools.cache
def keys() -> dict[str, Key]:
    """Every key that any version of the form has written, by name."""
    rows = json.loads(Path(__file__).with_name("keys.json").read_text(encoding="utf-8"))
    lists = ("choices", "range", "only", "never")
    found = {}
    for name, row in rows.items():
        facts: dict[str, Any] = {fact: tuple(value) if fact in lists else value for fact, value in row.items()}
        found[name] = Key(name, **facts)
    return found


@functools.cache
def _defaults() -> dict[str, Any]:
    return {name: key.default for name, key in keys().items() if key.current and name != "save_as_bool"}


def defaults() -> dict[str, Any]:
    """Today's form as it stands before anything is loaded."""
    return dict(_defaults())


def unset(value: Any) -> bool:
    """Whether the form leaves such a value out of what it sends: "", false, null and 0."""
    return value is None or (isinstance(value, (str, bool, int, float)) and not value)


@dataclass(frozen=True)
class Reading:
    """A value of the file as Kohya takes it. `said` tells what was unusual, `severity` how much it matters."""

    value: Any
    said: str | None = None
    severity: Severity = "note"


def read_key(key: Key, raw: Any, *, words: bool = False) -> Reading:
    """`raw` as Kohya reads it; severity "error" where nobody could. `words`: it comes from a command line."""
    if isinstance(raw, (Mapping, list)):
        return Reading(key.default, must(key), "error")
    if key.type == "bool":
        return _read_flag(key, raw, words)
    if key.numeric:
        return _read_number(key, raw)
    return _read_text(key, raw)


def _read_flag(key: Key, raw: Any, words: bool) -> Reading:
    if isinstance(raw, bool):
        return Reading(raw)
    if isinstance(raw, (int, float)) and raw in (0, 1):
        return Reading(bool(raw), "number read as true or false")
    text = str(raw).strip().lower()
    if text == "" or (words and text in ("false", "0", "no")):
        return Reading(False, None if words else "empty text read as false")
    if text in ("true", "1") and isinstance(raw, str):
        return Reading(True, None if words else "text read as true")
    return Reading(key.default, must(key), "error")


def _read_number(key: Key, raw: Any) -> Reading:
    if isinstance(raw, bool):
        return Reading(key.default, must(key), "error") if raw else Reading(0, "false read as unset")
    if isinstance(raw, str):
        return _read_digits(key, raw.strip())
    if abs(raw) > LARGEST or not math.isfinite(raw):
        return Reading(key.default, must(key), "error")
    if key.type == "float" or raw == int(raw):
        return Reading(int(raw) if key.type == "int" and key.bad_text is not None else raw)
    if key.bad_text is None:
        return Reading(key.default, must(key), "error")
    return Reading(int(raw), f"Kohya cuts it to {int(raw)}", "warning")


def _read_digits(key: Key, text: str) -> Reading:
    if text == "":
        return Reading("" if key.bad_text is None else _typed(key, key.bad_text), "empty text read as unset")
    try:
        number = float(text)
    except ValueError:
        return Reading(key.default, must(key), "error")
    if not math.isfinite(number) or abs(number) > LARGEST:
        return Reading(key.default, must(key), "error")
    if key.type == "float" and (key.bad_text is not None or not WHOLE.fullmatch(text)):
        return Reading(number, "text read as a number")
    if WHOLE.fullmatch(text):
        return Reading(int(text), "text read as a number")
    if number != int(number):
        return Reading(key.default, must(key), "error")
    if key.bad_text is None:
        return Reading(int(number), "text read as a number")
    instead = _typed(key, key.bad_text)
    return Reading(instead, f"Kohya reads a decimal written as text as {instead}", "warning")


def _typed(key: Key, number: float) -> float | int:
    return float(number) if key.type == "float" else int(number)


def _read_text(key: Key, raw: Any) -> Reading:
    if isinstance(raw, bool) and (raw or key.name == "LoRA_type"):
        return Reading(key.default, must(key), "error")
    if isinstance(raw, bool):
        return Reading("", "false read as unset")
    text = str(raw)
    if len(text) > LONGEST_TEXT and key.name not in LONG_TEXTS:
        return Reading(key.default, f"{must(key)} of a sensible length (it has {len(text)} characters)", "error")
    if "\0" in text or text != text.encode("utf-8", "replace").decode():
        return Reading(key.default, f"{must(key)} that can be written", "error")
    if key.choices and (key.name in STRICT or key.role == "launch") and text not in _allowed(key):
        return Reading(key.default, must(key), "error")
    return Reading(text, None if isinstance(raw, str) else "number read as text")


def _allowed(key: Key) -> tuple[Any, ...]:
    return key.choices if key.name == "LoRA_type" else (*key.choices, "")


def must(key: Key) -> str:
    """What a value of this key must be, in words."""
    if key.choices and not key.open:
        return "must be one of " + ", ".join(str(choice) for choice in key.choices if choice != "")
    words = {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "text", "path": "a path"}
    return f"must be {words[key.type]}"


def mend(key: Key, raw: Any) -> str:
    """What to write for a value that cannot be read: what was meant, or what a form starts with."""
    guess = nearest(raw, [str(choice) for choice in key.choices]) if isinstance(raw, str) else None
    if guess:
        return f"did you mean {guess}?"
    point = with_point(raw) if isinstance(raw, str) and key.type in ("int", "float") else None
    if point is not None and read_key(key, point).severity != "error":
        return f"write a point: --set {key.name}={point}"
    word = "" if key.default is None else str(key.default).lower() if isinstance(key.default, bool) else key.default
    return f"--set {key.name}={shell_word(str(word))}, what an untouched form has"


def outside(key: Key, value: Any) -> str | None:
    """What the form's own slider would say of a number, if anything."""
    low, high = key.range
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    if (low is None or value >= low) and (high is None or value <= high):
        return None
    return f"is outside the form's range {'' if low is None else low} to {'' if high is None else high}"


def clean(text: str) -> str:
    """`text` without tokens, and without what no console can print."""
    return SECRET_WORDS.sub("***", SECRET_FLAGS.sub(r"\1***", text.encode("utf-8", "replace").decode()))


def hidden(name: str, value: Any) -> Any:
    """`value` of the key or argument `name`, fit to be shown: secrets blanked."""
    key, option = keys().get(name), options().get(name)
    if value and ((key and key.secret) or (option and option.secret)):
        return "***"
    if isinstance(value, str):
        return "***" if SECRET_WHOLE.fullmatch(value.strip()) else clean(value)
    if isinstance(value, (list, tuple)):
        return type(value)(hidden("", item) for item in value)
    if isinstance(value, Mapping):
        return {inner: hidden(str(inner), item) for inner, item in value.items()}
    return value


def vocabulary() -> Vocabulary:
    """What `explain` knows of the form's keys."""
    rows = keys().values()
    # of several keys of one argument the one of its name counts, else the first
    current = sorted((row for row in rows if row.current and row.argument), key=lambda row: row.name != row.argument)
    meanings = {
        row.name: {
            "meaning": row.meaning(), "type": row.type, "default": row.default, "choices": list(row.choices),
            "since": row.since, "retired": row.retired, "renamed_to": row.renamed_to,
        }
        for row in rows
    }  # fmt: skip
    arguments = {row.name: row.argument for row in rows if row.argument}
    return Vocabulary(arguments, meanings, defaults={str(row.argument): row.default for row in reversed(current)})
