"""The one door to the terminal. What a file says is shown, never obeyed: no value can colour, move, hide or add a line.

A call of `say` is one line. Control characters, line ends within a value and marks that turn the direction of text are
shown as escapes; letters of every script, and what joins emoji and Indic or Arabic letters, stay as they are.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import shutil
import sys
from collections.abc import Iterable
from typing import Any, TextIO

# C0, DEL, C1; line and paragraph separators; marks, overrides, isolates of direction; byte-order mark; halves of pairs
UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
NAMES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
COLOURS = {"red": 31, "green": 32, "yellow": 33, "cyan": 36}
_MARK = secrets.token_hex(8)  # of a style: cannot be guessed, so that no text can hold it
_STYLE = re.compile(rf"<{_MARK}:([0-9;]+)>")
_standing: list[TextIO] = []  # where a line stands that the next one shall replace


def plain(text: object) -> str:
    """`text` on one line, with everything that a terminal would obey shown as an escape."""
    return UNSAFE.sub(_escape, str(text))


def _escape(found: re.Match[str]) -> str:
    number = ord(found[0])
    if 0xDC80 <= number <= 0xDCFF:  # a byte of a file name that is not UTF-8
        return f"\\x{number - 0xDC00:02x}"
    return NAMES.get(found[0]) or (f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}")


def shell_words(words: Iterable[str]) -> str:
    """A command as a POSIX shell takes it, on one line whatever its words hold: bash and zsh read $'...' back."""
    return " ".join(_ansi_c(word) if UNSAFE.search(word) else shlex.quote(word) for word in words)


def shell_word(value: object) -> str:
    """One word of a suggested command: what a file says may not become another command of it."""
    return shell_words([str(value)])


def _ansi_c(word: str) -> str:
    text = word.replace("\\", "\\\\").replace("'", "\\'")
    return "$'" + UNSAFE.sub(lambda found: "".join(f"\\x{byte:02x}" for byte in _bytes(found[0])), text) + "'"


def _bytes(character: str) -> bytes:
    byte_of_a_name = 0xDC80 <= ord(character) <= 0xDCFF
    return character.encode("utf-8", "surrogateescape" if byte_of_a_name else "replace")


def style(text: object, *, colour: str | None = None, bold: bool = False) -> str:
    """`text` coloured or bold where `say` writes to a terminal."""
    codes = ";".join(str(code) for code in (COLOURS.get(colour or ""), 1 if bold else None) if code)
    return f"<{_MARK}:{codes}>{text}<{_MARK}:0>"


def say(line: object = "", *, err: bool = False, file: TextIO | None = None) -> None:
    """One line to the terminal, on stderr with `err`."""
    stream = file or (sys.stderr if err else sys.stdout)
    codes = r"\033[\1m".replace("\\033", "\033") if _coloured(stream) else ""
    _write(stream, _STYLE.sub(codes, plain(line)) + "\n")


def overwrite(line: object, stream: TextIO) -> None:
    """A line in the place of the one that a terminal's cursor is in, cut at its width, until the next `say`."""
    width = shutil.get_terminal_size().columns - 1
    _write(stream, f"\r{plain(line)[:width]}\x1b[K")
    _standing.append(stream)


def clear() -> None:
    """Takes away what `overwrite` has left standing."""
    if _standing:
        stream = _standing.pop()
        stream.write("\r\x1b[K")
        stream.flush()


def say_document(document: Any, *, err: bool = False) -> None:
    """One JSON document; what a terminal would obey stands in it as \\uXXXX, which JSON readers turn back."""
    say_file(json.dumps(document, indent=2, ensure_ascii=False, default=str) + "\n", err=err)


def say_file(text: str, *, err: bool = False) -> None:
    """A JSON, TOML or command-line text of our own writing, several lines; escaped as JSON and TOML strings are."""
    _write(sys.stderr if err else sys.stdout, in_strings(text))


def in_strings(text: str) -> str:
    """A JSON or TOML text with \\uXXXX for what may only stand within its strings and a terminal would obey."""
    return UNSAFE.sub(lambda found: found[0] if found[0] in "\n\t" else f"\\u{ord(found[0]):04x}", text)


def pass_on(data: bytes, *, err: bool = False) -> None:
    """Output of our own trainer, which has come through this door in its own process, with its progress bar."""
    stream = sys.stderr if err else sys.stdout
    stream.buffer.write(data)
    stream.buffer.flush()


def _coloured(stream: TextIO) -> bool:
    return not os.environ.get("NO_COLOR") and stream.isatty()


def _write(stream: TextIO, text: str) -> None:
    clear()
    encoding = getattr(stream, "encoding", None) or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()
