"""What one value of a `name=value` list may be: kind and bounds, and the sentence that says so."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

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
