"""The peer: LoRA training as anyone would write it with diffusers and peft, and no part of ours but the file reader."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig

from benchmarks.step import PRECISION
from schemas import TrainConfig
from trainer.families import get
from trainer.setup import DTYPES

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"]


def plain_steps(family: str, checkpoint: Path, *, size: int, count: int, dtype: str, rank: int = 16) -> list[float]:
    """Seconds of `count` steps on images of `size` pixels a side, batch 2, U-Net only, latents and text at hand."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = DTYPES[PRECISION[dtype]]
    config = TrainConfig(pretrained_model_name_or_path=str(checkpoint), no_half_vae=True)
    unet: Any = get(family).load(config, dtype=precision, device=device).unet
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=TARGETS))
    trained = [weight for weight in unet.parameters() if weight.requires_grad]
    for weight in trained:
        weight.data = weight.data.float()
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    facts = unet.config
    seconds = []
    for _ in range(count):
        if device.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        noisy = torch.randn(2, 4, size // 8, size // 8, device=device, dtype=precision)
        text = torch.randn(2, 77, facts.cross_attention_dim, device=device, dtype=precision)
        added: dict[str, Any] = {}
        if facts.projection_class_embeddings_input_dim:
            wide = facts.projection_class_embeddings_input_dim - 6 * facts.addition_time_embed_dim
            added = {"text_embeds": torch.randn(2, wide, device=device, dtype=precision),
                     "time_ids": torch.ones(2, 6, device=device)}  # fmt: skip
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            timesteps = torch.randint(0, 1000, (2,), device=device)
            predicted = unet(noisy, timesteps, text, added_cond_kwargs=added).sample
        torch.nn.functional.mse_loss(predicted.float(), torch.randn_like(predicted, dtype=torch.float32)).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return seconds
