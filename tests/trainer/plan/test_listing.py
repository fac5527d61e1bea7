"""debug_dataset, as the command line shows it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from schemas import TrainConfig
from trainer import loop
from trainer.dataset.files import scan
from trainer.dataset.order import assign
from trainer.input.batches import BatchLoader
from trainer.plan.listing import listing

Start = Callable[..., int]


def config(pictures: Path, **options: Any) -> TrainConfig:
    given = {"resolution": "64,64", "enable_bucket": True, "min_bucket_reso": 64, "caption_extension": ".txt",
             "seed": 3, "max_data_loader_n_workers": 0, **options}  # fmt: skip
    return TrainConfig(train_data_dir=str(pictures), **given)


def test_it_shows_the_data_and_trains_nothing(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(loop, "load_models")
    assert start(debug_dataset=True, train_batch_size=2) == 0
    said = capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert "batch 5/5  bucket" in said
    assert said.count("n0m3, an ellipse, number 3") == 2


@pytest.mark.parametrize("options", [{}, {"cache_latents": True, "random_crop": False}], ids=["live", "cached"])
def test_it_shows_what_training_would_see(pictures: Path, options: dict[str, Any]) -> None:
    chance = {"shuffle_caption": True, "flip_aug": True, "random_crop": True, "caption_dropout_rate": 0.3}
    given = config(pictures, train_batch_size=2, **{**chance, **options})
    found = scan(given)
    shown = [re.findall(r"caption: '(.*)'", line)[0] for line in listing(found, given) if "caption: " in line]
    loader = BatchLoader(found, assign(found, given), given, seed=3, max_train_steps=1600)
    assert shown == [caption for batch in loader.epoch(1) for caption in batch.captions]
    assert any("mirrored" in line for line in listing(found, given))


def test_masks_regularisation_and_faces_are_named(tmp_path: Path) -> None:
    for folder, name in (("train/1_a", "x_40_40_20_20"), ("reg/1_b", "y")):
        (tmp_path / folder).mkdir(parents=True)
        Image.new("RGB", (120, 90)).save(tmp_path / folder / f"{name}.png")
    given = config(tmp_path / "train", enable_bucket=False, reg_data_dir=str(tmp_path / "reg"), prior_loss_weight=0.5,
                   face_crop_aug_range="2.0,2.0")  # fmt: skip
    text = "\n".join(listing(scan(given), given))
    assert re.search(r"x_40_40_20_20\.png  120x90, scaled to 120x90, cut at \d+,\d+  cut around the face", text)
    assert "regularisation, weight 0.5" in text
