"""Preview pictures during training (reference section 13): prompts, diffusers samplers, classifier-free guidance."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import diffusers
import torch
from PIL import Image

from schemas import TrainConfig
from trainer.dataset.prompts import Prompt
from trainer.families import Conditioning, Family, Models, Sizes

SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "lms": ("LMSDiscreteScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpm_2": ("KDPM2DiscreteScheduler", {}),
    "dpm_2_a": ("KDPM2AncestralDiscreteScheduler", {}),
    "dpmsolver": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver"}),
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


@torch.no_grad()
def picture(
    models: Models, family: Family, prompt: Prompt, config: TrainConfig, *, device: torch.device
) -> Image.Image:
    """One preview. Sides are floored to a multiple of 8, at least 64; without a seed the noise is fresh."""
    width, height = (max(64, (side or family.preview_size) // 8 * 8) for side in (prompt.width, prompt.height))
    scheduler = sampler(prompt.sample_sampler or config.sample_sampler, v_prediction=config.v_parameterization)
    scheduler.set_timesteps(min(max(prompt.sample_steps or 30, 1), 1000), device=device)
    scale = 7.5 if prompt.scale is None else prompt.scale
    words = encode_prompts(models, family, [prompt.negative_prompt or "", prompt.prompt], config)
    seed = prompt.seed if prompt.seed is not None else random.SystemRandom().getrandbits(32)
    torch.manual_seed(seed)  # ancestral samplers draw from the global generator
    random.seed(seed)
    # Drawn on the CPU, so that a seed gives the same picture on every device.
    noise = torch.randn(1, 4, height // 8, width // 8)
    latents = noise.to(device) * scheduler.init_noise_sigma
    sizes = _sizes(height, width, device)
    for t in scheduler.timesteps:
        noisy = scheduler.scale_model_input(torch.cat([latents] * 2), t)
        steps = torch.full((2,), float(t), device=device)
        without, guided = family.predict(models.unet, noisy, steps, words, sizes).float().chunk(2)
        latents = scheduler.step(without + scale * (guided - without), t, latents).prev_sample
    return decode(models.vae, latents / family.latent_scale)


def encode_prompts(models: Models, family: Family, texts: Sequence[str], config: TrainConfig) -> Conditioning:
    """All texts in the shortest form that holds the longest, with (emphasis:1.2) understood."""
    ids = models.tokenizers[0](list(texts), truncation=False, padding=False)["input_ids"]
    longest = max(len(row) for row in ids) - 2
    length: Literal[150, 225] | None = None if longest <= 75 else 150 if longest <= 150 else 225
    return family.encode(models, texts, replace(config, max_token_length=length, weighted_captions=True))


def decode(vae: torch.nn.Module, latents: torch.Tensor) -> Image.Image:
    """One picture of [1,4,h,w] unscaled latents."""
    dtype = next(vae.parameters()).dtype
    with torch.autocast(latents.device.type, enabled=False):
        pixels = vae.decode(latents.to(dtype)).sample  # type: ignore[operator]
    values = ((pixels[0].float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(values.permute(1, 2, 0).cpu().numpy())


def _sizes(height: int, width: int, device: torch.device) -> Sizes:
    full = torch.tensor([[height, width]] * 2, device=device)
    return Sizes(original=full, crop=torch.zeros_like(full), target=full)


def file_name(prefix: str | None, mark: str, index: int, seed: int | None, now: time.struct_time) -> str:
    """The reference's name: [output_name_]{e000001|000100}_{index}_{YYYYmmddHHMMSS}[_seed].png."""
    words = [prefix, mark, f"{index:02d}", time.strftime("%Y%m%d%H%M%S", now), None if seed is None else str(seed)]
    return "_".join(word for word in words if word) + ".png"


@contextmanager
def undisturbed(modules: Sequence[torch.nn.Module]) -> Any:
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


def write_previews(
    models: Models,
    family: Family,
    prompts: Sequence[Prompt],
    config: TrainConfig,
    *,
    mark: str,
    folder: Path,
    device: torch.device,
) -> list[Path]:
    """Pictures of all prompts into `folder`; `mark` is e000001 or a six-digit step."""
    folder.mkdir(parents=True, exist_ok=True)
    made, vae_home = [], next(models.vae.parameters()).device
    with undisturbed([models.unet, models.vae, *models.text_encoders]):
        models.vae.to(device)
        for index, prompt in enumerate(prompts):
            image = picture(models, family, prompt, config, device=device)
            path = folder / file_name(config.output_name, mark, index, prompt.seed, time.localtime())
            scratch = path.with_suffix(".tmp")
            image.save(scratch, format="PNG")
            scratch.replace(path)
            made.append(path)
        models.vae.to(vae_home)
    return made
