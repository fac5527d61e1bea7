"""What a batch file of cmd.exe runs, as far as its file decides it."""

from __future__ import annotations

import re

from launcher.formats.scripts.state import DEEPEST, Doubt, State, Unreadable, Value, Word

VARIABLE = re.compile(r"%%|%([^%\s:=]+)(:[^%\n]*)?%|%~?[\w]*[0-9*]|!([A-Za-z_]\w*)!")
SET = re.compile(
    r"@?set\s+(?:\"(?P<quoted>[^=\"]+)=(?P<inside>.*?)\"\s*\Z|(?P<name>[^=\"/]+)=(?P<value>.*))", re.I | re.S
)
OTHER_SET = re.compile(r"@?set\s+/[ap]\s+\"?([A-Za-z_]\w*)", re.I)
IF = re.compile(r"@?if\s+(?P<case>/i\s+)?(?P<negated>not\s+)?", re.I)
COMPARISON = re.compile(
    r"(\"[^\"]*\"|[^\s\"=()]+)\s*(==|\b(?:equ|neq|lss|leq|gtr|geq)\b)\s*(\"[^\"]*\"|[^\s\"()]+)\s*", re.I
)
Outcome = bool | Doubt


def read(text: str) -> State:
    """The commands of a batch file with what is open about each."""
    shell = Shell(text)
    shell.block(nested=0)
    return shell.state


def logical_lines(text: str) -> list[tuple[str, int]]:
    """Lines with those joined that a ^ continues, each with its first number."""
    found: list[tuple[str, int]] = []
    parts: list[str] = []
    first = 0
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
        first = first if parts else number
        bare = line.rstrip("\r")
        remark = not parts and re.match(r"\s*@?(rem\b|::)", bare, re.I)
        if bare.endswith("^") and not bare.endswith("^^") and not remark:
            parts.append(bare[:-1])
            continue
        found.append(("\n".join([*parts, bare]), first))
        parts = []
    return [*found, ("\n".join(parts), first)] if parts else found


class Shell:
    """Walks the lines of a batch file."""

    def __init__(self, text: str) -> None:
        self.lines, self.place, self.state = logical_lines(text), 0, State()

    def block(self, nested: int, run: bool = True) -> str:
        """Runs lines up to a closing bracket; gives what follows that bracket."""
        if nested > DEEPEST:
            raise Unreadable(self.lines[min(self.place, len(self.lines) - 1)][1], f"nests more than {DEEPEST} deep")
        while self.place < len(self.lines):
            text, line = self.lines[self.place]
            self.place += 1
            bare = text.strip()
            if nested and bare.startswith(")"):
                return bare[1:].strip()
            if (bare and not self.state.ended) or nested:
                self.one(bare, line, nested, run)
        return ""

    def one(self, bare: str, line: int, nested: int, run: bool) -> None:
        """Runs one line."""
        if re.match(r"@?(rem\b|::|echo\b)|:\w", bare, re.I):
            return
        if IF.match(bare):
            self._if(bare, line, nested, run)
            return
        if re.match(r"@?for\b", bare, re.I):
            self._for(bare, line, nested, run)
            return
        if not run or not bare:
            return
        if match := OTHER_SET.match(bare):
            doubt = Doubt(bare[:80], "sets a variable by calculation or from the keyboard", line)
            self.state.put(match[1].lower(), Value((Word("", line, False, (doubt,)),)))
        elif match := SET.match(bare):
            name, value = match["quoted"] or match["name"], match["inside"] if match["quoted"] else match["value"]
            word = self.fill(value.replace("\n", ""), line)
            if not match["quoted"]:
                word = Word(re.sub(r"\^(.)", r"\1", word.text), line, False, word.doubts)
            self.state.put(name.strip().lower(), Value((word,)) if word.text or word.doubts else Value(()))
        elif re.match(r"@?goto\b|@?call\s+:", bare, re.I):
            if not re.match(r"@?goto\s+:eof", bare, re.I):
                self.state.always.append(Doubt(bare[:80], "jumps, which only running the script follows", line))
        elif re.match(r"@?exit\b", bare, re.I):
            self.state.ended = True
        elif re.match(r"@?call\s+\S+\.(bat|cmd)\b", bare, re.I) and not re.search(r"activate|conda", bare, re.I):
            self.state.always.append(Doubt(bare[:80], "runs another script, which may change any variable", line))
        else:
            self._command(bare, line)

    def _if(self, bare: str, line: int, nested: int, run: bool) -> None:
        match = IF.match(bare)
        assert match
        rest = bare[match.end() :]
        outcome, rest = (
            self._test(rest, line, bool(match["case"])) if run else (False, self._test(rest, line, False)[1])
        )
        if match["negated"] and isinstance(outcome, bool):
            outcome = not outcome
        doubt = outcome if isinstance(outcome, Doubt) else None
        if not rest.startswith("("):
            self._branch(rest, line, nested, run and outcome is not False, doubt)
            return
        written = []
        inner = rest[1:].strip()
        closed = re.search(r"\)(\s*else\b.*)?\Z", inner, re.I | re.S)
        if inner and closed and inner.count("(") < inner.count(")"):
            written.append(self._branch(inner[: closed.start()], line, nested, run and outcome is not False, doubt))
            after = (closed[1] or "").strip()
        else:
            after, changed = self._body(inner, line, nested, run and outcome is not False, doubt)
            written.append(changed)
        if re.match(r"else\b", after, re.I):
            other = after[4:].strip()
            live = run and (doubt is not None or outcome is False)
            if other.startswith("(") and not other.endswith(")"):
                _, changed = self._body(other[1:].strip(), line, nested, live, doubt)
                written.append(changed)
            elif IF.match(other) and doubt is None:
                self._if(other, line, nested + 1, live)
            elif IF.match(other) and doubt is not None:
                with self.state.aside(doubt) as changed:
                    self._if(other, line, nested + 1, live)
                written.append(changed)
            else:
                written.append(self._branch(other.strip("() "), line, nested, live, doubt))
        if doubt:
            self.state.perhaps(written, doubt)

    def _body(
        self, first: str, line: int, nested: int, run: bool, doubt: Doubt | None
    ) -> tuple[str, dict[str, Value | None]]:
        if doubt is None:
            self.one(first, line, nested, run)
            return self.block(nested + 1, run), {}
        with self.state.aside(doubt) as written:
            self.one(first, line, nested, run)
            after = self.block(nested + 1, run)
        return after, written

    def _branch(self, text: str, line: int, nested: int, run: bool, doubt: Doubt | None) -> dict[str, Value | None]:
        if nested > DEEPEST:
            raise Unreadable(line, f"nests more than {DEEPEST} deep")
        if doubt is None:
            self.one(text.strip(), line, nested + 1, run)
            return {}
        with self.state.aside(doubt) as written:
            self.one(text.strip(), line, nested + 1, run)
        self.state.perhaps([written], doubt)
        return written

    def _for(self, bare: str, line: int, nested: int, run: bool) -> None:
        doubt = Doubt(bare[:80], "is a loop, which only running the script decides", line)
        _, found, body = re.sub(r"\s+", " ", bare).partition(" do ")
        if body.strip().startswith("(") and not body.strip().endswith(")"):
            _, written = self._body(body.strip()[1:], line, nested, run, doubt)
            self.state.perhaps([written], doubt)
        elif found:
            self._branch(body.strip("() "), line, nested, run, doubt)

    def _test(self, rest: str, line: int, any_case: bool) -> tuple[Outcome, str]:
        """(whether the test at the start of `rest` holds, what follows it)."""
        if match := re.match(r"defined\s+(\S+)\s*", rest, re.I):
            value = self.state.values.get(match[1].lower())
            if value is None:
                return Doubt(match[0].strip(), "asks for a variable that the file does not set", line), rest[
                    match.end() :
                ]
            doubt = value.doubts[0] if value.doubts else None
            return doubt or bool(value.words), rest[match.end() :]
        match = COMPARISON.match(rest)
        if not match:
            opening = re.match(r"(exist\s+|errorlevel\s+)?(\"[^\"]*\"|\S+)\s*", rest, re.I)
            after = rest[opening.end() :] if opening else ""
            return Doubt(rest[:80], "is a test that only running the script decides", line), after
        left, right = self.fill(match[1], line), self.fill(match[3], line)
        after = rest[match.end() :]
        doubts = (*left.doubts, *right.doubts)
        if doubts:
            return Doubt(doubts[0].got, f"{doubts[0].why}, and a test depends on it", line), after
        one, two = (left.text.lower(), right.text.lower()) if any_case else (left.text, right.text)
        sign = match[2].lower()
        if sign == "==":
            return one == two, after
        if not all(re.fullmatch(r"-?(0|[1-9]\d{0,8})", text) for text in (one, two)):
            return Doubt(rest[:80], "is a test that only running the script decides", line), after
        first, second = int(one), int(two)
        found = {"equ": first == second, "neq": first != second, "lss": first < second, "leq": first <= second}
        return found.get(sign, first > second if sign == "gtr" else first >= second), after

    def fill(self, text: str, line: int) -> Word:
        """`text` with its variables filled in; one that the file does not set keeps its name."""
        parts: list[str] = []
        doubts: list[Doubt] = []
        place = 0
        for match in VARIABLE.finditer(text):
            parts.append(text[place : match.start()])
            place = match.end()
            name = (match[1] or match[3] or "").lower()
            if match[0] == "%%":
                parts.append("%")
                continue
            value = self.state.values.get(name)
            if match[2] or value is None:
                given = match[2] or not name or name in ("cd", "date", "time", "random", "errorlevel")
                why = "is known to whoever runs the script" if given else "is a variable that the file does not set"
                doubts.append(Doubt(match[0], why, line, not given))
                parts.append(match[0])
            else:
                parts += [word.text for word in value.words]
                doubts += value.doubts
        found = "".join([*parts, text[place:]])
        self.state.spend(len(found), line)
        return Word(found, line, False, tuple(dict.fromkeys(doubts)))

    def _command(self, bare: str, line: int) -> None:
        """Splits a line into commands at & and |, and these into words as Windows programs do."""
        words: list[Word] = []
        word, begun, inside, skip = "", False, False, False
        doubts: list[Doubt] = []
        pieces = re.findall(
            r"%[^%\s]*%|![A-Za-z_]\w*!|%~?\w*[0-9*]|\n|\s|\^.|\\+\"|\\+|&&|\|\||[&|<>]|\"|[^\s%!^\\&|<>\"]+|.",
            bare.lstrip("@"),
            re.S,
        )

        def end() -> None:
            nonlocal word, begun, doubts, skip
            if begun and not skip:
                words.append(Word(word, line, False, tuple(dict.fromkeys(doubts))))
            skip = skip and not begun
            word, begun, doubts = "", False, []

        for piece in pieces:
            if piece[0] in "%!" and len(piece) > 1:
                filled = self.fill(piece, line)
                doubts += filled.doubts
                for letter in re.findall(r"\"|\s+|[^\s\"]+", filled.text):
                    if letter == '"':
                        inside, begun = not inside, True
                    elif letter.isspace() and not inside:
                        kept = doubts
                        end()
                        doubts = list(filled.doubts) if kept else []
                    else:
                        word, begun = word + letter, True
            elif piece[0] == "\\" and piece.endswith('"'):
                slashes = len(piece) - 1
                word, begun = word + "\\" * (slashes // 2), True
                if slashes % 2:
                    word += '"'
                else:
                    inside = not inside
            elif piece == '"':
                inside, begun = not inside, True
            elif piece[0] == "^" and len(piece) == 2 and not inside:
                word, begun = word + piece[1], True
            elif piece.isspace() and (not inside or piece == "\n"):
                end()
                line += piece == "\n"
            elif piece in ("&", "&&", "|", "||") and not inside:
                end()
                self.state.run(words)
                words = []
            elif piece in "<>" and not inside:
                word, begun = ("", False) if word in ("1", "2") else (word, begun)
                end()
                skip = True
            else:
                word, begun = word + piece, True
        end()
        self.state.run([one for one in words if one.text.lower() != "call"])
