"""Runs that meet numbers that are none: each stops at that step, names the cause and keeps the last good weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from trainer import loop
from trainer import setup as prepare

Start = Callable[..., int]


def recorded(folder: Path) -> Callable[[], dict[str, Any]]:
    """A run.json as the launcher begins it; gives the cause that is kept there."""
    record = folder / "n0m3.run" / "run.json"
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps({"starts": [{"begin": "now"}], "other": 1}), encoding="utf-8")
    return lambda: json.loads(record.read_text(encoding="utf-8"))["starts"][-1]["cause"]


def rescued(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = folder.glob("n0m3-step*.safetensors")
    return load_file(file)


def sound(folder: Path) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in rescued(folder).values())


@pytest.mark.parametrize(("precision", "cure"), [("no", "use another VAE"), ("bf16", "set no_half_vae")])
def test_a_vae_that_makes_no_numbers_is_the_cause(
    precision: str, cure: str, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    real = prepare.encode_latents
    monkeypatch.setattr(prepare, "encode_latents", lambda vae, pixels, *rest: real(vae, pixels, *rest) * torch.nan)
    cause = recorded(tmp_path / "out")
    assert start(cache_latents=False, mixed_precision=precision) == 3
    assert "step 1: the loss is nan; cause: the VAE makes no numbers of" in capsys.readouterr().err
    assert cause()["certain"] is True
    assert cause()["causes"][0].endswith(f".png: {cure}")
    assert sound(tmp_path / "out")


def test_a_broken_cache_file_is_named(
    start: Start, tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(cache_latents_to_disk=True, max_train_steps=1) == 0
    (file,) = (pictures / "2_n0m3").glob("3_*_sd.npz")
    arrays = dict(np.load(file))
    np.savez(file, **{**arrays, "latents": arrays["latents"] * np.nan})
    try:
        assert start(cache_latents_to_disk=True, max_train_epochs=1, overwrite=True) == 3
    finally:
        for cache in (pictures / "2_n0m3").glob("*.npz"):
            cache.unlink()
    said = capsys.readouterr().err
    assert f"cause: the cache file {file} holds values that are no numbers" in said
    assert sound(tmp_path / "out")


def test_weights_that_a_rate_has_blown_up_are_not_what_is_kept(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cause = recorded(tmp_path / "out")
    assert (
        start(
            learning_rate=1000,
            optimizer_type="SGD",
            max_grad_norm=0,
            max_train_steps=9,
            network_args=["loraplus_lr_ratio=1e9"],
        )
        == 3
    )
    said = capsys.readouterr().err
    assert "cause: the LoRA has grown until the model overflows: lower the learning rate (last textenc" in said
    assert "the weights of step 0 are in" in said
    assert max(float(tensor.abs().max()) for tensor in rescued(tmp_path / "out").values()) <= 4  # alpha is 1
    assert (cause()["certain"], cause()["what"]) == (True, "the loss is nan")
    assert cause()["step"] > 1


@pytest.mark.parametrize("options", [{"max_grad_norm": 0}, {"optimizer_type": "AdaFactor", "max_grad_norm": 0,
                         "optimizer_args": ["relative_step=False"], "fused_backward_pass": True}, {}],
                         ids=["unclipped", "fused", "clipped"])  # fmt: skip
def test_a_gradient_that_is_no_number_stops_that_very_step(
    options: dict[str, Any], start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    real = loop.Run.training_loss

    def spoiled(run: loop.Run, batch: Any) -> torch.Tensor:
        loss = real(run, batch)
        if run.at.step == 2:
            run.adapter.parameters()[0].register_hook(lambda gradient: gradient * torch.nan)
        return loss

    monkeypatch.setattr(loop.Run, "training_loss", spoiled)
    assert start(**options) == 3
    assert "step 3: the gradient norm is nan; likely causes: a learning rate" in capsys.readouterr().err
    assert sound(tmp_path / "out")


def test_fp16_that_finds_no_scale_does_not_skip_for_ever() -> None:
    found = [loop.skipped_by(torch.amp.GradScaler("cpu", init_scale=scale)) for scale in (65536.0, 1e-4)]
    assert found == [True, False]
    assert not loop.skipped_by(torch.amp.GradScaler("cpu", enabled=False))
