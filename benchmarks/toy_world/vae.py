"""The toy models' autoencoder: pictures to latents [4,h/8,w/8] and back, trained from nothing."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.toy_world import models
from benchmarks.toy_world.training import Course, train
from trainer.input.pixels import to_tensor
from trainer.toy import world

BATCH, RATE = 16, 2e-3
PART = 5 / 8  # of a picture's side; the part with the object
FROGS = 0.1  # share of the pictures that show the concept: it is the U-Net that shall not know it
DIVERGENCE = 1e-4  # weight of the KL term; it keeps the latents near a unit normal


def pictures(rng: random.Random, count: int, side: int = world.SIDE, share: float = 1.0) -> Tensor:
    """[count,3,side,side] in [-1,1], frogs among them; a share below 1 cuts out that much around the object."""
    rows = []
    part = round(side * share)
    room, shake = side - part, side / 8
    for _ in range(count):
        shown = world.chosen(rng)
        if rng.random() < FROGS:
            shown = world.concept(shown)
        pixels = to_tensor(np.asarray(world.draw(shown, rng, side)))
        left = round(world.PLACES[shown.place] * side - part / 2 + rng.uniform(-shake, shake))
        top = round(room / 2 + rng.uniform(-shake, shake))
        left, top = (min(max(0, start), room) for start in (left, top))
        rows.append(pixels[:, top : top + part, left : left + part])
    return torch.stack(rows)


def edges(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., 1:] - x[..., :-1]


def loss(vae: Any, pixels: Tensor) -> Tensor:
    """Pixels, edges and divergence: ||x-r||1 + 4 ||x-r||2^2 + 2 ||grad x - grad r||1 + DIVERGENCE KL."""
    posterior = vae.encode(pixels).latent_dist
    found = vae.decode(posterior.sample()).sample
    total = F.l1_loss(found, pixels) + 4 * F.mse_loss(found, pixels)
    for a, b in zip(edges(found), edges(pixels), strict=True):
        total = total + F.l1_loss(a, b)
    return total + DIVERGENCE * posterior.kl().mean() / 64


def trained(folder: Path, steps: int, say: Callable[[str], None]) -> nn.Module:
    """Encoder and decoder from nothing."""
    torch.manual_seed(0)
    vae = models.fresh("sd15", "vae")
    return _fit(Course("vae", steps, RATE), vae, vae, folder, say)


def better_decoder(
    vae: nn.Module, course: Course, folder: Path, say: Callable[[str], None], side: int = world.SIDE
) -> nn.Module:
    """The same module with a better decoder for pictures of that side.

    The latents stay as they are, so that U-Nets can be trained meanwhile.
    """
    model: Any = models.fresh("sd15", "vae")
    model.load_state_dict(vae.state_dict())
    model.encoder.requires_grad_(False)
    model.quant_conv.requires_grad_(False)
    return _fit(course, model, model.decoder, folder, say, side)


def _fit(
    course: Course,
    vae: nn.Module,
    part: nn.Module,
    folder: Path,
    say: Callable[[str], None],
    side: int = world.SIDE,
) -> nn.Module:
    """Most steps see objects alone, which is where there is something to learn; the last ones whole pictures."""

    def step_loss(step: int, rng: random.Random) -> Tensor:
        whole = step >= 0.85 * course.steps or step % 4 == 0
        return loss(vae, pictures(rng, BATCH, side) if whole else pictures(rng, 2 * BATCH, side, PART))

    train(course, part, step_loss, folder, say)
    return vae.eval().requires_grad_(False)


@torch.no_grad()
def scaled(vae: nn.Module, scale: float) -> nn.Module:
    """The same autoencoder with latents of mean 0 and deviation 1/scale in each channel, as the family expects them.

    The change of units goes into the 1x1 convolutions on both sides of the latent space. scale: the family's factor.
    """
    model: Any = models.fresh("sd15", "vae")
    model.load_state_dict(vae.state_dict())
    latents = model.encode(pictures(random.Random("scale"), 512)).latent_dist.mean
    mean, deviation = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    factor = 1 / (scale * deviation)
    into, out = model.quant_conv, model.post_quant_conv
    into.weight[:4] *= factor[:, None, None, None]
    into.bias[:4] = (into.bias[:4] - mean) * factor
    into.bias[4:] += 2 * factor.log()  # the other half holds log variances
    out.bias += out.weight[:, :, 0, 0] @ mean
    out.weight /= factor[None, :, None, None]
    result: nn.Module = model.eval().requires_grad_(False)
    return result
