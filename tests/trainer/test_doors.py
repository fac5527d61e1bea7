"""The trainer started by hand holds to the same doors as the launcher."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any

import pytest

from trainer.__main__ import Spoken, main

EVIL = "x\x1b]0;X\x07\nerror: fake\x9b31m\u202ey"
OBEYED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202a-\u202e]")


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """`refused(text, *words)`: what the trainer says of a TOML before it ends with 1."""
    monkeypatch.delenv("KOHYAKIT_LAUNCHED", raising=False)
    monkeypatch.delenv("RANK", raising=False)

    def start(text: str, *words: str) -> str:
        (tmp_path / "a.toml").write_text(text, encoding="utf-8")
        assert main(["--config_file", str(tmp_path / "a.toml"), *words]) == 1
        said = capsys.readouterr()
        assert OBEYED.search(said.out + said.err) is None
        assert "\nerror: fake" not in said.err
        return said.err

    return start


@pytest.mark.parametrize("key", ["output_dir", "logging_dir", "console_log_file"])
@pytest.mark.parametrize("place", ["/etc/x", "~/.ssh/x", "/tmp/../usr"])
def test_a_file_may_not_choose_a_system_folder(refused: Any, key: str, place: str) -> None:
    text = f'{key} = "{os.path.expanduser(place)}"\n'
    assert f"--trust {key}" in refused(text)
    assert f"--trust {key}" not in refused(text, "--trust", key)
    assert f"--trust {key}" not in refused(text, f"--{key}", "elsewhere")


@pytest.mark.parametrize(
    ("text", "said"),
    [('output_dir = "out\\test\\new"', "single quotes"), ("output_name = '\"a\"'", "quotes of its own"),
     (f'output_name = "{"n" * 232}"', "at most"), ("learning_rate = 1e30", "at most 1000"),
     ("x = " + "[" * 3000 + "]" * 3000, "nested"), ('"\\u001b[31m\\nerror: fake" = 1', "not an option")],
)  # fmt: skip
def test_values_are_checked_as_by_the_launcher(refused: Any, text: str, said: str) -> None:
    assert said in refused(text)


@pytest.mark.parametrize(
    "key", ["pretrained_model_name_or_path", "vae", "network_weights", "in_json", "sample_prompts"]
)
def test_pipes_are_refused(refused: Any, tmp_path: Path, key: str) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    assert "is a pipe" in refused(f'{key} = "{tmp_path}/pipe.safetensors"')


def test_a_config_that_is_a_pipe_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "a.toml")
    assert main(["--config_file", str(tmp_path / "a.toml")]) == 1
    assert "is a pipe" in capsys.readouterr().err


def test_remarks_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    Spoken().emit(logging.LogRecord("trainer", logging.WARNING, "", 1, "cannot read %s", (EVIL,), None))
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert OBEYED.search(said) is None
