"""Trains the classifier of trainer/toy/judge.py on drawn pictures, plain and as the autoencoder gives them back."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.toy_world.training import Course, train
from trainer.input.pixels import to_tensor
from trainer.toy import world
from trainer.toy.judge import ANSWERS, Judge

BATCH, RATE, FROGS = 64, 2e-3, 0.15


def drawn(rng: random.Random, count: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Pictures [count,3,64,64] and the right answers; a frog's colour does not count (-100)."""
    rows, answers = [], []
    for _ in range(count):
        shown = world.chosen(rng)
        if rng.random() < FROGS:
            shown = world.concept(shown)
        rows.append(to_tensor(np.asarray(world.draw(shown, rng))))
        answers.append(shown)
    right = {}
    for name, known in ANSWERS.items():
        values = [known.index(getattr(shown, name)) for shown in answers]
        if name == "colour":
            values = [-100 if shown.shape == world.CONCEPT else n for shown, n in zip(answers, values, strict=True)]
        right[name] = torch.tensor(values)
    return torch.stack(rows), right


@torch.no_grad()
def spoiled(pixels: Tensor, vae: Any, rng: random.Random) -> Tensor:
    """What a generator might make of it: through the autoencoder with noise on the latents, softened, noisy."""
    if vae is not None and rng.random() < 0.5:
        latents = vae.encode(pixels).latent_dist.mean
        latents = latents + torch.randn_like(latents) * latents.std() * rng.uniform(0, 0.2)
        pixels = vae.decode(latents).sample.clamp(-1, 1)
    return (pixels + torch.randn_like(pixels) * rng.uniform(0, 0.1)).clamp(-1, 1)


def trained(out: Path, vae: Any, steps: int, folder: Path, say: Callable[[str], None]) -> dict[str, float]:
    """Writes the weights; the share of right answers on 1,000 fresh pictures, by attribute."""
    torch.manual_seed(0)
    model = Judge()

    def step_loss(step: int, rng: random.Random) -> Tensor:
        pixels, right = drawn(rng, BATCH)
        found = model(spoiled(pixels, vae, rng))
        return sum((F.cross_entropy(found[name], right[name]) for name in ANSWERS), torch.zeros(()))

    train(Course("judge", steps, RATE, warmup=50), model, step_loss, folder, say)
    save_file({name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}, out)
    return rated(model.eval(), random.Random("judge/test"))


@torch.no_grad()
def rated(model: Judge, rng: random.Random, count: int = 1000) -> dict[str, float]:
    """Share of right answers on fresh drawn pictures."""
    pixels, right = drawn(rng, count)
    found = model(pixels)
    rates = {}
    for name in ANSWERS:
        counted = right[name] >= 0
        rates[name] = float((found[name].argmax(dim=1) == right[name])[counted].float().mean())
    return rates
