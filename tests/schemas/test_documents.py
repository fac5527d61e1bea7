"""JSON and TOML of strangers: a ValueError that says what is wrong, or values that files and terminals take."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from schemas.files.documents import object_in, parse_json, parse_toml

N = 3000


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (parse_json, "[" * N + "]" * N),
        (parse_json, '{"a":' * N + "1" + "}" * N),
        (parse_json, "[" * 100 + "]" * 100),
        (parse_toml, "a = " + "[" * N + "]" * N),
        (parse_toml, "a = " + "{a=" * N + "1" + "}" * N),
        (parse_toml, ".".join("a" * N) + " = 1"),
        (parse_toml, "[" + ".".join("a" * 300) + "]"),
    ],
)
def test_deep_nesting_is_a_fault_of_the_text(parse: Callable[[str], Any], text: str) -> None:
    with pytest.raises(ValueError, match="nested more than"):
        parse(text)


@pytest.mark.parametrize(("parse", "text"), [(parse_json, "9" * 5000), (parse_toml, "a = " + "9" * 5000)])
def test_endless_numbers_are_a_fault_of_the_text(parse: Callable[[str], Any], text: str) -> None:
    with pytest.raises(ValueError, match="thousands of digits"):
        parse(text)


def test_halves_of_pairs_become_a_character_that_can_be_written() -> None:
    found = parse_json('{"a\\ud800": ["\\uDC00", {"b": "\\ud83d\\ude00"}]}')
    assert found == {"a\ufffd": ["\ufffd", {"b": "\U0001f600"}]}
    json.dumps(found, ensure_ascii=False).encode()


def test_faults_keep_their_place() -> None:
    with pytest.raises(json.JSONDecodeError) as caught:
        parse_json('{\n"a": }')
    assert caught.value.lineno == 2


def test_bytes_are_utf8() -> None:
    assert parse_json('{"ä": 1}'.encode()) == {"ä": 1}
    with pytest.raises(ValueError, match="utf-8"):
        parse_json(b'{"a": "\xed\xa0\x80"}')


def test_an_object_or_nothing(tmp_path: Path) -> None:
    for name, content in (("a", b'{"x": 1}'), ("b", b"[1]"), ("c", b"\xff"), ("d", b"[" * N)):
        (tmp_path / name).write_bytes(content)
    assert [object_in(tmp_path / name, what="record") for name in "abcde"] == [{"x": 1}, {}, {}, {}, {}]
