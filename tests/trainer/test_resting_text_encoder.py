"""stop_text_encoder_training: the text encoders' layers learn up to that step and not a bit further."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from schemas import TrainConfig
from trainer.plan.steps import count

Start = Callable[..., int]
OPTIONS: dict[str, Any] = {"max_train_steps": 6, "save_every_n_steps": 1, "text_encoder_lr": [1e-3]}


def part(folder: Path, step: int, prefix: str) -> dict[str, torch.Tensor]:
    """The tensors of one part in the copy of `step`; the last step's file has the plain name."""
    name = "n0m3.safetensors" if step == 6 else f"n0m3-step{step:08d}.safetensors"
    return {key: value for key, value in load_file(folder / name).items() if key.startswith(prefix)}


def same(folder: Path, one: int, other: int, prefix: str) -> bool:
    before, after = part(folder, one, prefix), part(folder, other, prefix)
    return before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("options", [{}, {"optimizer_type": "AdamW8bit"}, {"optimizer_type": "CAME"},
                                     {"optimizer_type": "Prodigy", "learning_rate": 1.0, "unet_lr": 1.0,
                                      "text_encoder_lr": [1.0]},
                                     {"gradient_accumulation_steps": 2},
                                     {"optimizer_args": ["weight_decay=0.5"]}], ids=str)  # fmt: skip
def test_the_text_encoder_rests_and_the_unet_goes_on(start: Start, tmp_path: Path, options: dict[str, Any]) -> None:
    assert start(stop_text_encoder_training=3, **{**OPTIONS, **options}) == 0
    out = tmp_path / "out"
    assert not same(out, 2, 3, "lora_te_")
    assert all(same(out, 3, step, "lora_te_") for step in (4, 5, 6))
    assert not same(out, 5, 6, "lora_unet_")


def test_until_then_it_is_the_same_run(start_in: Callable[..., int], tmp_path: Path) -> None:
    assert start_in(tmp_path / "whole", **OPTIONS) == 0
    assert start_in(tmp_path / "rests", stop_text_encoder_training=3, **OPTIONS) == 0
    for step in (1, 2, 3):
        for prefix in ("lora_te_", "lora_unet_"):
            one, other = part(tmp_path / "whole" / "out", step, prefix), part(tmp_path / "rests" / "out", step, prefix)
            assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_resumed_run_rests_from_the_same_step(start_in: Callable[..., int], tmp_path: Path) -> None:
    options = {**OPTIONS, "stop_text_encoder_training": 0.5, "network_dropout": 0.2, "save_state": True}
    for folder in ("whole", "cut"):
        assert start_in(tmp_path / folder, **options) == 0
    cut = tmp_path / "cut" / "out"
    state = cut / "n0m3.run" / "state-00000004"
    assert start_in(tmp_path / "cut", **options, resume=str(state)) == 0
    for prefix in ("lora_te_", "lora_unet_"):
        one, other = part(tmp_path / "whole" / "out", 6, prefix), part(cut, 6, prefix)
        assert one
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_the_log_shows_no_rate_for_what_rests(start: Start, tmp_path: Path) -> None:
    assert start(stop_text_encoder_training=3, **OPTIONS) == 0
    lines = (tmp_path / "out" / "n0m3.run" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    rates = [json.loads(line)["lr"]["textencoder"] for line in lines]
    assert [rate > 0 for rate in rates] == [True] * 3 + [False] * 3


@pytest.mark.parametrize(("value", "end"), [(0, None), (-1, None), (0.25, 25), (0.333, 34), (1.0, None), (7, 7),
                                            (1, 1), (100, None), (500, None)])  # fmt: skip
def test_a_share_is_rounded_up_and_the_end_is_no_stop(value: float, end: int | None) -> None:
    assert count(TrainConfig(max_train_steps=100, stop_text_encoder_training=value), 10).text_encoder == end
