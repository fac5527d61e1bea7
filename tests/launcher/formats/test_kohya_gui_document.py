"""Text to keys with lines, and what is wrong before a key is read."""

from __future__ import annotations

import pytest

from launcher.formats.kohya_gui import decode, parse
from schemas.problems import ConfigError


def refused(text: str) -> tuple[str, int | None, str]:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    problem = caught.value.problems[0]
    return problem.code, problem.line, problem.must


def test_every_key_has_its_line() -> None:
    document = parse('{\n "a": 1,\n\n "b": {"x": [\n 1]}, "c": "\\n"\n}')
    assert document.lines == {"a": 2, "b": 4, "c": 5}
    assert document.values == {"a": 1, "b": {"x": [1]}, "c": "\n"}


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_lines_count_alike_whatever_ends_them(newline: str) -> None:
    assert parse(newline.join(["{", '"a": 1,', '"b": 2}'])).lines == {"a": 2, "b": 3}


@pytest.mark.parametrize("name", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_encodings_of_windows_tools(name: str) -> None:
    text = '{"output_name": "Zoë"}'
    assert parse(decode(text.encode(name))).values == {"output_name": "Zoë"}


def test_other_bytes_are_refused_with_their_line() -> None:
    with pytest.raises(ConfigError) as caught:
        decode(b'{\n"a": "Zo\xeb"}')
    assert (caught.value.problems[0].code, caught.value.problems[0].line) == ("not-text", 2)


def test_a_repeated_key_is_told_and_the_last_one_counts() -> None:
    document = parse('{"a": 1,\n"a": 2}')
    assert document.values == {"a": 2}
    assert [(problem.code, problem.line) for problem in document.problems] == [("duplicate-key", 2)]


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [
        ('{"a": 1,\n}', 2, 1),
        ('{"a": 1\n"b": 2}', 1, 7),
        ('{"a" 1}', 1, 6),
        ("{a: 1}", 1, 2),
        ('{"a": "C:\\models"}', 1, 10),
        ('{"a": 1', 1, 8),
        ('{"a": 1} x', 1, 10),
        ("", 1, 1),
        ('{"a": ' + "9" * 5000 + "}", 1, 7),
    ],
)
def test_what_is_no_json_is_shown_by_line_and_column(text: str, line: int, column: int) -> None:
    code, at, must = refused(text)
    assert (code, at) == ("not-json", line)
    assert f"line {line}, column {column}:" in must


@pytest.mark.parametrize("text", ["[]", "3", '"x"', "null"])
def test_only_objects_are_forms(text: str) -> None:
    assert refused(text)[0] == "not-an-object"


def test_absurd_depth_and_size_are_answered() -> None:
    assert refused('{"a": ' + "[" * 200_000)[0] == "not-json"
    assert refused(" " * 8_000_001)[0] == "too-large"
