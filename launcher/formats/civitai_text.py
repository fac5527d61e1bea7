"""The text of a CivitAI JSON as people paste it, mended line by line; every repair is named with its line."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from schemas.files.documents import fix_at, parse_json
from schemas.problems import ConfigError, Problem, error

SMART = str.maketrans(
    {"\u201c": '"', "\u201d": '"', "\u201e": '"', "\u00ab": '"', "\u00bb": '"', "\u2018": "'", "\u2019": "'"}
)
NOTE = re.compile(r"\s*(-->|<--|//|#).*$")
KEY = re.compile(r'"((?:[^"\\]|\\.)*)"\s*:')
SINGLE = re.compile(r"'([^'\"]*)'")
WORDS = {"True": "true", "False": "false", "None": "null"}


@dataclass
class Mended:
    """The parsed object, the line of each key, and what had to be mended."""

    values: dict[str, Any]
    lines: dict[str, int]
    problems: list[Problem] = field(default_factory=list)


def parse(text: str, file: str | None = None) -> Mended:
    """The object in a pasted JSON; ConfigError `not-json` with the line when it is beyond mending."""
    problems: list[Problem] = []
    lines = [_mend_line(line, number, problems) for number, line in enumerate(text.split("\n"), 1)]
    lines = _braces(lines, problems)
    _commas(lines, problems)
    twice: list[str] = []
    try:
        values = parse_json("\n".join(lines), object_pairs_hook=lambda pairs: _object(pairs, twice))
    except json.JSONDecodeError as fault:
        got, fix = lines[fault.lineno - 1].strip(), fix_at("\n".join(lines), fault.pos) or "mend that line"
        raise ConfigError(
            [
                *problems,
                Problem(
                    code="not-json",
                    must=f"is not JSON: {fault.msg}",
                    file=file,
                    line=fault.lineno,
                    got=got,
                    fix=fix,
                ),
            ]
        ) from None
    except ValueError as fault:
        raise error("not-json", str(fault), file=file, fix="correct it") from None
    where = {name: number for number, line in enumerate(lines, 1) for name in KEY.findall(line)}
    for name in twice:
        _say(problems, where.get(name, 1), f"{name} stands twice; the last one counts")
    if not isinstance(values, dict):
        raise ConfigError(
            [Problem(code="not-json", must="must be one JSON object", file=file, line=1, fix="paste the whole object")]
        )
    return Mended(values, where, [replace(problem, file=file) for problem in problems])


def _object(pairs: list[tuple[str, Any]], twice: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            twice.append(name)
        found[name] = value
    return found


def _say(problems: list[Problem], line: int, must: str, got: str | None = None) -> None:
    problems.append(Problem(code="mended-json", severity="warning", must=must, got=got, line=line))


def _mend_line(line: str, number: int, problems: list[Problem]) -> str:
    """One line without curly quotes, notes and words of other languages."""
    straight = line.translate(SMART)
    if straight != line:
        _say(problems, number, "curly quotes were made straight")
    if "'" in straight and '"' not in straight and SINGLE.search(straight):
        straight = SINGLE.sub(r'"\1"', straight)
        _say(problems, number, "single quotes were made double")
    if straight.strip().startswith("```"):
        return ""
    outside, note = _without_note(straight)
    if note:
        _say(problems, number, "the note after the value was left out", note.strip())
    for word, right in WORDS.items():
        mended = re.sub(rf'(:\s*){word}\b(?=[^"]*$)', rf"\1{right}", outside)
        if mended != outside:
            _say(problems, number, f"{word} was read as {right}")
            outside = mended
    return outside


def _without_note(line: str) -> tuple[str, str]:
    """(line, note): a note begins with -->, <--, // or # outside of text."""
    quoted = False
    for place, letter in enumerate(line):
        if letter == '"' and line[place - 1 : place] != "\\":
            quoted = not quoted
        elif not quoted and line.startswith(("-->", "<--", "//", "#"), place):
            return line[:place].rstrip(), line[place:]
    return line, ""


def _braces(lines: list[str], problems: list[Problem]) -> list[str]:
    """Words before the object and after it are left out; missing braces are added."""
    first = next((index for index, line in enumerate(lines) if "{" in line or KEY.search(line)), 0)
    for index in range(first):
        if lines[index].strip():
            _say(problems, index + 1, "words before the object were left out", lines[index].strip())
            lines[index] = ""
    if "{" not in lines[first] or KEY.search(lines[first].partition("{")[0]):
        lines[first] = "{" + lines[first]
        _say(problems, first + 1, "the opening brace was added")
    else:
        lines[first] = lines[first][lines[first].index("{") :]
    depth, quoted = 0, False
    for index, line in enumerate(lines):
        for place, letter in enumerate(line):
            if letter == '"' and line[place - 1 : place] != "\\":
                quoted = not quoted
            elif not quoted and letter in "{}":
                depth += 1 if letter == "{" else -1
                if depth == 0 and letter == "}":
                    rest = [line[place + 1 :].strip(), *(later.strip() for later in lines[index + 1 :])]
                    if any(rest):
                        _say(problems, index + 1, "words after the object were left out", " ".join(rest).strip()[:80])
                    return [*lines[:index], line[: place + 1]]
    last = max((index for index, line in enumerate(lines) if line.strip()), default=0)
    lines[last] = lines[last].rstrip().rstrip(",") + "}" * depth
    _say(problems, last + 1, "the closing brace was added")
    return lines


def _commas(lines: list[str], problems: list[Problem]) -> None:
    """A comma before a closing brace is left out, one missing between two lines is added."""
    filled = [index for index, line in enumerate(lines) if line.strip()]
    for index, following in pairwise(filled):
        here, there = lines[index].rstrip(), lines[following].lstrip()
        if here.endswith(",") and there.startswith("}"):
            lines[index] = here[:-1]
            _say(problems, index + 1, "the last comma was left out")
        elif there.startswith('"') and KEY.match(there) and not here.endswith((",", "{", "[", ":")):
            lines[index] = here + ","
            _say(problems, index + 1, "the missing comma was added")
    for index in filled:
        mended = re.sub(r",\s*(?=})", "", lines[index]) if '"' not in lines[index].rpartition(",")[2] else lines[index]
        if mended != lines[index]:
            lines[index] = mended
            _say(problems, index + 1, "the last comma was left out")
