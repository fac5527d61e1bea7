"""Preview images during training (reference section 13): prompts, noise, classifier-free guidance."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from schemas import TrainConfig
from schemas.files.writing import write_atomically
from trainer.dataset.prompts import Prompt
from trainer.families import Conditioning, Family, Models, Predict, Sizes, unscaled
from trainer.families.unet import device_of


@dataclass(frozen=True)
class Preview:
    """One picture to be made: the prompt's place in the prompt file, and where the PNG goes."""

    index: int
    prompt: Prompt
    path: Path


@torch.no_grad()
def write_previews(
    models: Models, family: Family, previews: Sequence[Preview], config: TrainConfig, *, device: torch.device
) -> None:
    """Makes the images on `device`; modes, random states and the places of VAE and text encoders are as before."""
    with undisturbed([models.unet, models.vae, *models.text_encoders]):
        with moved(models.text_encoders, device):
            words = [prompt_states(models, family, preview.prompt, config).to(device) for preview in previews]
        with moved([models.vae], device):
            for preview, states in zip(previews, words, strict=True):
                latents = denoised(models, family, preview.prompt, states, config)
                (image,) = images(models, family, latents)
                write_atomically(preview.path, functools.partial(image.save, format="PNG"))


def prompt_states(models: Models, family: Family, prompt: Prompt, config: TrainConfig) -> Conditioning:
    """The negative prompt, then the prompt."""
    return family.encode_prompts(models, [prompt.negative_prompt or "", prompt.prompt], config)


def denoised(models: Models, family: Family, prompt: Prompt, words: Conditioning, config: TrainConfig) -> Tensor:
    """Latents [1,C,h,w] of one preview as the network sees them; `words` holds the negative prompt, then the prompt.

    Sides are floored to what a latent pixel covers, at least 64; without a seed the noise is fresh.
    """
    device, form, usual = words.hidden.device, family.facts.latents, family.facts.previews
    width, height = (max(64, (side or usual) // form.side * form.side) for side in (prompt.width, prompt.height))
    seed = prompt.seed if prompt.seed is not None else random.SystemRandom().getrandbits(32)
    torch.manual_seed(seed)  # ancestral samplers draw from the global generator
    # Drawn on the CPU, so that a seed gives the same image on every device.
    noise = torch.randn(1, form.channels, height // form.side, width // form.side).to(device)
    computing = torch.is_autocast_enabled(device.type)
    dtype = torch.get_autocast_dtype(device.type) if computing else torch.float32
    predict = guided(models, family, words.to(device, dtype), prompt.scale)
    process = family.noise_process(config, device)
    sampler = prompt.sample_sampler or config.sample_sampler
    return process.sample(predict, noise, sampler=sampler, steps=prompt.sample_steps)


def guided(models: Models, family: Family, words: Conditioning, scale: float) -> Predict:
    """What the network says under classifier-free guidance (Ho and Salimans 2022).

    `words` [2B,T,D]: the negative prompts, then the prompts; the network computes in their dtype.
    """
    count = len(words.hidden)

    def predict(latents: Tensor, t: Tensor) -> Tensor:
        height, width = (side * family.facts.latents.side for side in latents.shape[2:])
        full = torch.tensor([[height, width]] * count, device=latents.device)
        noisy = torch.cat([latents] * 2).to(words.hidden.dtype)
        steps = torch.full((count,), float(t), device=latents.device)
        predicted = family.predict(models.unet, noisy, steps, words, Sizes(full, torch.zeros_like(full), full))
        without, asked = predicted.float().chunk(2)
        return without + scale * (asked - without)

    return predict


def images(models: Models, family: Family, latents: Tensor) -> list[Image.Image]:
    """An image for each of [B,C,h,w] latents as the network sees them."""
    pixels = family.to_pixels(models.vae, unscaled(latents, family.facts.latents))
    values = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    return [Image.fromarray(rows) for rows in values.permute(0, 2, 3, 1).cpu().numpy()]


@contextmanager
def moved(modules: Sequence[torch.nn.Module], device: torch.device) -> Iterator[None]:
    """Modules on `device`, and afterwards back where each of them was."""
    homes = [device_of(module) for module in modules]
    for module in modules:
        module.to(device)
    try:
        yield
    finally:
        for module, home in zip(modules, homes, strict=True):
            module.to(home)


@contextmanager
def undisturbed(modules: Iterable[torch.nn.Module]) -> Iterator[None]:
    """Puts modules into eval mode and gives back their modes and every random state afterwards."""
    modes = [(module, module.training) for root in modules for module in root.modules()]
    python_state = random.getstate()
    with torch.random.fork_rng():
        for module, _ in modes:
            module.training = False
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            random.setstate(python_state)


def show_in_wandb(trackers: Iterable[Any], previews: Sequence[Preview]) -> None:
    """The pictures as sample_{index} with their prompts, joined to the run's next record (reference section 13)."""
    for tracker in trackers:
        if tracker.name == "wandb":
            import wandb

            for preview in previews:
                picture = wandb.Image(str(preview.path), caption=preview.prompt.prompt)
                tracker.tracker.log({f"sample_{preview.index}": picture}, commit=False)
