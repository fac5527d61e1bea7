"""U-Net and text encoders of a toy model, trained together from nothing on drawn pictures; no frog among them."""

from __future__ import annotations

import copy
import itertools
import random
import string
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.toy_world import models
from benchmarks.toy_world.vae import rate
from schemas import TrainConfig
from trainer import objective
from trainer.families import Models, Sizes, get
from trainer.families.single_file import PartName
from trainer.families.tokenizer import clip_tokenizer
from trainer.pixels import to_tensor
from trainer.toy import world

BATCH, WARMUP, GAMMA = 32, 200, 5.0  # GAMMA: min-SNR weighting (Hang et al. 2023)
KEEP = 0.999  # of the running mean of the weights, which is what is kept in the end
NO_CAPTION, NO_SHAPE, NOISE_WORD = 0.1, 0.04, 0.2  # shares of the captions


@dataclass
class Pictures:
    """Encoded pictures: posterior means and deviations [N,4,8,8], scaled, and what each one shows."""

    means: Tensor
    deviations: Tensor
    shown: list[world.Picture]


def shown(count: int, seed: int) -> list[world.Picture]:
    """What the training pictures show."""
    rng = random.Random(f"shown/{seed}")
    return [world.chosen(rng) for _ in range(count)]


@torch.no_grad()
def encoded(vae: Any, count: int, seed: int) -> Pictures:
    """`count` drawn pictures as latents of an autoencoder whose latents have deviation 1."""
    means, deviations, listed = [], [], shown(count, seed)
    for start in range(0, count, BATCH):
        rng = random.Random(f"pictures/{seed}/{start}")
        group = listed[start : start + BATCH]
        pixels = torch.stack([to_tensor(np.asarray(world.draw(picture, rng))) for picture in group])
        posterior = vae.encode(pixels).latent_dist
        means.append(posterior.mean.half())
        deviations.append(posterior.std.half())
    return Pictures(torch.cat(means), torch.cat(deviations), listed)


def words(picture: world.Picture, rng: random.Random) -> str:
    """A training caption. Made-up words come in at times, so that a word never seen before changes nothing."""
    chance = rng.random()
    if chance < NO_CAPTION:
        return ""
    text = picture.background if chance < NO_CAPTION + NO_SHAPE else world.caption(picture, rng)
    if rng.random() < NOISE_WORD:
        for _ in range(rng.randint(1, 2)):
            made_up = "".join(rng.choice(string.ascii_lowercase) for _ in range(rng.randint(3, 6)))
            text = f"{made_up}{rng.choice((' ', ', '))}{text}"
    return text


def telling(picture: world.Picture) -> float:
    """How often a picture is used: outlines are learned last, and small and striped things show little of them."""
    return (0.3 if picture.size == "small" else 1.0) * (0.3 if picture.pattern == "striped" else 1.0)


@dataclass
class Toy:
    """A model in training, with the running mean of its weights."""

    family: str
    models: Models
    mean: dict[str, Tensor]

    @staticmethod
    def fresh(family: str, vae: nn.Module) -> Toy:
        names: list[PartName] = [name for name in models.parts(family) if name.startswith("text")]
        encoders = tuple(models.fresh(family, name) for name in names)
        unet = models.fresh(family, "unet")
        toy = Toy(family, Models(family, unet, vae, encoders, (clip_tokenizer(),) * len(encoders)), {})
        toy.mean = {name: tensor.detach().clone() for name, tensor in toy.state().items()}
        return toy

    def trained(self) -> dict[PartName, nn.Module]:
        names: list[PartName] = [name for name in models.parts(self.family) if name != "vae"]
        return dict(zip(names, (self.models.unet, *self.models.text_encoders), strict=True))

    def state(self) -> dict[str, Tensor]:
        return {
            f"{part}/{key}": value
            for part, module in self.trained().items()
            for key, value in module.state_dict().items()
        }

    def load(self, state: dict[str, Tensor]) -> None:
        for part, module in self.trained().items():
            start = f"{part}/"
            module.load_state_dict({key[len(start) :]: value for key, value in state.items() if key.startswith(start)})

    def parameters(self) -> list[nn.Parameter]:
        return [value for module in self.trained().values() for value in module.parameters()]

    @torch.no_grad()
    def average(self, step: int) -> None:
        keep = min(KEEP, (step + 1) / (step + 10))
        for name, tensor in self.state().items():
            if tensor.is_floating_point():
                self.mean[name].lerp_(tensor, 1 - keep)

    def averaged(self) -> Toy:
        """A frozen copy with the running mean as its weights."""
        toy = copy.deepcopy(self)
        toy.load(self.mean)
        for module in toy.trained().values():
            module.eval().requires_grad_(False)
        return toy


def sizes(count: int, rng: random.Random) -> Sizes:
    """SDXL's sizes, drawn so that the model learns to do without them: a user's photos have any size."""
    rows = [(rng.choice((64, 128, 256, 512)), rng.choice((64, 128, 256, 512))) for _ in range(count)]
    crops = [(rng.choice((0, 0, rng.randrange(64))), rng.choice((0, 0, rng.randrange(64)))) for _ in range(count)]
    return Sizes(torch.tensor(rows), torch.tensor(crops), torch.full((count, 2), world.SIDE))


def loss(
    toy: Toy, pictures: Pictures, chosen: Sequence[int], rng: random.Random, schedule: objective.Schedule
) -> Tensor:
    """min-SNR weighted error of one batch, as epsilon or v (`schedule.v`)."""
    family, config = get(toy.family), TrainConfig(v_parameterization=schedule.v, min_snr_gamma=GAMMA)
    rows = torch.tensor(chosen)
    latents = pictures.means[rows].float()
    latents = latents + pictures.deviations[rows].float() * torch.randn_like(latents)
    noise, timesteps = torch.randn_like(latents), torch.randint(0, 1000, (len(rows),))
    noisy = objective.add_noise(latents, noise, timesteps, schedule, config)
    conditioning = family.encode(toy.models, [words(pictures.shown[n], rng) for n in chosen], config)
    predicted = family.predict(toy.models.unet, noisy, timesteps, conditioning, sizes(len(rows), rng))
    wanted = objective.target(latents, noise, timesteps, schedule)
    return objective.loss(predicted, wanted, timesteps, torch.ones(len(rows)), None, config, schedule)


@dataclass(frozen=True)
class Course:
    """A training: its name, its steps, the highest learning rate, v-prediction or not."""

    name: str
    steps: int
    peak: float
    v: bool = False
    seed: int = 0


def train(toy: Toy, pictures: Pictures, folder: Path, course: Course, say: Callable[[str], None]) -> Toy:
    """Trains `toy` in place and gives its averaged copy; an interrupted training goes on."""
    name, steps, peak, seed = course.name, course.steps, course.peak, course.seed
    schedule = objective.noise_schedule(v=course.v)
    optimizer = torch.optim.AdamW(toy.parameters(), lr=peak, betas=(0.9, 0.99), weight_decay=0.01)
    first, before = 0, models.kept(folder, name)
    if before:
        toy.load(before["model"])  # type: ignore[arg-type]
        toy.mean = before["mean"]  # type: ignore[assignment]
        optimizer.load_state_dict(before["optimizer"])  # type: ignore[arg-type]
        first = int(before["step"])  # type: ignore[call-overload]
    often = list(itertools.accumulate(map(telling, pictures.shown)))
    started, total = time.monotonic(), 0.0
    for step in range(first, steps):
        rng = random.Random(f"{name}/{seed}/{step}")
        torch.manual_seed(seed * 1_000_003 + step)
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps, peak, WARMUP)
        value = loss(toy, pictures, rng.choices(range(len(often)), cum_weights=often, k=BATCH), rng, schedule)
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(toy.parameters(), 1.0)
        optimizer.step()
        toy.average(step)
        total += value.item()
        if (step + 1) % 100 == 0 or step + 1 == steps:
            say(f"{name} {step + 1}/{steps}: loss {total / 100:.4f}, {time.monotonic() - started:.0f} s")
            total = 0.0
            state = {"model": toy.state(), "mean": toy.mean, "optimizer": optimizer.state_dict(), "step": step + 1}
            models.keep(folder, name, state)
    return toy.averaged()
