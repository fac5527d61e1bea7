"""The door to the terminal: values are shown and never obeyed."""

from __future__ import annotations

import io
import json
import shutil
import subprocess

import pytest

from schemas.problems import Problem
from schemas.terminal import in_strings, plain, say, say_document, say_file, shell_words, style

EVIL = "a\x1b]0;X\x07\nerror: fake\r\x9b31m\x7f\u202eb\u2028c\ufeff\ud800\t\u200f\u061c"


class Terminal(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self) -> bool:
        return True


def test_what_a_terminal_obeys_is_escaped() -> None:
    assert plain(EVIL) == r"a\x1b]0;X\x07\nerror: fake\r\x9b31m\x7f\u202eb\u2028c\ufeff\ud800\t\u200f\u061c"


@pytest.mark.parametrize(
    "text", ["čaj", "日本語", "العربية", "क्ष", "👩\u200d👩\u200d👧", "می\u200cخواهم", "c:\\new", "🏴󠁧󠁢󠁥󠁮󠁧󠁿"]
)
def test_letters_of_every_script_and_joined_emoji_stay(text: str) -> None:
    assert plain(text) == text


def test_bytes_of_a_file_name_are_shown() -> None:
    assert plain(b"a\xff".decode("utf-8", "surrogateescape")) == r"a\xff"


def test_a_call_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    say(EVIL)
    say(f"{style('error', colour='red', bold=True)}: {EVIL}", err=True)
    out, err = capsys.readouterr()
    assert out.count("\n") == err.count("\n") == 1
    assert "\x1b" not in out + err
    assert err.startswith("error: a")


def test_only_our_own_style_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = Terminal()
    say(f"{style('ok', colour='green')} \x1b[31mred", file=stream)
    assert stream.getvalue() == "\x1b[32mok\x1b[0m \\x1b[31mred\n"
    monkeypatch.setenv("NO_COLOR", "1")
    plain_one = Terminal()
    say(style("ok", colour="green"), file=plain_one)
    assert plain_one.getvalue() == "ok\n"


def test_what_a_stream_cannot_write_is_escaped() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    say("ä", file=stream)
    assert stream.buffer.getvalue() == b"\\xe4\n"  # type: ignore[attr-defined]


def test_documents_stay_whole(capsys: pytest.CaptureFixture[str]) -> None:
    say_document({EVIL: EVIL})
    text = capsys.readouterr().out
    assert json.loads(text) == {EVIL: EVIL}
    assert not {"\x1b", "\x9b", "\x7f", "\u202e", "\u2028"} & set(text)
    say_file('a = "\u202e"\n')
    assert capsys.readouterr().out == 'a = "\\u202e"\n' == in_strings('a = "\u202e"\n')


def test_a_finding_is_one_line_and_its_fix_another() -> None:
    lines = Problem(code="x", must=f"is {EVIL}", key=EVIL, got=EVIL, fix=EVIL, file=EVIL, line=1).lines()
    assert len(lines) == 2
    assert lines == [plain(line) for line in lines]


def test_a_suggested_command_is_one_line_and_runs() -> None:
    words = ["a b", "x\nerror: fake", "it's \\ \x1b[31m", "\u202eä", b"\xff".decode("utf-8", "surrogateescape")]
    text = shell_words(["printf", "%s\\0", *words])
    assert plain(text) == text
    bash = shutil.which("bash")
    assert bash is not None
    told = subprocess.run([bash, "-c", text], capture_output=True, check=True).stdout
    assert told.decode("utf-8", "surrogateescape").split("\0")[:-1] == words
