"""Expansion of bash words: variables, arrays, defaults, arithmetic, word splitting; what stays open is a Doubt."""

from __future__ import annotations

import ast
import fnmatch
import re
from dataclasses import dataclass, field, replace

from launcher.formats.scripts.bash_syntax import Lexer, Part, Token
from launcher.formats.scripts.state import DEEPEST, Doubt, State, Unreadable, Value, Word, merged

PARAMETER = re.compile(
    r"(?P<count>#)?(?P<name>[A-Za-z_]\w*|[0-9@*#?$!-])(?P<index>\[[^\]]*\])?(?P<rest>.*)", re.S | re.A
)
RUNNING = {"@": "the words given to the script", "*": "the words given to the script"}
GLOB = re.compile(r"[*?]|\[[^\]]*\]")
BRACES = re.compile(r"\{[^{}]*(,|\.\.)[^{}]*\}")
LONGEST = 4096  # letters of a value that is cut by a pattern
DIGITS = 100  # letters of an arithmetic expression
MOST = 2**62


@dataclass
class Fields:
    """The words that one word of a script becomes, as they grow."""

    line: int
    done: list[Word] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    doubts: list[Doubt] = field(default_factory=list)
    begun: bool = False
    filled: bool = False
    quoted: bool = False
    whole: int | None = None  # the line of a value that is the whole word so far

    def add(self, text: str, line: int | None = None, doubts: tuple[Doubt, ...] = ()) -> None:
        """Text joined to the word at hand."""
        self.whole = line if not self.filled else None if text else self.whole
        self.filled = self.filled or bool(text)
        self.text.append(text)
        self.doubts += doubts
        self.begun = True

    def end(self) -> None:
        """The word at hand is whole."""
        if self.begun:
            line = self.whole or self.line
            self.done.append(Word("".join(self.text), line, self.quoted, tuple(dict.fromkeys(self.doubts))))
        self.text, self.doubts, self.begun, self.filled, self.quoted, self.whole = [], [], False, False, False, None


class Expander:
    """Turns tokens into the words that bash would pass."""

    def __init__(self, state: State) -> None:
        self.state, self.depth = state, 0

    def words(self, tokens: list[Token] | tuple[Token, ...]) -> list[Word]:
        """The words of a command or array."""
        return [word for token in tokens for word in self.fields(token)]

    def fields(self, token: Token) -> list[Word]:
        """The words of one token, split where bash splits."""
        found = Fields(token.line)
        plain = "".join(part.text for part in token.parts if part.kind == "text" and not part.quoted)
        for part in token.parts:
            if part.kind == "text":
                found.add(part.text)
                found.quoted = found.quoted or part.quoted
                continue
            value = self.value(part)
            found.quoted = found.quoted or part.quoted
            if part.quoted:
                self._quoted(found, part, value)
            else:
                self._split(found, value)
        if BRACES.search(plain) or GLOB.search(plain) or plain.startswith("~"):
            found.add("", doubts=(Doubt(plain, "is filled in by the shell from what lies on the disk", token.line),))
            if BRACES.search(plain):
                found.doubts[-1] = Doubt(plain, "is expanded into several words", token.line)
        found.end()
        self.state.spend(sum(len(word.text) for word in found.done), token.line, len(found.done))
        return found.done

    def joined(self, token: Token) -> Word:
        """One word without splitting, as in assignments and [[ ]]."""
        words: list[Word] = []
        for part in token.parts:
            value = Value((Word(part.text, part.line),)) if part.kind == "text" else self.value(part)
            text = " ".join(word.text for word in value.words)
            words.append(Word(text, part.line, part.quoted, value.doubts))
        text = "".join(word.text for word in words)
        self.state.spend(len(text), token.line)
        doubts = merged(word.doubts for word in words)
        if token.parts and token.parts[0].kind == "text" and not token.parts[0].quoted and text.startswith("~"):
            doubts = (*doubts, Doubt(text, "is filled in by the shell from the user's home", token.line))
        return Word(text, token.line, any(word.quoted for word in words), doubts)

    def _quoted(self, found: Fields, part: Part, value: Value) -> None:
        if not (value.array and re.match(r"(\w+\[@\]|@)", part.text)):
            first = value.words[0].line if len(value.words) == 1 else None
            found.add(" ".join(word.text for word in value.words), first, value.doubts)
            return
        if not value.words and not found.filled:
            found.begun = False
        for index, word in enumerate(value.words):
            if index:
                found.end()
            found.add(word.text, word.line, word.doubts)
            found.quoted = True

    def _split(self, found: Fields, value: Value) -> None:
        for index, word in enumerate(value.words):
            if index:
                found.end()
            pieces = re.split(r"[ \t\n]+", word.text)
            doubts = word.doubts
            if GLOB.search(word.text) and not doubts:
                doubts = (*doubts, Doubt(word.text, "is filled in by the shell from what lies on the disk", word.line))
            for place, piece in enumerate(pieces):
                if place:
                    found.end()
                if piece or (doubts and not place):
                    found.add(piece, word.line, doubts)

    def value(self, part: Part) -> Value:
        """What a variable, a calculation or a command's output stands for."""
        if part.kind == "variable":
            return self._parameter(part)
        if part.kind == "arithmetic":
            number = self.number(part.text)
            if number is not None:
                return Value((Word(str(number), part.line),))
            return _open(f"$(({part.text}))", "is a calculation that only the shell does", part.line)
        return _open(part.text, "is what another command prints", part.line)

    def number(self, text: str) -> int | None:
        """The result of a calculation with known whole numbers."""
        if len(text) > DIGITS:
            return None

        def known(match: re.Match[str]) -> str:
            value = self.state.values.get(match[1])
            if value is None or value.doubts or len(value.words) != 1:
                return "?"
            return (
                f"({value.words[0].text or '0'})" if re.fullmatch(r"-?[1-9]\d{0,17}|0|", value.words[0].text) else "?"
            )

        text = re.sub(r"\$?\{?\b([A-Za-z_]\w*)\b\}?", known, text).strip()
        if not re.fullmatch(r"[\d\s()+*/%-]+", text) or "**" in text or "//" in text or re.search(r"\b0\d", text):
            return None
        try:
            return _calculated(ast.parse(text, mode="eval").body)
        except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
            return None

    def _parameter(self, part: Part) -> Value:
        match = PARAMETER.fullmatch(part.text)
        written = f"${{{part.text}}}"
        if not match:
            return _open(written, "is an expansion that only bash does", part.line)
        name, index, rest = match["name"], match["index"], match["rest"]
        value = self.state.values.get(name)
        if not re.match(r"[A-Za-z_]", name):
            why = (
                "is given by whoever calls the script" if name in "@*#" or name.isdigit() else "is known to bash alone"
            )
            default = self._other(part, value, rest) if rest and not match["count"] else None
            return _open(written, why, part.line, default, array=name in "@")
        known = value is not None or (name in self.state.values and self.state.values[name] is not None)
        if not known:
            default = self._other(part, None, rest) if rest else Value((Word(written, part.line),))
            if default is None:
                return _open(written, "is an expansion that only bash does", part.line)
            doubt = Doubt(written, "is a variable that the file does not set", part.line, variable=True)
            return Value(tuple(replace(word, doubts=(*word.doubts, doubt)) for word in default.words), default.array)
        assert value is not None
        if index in ("[@]", "[*]"):
            value = Value(value.words, True)
        elif index and re.fullmatch(r"\[\d{1,6}\]", index):
            value = Value(value.words[int(index[1:-1]) :][:1])
        elif index:
            return _open(written, "is an element that only bash chooses", part.line)
        else:
            value = Value(value.words[:1])
        if match["count"]:
            size = len(value.words) if value.array else len("".join(word.text for word in value.words))
            number = Word(str(size), part.line, doubts=value.doubts)
            return Value((number,)) if not rest else _open(written, "is an expansion that only bash does", part.line)
        other = self._other(part, value, rest)
        return other if other is not None else _open(written, "is an expansion that only bash does", part.line)

    def _other(self, part: Part, value: Value | None, rest: str) -> Value | None:
        """The value after ${name:-default}, ${name%pattern} and their like; None: not known here."""
        if not rest:
            return value
        text = " ".join(word.text for word in value.words) if value else ""
        match = re.match(r":?[-+=]", rest)
        if match:
            empty = value is None or (match[0][0] == ":" and not text)
            if (match[0][-1] == "+") != empty:
                return self._default(rest[match.end() :], part.line)
            return Value(()) if match[0][-1] == "+" else value
        if match := re.match(r":?\?", rest):
            return value if value and (text or match[0] == "?") else None
        if value is None or len(value.words) > 1 or len(text) > LONGEST:
            return None
        cut = _cut(text, rest) if not value.array else None
        return (
            None
            if cut is None
            else Value((Word(cut, value.words[0].line if value.words else part.line, doubts=value.doubts),))
        )

    def _default(self, text: str, line: int) -> Value:
        self.depth += 1
        if self.depth > DEEPEST:
            raise Unreadable(line, f"the script nests more than {DEEPEST} deep")
        lexer = Lexer(text)
        lexer.line = line
        tokens = lexer.tokens()
        if any(token.operator for token in tokens):
            found = _open(text, "is an expansion that only bash does", line)
        else:
            words = [self.joined(token) for token in tokens]
            one = Word(" ".join(word.text for word in words), line, doubts=merged(word.doubts for word in words))
            found = Value((one,)) if tokens else Value(())
        self.depth -= 1
        return found


def _open(got: str, why: str, line: int, default: Value | None = None, array: bool = False) -> Value:
    doubt = Doubt(got, why, line)
    words = default.words if default and default.words else (Word(got, line),)
    return Value(tuple(replace(word, doubts=(*word.doubts, doubt)) for word in words), array)


def _cut(text: str, rest: str) -> str | None:
    """`text` without what a pattern of plain letters, * and ? matches at its beginning or end, or with other case."""
    if rest in (",,", "^^"):
        return text.lower() if rest == ",," else text.upper()
    match = re.fullmatch(r"(%%?|##?)([^\\\"'$`\[\]()]*)", rest, re.S)
    if match:
        pattern = re.compile(fnmatch.translate(match[2]))
        sizes = range(len(text) + 1) if len(match[1]) == 1 else range(len(text), -1, -1)
        if len(match[2]) > 64 or match[2].count("*") > 1:
            return None
        for size in sizes:
            piece = text[len(text) - size :] if match[1][0] == "%" else text[:size]
            if pattern.match(piece):
                return text[: len(text) - size] if match[1][0] == "%" else text[size:]
        return text
    match = re.fullmatch(r"(//?)([\w.-]+)(?:/([\w./ -]*))?", rest)
    if match:
        return text.replace(match[2], match[3] or "", 1 if match[1] == "/" else -1)
    return None


def _calculated(node: ast.expr) -> int:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        found = node.value
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        found = _calculated(node.operand) * (-1 if isinstance(node.op, ast.USub) else 1)
    elif isinstance(node, ast.BinOp):
        left, right = _calculated(node.left), _calculated(node.right)
        if isinstance(node.op, (ast.Div, ast.Mod)):
            quotient = abs(left) // abs(right) * (1 if (left < 0) == (right < 0) else -1)
            found = quotient if isinstance(node.op, ast.Div) else left - quotient * right
        else:
            found = left * right if isinstance(node.op, ast.Mult) else left + right
            found = left - right if isinstance(node.op, ast.Sub) else found
    else:
        raise ValueError
    if abs(found) > MOST:
        raise ValueError
    return found
