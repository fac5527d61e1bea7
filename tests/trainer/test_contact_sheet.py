"""The sheet of previews: prompt by moment, the newest of each, again after every preview."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from schemas import TrainConfig
from trainer.output import contact_sheet
from trainer.output.contact_sheet import GAP, HEAD, MOST, SIDE, chosen, previews, refresh


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    folder = tmp_path / "sample"
    folder.mkdir()
    for epoch in range(3):
        for index in range(2):
            name = f"n0m3_e{epoch:06d}_{index:02d}_2026010112000{epoch}_7.png"
            Image.new("RGB", (64, 32), (80 * epoch, 100 * index, 0)).save(folder / name)
    Image.new("RGB", (64, 32), "white").save(folder / "n0m3_e000002_01_20260101130000_7.png")  # made again
    Image.new("RGB", (64, 32), "white").save(folder / "other_e000001_00_20260101120001_7.png")
    return folder


def test_the_sheet_shows_each_prompt_at_each_moment(samples: Path, tmp_path: Path) -> None:
    refresh(samples, tmp_path, TrainConfig(output_name="n0m3"))
    with Image.open(tmp_path / contact_sheet.NAME) as sheet:
        assert sheet.size == (GAP + 3 * (SIDE + GAP), HEAD + GAP + 2 * (SIDE + GAP))
        newest = sheet.getpixel((GAP + 2 * (SIDE + GAP) + 20, HEAD + GAP + SIDE + GAP + 10))
        assert min(newest) > 240
        red = sheet.getpixel((GAP + SIDE + GAP + 20, HEAD + GAP + 10))
        assert red[0] == pytest.approx(80, abs=12)


def test_many_moments_are_thinned_with_the_newest_kept() -> None:
    found = {(True, number): {0: Path(str(number))} for number in range(40)}
    kept = chosen(found)
    assert len(kept) == MOST
    assert (kept[0], kept[-1]) == ((True, 0), (True, 39))


def test_a_broken_preview_stops_nothing(samples: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (samples / "n0m3_e000009_00_20260101140000_7.png").write_bytes(b"no image")
    refresh(samples, tmp_path, TrainConfig(output_name="n0m3"))
    assert "was not written" in caplog.text
    assert not (tmp_path / contact_sheet.NAME).exists()
    assert len(previews(samples, "n0m3")) == 4
