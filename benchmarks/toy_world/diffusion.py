"""U-Net and text encoders of a toy model, trained together from nothing on drawn pictures; no frog among them."""

from __future__ import annotations

import itertools
import random
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.toy_world import models
from benchmarks.toy_world.training import Course, train
from schemas import TrainConfig
from trainer.families import Models, Sizes, get
from trainer.families.single_file import PartName
from trainer.families.tokenizer import clip_tokenizer
from trainer.input.pixels import to_tensor
from trainer.learning import objective
from trainer.toy import world

BATCH, GAMMA = 32, 5.0  # GAMMA: min-SNR weighting (Hang et al. 2023)
NO_CAPTION, NO_SHAPE, NOISE_WORD = 0.1, 0.04, 0.1  # shares of the captions


@dataclass
class Pictures:
    """Encoded pictures: posterior means and deviations [N,4,h,w], scaled, and what each one shows."""

    means: Tensor
    deviations: Tensor
    shown: list[world.Picture]


def shown(count: int) -> list[world.Picture]:
    """What the training pictures show."""
    rng = random.Random("shown")
    return [world.chosen(rng) for _ in range(count)]


@torch.no_grad()
def encoded(vae: Any, count: int, side: int = world.SIDE) -> Pictures:
    """`count` drawn pictures of side x side pixels as latents of an autoencoder whose latents have deviation 1."""
    means, deviations, listed = [], [], shown(count)
    for start in range(0, count, BATCH):
        rng = random.Random(f"pictures/{start}")
        group = listed[start : start + BATCH]
        pixels = torch.stack([to_tensor(np.asarray(world.draw(picture, rng, side))) for picture in group])
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


def fresh(family: str, vae: nn.Module) -> Models:
    """A model with torch's own initial weights, but for the autoencoder."""
    encoders = tuple(models.fresh(family, name) for name in models.parts(family)[2:])
    return Models(family, models.fresh(family, "unet"), vae, encoders, (clip_tokenizer(),) * len(encoders))


def parts(toy: Models) -> dict[PartName, nn.Module]:
    """All of a model by the names of its parts, the autoencoder first."""
    return dict(zip(models.parts(toy.family), (toy.vae, toy.unet, *toy.text_encoders), strict=True))


def learners(toy: Models) -> nn.ModuleDict:
    """What is trained here: U-Net and text encoders."""
    return nn.ModuleDict({name: part for name, part in parts(toy).items() if name != "vae"})


def sizes(count: int, side: int, rng: random.Random) -> Sizes:
    """SDXL's sizes, drawn so that the model learns to do without them: a user's photos have any size."""
    rows = [(rng.choice((64, 128, 256, 512)), rng.choice((64, 128, 256, 512))) for _ in range(count)]
    crops = [(rng.choice((0, 0, rng.randrange(64))), rng.choice((0, 0, rng.randrange(64)))) for _ in range(count)]
    return Sizes(torch.tensor(rows), torch.tensor(crops), torch.full((count, 2), side))


def loss(
    toy: Models, pictures: Pictures, chosen: Sequence[int], rng: random.Random, schedule: objective.Schedule
) -> Tensor:
    """min-SNR weighted error of one batch, as epsilon or v (`schedule.v`)."""
    family, config = get(toy.family), TrainConfig(v_parameterization=schedule.v, min_snr_gamma=GAMMA)
    rows = torch.tensor(chosen)
    latents = pictures.means[rows].float()
    latents = latents + pictures.deviations[rows].float() * torch.randn_like(latents)
    noise, timesteps = torch.randn_like(latents), torch.randint(0, 1000, (len(rows),))
    noisy = objective.add_noise(latents, noise, timesteps, schedule, config)
    conditioning = family.encode(toy, [words(pictures.shown[n], rng) for n in chosen], config)
    predicted = family.predict(toy.unet, noisy, timesteps, conditioning, sizes(len(rows), 8 * latents.shape[-1], rng))
    wanted = objective.target(latents, noise, timesteps, schedule)
    return objective.loss(predicted, wanted, timesteps, torch.ones(len(rows)), None, config, schedule)


def trained(
    toy: Models, pictures: Pictures, course: Course, folder: Path, say: Callable[[str], None], *, v: bool = False
) -> None:
    """Trains U-Net and text encoders of `toy`, and freezes them."""
    schedule = objective.noise_schedule(v=v)
    often = list(itertools.accumulate(map(telling, pictures.shown)))
    learning = learners(toy)

    def step_loss(step: int, rng: random.Random) -> Tensor:
        return loss(toy, pictures, rng.choices(range(len(often)), cum_weights=often, k=BATCH), rng, schedule)

    train(course, learning, step_loss, folder, say)
    learning.eval().requires_grad_(False)
