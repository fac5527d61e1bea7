"""`name=value` lists: what one value may be, and how network_args (text) and optimizer_args (literals) are read."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from schemas.problems import Problem

Kind = Literal["whole", "number", "flag", "numbers", "wholes", "text", "any"]
FLAGS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
WORDS = {
    "whole": "a whole number",
    "number": "a number",
    "flag": "True or False",
    "numbers": "numbers, separated by commas",
    "wholes": "whole numbers, separated by commas",
    "text": "text",
    "any": "anything",
}

MOST_DIGITS = 30  # of a whole number; Python refuses to read thousands, and none here has as many


def whole_of(text: str) -> int | None:
    """The whole number that a text is; None for any other text, digits without end included."""
    return int(text) if len(text) <= MOST_DIGITS and text.removeprefix("-").isdecimal() else None


COMMA = re.compile(r"([+-]?\d*),(\d+(?:[eE][+-]?\d+)?)[,;]*")


def with_point(text: str) -> str | None:
    """The number that a text with a decimal comma means; None for any other text."""
    match = COMMA.fullmatch(text.strip())
    return f"{match[1]}.{match[2]}" if match else None


@dataclass(frozen=True)
class Argument:
    """Kind and bounds of a value; `count` is the length of a list (0: any), `optional` takes None too.

    Numbers are finite unless `endless` allows infinity.
    """

    kind: Kind
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    count: int = 0
    choices: tuple[Any, ...] = ()
    optional: bool = False
    endless: bool = False

    @property
    def must(self) -> str:
        """What a value must be, in words."""
        if self.choices:
            return f"must be {'one of ' if len(self.choices) > 1 else ''}{', '.join(map(str, self.choices))}"
        bounds = [
            f"{said} {bound:g}"
            for said, bound in (("at least", self.ge), ("above", self.gt), ("at most", self.le), ("below", self.lt))
            if bound is not None
        ]
        many = self.kind in ("numbers", "wholes")
        words = WORDS[self.kind]
        if many and self.count:
            words = f"{self.count} {words}"
        if bounds:
            words += f", {'each ' if many else ''}{' and '.join(bounds)}"
        return f"must be {words}{', or None' if self.optional else ''}"

    def fits(self, value: Any) -> bool:
        """Whether a Python value is of this kind and within the bounds."""
        if value is None:
            return self.optional
        if self.choices:
            return any(value == choice and type(value) is type(choice) for choice in self.choices)
        if self.kind == "flag":
            return isinstance(value, bool) or (isinstance(value, int) and value in (0, 1))
        if self.kind == "text":
            return isinstance(value, str)
        if self.kind in ("numbers", "wholes"):
            listed = isinstance(value, (tuple, list)) and (not self.count or len(value) == self.count)
            return listed and all(self._within(item, whole=self.kind == "wholes") for item in value)
        return self.kind == "any" or self._within(value, whole=self.kind == "whole")

    def _within(self, value: Any, *, whole: bool) -> bool:
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
            return False
        try:
            number = float(value)
        except OverflowError:
            return False
        if math.isnan(number) or (math.isinf(number) and not self.endless):
            return False
        return (
            (self.ge is None or number >= self.ge)
            and (self.gt is None or number > self.gt)
            and (self.le is None or number <= self.le)
            and (self.lt is None or number < self.lt)
        )

    def read(self, text: str) -> Any:
        """The value that a text means; ValueError with what it must be."""
        try:
            value = self._read(text)
        except ValueError:
            raise ValueError(self.must) from None
        if not self.fits(value):
            raise ValueError(self.must)
        return value

    def _read(self, text: str) -> Any:
        if self.kind == "flag":
            if text.lower() not in FLAGS:
                raise ValueError(text)
            return FLAGS[text.lower()]
        if self.kind == "wholes":
            return tuple(int(item) for item in text.split(","))
        if self.kind == "numbers":
            return tuple(float(item) for item in text.split(","))
        if self.kind == "whole":
            return int(text)
        return float(text) if self.kind == "number" else text


LONGEST = 2000  # characters of one value: far above any real one, far below what could exhaust the parser
DEEPEST = 20  # brackets inside brackets
LITERALS = {"true": True, "false": False, "none": None, "null": None}
BARE = re.compile(r"[A-Za-z_][\w.:/\\-]*\Z")


def name_values(items: Iterable[str], key: str) -> tuple[dict[str, str], list[Problem]]:
    """name -> text of each `name=value`, split at the first `=` (section 7.1). `key` is the option they stand in."""
    found: dict[str, str] = {}
    problems: list[Problem] = []
    for item in items:
        name, sign, value = item.partition("=")
        if not sign or not name.strip():
            problems.append(_not_a_pair(key, item))
        else:
            found[name.strip()] = value.strip()
    return found, problems


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
    if text.lower() in LITERALS:
        return LITERALS[text.lower()], f"{text} is read as {LITERALS[text.lower()]}"
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


def setting(key: str, pairs: Mapping[str, str]) -> str:
    """The --set of a list of name=value; in quotes where there are several."""
    words = " ".join(f"{name}={text.replace(' ', '')}" for name, text in pairs.items())
    return f'--set {key}="{words}"' if " " in words or '"' in words else f"--set {key}={words}"
