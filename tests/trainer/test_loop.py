"""Whole runs on tiny base models: what they leave, that they learn what they are told, that they resume exactly."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from trainer import loop
from trainer.output.states import newest_state

Start = Callable[..., int]


def losses(folder: Path) -> list[float]:
    lines = (folder / "n0m3.run" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["loss"] for line in lines]


def weights(folder: Path, name: str = "n0m3") -> dict[str, torch.Tensor]:
    return load_file(folder / f"{name}.safetensors")


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def still(found: dict[str, torch.Tensor], part: str = "") -> set[str]:
    """Modules whose up matrix is zero as it was at the start."""
    ups = {name.partition(".")[0]: tensor for name, tensor in found.items() if "lora_up" in name}
    return {name for name, tensor in ups.items() if name.startswith(part) and not tensor.any()}


def moved(found: dict[str, torch.Tensor], part: str) -> bool:
    return any(name.startswith(part) for name in found) and not still(found, part)


def test_a_run_leaves_lora_copies_log_and_config(start: Start, tmp_path: Path) -> None:
    assert start(max_train_epochs=2, train_batch_size=2, save_every_n_epochs=1, save_every_n_steps=4) == 0
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {
        "n0m3.safetensors", "n0m3-000001.safetensors", "n0m3-step00000004.safetensors",
        "n0m3-step00000008.safetensors", "n0m3.run",
    }  # fmt: skip
    assert len(losses(out)) == 10  # buckets of 6 and 4 pictures make 3 + 2 batches an epoch
    assert {path.name for path in (out / "n0m3.run").iterdir()} == {"config.toml", "log.jsonl"}


def test_text_encoder_and_unet_both_learn(start: Start, tmp_path: Path) -> None:
    assert start(text_encoder_lr=[1e-3]) == 0
    found = weights(tmp_path / "out")
    assert moved(found, "lora_te_")
    assert moved(found, "lora_unet_")


def test_sdxl_learns_in_both_text_encoders(start: Start, tmp_path: Path) -> None:
    assert start("sdxl", gradient_checkpointing=True, mixed_precision="bf16", no_half_vae=True) == 0
    resting = still(weights(tmp_path / "out"))
    last = max(name for name in resting if name.startswith("lora_te1_")).partition("layers_")[2][0]
    # The first encoder is read before its last layer, which therefore never sees a gradient.
    assert all(name.startswith(f"lora_te1_text_model_encoder_layers_{last}_") for name in resting)


def test_sdxl_with_cached_text_outputs_trains_the_unet(start: Start, tmp_path: Path) -> None:
    assert start("sdxl", cache_text_encoder_outputs=True, network_train_unet_only=True) == 0
    assert moved(weights(tmp_path / "out"), "lora_unet_")


def test_a_rate_of_zero_leaves_the_text_encoder_as_it_was(start: Start, tmp_path: Path) -> None:
    assert start(text_encoder_lr=[0.0], unet_lr=1e-3) == 0
    assert not moved(weights(tmp_path / "out"), "lora_te_")


def test_the_header_says_what_was_trained(start: Start, tmp_path: Path) -> None:
    assert start(max_train_steps=2, optimizer_type="AdamW8bit", min_snr_gamma=5) == 0
    with safe_open(tmp_path / "out" / "n0m3.safetensors", "pt") as file:
        header = file.metadata()
    wanted = {"ss_steps": "2", "ss_network_dim": "4", "ss_min_snr_gamma": "5.0"}
    assert {name: header[name] for name in wanted} == wanted
    assert header["ss_optimizer"] == "bitsandbytes.optim.adamw.AdamW8bit"
    assert json.loads(header["kohyakit_config"])["network_dim"] == 4


VARIANTS: list[dict[str, Any]] = [
    {"train_batch_size": 2, "gradient_accumulation_steps": 2},
    {"cache_latents": False, "shuffle_caption": True, "caption_dropout_rate": 0.3, "flip_aug": True},
    {"optimizer_type": "AdamW8bit", "lr_scheduler": "cosine", "network_dropout": 0.2, "max_data_loader_n_workers": 2,
     "cache_latents": False},
    {"optimizer_type": "AdamWScheduleFree", "save_every_n_steps": 3},
]  # fmt: skip


@pytest.mark.parametrize("options", VARIANTS, ids=lambda options: "-".join(options))
def test_an_interrupted_and_resumed_run_equals_an_uninterrupted_one(
    options: dict[str, Any], start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    assert start(output_dir=whole, max_train_steps=7, **options) == 0
    with monkeypatch.context() as patch:
        interrupt_after(4, patch)
        assert start(output_dir=parted, max_train_steps=7, **options) == 130
    state = newest_state(parted / "n0m3.run")
    assert state is not None
    assert start(output_dir=parted, max_train_steps=7, resume=state, **options) == 0
    assert equal(weights(whole), weights(parted))
    assert losses(whole) == losses(parted)


def interrupt_after(step: int, patch: pytest.MonkeyPatch) -> None:
    """SIGINT during the step before `step` is reached, as Ctrl-C would come."""
    update = loop.Run.update

    def interrupted(run: loop.Run, *args: Any, **kwargs: Any) -> Any:
        if run.at.step == step - 1:
            os.kill(os.getpid(), signal.SIGINT)
            kwargs["stop"] = True
        return update(run, *args, **kwargs)

    patch.setattr(loop.Run, "update", interrupted)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_weights(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    batch_loss = loop.Run.batch_loss
    monkeypatch.setattr(
        loop.Run, "batch_loss", lambda run, *rest: batch_loss(run, *rest) * (torch.nan if run.at.step == 2 else 1)
    )
    assert start() == 3
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path / "out", "n0m3-step00000002").values())
    assert "step 3: the loss is nan" in capsys.readouterr().err


def test_existing_results_are_refused_unless_told(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(max_train_steps=1) == 0
    first = (tmp_path / "out" / "n0m3.safetensors").read_bytes()
    assert start(max_train_steps=1) == 1
    assert "results-exist" in capsys.readouterr().err or (tmp_path / "out" / "n0m3.safetensors").read_bytes() == first
    assert start(max_train_steps=1, overwrite=True) == 0


def test_previews_do_not_change_the_training(start: Start, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(
        "n0m3 --w 64 --h 64 --s 2 --d 1\n(big:1.3) n0m3 --w 64 --h 64 --s 2 --ss euler_a\n", encoding="utf-8"
    )
    assert start(output_dir=tmp_path / "plain") == 0
    assert (
        start(output_dir=tmp_path / "shown", sample_prompts=prompts, sample_every_n_steps=2, sample_at_first=True) == 0
    )
    assert equal(weights(tmp_path / "plain"), weights(tmp_path / "shown"))
    names = sorted(path.name for path in (tmp_path / "shown" / "sample").iterdir())
    assert len(names) == 6
    assert names[0].startswith("n0m3_000002_00_")
    assert names[-1].startswith("n0m3_e000000_01_")


def test_continuing_from_weights_starts_where_they_stood(start: Start, tmp_path: Path) -> None:
    assert start(network_alpha=2) == 0
    before = weights(tmp_path / "out")
    assert start(output_name="more", network_weights=tmp_path / "out" / "n0m3.safetensors", network_alpha=2,
                 learning_rate=1e-9, max_train_steps=1) == 0  # fmt: skip
    after = weights(tmp_path / "out", "more")
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)


def test_lycoris_trains(start: Start, tmp_path: Path) -> None:
    assert start(network_module="lycoris.kohya", network_args=["algo=lokr", "factor=4"]) == 0
    assert any("lokr_w1" in name for name in weights(tmp_path / "out"))


def test_held_out_pictures_are_measured_and_not_trained_on(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(validation_split=0.4, max_train_epochs=2, validation_seed=1, logging_dir=tmp_path / "logs") == 0
    said = capsys.readouterr().out
    assert said.count("validation: loss") == 2
    kept = (tmp_path / "out" / "n0m3.run" / "validation.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in kept] == [6, 12]
    assert all(f"{json.loads(line)['loss']:.4f}" in said for line in kept)
    assert len(losses(tmp_path / "out")) == 12  # 3 of 5 pictures, 2 repeats, 2 epochs
    assert list((tmp_path / "logs").rglob("events.out.tfevents.*"))


def test_initial_step_counts_on_and_shortens_the_run(start: Start, tmp_path: Path) -> None:
    assert start(max_train_steps=6, initial_step=4) == 0
    lines = (tmp_path / "out" / "n0m3.run" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [5, 6]


def test_fp16_on_a_cpu_is_adapted_and_said(start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert start(mixed_precision="fp16", max_train_steps=1) == 0
    assert "adapted: mixed_precision: fp16 -> no" in capsys.readouterr().out


def test_the_console_can_be_kept_in_a_file_and_quiet(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "console.txt"
    assert start(max_train_steps=1, console_log_file=kept, console_log_level="WARNING") == 0
    assert "step 1/1" in kept.read_text(encoding="utf-8")
    assert "step 1/1" not in capsys.readouterr().out


def test_trackers_get_the_norms_that_scale_weight_norms_finds(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference section 14."""
    logged: list[dict[str, float]] = []
    monkeypatch.setattr(loop.Accelerator, "log", lambda accelerator, values, **_: logged.append(values))
    assert start(max_train_steps=2, scale_weight_norms=1e-4) == 0
    assert logged[-1]["max_norm/keys_scaled"] > 0
    assert logged[-1]["norm/avg_key_norm"] <= logged[-1]["max_norm/max_key_norm"] <= 1.001e-4
    assert start(max_train_steps=1, output_name="plain") == 0
    assert not any("norm" in tag for tag in logged[-1])


def test_a_held_out_loss_due_twice_is_measured_and_told_once(start: Any, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"validation_split": 0.4, "validation_seed": 1, "max_train_epochs": 1, "validate_every_n_steps": 1}
    assert start(**options) == 0
    steps = [line.rpartition(" ")[2] for line in capsys.readouterr().out.splitlines() if "validation: loss" in line]
    assert len(steps) == len(set(steps)) > 1
