"""Preview pictures during training (reference section 13): prompts, diffusers samplers, classifier-free guidance."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import diffusers
import torch
from PIL import Image
from torch import Tensor

from schemas import TrainConfig
from schemas.files.writing import write_atomically
from trainer.dataset.prompts import Prompt
from trainer.families import Conditioning, Family, Models, Sizes
from trainer.families.unet import device_of, joined, token_rows

SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "lms": ("LMSDiscreteScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpm_2": ("KDPM2DiscreteScheduler", {}),
    "dpm_2_a": ("KDPM2AncestralDiscreteScheduler", {}),
    # that one ends at the lowest noise level, diffusers refuses it at none
    "dpmsolver": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}),
    "dpmsolver++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "dpmsingle": ("DPMSolverSinglestepScheduler", {}),
}
SAMPLERS |= {f"k_{name}": SAMPLERS[name] for name in ("lms", "euler", "euler_a", "dpm_2", "dpm_2_a")}


def sampler(name: str, *, v_prediction: bool) -> Any:
    """The diffusers scheduler of a sampler's name, on the training betas."""
    kind, extra = SAMPLERS[name]
    scheduler = getattr(diffusers, kind)(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction" if v_prediction else "epsilon",
        **extra,
    )
    if "clip_sample" in scheduler.config:
        scheduler.register_to_config(clip_sample=True)
    return scheduler


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
    """Makes the pictures on `device`; modes, random states and the places of VAE and text encoders are as before."""
    with undisturbed([models.unet, models.vae, *models.text_encoders]):
        with moved(models.text_encoders, device):
            words = [prompt_states(models, family, preview.prompt, config).to(device) for preview in previews]
        with moved([models.vae], device):
            for preview, states in zip(previews, words, strict=True):
                latents = denoised(models, family, preview.prompt, states, config)
                (image,) = decode(models.vae, latents / family.latent_scale)
                write_atomically(preview.path, functools.partial(image.save, format="PNG"))


def denoised(models: Models, family: Family, prompt: Prompt, words: Conditioning, config: TrainConfig) -> Tensor:
    """Latents [1,4,h,w] of one preview, still scaled; `words` holds the negative prompt, then the prompt.

    Sides are floored to a multiple of 8, at least 64; without a seed the noise is fresh.
    """
    device = words.hidden.device
    width, height = (max(64, (side or family.preview_size) // 8 * 8) for side in (prompt.width, prompt.height))
    scheduler = sampler(prompt.sample_sampler or config.sample_sampler, v_prediction=config.v_parameterization)
    scheduler.set_timesteps(min(max(prompt.sample_steps, 1), 1000), device=device)
    seed = prompt.seed if prompt.seed is not None else random.SystemRandom().getrandbits(32)
    torch.manual_seed(seed)  # ancestral samplers draw from the global generator
    # Drawn on the CPU, so that a seed gives the same picture on every device.
    latents = torch.randn(1, 4, height // 8, width // 8).to(device) * scheduler.init_noise_sigma
    computing = torch.is_autocast_enabled(device.type)
    dtype = torch.get_autocast_dtype(device.type) if computing else torch.float32
    return guided(models, family, scheduler, latents, words.to(device, dtype), prompt.scale)


def guided(
    models: Models, family: Family, scheduler: Any, latents: Tensor, words: Conditioning, scale: float
) -> Tensor:
    """Noise [B,4,h,w] taken to latents by classifier-free guidance (Ho and Salimans 2022).

    `words` [2B,T,D]: the negative prompts, then the prompts; the U-Net computes in their dtype.
    """
    count, (height, width) = len(words.hidden), latents.shape[2:]
    full = torch.tensor([[height * 8, width * 8]] * count, device=latents.device)
    sizes = Sizes(full, torch.zeros_like(full), full)
    for t in scheduler.timesteps:
        noisy = scheduler.scale_model_input(torch.cat([latents] * 2), t).to(words.hidden.dtype)
        steps = torch.full((count,), float(t), device=latents.device)
        without, asked = family.predict(models.unet, noisy, steps, words, sizes).float().chunk(2)
        latents = scheduler.step(without + scale * (asked - without), t, latents).prev_sample
    return latents


def prompt_states(models: Models, family: Family, prompt: Prompt, config: TrainConfig) -> Conditioning:
    """Negative prompt and prompt in the shortest form that holds both, with (emphasis:1.2) understood."""
    texts = [prompt.negative_prompt or "", prompt.prompt]
    longest = max(len(models.tokenizers[0](text, truncation=False, verbose=False)["input_ids"]) for text in texts) - 2
    length: Literal[150, 225] | None = None if longest <= 75 else 150 if longest <= 150 else 225
    asked = replace(config, max_token_length=length, weighted_captions=True)
    words = family.encode(models, texts, asked)
    _, weights = token_rows(texts, asked)
    assert weights is not None
    spread = joined(weights.flatten(0, 1).unsqueeze(-1), len(texts)).to(words.hidden)
    widths = [int(encoder.config.hidden_size) for encoder in models.text_encoders]  # type: ignore[union-attr,arg-type]
    parts = [renormalised(part, spread) for part in words.hidden.split(widths, dim=-1)]
    return Conditioning(torch.cat(parts, dim=-1), words.pooled)


def renormalised(hidden: Tensor, weights: Tensor) -> Tensor:
    """Hidden states [B,T,D] that were multiplied by `weights` [B,T,1], brought back to their mean before that.

    Only training leaves the mean as emphasis makes it (reference section 5.5). A mean near 0 says nothing: no change.
    """
    kept = weights != 0  # what a weight of 0 has wiped out does not count on either side
    before = torch.where(kept, hidden / torch.where(kept, weights, 1), 0).float().mean((1, 2), keepdim=True)
    after = hidden.float().mean((1, 2), keepdim=True)
    telling = after.abs() > 0.01 * hidden.float().abs().mean((1, 2), keepdim=True)
    weighty = (weights != 1).any(dim=1, keepdim=True) & telling
    return hidden * torch.where(weighty, before / after, 1).to(hidden)


def decode(vae: Any, latents: Tensor) -> list[Image.Image]:
    """A picture for each of [B,4,h,w] unscaled latents; in 32 bit where the VAE overflows in half precision."""
    dtype = next(vae.parameters()).dtype
    with torch.autocast(latents.device.type, enabled=False):
        pixels = vae.decode(latents.to(dtype)).sample
        if dtype != torch.float32 and not pixels.isfinite().all():
            pixels = vae.float().decode(latents.float()).sample
            vae.to(dtype)
    values = ((pixels.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
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
