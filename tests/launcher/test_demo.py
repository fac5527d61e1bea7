"""The demo's own parts: where it writes, what it does when a command fails; and the toy pictures."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from launcher.commands import demo


def test_fresh_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    assert demo.free_directory(tmp_path / "d") == tmp_path / "d"
    (tmp_path / "d").mkdir()
    assert demo.free_directory(tmp_path / "d") == tmp_path / "d"


def test_used_folder_is_left_alone(tmp_path: Path) -> None:
    for name in ("d", "d-2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_text("x", encoding="utf-8")
    assert demo.free_directory(tmp_path / "d") == tmp_path / "d-3"


def test_failed_command_ends_the_demo_with_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(words: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(words, 3 if "plan" in words else 0, "", "")

    monkeypatch.setattr(demo.subprocess, "run", run)
    assert demo.run_demo(tmp_path / "d") == 3
    told = capsys.readouterr()
    assert "$ kohyakit plan toy" in told.out
    assert "kohyakit launch" not in told.out
    assert "exit code 3" in told.err


def test_our_packages_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    assert demo.environment()["PYTHONPATH"].split(demo.os.pathsep) == [str(demo.PACKAGES), "elsewhere"]
