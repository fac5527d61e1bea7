"""A small training set, tiny base models, and a run started in this process."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image, ImageDraw

from tests.tiny import tiny_checkpoint
from trainer.__main__ import main

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def base_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """family -> a tiny single-file checkpoint in the original layout."""
    folder = tmp_path_factory.mktemp("models")
    return {family: tiny_checkpoint(folder, family) for family in ("sd15", "sdxl")}


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five captioned pictures of two shapes in a 2_n0m3 folder."""
    folder = tmp_path_factory.mktemp("data") / "2_n0m3"
    folder.mkdir()
    for number in range(5):
        image = Image.new("RGB", (64, 64) if number % 2 else (96, 64), (40 * number, 90, 200 - 40 * number))
        ImageDraw.Draw(image).ellipse((8, 8, 40, 50), fill=(250, 30 * number, 0))
        image.save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"n0m3, an ellipse, number {number}", encoding="utf-8")
    return folder.parent


@pytest.fixture(scope="session")
def start_in(base_models: dict[str, Path], pictures: Path) -> Callable[..., int]:
    """start_in(folder, family, max_train_steps=4, flag=True, ...) trains into folder/out and returns the exit code."""

    def run(folder: Path, family: str = "sd15", **options: Any) -> int:
        for state in (AcceleratorState, GradientState, PartialState):
            state._shared_state.clear()
        values = {
            "pretrained_model_name_or_path": base_models[family],
            "train_data_dir": pictures,
            "output_dir": folder / "out",
            "output_name": "n0m3",
            "resolution": "64,64",
            "enable_bucket": True,
            "min_bucket_reso": 64,
            "max_bucket_reso": 128,
            "caption_extension": ".txt",
            "network_module": "networks.lora",
            "network_dim": 4,
            "learning_rate": 1e-3,
            "max_train_steps": 4,
            "cache_latents": True,
            "seed": 7,
            "max_data_loader_n_workers": 0,
            **options,
        }
        words: list[str] = []
        for name, value in values.items():
            if value is False or value is None:
                continue
            words.append(f"--{name}")
            if value is not True:
                words += [str(item) for item in value] if isinstance(value, list) else [str(value)]
        return main(words)

    return run


@pytest.fixture
def start(start_in: Callable[..., int], tmp_path: Path) -> Callable[..., int]:
    """start(family, max_train_steps=4, flag=True, ...) trains into tmp_path/out and returns the exit code."""
    return functools.partial(start_in, tmp_path)
