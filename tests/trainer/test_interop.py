"""The LoRA in other programs' hands: diffusers loads it under kohya's keys, and the picture changes as trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline

from schemas import TrainConfig
from schemas.options import NetworkOptions
from trainer.adapters import attach
from trainer.checkpoint import load_weights
from trainer.families import Models, get

Start = Callable[..., int]


def pipeline(models: Models) -> Any:
    """The stock diffusers pipeline around our modules."""
    # steps_offset as the published models have it
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
    )
    parts: dict[str, Any] = {"vae": models.vae, "unet": models.unet, "scheduler": scheduler}
    parts |= {"text_encoder": models.text_encoders[0], "tokenizer": models.tokenizers[0]}
    if len(models.text_encoders) == 1:
        return StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None)
    return StableDiffusionXLPipeline(
        **parts, text_encoder_2=models.text_encoders[1], tokenizer_2=models.tokenizers[1], add_watermarker=False
    )


def latents_of(pipe: Any) -> torch.Tensor:
    """Two steps from fixed noise."""
    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    found: torch.Tensor = pipe(
        "n0m3", height=64, width=64, num_inference_steps=2, latents=noise, output_type="latent"
    ).images
    return found


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
@pytest.mark.parametrize("network_args", [[], ["conv_dim=2", "conv_alpha=1"]], ids=["lora", "locon"])
def test_diffusers_loads_the_lora_and_computes_what_the_trainer_does(
    family: str, network_args: list[str], start: Start, base_models: dict[str, Path], tmp_path: Path
) -> None:
    options = {"network_args": network_args} if network_args else {}
    assert start(family, max_train_steps=2, learning_rate=3e-2, **options) == 0
    file = tmp_path / "out" / "n0m3.safetensors"
    config = TrainConfig(pretrained_model_name_or_path=str(base_models[family]))
    load = get(family).load

    pipe = pipeline(load(config, dtype=torch.float32))
    plain = latents_of(pipe)
    pipe.load_lora_weights(str(file.parent), weight_name=file.name)
    theirs = latents_of(pipe)

    models = load(config, dtype=torch.float32)
    targets = get(family).targets(models)
    wanted = NetworkOptions(network_dim=4, network_args=tuple(network_args))
    attach(models, targets, wanted, weights=load_weights(file, targets)).eval()
    ours = latents_of(pipeline(models))

    change = (ours - plain).norm()
    assert change > 0.01 * plain.norm()
    assert (theirs - ours).norm() < 1e-3 * change
