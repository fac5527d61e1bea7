"""What the readers of scripts share: words that know their line and what is open about them, variables, the bounds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

MOST_LETTERS = 2_000_000  # of all expansions of a script together
MOST_WORDS = 100_000
DEEPEST = 40


class Unreadable(Exception):
    """The script cannot be read any further: where and why."""

    def __init__(self, line: int, why: str) -> None:
        self.line, self.why = line, why
        super().__init__(why)


@dataclass(frozen=True)
class Doubt:
    """Something that only running the script decides. `variable`: a variable that the file does not set."""

    got: str
    why: str
    line: int
    variable: bool = False


@dataclass(frozen=True)
class Word:
    """A word of a command and the line its text stands in. Quotes around any of it keep it from ending the command."""

    text: str
    line: int
    quoted: bool = False
    doubts: tuple[Doubt, ...] = ()


@dataclass(frozen=True)
class Value:
    """What a variable holds: its words, one unless it is an array."""

    words: tuple[Word, ...]
    array: bool = False

    @property
    def doubts(self) -> tuple[Doubt, ...]:
        return merged(word.doubts for word in self.words)


@dataclass(frozen=True)
class Command:
    """One command as the shell would run it; `doubts` are those about whether it runs."""

    words: list[Word]
    doubts: tuple[Doubt, ...] = ()


def merged(doubts: Iterable[tuple[Doubt, ...]]) -> tuple[Doubt, ...]:
    """Each doubt once, in order."""
    return tuple(dict.fromkeys(doubt for some in doubts for doubt in some))


def doubtful(value: Value | None, doubt: Doubt) -> Value:
    """`value` with one more doubt."""
    words = value.words if value and value.words else (Word("", doubt.line),)
    return Value(
        tuple(replace(word, doubts=merged([word.doubts, (doubt,)])) for word in words), bool(value and value.array)
    )


@dataclass
class State:
    """The variables of a script while it is read, and the commands found."""

    values: dict[str, Value | None] = field(default_factory=dict)
    commands: list[Command] = field(default_factory=list)
    always: list[Doubt] = field(default_factory=list)  # about everything that follows
    inside: list[Doubt] = field(default_factory=list)  # about everything in the branch at hand
    letters: int = 0
    count: int = 0
    ended: bool = False
    journals: list[dict[str, Value | None]] = field(default_factory=list)

    def spend(self, letters: int, line: int, words: int = 1) -> None:
        """Counts what expansions yield; too much is no script of a person."""
        self.letters += letters
        self.count += words
        if self.letters > MOST_LETTERS or self.count > MOST_WORDS:
            raise Unreadable(line, "the variables of the script expand to too much text")

    def put(self, name: str, value: Value | None) -> None:
        """Sets a variable, or with None unsets it."""
        if self.journals:
            self.journals[-1].setdefault(name, self.values.get(name))
        self.values[name] = value

    def run(self, words: list[Word]) -> None:
        """Notes a command."""
        if words:
            self.commands.append(Command(words, (*self.always, *self.inside)))

    @contextmanager
    def aside(self, doubt: Doubt | None) -> Iterator[dict[str, Value | None]]:
        """A branch: what it sets is undone at its end and lies in the yielded dict; nothing if it leaves the script."""
        written: dict[str, Value | None] = {}
        self.journals.append({})
        ended = self.ended
        if doubt:
            self.inside.append(doubt)
        yield written
        if doubt:
            self.inside.pop()
        before = self.journals.pop()
        for name, value in before.items():
            if not self.ended:
                written[name] = self.values.get(name)
            self.values[name] = value
        self.ended = ended

    def perhaps(self, branches: list[dict[str, Value | None]], doubt: Doubt) -> None:
        """After branches of which any or none may run: what they set is open."""
        for branch in branches:
            for name, value in branch.items():
                if value != self.values.get(name):
                    self.put(name, doubtful(value or self.values.get(name), doubt))
