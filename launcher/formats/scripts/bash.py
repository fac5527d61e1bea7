"""What a bash script runs, as far as its file decides it: tests on its own variables are decided, the rest is named."""

from __future__ import annotations

import re
from dataclasses import replace

from launcher.formats.scripts.bash_syntax import Lexer, Node, Parser, Token
from launcher.formats.scripts.bash_words import Expander
from launcher.formats.scripts.state import Doubt, State, Value, Word, doubtful, merged

ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)(\[[^\]]*\])?(\+?)=(.*)", re.S | re.A)
DECLARING = ("export", "declare", "local", "typeset", "readonly")
LEAVING = ("exit", "return", "exec")
SUCCEEDING = {
    "cd", "pushd", "popd", "source", ".", "echo", "printf", "mkdir", "pip", "pip3", "git", "conda", "mamba",
    "nvidia-smi", "apt", "apt-get", "true", ":", "set", "ulimit", "module", "clear", "sleep", "cp", "mv", "rm",
    "ln", "wget", "curl", "tar", "unzip", "touch", "date", "python", "python3", "accelerate", "sudo", "unset",
    "shopt", "huggingface-cli", "hf",
}  # fmt: skip
SETTING = ("read", "mapfile", "readarray", "getopts")
CHANGING = ("eval", "alias", "shift")
COMPARED = {"-eq": "==", "-ne": "!=", "-lt": "<", "-le": "<=", "-gt": ">", "-ge": ">="}
WRITTEN = {"variable": "${{{}}}", "arithmetic": "$(({}))"}

Outcome = bool | Doubt | None  # None: a command that is taken to succeed


def read(text: str) -> State:
    """The commands of a script with what is open about each. Unreadable where bash would refuse the file."""
    shell = Shell()
    shell.and_or(Parser(Lexer(text).tokens()).list())
    return shell.state


class Shell:
    """Walks the tree of a script."""

    def __init__(self) -> None:
        self.state = State()
        self.expander = Expander(self.state)

    def and_or(self, node: Node) -> Outcome:
        """Runs the commands of a list; the outcome is the last one's."""
        outcome: Outcome = True
        for before, item in node.items:
            if self.state.ended:
                break
            if before in ("&&", "||"):
                if isinstance(outcome, Doubt) or (outcome is None and before == "||"):
                    doubt = outcome if isinstance(outcome, Doubt) else _failure(item)
                    with self.state.aside(doubt) as written:
                        self.node(item)
                    self.state.perhaps([written], doubt)
                    outcome = outcome if outcome is None else doubt
                    continue
                if (outcome is False) == (before == "&&"):
                    continue
            outcome = self.node(item)
        return outcome

    def node(self, node: Node) -> Outcome:
        """Runs one command of any kind."""
        if node.kind == "simple":
            return self._simple(node)
        if node.kind == "if":
            return self._if(node, 0)
        if node.kind == "not":
            outcome = self.node(node.items[0][1])
            return not outcome if isinstance(outcome, bool) else outcome or _failure(node)
        if node.kind in ("list", "group"):
            return self.and_or(node)
        if node.kind == "subshell":
            with self.state.aside(None):
                return self.and_or(node)
        if node.kind == "pipe":
            for _, part in node.items:
                with self.state.aside(None):
                    self.node(part)
            return (
                Doubt("|", "is a pipe, of which only running it tells how it ends", node.line)
                if not any(self._trains(part) for _, part in node.items)
                else None
            )
        return self._open(node)

    def _trains(self, node: Node) -> bool:
        return any((token.plain or "").startswith(("accelerate", "python")) for token in node.tokens[:1])

    def _if(self, node: Node, place: int) -> Outcome:
        while place < len(node.branches):
            condition, body = node.branches[place]
            outcome = True if condition is None else self.and_or(condition)
            if isinstance(outcome, Doubt) or outcome is None:
                doubt = outcome or _failure(condition or node)
                with self.state.aside(doubt) as taken:
                    self.and_or(body)
                with self.state.aside(doubt) as passed:
                    if not node.branches[place + 1 :] or not self._if_deeper(node, place + 1):
                        pass
                self.state.perhaps([taken, passed], doubt)
                return doubt
            if outcome:
                return self.and_or(body)
            place += 1
        return True

    def _if_deeper(self, node: Node, place: int) -> bool:
        """The branches after an open one, without deeper recursion: each may run."""
        for condition, body in node.branches[place:]:
            doubt = Doubt(_source(condition or body), "is a branch that only running the script chooses", body.line)
            with self.state.aside(doubt) as written:
                if condition is not None:
                    self.and_or(condition)
                self.and_or(body)
            self.state.perhaps([written], doubt)
        return True

    def _open(self, node: Node) -> Outcome:
        """Loops, cases and functions: what they do is named and not decided."""
        doubt = Doubt(node.what, "is a loop, a case or a function, which only running the script decides", node.line)
        if node.tokens and node.tokens[0].plain:
            name = node.tokens[0].plain
            self.state.put(name, doubtful(None, doubt))
        written = []
        for _, body in node.branches:
            with self.state.aside(doubt) as changed:
                # a second time round what the body sets is not what it was
                for name in _assigned(body):
                    self.state.put(name, doubtful(self.state.values.get(name), doubt))
                self.node(body)
            written.append(changed)
        self.state.perhaps(written, doubt)
        return doubt

    def _simple(self, node: Node) -> Outcome:
        tokens = node.tokens
        if tokens and tokens[0].operator == "((":
            return self._calculation(tokens[0])
        if tokens and tokens[0].plain == "[[":
            return Test(self.expander, tokens[1:-1], node.line).outcome()
        place = 0
        while place < len(tokens) and _assignment(tokens[place]):
            place += 1
        if place == len(tokens):
            for token in tokens:
                self._assign(token)
            output = any(part.kind == "command" for token in tokens for part in token.parts)
            return _failure(node) if output else True
        name = tokens[place].plain or ""
        if name in DECLARING:
            for token in tokens[place + 1 :]:
                if _assignment(token):
                    self._assign(token)
            return True
        words = self.expander.words(tokens[place:])
        for token in tokens[:place]:
            self.expander.joined(token)
        return self._command(words, node)

    def _command(self, words: list[Word], node: Node) -> Outcome:
        name = words[0].text if words else ":"
        rest = [word.text for word in words[1:]]
        if name in ("[", "test"):
            return _single(words[1:-1] if name == "[" else words[1:], node.line, _source(node))
        if name == "unset":
            for other in rest:
                self.state.put(other, Value(()))
        elif name in SETTING or (name == "printf" and rest[:1] == ["-v"]) or name == "let":
            doubt = Doubt(name, "sets variables from outside the script", node.line)
            for other in rest:
                plain = re.match(r"[A-Za-z_]\w*", other)
                if plain:
                    self.state.put(plain[0], doubtful(None, doubt))
            return doubt
        elif name in CHANGING or (
            name in ("source", ".") and not re.search(r"activate|conda|\.bashrc|profile", " ".join(rest))
        ):
            self.state.always.append(Doubt(" ".join([name, *rest])[:80], "may change any variable", node.line))
        elif name == "set" and rest and not rest[0].startswith(("-", "+")):
            pass
        if name in ("true", ":"):
            return True
        if name == "false":
            return False
        if name not in ("echo", "printf"):
            self.state.run(words)
        self.state.ended = self.state.ended or name in LEAVING
        return None if name.rpartition("/")[2] in SUCCEEDING else _failure(node)

    def _assign(self, token: Token) -> None:
        first = token.parts[0]
        match = ASSIGNMENT.match(first.text)
        assert match
        name, more = match[1], bool(match[3])
        before = self.state.values.get(name)
        if name == "IFS":
            self.state.always.append(Doubt("IFS", "changes how words are split", token.line))
        if match[2]:
            doubt = Doubt(first.text, "sets one element of an array", token.line)
            self.state.put(name, doubtful(before, doubt))
            return
        arrays = [part for part in token.parts if part.kind == "array"]
        if arrays:
            words = self.expander.words(arrays[0].words)
            if more and before is None:
                words = [replace(word, doubts=word.doubts) for word in words]
            value = Value((*(before.words if more and before else ()), *words), True)
            self.state.spend(0, token.line, len(value.words))
            self.state.put(name, value)
            return
        value_token = Token(token.line, parts=(replace(first, text=match[4]), *token.parts[1:]))
        word = self.expander.joined(value_token)
        if more and before is None:
            doubt = Doubt(f"${name}", "is a variable that the file does not set", token.line, variable=True)
            word = replace(word, doubts=(*word.doubts, doubt))
        if more and before:
            head = before.words[0] if before.words else Word("", token.line)
            text = head.text + word.text
            self.state.spend(len(text), token.line)
            word = Word(text, token.line, False, merged([head.doubts, word.doubts]))
            self.state.put(name, Value((word, *before.words[1:]), before.array))
            return
        array = bool(before and before.array)
        self.state.put(name, Value((word, *(before.words[1:] if array and before else ())), array))

    def _calculation(self, token: Token) -> Outcome:
        text = token.parts[0].text
        match = re.fullmatch(r"\s*([^<>=!&|]+?)\s*(==|!=|<=|>=|<|>)\s*([^<>=!&|]+?)\s*", text)
        if match:
            left, right = self.expander.number(match[1]), self.expander.number(match[3])
            if left is not None and right is not None:
                return _compared(left, match[2], right)
        number = self.expander.number(text) if not match else None
        if number is not None:
            return number != 0
        doubt = Doubt(f"(({text.strip()}))", "is a calculation that only the shell does", token.line)
        for name in re.findall(r"[A-Za-z_]\w*", text[:1000]):
            if re.search(r"\+\+|--|(?<![<>=!])=(?!=)", text):
                self.state.put(name, doubtful(self.state.values.get(name), doubt))
        return doubt


class Test:
    """The condition between [[ and ]]."""

    __test__ = False

    def __init__(self, expander: Expander, tokens: list[Token], line: int) -> None:
        self.expander, self.tokens, self.line, self.place = expander, tokens, line, 0

    def outcome(self) -> Outcome:
        """Whether it holds; groups in round brackets are left open."""
        if any(token.operator in ("(", ")", "<", ">") for token in self.tokens):
            return Doubt("[[ ]]", "is a test that only running the script decides", self.line)
        found: Outcome = False
        either: list[list[Token]] = [[]]
        for token in [token for token in self.tokens if token.operator != "\n"]:
            either.append([]) if token.operator == "||" else either[-1].append(token)
        for side in either:
            both: list[list[Token]] = [[]]
            for token in side:
                both.append([]) if token.operator == "&&" else both[-1].append(token)
            here: Outcome = True
            for test in both:
                one = self._one(test)
                here = one if here is True else here if here is False or one is not False else one
                if here is False:
                    break
            if here is True:
                return True if not isinstance(found, Doubt) else found
            found = here if isinstance(here, Doubt) else found
        return found

    def _one(self, tokens: list[Token]) -> Outcome:
        negated = False
        while tokens and tokens[0].plain == "!":
            tokens, negated = tokens[1:], not negated
        if len(tokens) == 3 and tokens[1].plain in ("=", "==", "!="):
            right = "".join(part.text for part in tokens[2].parts if not part.quoted and part.kind != "array")
            literal = all(part.quoted or part.kind == "text" for part in tokens[2].parts)
            word = self.expander.joined(tokens[2])
            if (literal and re.search(r"[*?\[(]", right)) or (not literal and re.search(r"[*?\[(\\]", word.text)):
                return Doubt(tokens[2].plain or word.text, "is a pattern that only bash compares", self.line)
        words = [self.expander.joined(token) for token in tokens]
        shown = " ".join(["[[", *(_written(token) for token in tokens), "]]"])[:80]
        outcome = _single(words, self.line, shown)
        return not outcome if negated and isinstance(outcome, bool) else outcome


def _single(words: list[Word], line: int, shown: str) -> Outcome:
    """The outcome of [ WORDS ]; `shown` is how it is written, because values may be secrets."""
    doubts = merged(word.doubts for word in words)
    if doubts:
        return Doubt(shown, f"is a test on something open: {doubts[0].got[:80]} {doubts[0].why}", line)
    texts = [word.text for word in words]
    if texts[:1] == ["!"] and len(texts) in (2, 3, 4):
        outcome = _single(words[1:], line, shown)
        return not outcome if isinstance(outcome, bool) else outcome
    if len(texts) < 2:
        return bool(texts and texts[0])
    if len(texts) == 2 and texts[0] in ("-z", "-n"):
        return (texts[1] == "") == (texts[0] == "-z")
    if len(texts) == 3:
        left, sign, right = texts
        if sign in ("=", "==", "!="):
            return (left == right) == (sign != "!=")
        numbers = all(re.fullmatch(r"-?(0|[1-9]\d{0,17})", text) for text in (left, right))
        if sign in COMPARED and numbers:
            return _compared(int(left), COMPARED[sign], int(right))
    return Doubt(shown, "is a test that only running the script decides", line)


def _compared(left: int, sign: str, right: int) -> bool:
    return {"==": left == right, "!=": left != right, "<": left < right}.get(
        sign, {"<=": left <= right, ">": left > right}.get(sign, left >= right)
    )


def _assignment(token: Token) -> bool:
    first = token.parts[0] if token.parts else None
    return bool(first and first.kind == "text" and not first.quoted and ASSIGNMENT.match(first.text))


def _assigned(node: Node) -> set[str]:
    """Names that commands right in a loop's body set."""
    found, waiting = set(), [node]
    while waiting:
        one = waiting.pop()
        found |= {token.parts[0].text.partition("=")[0].rstrip("+") for token in one.tokens if _assignment(token)}
        waiting += [item for _, item in one.items]
        waiting += [part for pair in one.branches for part in pair if part is not None]
    return found


def _source(node: Node) -> str:
    while node.items and not node.tokens:
        node = node.items[0][1]
    return " ".join(_written(token) for token in node.tokens)[:80]


def _written(token: Token) -> str:
    return token.operator or "".join(WRITTEN.get(part.kind, "{}").format(part.text) for part in token.parts)


def _failure(node: Node) -> Doubt:
    return Doubt(_source(node), "ends well or badly, which only running it tells", node.line)
