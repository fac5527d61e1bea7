"""TOML as people share it: read strictly, else as the `toml` package does, else mended line by line, a warning each.

Facts: reference notes on malformed TOML (section 10 of the format notes).
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field
from typing import Any

from schemas.files.documents import check_depth, parse_toml
from schemas.problems import ConfigError, Problem, error

KEY = re.compile(r"""\s*(?P<key>[A-Za-z0-9_.\-]+|"[^"\n]*"|'[^'\n]*')\s*=\s*(?P<value>.*)$""")
HEADER = re.compile(r"\s*(?P<open>\[\[?)\s*(?P<name>[^\[\]\n]+)\]\]?\s*(#.*)?$")
PLAIN = r"""("(?:[^"\\]|\\.)*"|'[^']*'|[-+]?[0-9][0-9_]*(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?|true|false)"""
AFTER = re.compile(rf"(?P<value>{PLAIN})\s*(?P<rest>[^\s#].*)$")
NUMBERS = re.compile(r"[-+]?\d+(?:\.\d+)?(?:\s*,\s*\d[\d.]*(?:[eE][-+]?\d+)?)+\Z")
WORD = re.compile(r"[A-Za-z][\w.+\-]*\Z")
COMMENT = re.compile(r"""(?<=\s)#[^"']*$""")
LONGEST = 4000  # characters of a line that is worth mending
MOST_REPAIRS = 200


@dataclass
class Document:
    """A parsed TOML: its values, the line of each key (by dotted path and, last one, by bare name), what was mended."""

    values: dict[str, Any]
    lines: dict[str, int]
    problems: list[Problem] = field(default_factory=list)


def parse(text: str, file: str | None = None) -> Document:
    """The document in `text`; ConfigError `not-toml` with the line when it cannot be mended safely."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    problems: list[Problem] = []
    said, number = "", 0
    for turn in range(MOST_REPAIRS):
        try:
            return Document(parse_toml("\n".join(lines)), key_lines(lines), problems)
        except tomllib.TOMLDecodeError as fault:
            said, number = _place(str(fault), lines)
        except ValueError as fault:
            raise error("not-toml", str(fault), file=file, fix="correct it") from None
        values = _as_kohya_reads("\n".join(lines)) if turn == 0 else None
        if values is not None:
            must = f"is not strict TOML ({said}), but the parser that sd-scripts uses takes it"
            loose = Problem(code="loose-toml", severity="note", must=must, file=file, line=number + 1)
            return Document(values, key_lines(lines), [loose])
        mended = _repair(lines, number, said)
        if mended is None:
            break
        problems.append(Problem(code="mended-toml", severity="warning", must=mended, file=file, line=number + 1))
    fix = "mend that line: text needs quotes, paths single quotes, one key a line"
    refused = Problem(
        code="not-toml", must=f"is not TOML: {said}", file=file, line=number + 1, got=lines[number].strip(), fix=fix
    )
    raise ConfigError([*problems, refused])


def _as_kohya_reads(text: str) -> dict[str, Any] | None:
    import toml

    try:
        found: dict[str, Any] = toml.loads(text)
        check_depth(found)
        return found
    except (toml.TomlDecodeError, ValueError, IndexError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _place(message: str, lines: list[str]) -> tuple[str, int]:
    """(message, index of the line) of a parser's error; an error at the end of a value belongs to the line before."""
    said = re.sub(r"\s*\(at .*\)$", "", message)
    found = re.search(r"at line (\d+), column (\d+)", message)
    if not found:
        return said, max((index for index, line in enumerate(lines) if line.strip()), default=0)
    return said, min(int(found[1]) - 1, len(lines) - 1)


def _repair(lines: list[str], number: int, said: str) -> str | None:
    """Mends line `number` in place and says how; None when nothing safe is known."""
    line = lines[number]
    if len(line) > LONGEST:
        return None
    match = KEY.match(line)
    if "overwrite" in said.lower():
        return _drop_earlier(lines, number, match)
    if not match:
        if (
            "=" in line
            or HEADER.match(line)
            or line.lstrip().startswith(("[", "]", "{", "}", '"', "'"))
            or not line.strip()
        ):
            return None
        lines[number] = f"# {line}"
        return f"is no setting and was passed over: {line.strip()!r}"
    head, value = line[: match.start("value")], match["value"]
    value = COMMENT.sub("", value).rstrip()
    if value.endswith(","):
        lines[number] = head + value.rstrip(",")
        return "the comma after the value was left out"
    if value.startswith('"') and "\\" in value and "'" not in value and '"""' not in value:
        lines[number] = head + value.replace('"', "'")
        return "the backslashes of the path were kept as they stand (single quotes do that)"
    if value in ("True", "False"):
        lines[number] = head + value.lower()
        return f"{value} was read as {value.lower()}"
    if value in ("None", "null", ""):
        lines[number] = f"# {line}"
        return f"{match['key']} has no value and was passed over"
    if WORD.match(value):
        lines[number] = f'{head}"{value}"'
        return f"the word {value} was put into quotes"
    if NUMBERS.match(value):  # a size, or a decimal comma, of which the option knows more
        lines[number] = f'{head}"{value}"'
        return f"the numbers {value} were put into quotes"
    after = AFTER.match(value)
    if after:
        lines[number] = head + after["value"]
        return f"the words after the value were left out: {after['rest']!r}"
    return None


def _drop_earlier(lines: list[str], number: int, match: re.Match[str] | None) -> str | None:
    for index in range(number - 1, -1, -1):
        if match is None or HEADER.match(lines[index]):
            return None
        other = KEY.match(lines[index])
        if other and other["key"] == match["key"] and not other["value"].startswith(("[", '"""', "'''")):
            lines[index] = f"# {lines[index]}"
            return f"{match['key']} stands twice (also in line {index + 1}); the last one counts"
    return None


def key_lines(lines: list[str]) -> dict[str, int]:
    """Line numbers, from 1, of every key: under its dotted path (arrays of tables count from 0) and its bare name."""
    found: dict[str, int] = {}
    seen: dict[str, int] = {}
    table, quote = "", ""
    for number, line in enumerate(lines, 1):
        if quote:
            quote = "" if quote in line else quote
            continue
        header = HEADER.match(line)
        if header and not KEY.match(line):
            table = _indexed(header["name"].replace(" ", ""), header["open"] == "[[", seen)
            found[table] = number
            continue
        match = KEY.match(line)
        if match:
            key = match["key"].strip("\"'")
            found[f"{table}.{key}" if table else key] = number
            found[key] = number
            opened = next((mark for mark in ('"""', "'''") if match["value"].count(mark) == 1), "")
            quote = opened
    return found


def _indexed(name: str, array: bool, seen: dict[str, int]) -> str:
    """The path of a table with the running number of every array of tables in it."""
    path, parts = "", name.split(".")
    for place, part in enumerate(parts):
        path = f"{path}.{part}" if path else part
        if array and place == len(parts) - 1:
            seen[path] = seen.get(path, -1) + 1
            for inner in [other for other in seen if other.startswith(f"{path}.{seen[path]}.")]:
                del seen[inner]
        if path in seen:
            path = f"{path}.{seen[path]}"
    return path
