"""What a rebuild must not change is recorded, and a change of it is seen."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import same


def test_a_run_is_the_same_as_itself_and_a_change_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ask(verb: str) -> int:
        monkeypatch.setattr(sys, "argv", ["same", verb, str(tmp_path), "--only", "lora"])
        return same.main()

    assert ask("record") == 0
    assert ask("check") == 0
    kept = tmp_path / "run-lora.json"
    record = json.loads(kept.read_text(encoding="utf-8"))
    assert len(record["losses"]) == 4
    steps = ("-step00000002", "-step00000004", "")
    assert set(record["files"]) == {f"n0m3{step}.safetensors" for step in steps}
    record["losses"][2] += 1e-9
    kept.write_text(json.dumps(record), encoding="utf-8")
    assert ask("check") == 1
    assert "run-lora/losses/2: " in capsys.readouterr().out


def test_differences_of_documents_are_named_by_their_place() -> None:
    before, after = {"a": [1, {"b": 2}], "c": 3}, {"a": [1, {"b": 4}], "d": 3}
    assert list(same.differences(before, after)) == ["/a/1/b: 2 -> 4", "/c: 3 -> None", "/d: None -> 3"]
