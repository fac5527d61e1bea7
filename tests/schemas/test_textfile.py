"""Files from outside: regular ones only, bounded, the encoding found."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from schemas import ConfigError
from schemas.files.textfile import (
    is_regular,
    open_regular,
    read_bytes,
    read_text,
)


def code(function: Callable[..., object], *words: object, **more: object) -> str:
    with pytest.raises(ConfigError) as caught:
        function(*words, what="config", **more)
    problem = caught.value.problems[0]
    assert problem.file == str(words[0])
    assert problem.fix
    return problem.code


def test_pipes_devices_folders_and_sockets_are_refused_at_once(tmp_path: Path) -> None:
    """Opening a pipe waits for a writer that never comes; /dev/zero has no end."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "to-pipe").symlink_to("pipe")
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(tmp_path)  # names of sockets are short
        server.bind("socket")
        os.chdir(here)
        for name in ("pipe", "to-pipe", "zero", "socket", "."):
            assert code(read_bytes, tmp_path / name, limit=10) == "not-a-regular-file"
            assert not is_regular(tmp_path / name)


def test_size_is_bounded_before_and_while_reading(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"12345")
    assert read_bytes(file, limit=5, what="config") == b"12345"
    assert code(read_bytes, file, limit=4) == "file-too-large"
    if Path("/proc/self/status").exists():  # its size is given as 0
        assert code(read_bytes, Path("/proc/self/status"), limit=4) == "file-too-large"


def test_what_is_not_there_or_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    assert code(read_bytes, tmp_path / "none", limit=9) == "no-file"
    assert code(read_bytes, tmp_path / "loop", limit=9) == "cannot-read"
    assert code(read_bytes, str(tmp_path / ("x" * 5000)), limit=9) == "cannot-read"
    assert code(read_bytes, "a\0b", limit=9) == "cannot-read"
    assert not is_regular("x" * 5000)
    assert not is_regular("a\0b")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_in_its_encoding(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a").write_bytes("ä\n".encode(encoding))
    assert read_text(tmp_path / "a", limit=99, what="config") == "ä\n"


def test_wrong_encoding_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one\ntwo \xe4\n")
    with pytest.raises(ConfigError) as caught:
        read_text(tmp_path / "a", limit=99, what="config")
    assert [(one.code, one.line) for one in caught.value.problems] == [("not-utf8", 2)]


def test_an_open_file_can_be_sought(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    with open_regular(tmp_path / "a", what="weights file") as stream:
        stream.seek(3)
        assert stream.read() == b"45"
