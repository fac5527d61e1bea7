"""The demo's table and sheet of epochs."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from launcher import demo, demo_sheet
from launcher.demo_sheet import Asked, Epoch

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
    assert epoch.taught == 0.5  # the second frog stands on grass, not in the night
    assert epoch.kept == 1.0


@pytest.mark.parametrize(
    ("number", "taught", "kept", "rating"),
    [
        (0, 0, 1, "before"),
        (1, 0.5, 1, "under-trained"),
        (2, 1, 0.9, "good"),
        (8, 1, 0.5, "over-trained"),
        (9, 0.5, 0, "over-trained"),
    ],
)
def test_rating(number: int, taught: float, kept: float, rating: str) -> None:
    assert Epoch(number, {}, taught, kept).rating == rating


def test_sheet_has_a_column_for_each_epoch(tmp_path: Path) -> None:
    epochs = [Epoch(n, {i: preview(tmp_path, n, i) for i in range(3)}, 1, 1) for n in range(2)]
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
