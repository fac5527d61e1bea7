"""Tokens of a PowerShell script, with every bracket's partner."""

from __future__ import annotations

import re
from dataclasses import dataclass

from launcher.formats.scripts.state import DEEPEST, Unreadable

TOKEN = re.compile(
    r"""(?P<blank>[ \t\r\f\v\xa0]+|`\r?\n)
    |(?P<comment>\#[^\n]*)
    |(?P<line>\n)
    |(?P<variable>\$(?:\{[^}\n]*\}|(?:env:|global:|script:)?[A-Za-z_]\w*|[?$^]))
    |(?P<splat>@[A-Za-z_]\w*)
    |(?P<open>[$@]?\(|@?\{|\[)
    |(?P<close>[)}\]])
    |(?P<operator>&&|\|\||\d?>&\d|\d?>>?|[;,|&])
    |(?P<word>(?:`[^\n]|[^\s"'`;,|&(){}\[\]$@]|(?<=\S)@)+|[$@`])""",
    re.X | re.I,
)
ASSIGNS = re.compile(r"\+?=(?!=)")
PAIRS = {")": "(", "}": "{", "]": "["}


@dataclass(frozen=True)
class Token:
    """A token; `joined`: no blank stands before it. `partner` is the index of an opening bracket's closing one."""

    kind: str
    text: str
    line: int
    joined: bool
    partner: int = -1


def tokens(text: str) -> list[Token]:
    """All tokens of a script. Unreadable where a quote or bracket is not closed."""
    found: list[Token] = []
    waiting: list[int] = []
    place, line, joined = 0, 1, False
    text = text.replace("\r\n", "\n")
    while place < len(text):
        token = _long(text, place, line, joined)
        if token is None:
            match = TOKEN.match(text, place)
            kind, word = (match.lastgroup or "word", match[0]) if match else ("word", text[place])
            sign = ASSIGNS.match(word)
            if sign and _assigned(found):
                word = sign[0]
            token = (Token(kind, word, line, joined), place + len(word))
        one, end = token
        line += text.count("\n", place, end)
        place = end
        joined = one.kind not in ("blank", "comment", "line")
        if one.kind in ("blank", "comment"):
            continue
        if one.kind == "open":
            waiting.append(len(found))
            if len(waiting) > DEEPEST:
                raise Unreadable(line, f"the script nests more than {DEEPEST} deep")
        elif one.kind == "close":
            if not waiting or found[waiting[-1]].text[-1] != PAIRS[one.text]:
                raise Unreadable(line, f"a {one.text} closes nothing")
            opening = waiting.pop()
            before = found[opening]
            found[opening] = Token(before.kind, before.text, before.line, before.joined, len(found))
        found.append(one)
    if waiting:
        raise Unreadable(found[waiting[-1]].line, f"the {found[waiting[-1]].text} is not closed")
    return found


def _assigned(found: list[Token]) -> bool:
    """Whether the last token is a variable that begins a statement: $a=0 and $a =0 are three tokens each."""
    if not found or found[-1].kind != "variable":
        return False
    return len(found) < 2 or found[-2].kind == "line" or found[-2].text in (";", "{", "]")


def _long(text: str, place: int, line: int, joined: bool) -> tuple[Token, int] | None:
    """Strings and comments over several lines."""
    letter, two = text[place], text[place : place + 2]
    if two == "<#":
        end = _after(text, "#>", place, line)
        return Token("comment", "", line, joined), end
    if two in ("@'", '@"'):
        end = _after(text, "\n" + two[::-1], place + 1, line)
        inner = text[place + 2 : end - 3].partition("\n")[2]
        return Token("raw" if two == "@'" else "text", inner, line, joined), end
    if letter == "'":
        end = place + 1
        while True:
            end = _after(text, "'", end, line)
            if text[end : end + 1] != "'":
                return Token("raw", text[place + 1 : end - 1].replace("''", "'"), line, joined), end
            end += 1
    if letter == '"':
        match = re.compile(r'"((?:[^"`]|`.|"")*+)"', re.S).match(text, place)
        if not match:
            raise Unreadable(line, 'a closing " is missing')
        return Token("text", match[1].replace('""', '`"'), line, joined), match.end()
    return None


def _after(text: str, what: str, place: int, line: int) -> int:
    end = text.find(what, place)
    if end < 0:
        raise Unreadable(line, f"a closing {what.strip()} is missing")
    return end + len(what)
