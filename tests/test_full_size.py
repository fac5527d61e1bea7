"""Full-size base models from single files, random weights in the real layout: `pytest -m slow tests/test_full_size.py`.

SDXL needs about 7 GB of disk and less than 24 GB of memory; nothing is downloaded.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from benchmarks import random_checkpoint

GOLDEN = Path(__file__).parent / "golden"
ROOT = Path(__file__).parent.parent
COMMON = {
    "output_name": "n0m3",
    "resolution": "128,128",
    "caption_extension": ".txt",
    "network_module": "networks.lora",
    "network_dim": "16",
    "network_alpha": "8",
    "optimizer_type": "AdamW8bit",
    "unet_lr": "1e-4",
    "lr_scheduler": "cosine",
    "min_snr_gamma": "5",
    "seed": "1",
    "max_data_loader_n_workers": "0",
}


def run_full_size(folder: Path, family: str, flags: list[str]) -> dict[str, torch.Tensor]:
    """Trains through `accelerate launch -m trainer` and gives back the LoRA; the step log is printed."""
    model = folder / f"{family}.safetensors"
    random_checkpoint.write(model, family, tiny=False, dtype="fp16", seed=0)
    data = folder / "img" / "1_n0m3"
    data.mkdir(parents=True)
    for number in range(4):
        Image.new("RGB", (128, 128), (60 * number, 90, 200)).save(data / f"{number}.png")
        (data / f"{number}.txt").write_text("n0m3, a plain colour", encoding="utf-8")
    options = COMMON | {"train_data_dir": str(data.parent), "output_dir": str(folder), "max_train_epochs": ""}
    options |= {"pretrained_model_name_or_path": str(model)}
    words = [word for name, value in options.items() if value for word in (f"--{name}", value)]
    start = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "--num_machines", "1"]
    start += ["--mixed_precision", "no", "--dynamo_backend", "no", "-m", "trainer"]
    subprocess.run([*start, *words, "--cache_latents", *flags], cwd=ROOT, env={**os.environ}, check=True)
    print((folder / "n0m3.run" / "log.jsonl").read_text(encoding="utf-8"))
    return load_file(folder / "n0m3.safetensors")


def golden_shapes(name: str) -> dict[str, list[int]]:
    found: dict[str, list[int]] = json.loads((GOLDEN / name).read_text(encoding="utf-8"))
    return found


@pytest.mark.slow
def test_full_size_sd15_trains_unet_and_text_encoder(tmp_path: Path) -> None:
    flags = ["--train_batch_size", "2", "--max_train_steps", "4", "--text_encoder_lr", "5e-5"]
    lora = run_full_size(tmp_path, "sd15", flags)
    assert {name: list(tensor.shape) for name, tensor in lora.items()} == golden_shapes("keys_sd15_lora_dim16.json")
    assert all(tensor.any() for name, tensor in lora.items() if "lora_up" in name)


@pytest.mark.slow
def test_full_size_sdxl_trains_in_24_gb(tmp_path: Path) -> None:
    flags = ["--max_train_steps", "1", "--mixed_precision", "bf16", "--gradient_checkpointing", "--no_half_vae"]
    flags += ["--network_train_unet_only", "--cache_text_encoder_outputs"]
    lora = run_full_size(tmp_path, "sdxl", flags)
    wanted = {name: shape for name, shape in golden_shapes("keys_sdxl_lora_dim16.json").items() if "unet" in name}
    assert {name: list(tensor.shape) for name, tensor in lora.items()} == wanted
    assert all(tensor.isfinite().all() for tensor in lora.values())
