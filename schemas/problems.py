"""What is wrong with an input, said so that a person can mend it: where, what was got, what it must be, the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from schemas.terminal import plain

Severity = Literal["error", "warning", "note"]


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
        """The Problem of `validate --json`; `file` stays out, the document names it once."""
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


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like `name`, or None when nothing is close."""
    folded = {other.lower(): other for other in known}
    hits = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.6)
    return folded[hits[0]] if hits else None


def shown(value: Any, limit: int = 120) -> str:
    """`value` as people read it in a message, cut when long."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
