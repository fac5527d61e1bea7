"""What can be measured of a model with a LoRA: loss on held-out images, change of other prompts, images of prompts.

Every number comes from fixed images, crops, timesteps and noise, so that two LoRAs differ by what they are alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from schemas import TrainConfig
from trainer.adapters import merge_weights
from trainer.adapters.adapter import find_modules
from trainer.dataset.files import Scan
from trainer.dataset.order import assign
from trainer.dataset.prompts import Prompt
from trainer.families import Conditioning, Family, Models, Noised, NoiseProcess, Sizes, scaled
from trainer.input.batches import BatchLoader
from trainer.output.lora_file import load_weights
from trainer.output.lora_source import all_targets
from trainer.output.previews import denoised, images, prompt_states, undisturbed

TIMESTEPS = tuple(1000 * number // 24 for number in range(1, 24, 2))  # the middles of twelve equal parts
BANDS = {"low noise": (0, 4), "middle": (4, 8), "high noise": (8, 12)}  # places in TIMESTEPS
AT_ONCE = 4  # timesteps in one batch
MOST_HELD = 48  # held-out images that are measured


@dataclass(frozen=True)
class Bench:
    """A base model on its device, ready to be measured with and without LoRAs."""

    config: TrainConfig
    family: Family
    models: Models
    device: torch.device
    dtype: torch.dtype
    process: NoiseProcess

    @classmethod
    def of(cls, config: TrainConfig, family: Family) -> Bench:
        """Loads the base model; in the run's own half precision on a GPU, in 32 bit elsewhere."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        half = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(config.mixed_precision, torch.float32)
        dtype = half if device.type == "cuda" else torch.float32
        models = family.load(replace(config, no_half_vae=True), dtype=dtype, device=device)
        return cls(config, family, models, device, dtype, family.noise_process(plain(config), device))

    @contextmanager
    def wearing(self, file: Path | None, strength: float) -> Iterator[None]:
        """With a LoRA added to the weights, which are as before afterwards, bit for bit."""
        if file is None or strength == 0:
            yield
            return
        targets = all_targets(self.models)
        weights = load_weights(file, targets, self.family.facts.name, trust=self.config.trust)
        keys = {name.partition(".")[0].replace("oft_unet_", "lora_unet_") for name in weights}
        modules = find_modules(self.models, [target for target in targets if target.key in keys])
        places = [(module, name) for module in modules.values() for name in ("weight", "bias")]
        kept = [
            (module, name, getattr(module, name).detach().cpu().clone())
            for module, name in places
            if getattr(module, name, None) is not None
        ]
        try:
            merge_weights(self.models, targets, weights, strength)
            yield
        finally:
            for module, name, tensor in kept:
                getattr(module, name).data = tensor.to(self.device)


@dataclass(frozen=True)
class HeldOut:
    """A held-out image: its latents [1,C,h,w] as the network sees them, caption, sizes, and the seed of its noise."""

    name: str
    latents: Tensor
    seed: int
    caption: str
    sizes: Sizes


@torch.no_grad()
def held_images(bench: Bench, held: Scan) -> list[HeldOut]:
    """The images, cropped and scaled as the run would, as latents that are drawn by the name of each."""
    loader = BatchLoader(held, assign(held, bench.config), replace(bench.config, max_data_loader_n_workers=0), seed=0)
    found: list[HeldOut] = []
    for batch in loader.epoch(1):
        assert batch.pixels is not None
        pixels = batch.pixels.to(bench.device, next(bench.models.vae.parameters()).dtype)
        names = [held.samples[sample].path.name for sample in batch.samples]
        seeds = [int.from_bytes(name.encode()[-6:], "little") for name in names]
        draws = [torch.Generator().manual_seed(seed) for seed in seeds]
        latents = scaled(bench.family.to_latents(bench.models.vae, pixels, draws), bench.family.facts.latents)
        for row, name in enumerate(names):
            sizes = Sizes(
                *(part[row : row + 1] for part in (batch.sizes.original, batch.sizes.crop, batch.sizes.target))
            )
            found.append(HeldOut(name, latents[row : row + 1], seeds[row], batch.captions[row], sizes))
    found.sort(key=lambda one: one.name)
    return found[:: max(1, -(-len(found) // MOST_HELD))]


@torch.no_grad()
def losses(bench: Bench, images: Sequence[HeldOut]) -> list[list[float]]:
    """Mean squared error of the prediction, by image and timestep, unweighted."""
    return [[float(one) for one in _errors(bench, image)] for image in images]


def _errors(bench: Bench, image: HeldOut) -> Iterator[Tensor]:
    words = bench.family.encode(bench.models, [image.caption], bench.config).to(bench.device, bench.dtype)
    for noised in asked(bench, image.latents.to(bench.device), image.seed):
        said = predicted(bench, noised.latents, noised.timesteps, words, image.sizes)
        yield from (said - noised.target).square().mean((1, 2, 3))


def asked(bench: Bench, latents: Tensor, seed: int) -> Iterator[Noised]:
    """What the network is asked of one image [1,C,h,w] at TIMESTEPS, AT_ONCE together; the same for a seed, always."""
    for start in range(0, len(TIMESTEPS), AT_ONCE):
        rows = []
        for timestep in TIMESTEPS[start : start + AT_ONCE]:
            with torch.random.fork_rng(devices=[bench.device] if bench.device.type == "cuda" else []):
                torch.manual_seed(seed + timestep)
                rows.append(bench.process.noised(latents, timestep))
        yield Noised(*(torch.cat([getattr(row, part) for row in rows]) for part in ("latents", "timesteps", "target")))


def plain(config: TrainConfig) -> TrainConfig:
    """The config without what changes the noise for training's sake: the loss is of plain noise."""
    return replace(config, ip_noise_gamma=None, noise_offset=None, multires_noise_iterations=None,
                   adaptive_noise_scale=None)  # fmt: skip


def predicted(bench: Bench, noisy: Tensor, steps: Tensor, words: Conditioning, sizes: Sizes) -> Tensor:
    """The U-Net's output in float32 for rows that share their text and sizes."""
    count = len(steps)
    pooled = None if words.pooled is None else words.pooled.expand(count, -1)
    text = Conditioning(words.hidden.expand(count, -1, -1), pooled)
    spread = Sizes(*(part.expand(count, -1) for part in (sizes.original, sizes.crop, sizes.target))).to(bench.device)
    said = bench.family.predict(bench.models.unet, noisy.to(bench.dtype), steps, text, spread)
    return said.float()


@torch.no_grad()
def draw(bench: Bench, prompts: Mapping[int, Prompt], seeds: Sequence[int]) -> dict[tuple[int, int], Tensor]:
    """(prompt, seed) -> latents, still scaled, of every prompt from each of its seeds."""
    found = {}
    encoders = [bench.models.unet, bench.models.vae, *bench.models.text_encoders]
    with undisturbed(encoders), torch.autocast(bench.device.type, bench.dtype, enabled=bench.dtype != torch.float32):
        for index, prompt in prompts.items():
            words = prompt_states(bench.models, bench.family, prompt, bench.config).to(bench.device)
            for number in seeds:
                first = prompt.seed if prompt.seed is not None else index + 1
                asked = replace(prompt, seed=first + 1000 * number)
                found[index, number] = denoised(bench.models, bench.family, asked, words, bench.config).float().cpu()
    return found


def images_of(bench: Bench, latents: Tensor) -> Any:
    """The image of scaled latents."""
    (image,) = images(bench.models, bench.family, latents.to(bench.device))
    return image


def drift(base: Mapping[tuple[int, int], Tensor], now: Mapping[tuple[int, int], Tensor]) -> list[float]:
    """How far each image has moved from the base model's: 0 not at all, 1 as far as an image of another prompt."""
    whole = torch.stack([latents.flatten() for latents in _alike(base).values()])
    apart = torch.cdist(whole, whole).square()
    count = len(whole)
    usual = float(apart.sum() / max(1, count * (count - 1)))
    return [float((now[place] - latents).square().sum()) / usual if usual else 0.0 for place, latents in base.items()]


def _alike(base: Mapping[tuple[int, int], Tensor]) -> dict[tuple[int, int], Tensor]:
    """Those of the most frequent size."""
    shapes = [tuple(latents.shape) for latents in base.values()]
    usual = max(shapes, key=shapes.count)
    return {place: latents for place, latents in base.items() if tuple(latents.shape) == usual}


@torch.no_grad()
def sway(bench: Bench, texts: Sequence[str], latents: Sequence[Tensor]) -> list[Tensor]:
    """The predictions for noisy base images of other prompts, [T,4,h,w] each, from fixed noise."""
    found = []
    for number, (text, image) in enumerate(zip(texts, latents, strict=True)):
        words = bench.family.encode(bench.models, [text], bench.config).to(bench.device, bench.dtype)
        side = [bench.family.facts.latents.side * size for size in image.shape[2:]]
        full = torch.tensor([side])
        sizes = Sizes(full, torch.zeros_like(full), full)
        rows = [
            predicted(bench, noised.latents, noised.timesteps, words, sizes)
            for noised in asked(bench, image.to(bench.device), number)
        ]
        found.append(torch.cat(rows).cpu())
    return found
