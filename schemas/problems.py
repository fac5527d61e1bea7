"""What is wrong with an input, said so that a person can mend it: where, what was got, what it must be, the fix."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar

from schemas.terminal import plain

Severity = Literal["error", "warning", "note"]
Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One finding. `code` is a stable kebab-case name that scripts may rely on; `line` counts from 1."""

    code: str
    must: str
    severity: Severity = "error"
    key: str | None = None
    got: Any = None
    fix: str | None = None
    file: str | None = None
    line: int | None = None
    column: int | None = None  # from 1, where a parser has said it

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """What is wrong and, in a second line, the fix; nothing that a file says can make a line of its own."""
        where = ":".join(str(part) for part in (self.file, self.line) if part is not None)
        words = [f"{where}:" if where else "", f"{self.key}:" if self.key else "", self.must]
        if self.got is not None:
            words.append(f"(got {shown(self.got)})")
        text = plain(" ".join(word for word in words if word))
        return [text, f"    fix: {plain(self.fix)}"] if self.fix else [text]

    def as_json(self) -> dict[str, Any]:
        """The Problem of `validate --json`; `file` stays out, the document names it once, and so does `column`."""
        found = asdict(self)
        order = ("severity", "code", "key", "line", "got", "must", "fix")
        return {name: found[name] for name in order}


class ConfigError(Exception):
    """Every error found in an input, collected; nothing has been written when it is raised."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


def error(code: str, must: str, **facts: Any) -> ConfigError:
    """A ConfigError of one Problem."""
    return ConfigError([Problem(code=code, must=must, **facts)])


def errors(problems: Iterable[Problem]) -> list[Problem]:
    """The findings that stop a run."""
    return [problem for problem in problems if problem.severity == "error"]


def taken(read: tuple[Value, Iterable[Problem]]) -> Value:
    """The value of a parser for a config that has passed the rules, which have said what the parser says."""
    value, problems = read
    assert not errors(problems), str(ConfigError(errors(problems)))
    return value


# Words that mean the same in names of options; a name that differs in one of OPPOSITES means something else.
SAME = {"rate": "lr", "learningrate": "lr", "optimiser": "optimizer", "size": "size", "sizes": "size", "seeds": "seed"}
OPPOSITES = (
    {"min", "max"}, {"up", "down", "mid"}, {"width", "height"}, {"unet", "encoder", "vae"}, {"train", "validation"},
    {"epoch", "step"}, {"dim", "alpha"}, {"save", "load"},
)  # fmt: skip


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` is a misspelling or another wording of; None when nothing is near in both."""
    words, plain, best = _words(name), _plain(name), None
    for other in known:
        meant, letters = _words(other), _plain(other)
        if any((words ^ meant) & pair and words & pair and meant & pair for pair in OPPOSITES):
            continue
        if words == meant:
            far = 0
        elif len(plain) >= 4 and letters.startswith(plain) and len(plain) >= 0.6 * len(letters):
            far = 2
        else:
            limit = (1 if len(plain) < 6 else 2) if len(plain) < 12 else 3
            far = _edits(plain, letters, limit)
            if (
                len(plain) < 3
                or far > limit
                or not _word_by_word(name, other)
                or (min(len(plain), len(letters)) < 3 * far)
            ):
                continue
        if best is None or far < best[0]:
            best = (far, other)
    return best[1] if best else None


def _word_by_word(name: str, other: str) -> bool:
    """Whether each word could be a misspelling of its counterpart."""
    one, two = ([word for word in re.split(r"[\W_]+", text.lower()) if word] for text in (name, other))
    if len(one) != len(two):  # a word more says something else; only the division may be wrong
        return _edits(_plain(name), _plain(other), 1) <= 1
    return all(
        _edits(left, right, 2) <= (1 if min(len(left), len(right)) < 6 else 2)
        for left, right in zip(one, two, strict=True)
    )


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.lower())


def _words(name: str) -> frozenset[str]:
    spaced = re.sub(r"learning[\W_]*rate", "lr", re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower())
    words = (SAME.get(word, word) for word in re.split(r"[\W_]+", spaced) if word)
    return frozenset(word[:-1] if len(word) > 3 and word.endswith("s") else word for word in words)


def _edits(one: str, other: str, limit: int) -> int:
    """Letters to add, drop, change or swap with their neighbour between two words; limit + 1 when there are more."""
    if abs(len(one) - len(other)) > limit:
        return limit + 1
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, left in enumerate(one, start=1):
        earlier, before, row = before, row, [i]
        for j, right in enumerate(other, start=1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (left != right))
            if i > 1 and j > 1 and left == other[j - 2] and one[i - 2] == right:
                cost = min(cost, earlier[j - 2] + 1)
            row.append(cost)
        if min(row) > limit:
            return limit + 1
    return row[-1]


def shown(value: Any, limit: int = 120) -> str:
    """`value` as people read it in a message, cut when long."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
