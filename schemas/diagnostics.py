"""Findings as people read them: a file named once, under it each finding with the line that it is about.

    old.toml
      error[bad-value]: network_dim: must be a whole number at least 1
        3 | network_dim = "eight"
          |               ^^^^^^^
        fix: --set network_dim= for the default

Errors come first. A line of a file is shown without the secrets in it, on one line, cut where it is long.
"""

from __future__ import annotations

import math
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from schemas.blanking import blanked, source_without_secrets
from schemas.files.textfile import CONFIG, read_text
from schemas.problems import ConfigError, Problem, Severity, shown
from schemas.terminal import plain, style

ORDER: tuple[Severity, ...] = ("error", "warning", "note")
COLOURS = {"error": "red", "warning": "yellow", "note": "cyan"}
ALIKE_FROM = 4  # findings of one kind that are said as one
WIDTH = 100  # columns of a source line that are shown
BEFORE = 40  # of them before the value, where a line is longer
VALUE = r""""(?:[^"\\]|\\.)*"|'[^']*'|“[^”]*”|\[[^\]]*\]?|[^\s,;}\]]+"""
# What is about a key itself and not about its value.
ABOUT_KEYS = ("unknown-option", "unknown-key", "unknown-launch-word")

Source = Callable[[str], str]


def read_source(file: str) -> str:
    """The text of a config file."""
    return read_text(file, limit=CONFIG, what="config file")


def relative(path: str) -> str:
    """`path` from the working directory where that is shorter."""
    if not os.path.isabs(path):
        return path
    try:
        near = os.path.relpath(path)
    except (OSError, ValueError):  # the working directory is gone; another drive
        return path
    return near if len(near) < len(path) else path


def report(
    problems: Iterable[Problem], *, source: Source = read_source, named: str | None = None, who: str = ""
) -> Iterator[str]:
    """The findings in lines for `say`, errors first.

    named: the file that stands above already. who: which of several processes is speaking, put before each finding.
    """
    groups: dict[str | None, list[Problem]] = {}
    for problem in sorted(problems, key=lambda problem: (ORDER.index(problem.severity), problem.line or math.inf)):
        groups.setdefault(problem.file, []).append(problem)
    for file, found in groups.items():
        if file is None or (len(found) == 1 and found[0].line is None and file != named):
            for problem in found:
                yield from _finding(problem, None, "", who, file)
            continue
        if file != named:
            yield style(relative(file), bold=True)
        lines = _lines(file, source) if any(problem.line for problem in found) else None
        for problem in found:
            yield from _finding(problem, lines, "  ", who)


def counts(problems: Iterable[Problem], *, hidden: str = "") -> str:
    """How many findings of each kind there are; `hidden` says what shows the notes, where they are left out."""
    number = Counter(problem.severity for problem in problems)
    said = [f"{number[kind]} {kind}{'' if number[kind] == 1 else 's'}" for kind in ORDER if number[kind]]
    return ", ".join(said) + (f" ({hidden})" if hidden and number["note"] else "")


def together(problems: Iterable[Problem]) -> list[Problem]:
    """Findings that differ only in numbers within their key, message or line as one, with their count."""
    groups: dict[tuple[str, ...], list[Problem]] = {}
    for problem in problems:
        facts = (problem.severity, problem.code, problem.file, problem.key, problem.must)
        groups.setdefault(tuple(re.sub(r"\d+", "#", str(fact)) for fact in facts), []).append(problem)
    return [one for group in groups.values() for one in (group if len(group) < ALIKE_FROM else [_first(group)])]


def _first(group: list[Problem]) -> Problem:
    return replace(group[0], must=f"{group[0].must}, and {len(group) - 1} more like it (--json has all)")


def without_secrets(problem: Problem) -> Problem:
    """The same finding, fit to be shown."""
    from schemas.config import table

    option = table().get((problem.key or "").removeprefix("--set "))
    got = source_without_secrets(problem.got) if isinstance(problem.got, str) else blanked(problem.got)
    if option is not None and option.secret and got is not None:
        got = "***"
    return replace(problem, got=got, must=blanked(problem.must), fix=blanked(problem.fix))


def _finding(
    problem: Problem, lines: list[str] | None, indent: str, who: str, file: str | None = None
) -> Iterator[str]:
    problem, excerpt = without_secrets(problem), _excerpt(problem, lines)
    words = [f"{relative(file)}:" if file else "", f"{problem.key}:" if problem.key else "", problem.must]
    if problem.line is not None and not excerpt:
        words.insert(0, f"line {problem.line}:")
    if problem.got is not None and not (len(excerpt) > 1 or any(str(problem.got) == text for _, text in excerpt)):
        words.append(f"(got {shown(problem.got)})")
    head = style(f"{problem.severity}[{problem.code}]", colour=COLOURS[problem.severity], bold=True)
    yield f"{indent}{head}: {who}{plain(' '.join(word for word in words if word))}"
    for gutter, text in excerpt:
        marked = style(text, colour=COLOURS[problem.severity]) if not gutter.strip() else text
        yield f"{indent}  {style(f'{gutter} |', colour='cyan')} {marked}".rstrip()
    if problem.fix:
        yield f"{indent}  fix: {plain(problem.fix)}"


def _lines(file: str, source: Source) -> list[str] | None:
    """The lines of a text file without secrets; None where it cannot be shown."""
    try:
        text = source(file)
    except (ConfigError, OSError, ValueError):
        return None
    return source_without_secrets(re.sub(r"\r\n?", "\n", text)).split("\n")


def _excerpt(problem: Problem, lines: list[str] | None) -> list[tuple[str, str]]:
    """[(number, source line), (blanks, caret line)]; empty without a line, without carets where no place is known."""
    number = problem.line
    if number is None or not lines or not 1 <= number <= len(lines) or not lines[number - 1].strip():
        return []
    number, span = _place(problem, lines, number)
    line = lines[number - 1]
    gutter = str(number)
    if span is None:
        text = plain(line.expandtabs(4).strip())
        return [(gutter, text if len(text) <= WIDTH else text[: WIDTH - 1] + "…")]
    start, end = span
    before, value, after = (plain(part.expandtabs(4)) for part in (line[:start], line[start:end], line[end:]))
    before = before.lstrip()
    if len(before) + len(value) + len(after) > WIDTH:
        before = before if len(before) <= BEFORE else "…" + before[-BEFORE:]
        value = value if len(value) <= WIDTH - BEFORE else value[: WIDTH - BEFORE - 1] + "…"
        room = max(WIDTH - len(before) - len(value), 8)
        after = after if len(after) <= room else after[: room - 1] + "…"
    carets = " " * _columns(before) + "^" * max(1, _columns(value))
    return [(gutter, f"{before}{value}{after}".rstrip()), (" " * len(gutter), carets)]


def _place(problem: Problem, lines: list[str], number: int) -> tuple[int, tuple[int, int] | None]:
    """Where the value stands: its line, and (start, end) in it; the key where the finding is about the key."""
    line = lines[number - 1]
    if problem.column is not None:
        start = min(problem.column - 1, len(line.rstrip()))
        return number, None if "***" in line[:start] else (start, start + 1)
    name = (problem.key or "").rpartition(".")[2]
    got = "" if problem.got is None else str(problem.got)
    if not name:
        return number, None
    finds = list(re.finditer(rf"""(?<![\w-])(?:--)?["'“]?{re.escape(name)}["'”]?(?![\w-])""", line))
    places = [(find, re.compile(rf"\s*[:=]?\s*(?P<value>{VALUE})").match(line, find.end())) for find in finds]
    if problem.code in ABOUT_KEYS:
        return number, finds[0].span() if finds else None
    valued = [(find, match) for find, match in places if match and match["value"] not in ("\\", "`", "^")]
    best = next((match for _, match in valued if got and got in match["value"]), valued[0][1] if valued else None)
    if best is not None:
        start, end = best.span("value")
        inner = line.find(got, start, end) if got else -1
        if inner >= 0 and len(got) < end - start - 2:
            return number, (inner, inner + len(got))
        if not (got and inner < 0 and best["value"].startswith("[") and "]" not in best["value"]):
            return number, (start, end)
        for later in range(number, min(number + 40, len(lines))):  # an entry of a list over several lines
            if (inner := lines[later].find(got)) >= 0:
                return later + 1, (inner, inner + len(got))
    if got and (inner := line.find(got)) >= 0:
        return number, (inner, inner + len(got))
    return number, finds[0].span() if finds else None


def _columns(text: str) -> int:
    """Columns of a terminal that a text takes: East Asian letters two, marks that join none."""
    return sum(
        0 if unicodedata.combining(one) or unicodedata.category(one) in ("Mn", "Me", "Cf")
        else 2 if unicodedata.east_asian_width(one) in "WF" else 1
        for one in text
    )  # fmt: skip
