"""Planning for a card that is not in this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launcher.check.machine import Machine, with_card
from launcher.check.resolve import UsageError
from launcher.cli import cli

LAPTOP = Machine(cores=2)


def test_a_card_of_that_size_is_planned_for_on_any_machine() -> None:
    imagined = with_card(LAPTOP, None, 8)
    assert [gpu.memory for gpu in imagined.gpus] == [8 * 2**30]
    assert with_card(LAPTOP, None, None) is LAPTOP
    assert with_card(LAPTOP, "rtx 3060", None).gpus[0].memory == 12 * 2**30
    assert with_card(LAPTOP, "rtx 3060", 6).gpus[0].memory == 6 * 2**30


def test_an_unknown_card_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match="RTX 4090"):
        with_card(LAPTOP, "RTX 9999", None)


def plan(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    with pytest.raises(SystemExit):
        cli.main(["plan", "sdxl-character", "--json", *words])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_nothing_is_taken_away_for_a_cpu_that_the_plan_is_not_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("launcher.check.machine.this_machine", lambda: LAPTOP)
    found = plan(capsys, "--vram", "5", "--set", f"output_dir={tmp_path}")
    adapted = {change["argument"] for change in found["adapted"]}
    changed = {change["argument"]: change["to"] for change in found["fit"]}
    assert not adapted & {"fp8_base", "streamed_blocks", "mixed_precision"}
    assert changed["streamed_blocks"] > 0
