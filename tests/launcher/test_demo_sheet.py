"""The demo's table and sheet of epochs."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from launcher.commands import demo, demo_sheet
from launcher.commands.demo_sheet import Asked, Epoch

ASKED = (Asked("on grass"), Asked("at night"), Asked("on sand", "star", "red"))
FROG = {"concept": 0.9, "shape": "frog", "background": "on grass"}


def preview(folder: Path, epoch: int, index: int, time: str = "20260101000000") -> Path:
    path = folder / f"frog_e{epoch:06d}_{index:02d}_{time}_7.png"
    Image.new("RGB", (64, 64), (40 * epoch, 80 * index, 0)).save(path)
    return path


def test_newest_preview_of_an_epoch_counts(tmp_path: Path) -> None:
    preview(tmp_path, 1, 0)
    newer = preview(tmp_path, 1, 0, "20260101000009")
    (tmp_path / "frog-continued_e000001_00_20260101000000_7.png").write_bytes(b"another run's")
    assert demo_sheet.previews(tmp_path, "frog") == {1: {0: newer}}


def test_shares_are_counted_from_the_verdicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(3):
        preview(tmp_path, 2, index)
    star = {"concept": 0.1, "shape": "star", "colour": "red", "background": "on sand"}

    def run(words: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert words[-1].endswith("_7.png")
        return subprocess.CompletedProcess(words, 0, json.dumps([FROG, FROG, star]), "")

    monkeypatch.setattr(demo_sheet.subprocess, "run", run)
    (epoch,) = demo_sheet.rated(demo_sheet.previews(tmp_path, "frog"), ASKED, {})
    assert (epoch.taught, epoch.taught_of) == (1, 2)  # the second frog stands on grass, not in the night
    assert (epoch.kept, epoch.kept_of) == (1, 1)


@pytest.mark.parametrize(
    ("counts", "number"),
    [
        ([(0, 4), (2, 4), (4, 4), (4, 3)], 2),  # the last has lost one of the others
        ([(0, 4), (4, 4), (4, 4)], 1),  # of equal ones the first
        ([(0, 4), (1, 4), (4, 1)], 1),  # more frogs do not make up for what is lost
        ([(0, 4), (0, 4), (3, 2)], 2),  # without a frog it is no candidate
    ],
)
def test_the_epoch_with_most_frogs_among_those_that_kept_most_is_chosen(counts: list[Any], number: int) -> None:
    epochs = [Epoch(n, {}, taught, 4, kept, 4) for n, (taught, kept) in enumerate(counts)]
    best = demo_sheet.chosen(epochs)
    assert best is not None
    assert best.number == number
    assert f"chosen: epoch {number}," in demo_sheet.reason(epochs)
    assert f"{best.taught} of 4" in demo_sheet.reason(epochs)


def test_without_a_frog_nothing_is_chosen() -> None:
    epochs = [Epoch(0, {}, 0, 4, 4, 4), Epoch(1, {}, 0, 4, 4, 4)]
    assert demo_sheet.chosen(epochs) is None
    assert "train longer" in demo_sheet.reason(epochs)


def test_sheet_has_a_column_for_each_epoch(tmp_path: Path) -> None:
    epochs = [Epoch(n, {i: preview(tmp_path, n, i) for i in range(3)}, 1, 2, 1, 1) for n in range(2)]
    demo_sheet.draw(epochs, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as page:
        assert page.size == (6 + 2 * 134, 40 + 3 * 134)
        assert page.convert("RGB").getpixel((6 + 134 + 60, 40 + 134 + 60)) == (40, 80, 0)


def test_preset_asks_for_what_the_table_counts() -> None:
    preset = json.loads((demo.PACKAGES / "presets" / "toy.json").read_text(encoding="utf-8"))
    prompts = preset["sample_prompts"].splitlines()
    assert len(prompts) == len(demo.ASKED)
    for prompt, asked in zip(prompts, demo.ASKED, strict=True):
        assert asked.background in prompt
        assert (asked.shape or demo.TOKEN) in prompt
