"""The syntax of a bash script: its tokens, and from them a tree of lists, pipelines and compound commands."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from launcher.formats.scripts.state import DEEPEST, Unreadable

OPERATOR = re.compile(r"&&|\|\||;;&?|;&|\|&|&>>?|[<>]\(|<<<|<<-?|>>|>&|<&|>\||<>|[;&|()<>\n]")
PLAIN = re.compile(r"[^ \t\n\"'\\$`;&|()<>]+")
IN_QUOTES = re.compile(r'[^"\\$`]+')
NAME = re.compile(r"[A-Za-z_]\w*|[0-9@*#?$!-]", re.A)
ASSIGNED = re.compile(r"[A-Za-z_]\w*\+?=\Z", re.A)
ESCAPED = re.compile(r"'((?:[^'\\]|\\.)*)'", re.S)
COMMAND_NEXT = ("if", "elif", "then", "else", "while", "until", "do", "!", "{", "for")
RESERVED = ("then", "elif", "else", "fi", "do", "done", "esac", "}")
REDIRECTIONS = ("<", ">", ">>", ">&", "<&", ">|", "<>", "&>", "&>>", "<<<", "<<", "<<-")


@dataclass(frozen=True)
class Part:
    """A piece of a word. `text` of a variable is what stands between its braces."""

    kind: Literal["text", "variable", "arithmetic", "command", "array"]
    text: str
    quoted: bool
    line: int
    words: tuple[Token, ...] = ()


@dataclass(frozen=True)
class Token:
    """A word with its parts, or an operator with its text."""

    line: int
    operator: str = ""
    parts: tuple[Part, ...] = ()

    @property
    def plain(self) -> str | None:
        """The word where it is unquoted text without expansions."""
        if len(self.parts) == 1 and self.parts[0].kind == "text" and not self.parts[0].quoted:
            return self.parts[0].text
        return None


class Lexer:
    """Tokens of a script. Each letter is looked at a bounded number of times."""

    def __init__(self, text: str) -> None:
        self.text, self.place, self.line = text.replace("\r\n", "\n"), 0, 1
        self.documents: list[tuple[Token, bool]] = []

    def tokens(self, until: str = "") -> list[Token]:
        """All tokens up to the operator `until`, or the end."""
        found: list[Token] = []
        while self.place < len(self.text):
            letter = self.text[self.place]
            if letter in " \t":
                self.place += 1
            elif self.text.startswith("\\\n", self.place):
                self._move(2)
            elif letter == "#":
                self.place = self._find("\n", or_end=True)
            elif self.text.startswith("((", self.place) and (
                not found or found[-1].operator not in ("", ")") or found[-1].plain in COMMAND_NEXT
            ):
                line = self.line
                found.append(Token(line, "((", (Part("arithmetic", self._balanced("(", ")")[2:-2], False, line),)))
            elif (match := OPERATOR.match(self.text, self.place)) and match[0] not in ("<(", ">("):
                if match[0] == until:
                    self.place = match.end()
                    return found
                found.append(Token(self.line, match[0]))
                self._move(len(match[0]))
                if match[0] == "\n":
                    self._skip_documents()
            else:
                word = self._word(array=not until)
                if (word.plain or "").isdigit() and self.text[self.place : self.place + 1] in ("<", ">"):
                    continue  # 2> log
                if found and found[-1].operator in ("<<", "<<-"):
                    self.documents.append((word, found[-1].operator == "<<-"))
                found.append(word)
        if until:
            raise Unreadable(found[0].line if found else self.line, f"a `{until}` is missing")
        return found

    def _move(self, letters: int) -> None:
        self.line += self.text.count("\n", self.place, self.place + letters)
        self.place += letters

    def _find(self, what: str, or_end: bool = False) -> int:
        place = self.text.find(what, self.place)
        if place < 0 and not or_end:
            raise Unreadable(self.line, f"a closing {what} is missing")
        return place if place >= 0 else len(self.text)

    def _skip_documents(self) -> None:
        for word, tabs in self.documents:
            end = "".join(part.text for part in word.parts)
            while self.place < len(self.text):
                stop = self._find("\n", or_end=True)
                line = self.text[self.place : stop]
                self._move(stop + 1 - self.place)
                if (line.lstrip("\t") if tabs else line) == end:
                    break
        self.documents = []

    def _word(self, array: bool) -> Token:
        line, parts = self.line, []
        while self.place < len(self.text):
            letter, here = self.text[self.place], self.line
            if match := PLAIN.match(self.text, self.place):
                parts.append(Part("text", match[0], False, here))
                self.place = match.end()
            elif letter == "\\":
                if self.text[self.place + 1 : self.place + 2] != "\n":
                    parts.append(Part("text", self.text[self.place + 1 : self.place + 2] or "\\", True, here))
                self._move(2)
            elif letter == "'":
                self.place += 1
                stop = self._find("'")
                parts.append(Part("text", self.text[self.place : stop], True, here))
                self._move(stop + 1 - self.place)
            elif letter == '"':
                self.place += 1
                parts += self._quoted()
            elif letter in "$`":
                parts.append(self._expansion(False))
            elif letter == "(" and array and len(parts) == 1 and ASSIGNED.match(parts[0].text):
                self.place += 1
                inner = [token for token in self.tokens(")") if token.operator != "\n"]
                parts.append(Part("array", "", False, here, tuple(inner)))
            elif self.text.startswith(("<(", ">("), self.place):
                self.place += 1
                parts.append(Part("command", "<" + self._balanced("(", ")"), False, here))
            else:
                break
        return Token(line, parts=tuple(parts))

    def _quoted(self) -> list[Part]:
        line, parts = self.line, [Part("text", "", True, self.line)]
        while self.place < len(self.text):
            letter, here = self.text[self.place], self.line
            if match := IN_QUOTES.match(self.text, self.place):
                parts.append(Part("text", match[0], True, here))
                self._move(len(match[0]))
            elif letter == '"':
                self.place += 1
                return parts
            elif letter == "\\":
                after = self.text[self.place + 1 : self.place + 2]
                text = "" if after == "\n" else after if after in '"\\$`' else "\\" + after
                parts.append(Part("text", text, True, here))
                self._move(2)
            else:
                parts.append(self._expansion(True))
        raise Unreadable(line, 'a closing " is missing')

    def _balanced(self, opening: str, closing: str) -> str:
        """The text from an opening bracket to its closing one, brackets included."""
        start, line, depth, quote = self.place, self.line, 0, ""
        while self.place < len(self.text):
            letter = self.text[self.place]
            if letter == "\\" and quote != "'":
                self._move(1)
            elif quote:
                quote = "" if letter == quote else quote
            elif letter in "\"'":
                quote = letter
            elif letter in (opening, closing):
                depth += 1 if letter == opening else -1
            self._move(1)
            if not depth:
                return self.text[start : self.place]
        raise Unreadable(line, f"a closing {closing} is missing")

    def _expansion(self, quoted: bool) -> Part:
        line, text = self.line, self.text
        if text[self.place] == "`":
            self.place += 1
            stop = self._find("`")
            inner = text[self.place : stop]
            self._move(stop + 1 - self.place)
            return Part("command", f"`{inner}`", quoted, line)
        self.place += 1
        after = text[self.place : self.place + 1]
        if after == "(":
            inner = self._balanced("(", ")")
            if inner.startswith("((") and inner.endswith("))"):
                return Part("arithmetic", inner[2:-2], quoted, line)
            return Part("command", f"${inner}", quoted, line)
        if after == "{":
            return Part("variable", self._balanced("{", "}")[1:-1], quoted, line)
        if match := NAME.match(text, self.place):
            self.place = match.end()
            return Part("variable", match[0], quoted, line)
        if after == "'" and not quoted:
            match = ESCAPED.match(text, self.place)
            if not match:
                raise Unreadable(line, "a closing ' is missing")
            self._move(len(match[0]))
            if "\\" in match[1]:
                return Part("command", f"${match[0]}", True, line)
            return Part("text", match[1], True, line)
        if after == '"' and not quoted:
            return Part("text", "", True, line)
        return Part("text", "$", True, line)


@dataclass
class Node:
    """A command. Of a list `items` are (operator before, node); of an if (condition, body) pairs, else without one."""

    kind: Literal["simple", "list", "not", "if", "open", "group", "subshell", "pipe"]
    line: int
    tokens: list[Token] = field(default_factory=list)
    items: list[tuple[str, Node]] = field(default_factory=list)
    branches: list[tuple[Node | None, Node]] = field(default_factory=list)
    what: str = ""


class Parser:
    """The tree of a script's tokens."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens, self.place, self.depth = tokens, 0, 0

    def _peek(self) -> str:
        """The operator or plain word that comes next; a word of another kind is a blank."""
        if self.place >= len(self.tokens):
            return ""
        token = self.tokens[self.place]
        return token.operator or token.plain or " "

    @property
    def _line(self) -> int:
        return self.tokens[min(self.place, len(self.tokens) - 1)].line if self.tokens else 1

    def list(self, *ends: str) -> Node:
        """Commands up to one of the words `ends`, which stays."""
        found = Node("list", self._line)
        self.depth += 1
        if self.depth > DEEPEST:
            raise Unreadable(self._line, f"the script nests more than {DEEPEST} deep")
        before = ";"
        while (word := self._peek()) and word not in ends:
            if word in (";", "\n", "&"):
                before = ";" if before == ";" or word != "\n" else before
                self.place += 1
            elif word in ("&&", "||"):
                before = word
                self.place += 1
            else:
                found.items.append((before, self._pipeline()))
                before = ";"
        if ends and self._peek() not in ends:
            raise Unreadable(found.line, f"`{ends[0]}` is missing")
        self.depth -= 1
        return found

    def _pipeline(self) -> Node:
        line, negated = self._line, False
        while self._peek() == "!":
            negated, self.place = not negated, self.place + 1
        parts = [self._command()]
        while self._peek() in ("|", "|&"):
            self.place += 1
            while self._peek() == "\n":
                self.place += 1
            parts.append(self._command())
        node = parts[0] if len(parts) == 1 else Node("pipe", line, items=[("|", part) for part in parts])
        return Node("not", line, items=[("", node)]) if negated else node

    def _expect(self, word: str) -> None:
        if self._peek() != word:
            raise Unreadable(self._line, f"`{word}` is missing")
        self.place += 1

    def _command(self) -> Node:
        line, word = self._line, self._peek()
        if word in ("if", "while", "until", "for", "select", "case", "{", "(", "function"):
            self.place += 1
            node = self._compound(word, line)
            self._redirections()
            return node
        following = self.tokens[self.place + 1 : self.place + 3]
        if [token.operator for token in following] == ["(", ")"]:
            self.place += 3
            return self._function(line, word)
        return self._simple(line)

    def _compound(self, word: str, line: int) -> Node:
        if word == "if":
            return self._if(line)
        if word in ("while", "until"):
            condition = self.list("do")
            self._expect("do")
            body = self.list("done")
            self._expect("done")
            return Node("open", line, what=f"{word} ... do", branches=[(None, condition), (None, body)])
        if word in ("for", "select"):
            return self._for(line)
        if word == "case":
            return self._case(line)
        if word in ("{", "("):
            body = self.list("}" if word == "{" else ")")
            self.place += 1
            return Node("group" if word == "{" else "subshell", line, items=body.items)
        name = self._peek()
        self.place += 1
        if self._peek() == "(":
            self.place += 2
        return self._function(line, name)

    def _if(self, line: int) -> Node:
        node = Node("if", line)
        while True:
            condition = self.list("then")
            self._expect("then")
            node.branches.append((condition, self.list("elif", "else", "fi")))
            end = self._peek()
            self.place += 1
            if end == "else":
                node.branches.append((None, self.list("fi")))
                self.place += 1
            if end != "elif":
                return node

    def _for(self, line: int) -> Node:
        head: list[Token] = []
        while self._peek() not in ("do", ""):
            head.append(self.tokens[self.place])
            self.place += 1
        self._expect("do")
        body = self.list("done")
        self._expect("done")
        name = head[0].plain if head else None
        return Node("open", line, what=f"for {name or ''} ... do", branches=[(None, body)], tokens=head[:1])

    def _case(self, line: int) -> Node:
        node = Node("open", line, what="case ... in")
        while self._peek() not in ("in", ""):
            self.place += 1
        self._expect("in")
        while self._peek() not in ("esac", ""):
            if self._peek() == "\n":
                self.place += 1
                continue
            while self._peek() not in (")", ""):
                self.place += 1
            self._expect(")")
            node.branches.append((None, self.list(";;", ";&", ";;&", "esac")))
            self.place += self._peek() != "esac"
        self._expect("esac")
        return node

    def _function(self, line: int, name: str) -> Node:
        self.depth += 1
        if self.depth > DEEPEST:
            raise Unreadable(line, f"the script nests more than {DEEPEST} deep")
        while self._peek() == "\n":
            self.place += 1
        body = self._command()
        self.depth -= 1
        return Node("open", line, what=f"{name}()", branches=[(None, body)])

    def _redirections(self) -> None:
        while self._peek() in REDIRECTIONS:
            self.place += 2

    def _simple(self, line: int) -> Node:
        node = Node("simple", line)
        if self._peek() == "((":
            self.place += 1
            return Node("simple", line, tokens=[self.tokens[self.place - 1]])
        if self._peek() in RESERVED:
            raise Unreadable(line, f"`{self._peek()}` stands where a command must")
        test = self._peek() == "[["
        while word := self._peek():
            token = self.tokens[self.place]
            if test and word != "]]":
                node.tokens.append(token)
            elif test:
                node.tokens.append(token)
                test = False
            elif word in REDIRECTIONS:
                self.place += 1
            elif token.operator == "(" and len(node.tokens) == 0:
                break
            elif token.operator == "(":
                raise Unreadable(token.line, "a `(` stands where bash allows none")
            elif token.operator:
                break
            else:
                node.tokens.append(token)
            self.place += 1
        if not node.tokens and self._peek():
            raise Unreadable(self._line, f"`{self._peek()}` stands where a command must")
        return node
