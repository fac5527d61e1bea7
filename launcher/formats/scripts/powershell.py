"""What a PowerShell script runs, as far as its file decides it."""

from __future__ import annotations

import re

from launcher.formats.scripts.powershell_syntax import Token, tokens
from launcher.formats.scripts.state import Doubt, State, Unreadable, Value, Word, doubtful, merged

INSIDE = re.compile(
    r"`(.)|\$\{([^}]*)\}|\$((?:env:|global:|script:)?[A-Za-z_]\w*)|\$\(\s*\$([A-Za-z_]\w*)\s*\)|\$\(", re.S | re.I
)
ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "0": "\0"}
OPENING = ("foreach", "for", "while", "do", "switch", "function", "try", "trap", "param", "begin", "process", "end",
           "catch", "finally", "until", "filter")  # fmt: skip
COMPARED = ("-eq", "-ne", "-ceq", "-cne", "-ieq", "-ine", "-lt", "-le", "-gt", "-ge")
CHANGING = (".", "invoke-expression", "iex", "set-variable", "sv", "import-module", "new-variable")
NEW_LIST = re.compile(
    r"\[System\.Collections\.(ArrayList|Generic\.List\S*)\]::new\(\)|New-Object\s+(-TypeName\s+)?\S*ArrayList"
    r"|\[System\.Collections\.ArrayList\]@\(\)",
    re.I,
)
NUMBER = re.compile(r"-?\d{1,15}(\.\d{1,15})?")
Outcome = bool | Doubt


def read(text: str) -> State:
    """The commands of a script with what is open about each. Unreadable where PowerShell would refuse the file."""
    shell = Shell(tokens(text))
    shell.block(0, len(shell.tokens))
    return shell.state


class Shell:
    """Walks the statements of a script."""

    def __init__(self, found: list[Token]) -> None:
        self.tokens, self.state = found, State()
        for name, text in (("true", "True"), ("false", "False")):
            self.state.values[name] = Value((Word(text, 0),))
        self.state.values["null"] = Value(())

    def block(self, start: int, end: int) -> None:
        """Runs the statements between two places."""
        place = start
        while place < end and not self.state.ended:
            token = self.tokens[place]
            if token.kind == "line" or token.text == ";":
                place += 1
            elif token.kind == "word" and token.text.lower() == "if":
                place = self._if(place, end)
            elif token.kind == "word" and token.text.lower() in OPENING:
                place = self._open(place, end)
            else:
                stop = self._stop(place, end)
                self._statement(place, stop)
                place = stop

    def _skip(self, place: int, end: int) -> int:
        while place < end and self.tokens[place].kind == "line":
            place += 1
        return place

    def _stop(self, place: int, end: int) -> int:
        while place < end and self.tokens[place].kind != "line" and self.tokens[place].text != ";":
            token = self.tokens[place]
            place = token.partner + 1 if token.kind == "open" else place + 1
            if token.text in (",", "|", "+") and token.kind in ("operator", "word"):
                place = self._skip(place, end)
        return min(place, end)

    def _if(self, place: int, end: int) -> int:
        written: list[dict[str, Value | None]] = []
        doubt: Doubt | None = None
        done = False
        while place < end:
            word, line = self.tokens[place].text.lower(), self.tokens[place].line
            place = self._skip(place + 1, end)
            outcome: Outcome = True
            if word in ("if", "elseif"):
                if place >= end or self.tokens[place].text != "(":
                    raise Unreadable(line, "a ( is missing after if")
                outcome = False if done else self.condition(place + 1, self.tokens[place].partner)
                place = self._skip(self.tokens[place].partner + 1, end)
            if place >= end or self.tokens[place].text != "{":
                raise Unreadable(line, "a { is missing after if")
            body = (place + 1, self.tokens[place].partner)
            place = body[1] + 1
            if isinstance(outcome, Doubt):
                doubt = doubt or outcome
            if not done and outcome is not False:
                if doubt:
                    with self.state.aside(doubt) as changed:
                        self.block(*body)
                    written.append(changed)
                else:
                    self.block(*body)
                done = outcome is True
            after = self._skip(place, end)
            if after >= end or self.tokens[after].text.lower() not in ("elseif", "else"):
                break
            place = after
        if doubt:
            self.state.perhaps(written, doubt)
        return place

    def _open(self, place: int, end: int) -> int:
        """Loops, functions and the like: what they do is named and not decided."""
        token = self.tokens[place]
        name = token.text.lower()
        doubt = Doubt(
            token.text, "is a loop, a switch or a function, which only running the script decides", token.line
        )
        place += 1
        while place < end and self.tokens[place].text != "{":
            one = self.tokens[place]
            if one.text == "(" and name in ("param", "foreach", "for"):
                for inner in self.tokens[place + 1 : one.partner]:
                    if inner.kind == "variable":
                        key = _name(inner.text)
                        self.state.put(key, doubtful(self.state.values.get(key), doubt))
            if name == "param" and one.text == "(":
                return one.partner + 1
            place = one.partner + 1 if one.kind == "open" else place + 1
        if place < end:
            body = (place + 1, self.tokens[place].partner)
            with self.state.aside(doubt) as changed:
                for index in range(body[0], body[1] - 1):
                    if self.tokens[index].kind == "variable" and self.tokens[index + 1].text in ("=", "+="):
                        key = _name(self.tokens[index].text)
                        self.state.put(key, doubtful(self.state.values.get(key), doubt))
                self.block(*body)
            self.state.perhaps([changed], doubt)
            place = body[1] + 1
        return place

    def _statement(self, start: int, end: int) -> None:
        place, silent = start, False
        while place < end and self.tokens[place].text == "[":  # [void], [string]
            silent = True
            place = self.tokens[place].partner + 1
        if place >= end:
            return
        token = self.tokens[place]
        after = self.tokens[place + 1] if place + 1 < end else None
        if token.kind == "variable":
            name = _name(token.text)
            if after and after.text in ("=", "+="):
                self._assign(name, after.text == "+=", place + 2, end)
            elif after and after.joined and after.text.lower() in (".add", ".addrange") and place + 2 < end:
                value = self.value(place + 3, self.tokens[place + 2].partner)
                self._append(name, value, token.line)
            elif after:
                doubt = Doubt(
                    f"{token.text}{after.text}", "changes a variable in a way that is not followed", token.line
                )
                self.state.put(name, doubtful(self.state.values.get(name), doubt))
            return
        if silent or token.kind == "open":
            return
        first = token.text.lower()
        if first in ("exit", "return", "break", "throw"):
            self.state.ended = True
        elif first in CHANGING and not any("activate" in one.text.lower() for one in self.tokens[start:end]):
            self.state.always.append(Doubt(token.text, "may change any variable", token.line))
        elif not first.startswith(("write-", "echo")):
            self._command(place, end)

    def _assign(self, name: str, more: bool, start: int, end: int) -> None:
        value = self.value(start, end)
        line = self.tokens[start - 1].line
        if not more:
            self.state.put(name, value)
            return
        before = self.state.values.get(name)
        if before is None:
            doubt = Doubt(f"${name}", "is a variable that the file does not set", line, variable=True)
            value = doubtful(value, doubt)
            before = Value(())
        if before.array or not before.words:
            self._append(name, value, line)
        elif before.words[0].quoted:
            self.state.put(name, Value((_joined([*before.words, *value.words], line),)))
            self.state.spend(len(before.words[0].text), line)
        else:
            self.state.put(name, doubtful(before, Doubt(f"${name} +=", "is a calculation", line)))

    def _append(self, name: str, value: Value, line: int) -> None:
        before = self.state.values.get(name) or Value((), True)
        self.state.spend(0, line, len(before.words) // 100 + len(value.words))
        self.state.put(name, Value((*before.words, *value.words), True))

    def value(self, start: int, end: int) -> Value:
        """The value of an expression: strings, numbers, variables, lists, + and -join; anything else is open."""
        while start < end and self.tokens[start].kind == "line":
            start += 1
        while start < end and self.tokens[start].text == "[" and self.tokens[start].partner + 1 < end and not (
            self.tokens[start].partner + 1 < end and self.tokens[self.tokens[start].partner + 1].text.startswith("::")
        ):  # fmt: skip
            start = self.tokens[start].partner + 1
        if start >= end:
            return Value(())
        line = self.tokens[start].line
        source = "".join(
            ("" if one.joined else " ") + one.text for one in self.tokens[start : min(end, start + 40)]
        ).strip()
        if NEW_LIST.match(source):
            return Value((), True)
        found: list[Word] = []
        many, place, sign = False, start, ","
        while place < end:
            token = self.tokens[place]
            if token.kind == "line" or token.text == ",":
                many, sign, place = True, ",", place + 1
                continue
            if token.text == "+" and found:
                sign, place = "+", place + 1
                continue
            if token.text.lower() == "-join" and found:
                joint = self.value(place + 1, end)
                text = (joint.words[0].text if joint.words else "").join(word.text for word in found)
                self.state.spend(len(text), line)
                return Value((Word(text, line, True, merged([*(word.doubts for word in found), joint.doubts])),))
            item = self._item(token, place)
            place = token.partner + 1 if token.kind == "open" else place + 1
            if (
                item is None
                or sign == ""
                or (place < end and self.tokens[place].joined and self.tokens[place].text not in (",", "+", "\n"))
            ):
                open_ = Doubt(source[:80], "is an expression that only PowerShell works out", line)
                return Value((Word(source, line, True, (open_,)),))
            many = many or item.array
            if sign == "+" and not many:
                if not found[-1].quoted:
                    return Value((Word(source, line, True, (Doubt(source[:80], "is a calculation", line),)),))
                found[-1] = _joined([found[-1], *item.words], line)
                self.state.spend(len(found[-1].text), line)
            else:
                found += item.words
            sign = ""
        return Value(tuple(found), many)

    def _item(self, token: Token, place: int) -> Value | None:
        if token.kind == "raw":
            return Value((Word(token.text, token.line, True),))
        if token.kind == "text":
            return Value((self.string(token),))
        if token.kind == "variable":
            return self.variable(token.text, token.line)
        if token.text in ("@(", "("):
            inner = self.value(place + 1, token.partner)
            return Value(inner.words, True) if token.text == "@(" else inner
        if token.kind == "word" and NUMBER.fullmatch(token.text):
            return Value((Word(token.text, token.line),))
        return None

    def variable(self, written: str, line: int) -> Value:
        """A variable's value; one that the file does not set keeps its name."""
        value = self.state.values.get(_name(written))
        if value is None:
            name = _name(written)
            given = name in ("args", "input", "psscriptroot", "pwd", "home", "?", "_")
            why = "is given by PowerShell or the caller" if given else "is a variable that the file does not set"
            return Value((Word(written, line, True, (Doubt(written, why, line, not given),)),))
        return value

    def string(self, token: Token) -> Word:
        """A string in double quotes."""
        parts: list[str] = []
        doubts: list[Doubt] = []
        place = 0
        while match := INSIDE.search(token.text, place):
            parts.append(token.text[place : match.start()])
            place = match.end()
            if match[1] is not None:
                parts.append(ESCAPES.get(match[1], match[1]))
            elif match[0] == "$(":
                rest = token.text[match.start() :][:80]
                doubts.append(Doubt(rest, "is an expression that only PowerShell works out", token.line))
                parts.append(token.text[match.start() :])
                place = len(token.text)
            else:
                value = self.variable("$" + (match[2] or match[3] or match[4]), token.line)
                parts.append(" ".join(word.text for word in value.words))
                doubts += value.doubts
        text = "".join([*parts, token.text[place:]])
        self.state.spend(len(text), token.line)
        return Word(text, token.line, True, tuple(dict.fromkeys(doubts)))

    def _command(self, start: int, end: int) -> None:
        words: list[Word] = []
        place, fresh, skip = start, True, False
        while place < end:
            token = self.tokens[place]
            if token.text in ("|", "&&", "||") and token.kind == "operator":
                self.state.run(words)
                if token.text == "||":
                    return
                words, place, fresh = [], place + 1, True
                continue
            if token.text == "&" and token.kind == "operator":
                place += 1
                continue
            if token.kind == "operator" and ">" in token.text:
                skip, place = "&" not in token.text, place + 1
                continue
            item = self._argument(token, place)
            place = token.partner + 1 if token.kind == "open" else place + 1
            if skip:
                skip = False
            elif token.joined and not fresh and words and len(item.words) == 1:
                words[-1] = _joined([words[-1], *item.words], words[-1].line, words[-1].quoted or item.words[0].quoted)
            else:
                words += item.words
            fresh = False
        self.state.spend(sum(len(word.text) for word in words), self.tokens[start].line, len(words))
        self.state.run(words)

    def _argument(self, token: Token, place: int) -> Value:
        if token.kind == "splat":
            return self.variable("$" + token.text[1:], token.line)
        if token.text == ",":
            last = self.tokens[place - 1].text
            bare = not last.startswith("-") and token.joined
            listed = Doubt(f"{last},", "is a list, which PowerShell passes as several words", token.line)
            return Value((Word(",", token.line, doubts=(listed,) if bare else ()),))
        if token.kind == "open" and token.text == "$(":
            inner = self.tokens[place + 1 : token.partner]
            if len(inner) == 1 and inner[0].kind == "variable":
                return self.variable(inner[0].text, token.line)
        if token.kind == "open":
            doubt = Doubt(f"{token.text} ... ", "is an expression that only PowerShell works out", token.line)
            return Value((Word(token.text, token.line, False, (doubt,)),))
        if token.kind == "word":
            return Value((Word(re.sub(r"`(.)", r"\1", token.text), token.line),))
        item = self._item(token, place)
        value = item or Value((Word(token.text, token.line),))
        if (
            not value.array
            and len(value.words) == 1
            and value.words[0].text in ("", "True", "False")
            and not token.joined
        ):
            if value.words[0].text == "" and not value.words[0].doubts:
                doubt = Doubt(token.text or '""', "is empty, which versions of PowerShell pass or drop", token.line)
                return doubtful(value, doubt)
        return value

    def condition(self, start: int, end: int) -> Outcome:
        """A test on values that the file sets; -and and -or in the order they stand."""
        outcome: Outcome | None = None
        sign, place, first = "", start, start
        while place <= end:
            word = self.tokens[place].text.lower() if place < end else "-and"
            if word in ("-and", "-or") or place == end:
                if not (sign == "-and" and outcome is False) and not (sign == "-or" and outcome is True):
                    here = self._test(first, place)
                    settled = here is False if sign == "-and" else here is True
                    outcome = outcome if isinstance(outcome, Doubt) and not settled else here
                sign, first = word, place + 1
            place = self.tokens[place].partner + 1 if place < end and self.tokens[place].kind == "open" else place + 1
        return outcome if outcome is not None else False

    def _test(self, start: int, end: int) -> Outcome:
        while start < end and self.tokens[start].kind == "line":
            start += 1
        negated = False
        while start < end and self.tokens[start].text.lower() in ("-not", "!"):
            negated, start = not negated, start + 1
        if start < end and self.tokens[start].text == "(" and self.tokens[start].partner == end - 1:
            outcome = self.condition(start + 1, end - 1)
        else:
            places = [place for place in range(start, end) if self.tokens[place].text.lower() in COMPARED]
            if places:
                left, right = self.value(start, places[0]), self.value(places[0] + 1, end)
                outcome = self._compared(left, self.tokens[places[0]].text.lower(), right, start)
            else:
                value = self.value(start, end)
                outcome = self._doubt(value.doubts, start) or _true(value)
        return not outcome if negated and isinstance(outcome, bool) else outcome

    def _doubt(self, doubts: tuple[Doubt, ...], place: int) -> Doubt | None:
        if not doubts:
            return None
        line = self.tokens[min(place, len(self.tokens) - 1)].line
        return Doubt(doubts[0].got, f"{doubts[0].why}, and a test in line {line} depends on it", line)

    def _compared(self, left: Value, sign: str, right: Value, place: int) -> Outcome:
        doubt = self._doubt(merged([left.doubts, right.doubts]), place)
        if doubt:
            return doubt
        line = self.tokens[place].line
        if left.array or right.array:
            return Doubt(sign, "compares lists, which only PowerShell does", line)
        one = left.words[0] if left.words else None
        two = right.words[0] if right.words else None
        if sign.lstrip("-ci") in ("eq", "ne", "q") or sign in ("-ceq", "-cne", "-ieq", "-ine"):
            if one is None or two is None:
                same = one is None and two is None
            elif not one.quoted and one.text in ("True", "False"):
                same = _true(left) == _true(right)
            elif not one.quoted and NUMBER.fullmatch(one.text) and NUMBER.fullmatch(two.text.strip()):
                same = float(one.text) == float(two.text)
            elif sign.startswith("-c"):
                same = one.text == two.text
            else:
                same = one.text.lower() == two.text.lower()
            return same == sign.endswith("eq")
        if one and two and not one.quoted and NUMBER.fullmatch(one.text) and NUMBER.fullmatch(two.text):
            a, b = float(one.text), float(two.text)
            return {"-lt": a < b, "-le": a <= b, "-gt": a > b, "-ge": a >= b}[sign]
        return Doubt(sign, "compares texts in order, which only PowerShell does", line)


def _joined(words: list[Word], line: int, quoted: bool = True) -> Word:
    return Word("".join(word.text for word in words), line, quoted, merged(word.doubts for word in words))


def _true(value: Value) -> bool:
    if len(value.words) != 1:
        return bool(value.words)
    word = value.words[0]
    if word.quoted:
        return word.text != ""
    return word.text != "False" and not (NUMBER.fullmatch(word.text) and float(word.text) == 0)


def _name(written: str) -> str:
    name = written.lstrip("$").strip("{}").lower()
    return re.sub(r"^(global|script):", "", name)
