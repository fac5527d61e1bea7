"""The toy models' autoencoder: 64 x 64 pictures to latents [4,8,8] and back, trained from nothing."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.toy_world import models
from trainer.pixels import to_tensor
from trainer.toy import world

BATCH, RATE, WARMUP = 16, 2e-3, 100
PART = 40  # pixels; the side of a picture's part with the object
FROGS = 0.12  # share of the pictures that show the concept: it is the U-Net that shall not know it
DIVERGENCE = 1e-4  # weight of the KL term; it keeps the latents near a unit normal


def pictures(rng: random.Random, count: int, side: int = world.SIDE) -> Tensor:
    """[count,3,side,side] in [-1,1], frogs among them; a smaller side cuts out the part around the object."""
    rows = []
    for _ in range(count):
        shown = world.chosen(rng)
        if rng.random() < FROGS:
            shown = world.Picture(world.CONCEPT, shown.background, size=shown.size, place=shown.place)
        pixels = to_tensor(np.asarray(world.draw(shown, rng)))
        room = world.SIDE - side
        left = round(world.PLACES[shown.place] * world.SIDE - side / 2 + rng.uniform(-8, 8))
        top = round(room / 2 + rng.uniform(-8, 8))
        left, top = (min(max(0, start), room) for start in (left, top))
        rows.append(pixels[:, top : top + side, left : left + side])
    return torch.stack(rows)


def batch(step: int, steps: int, rng: random.Random) -> Tensor:
    """Most steps see objects alone, which is where there is something to learn; the last ones whole pictures."""
    if step < 0.85 * steps and step % 4:
        return pictures(rng, 2 * BATCH, PART)
    return pictures(rng, BATCH)


def rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Learning rate: linear warmup, then half a cosine down to nothing."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


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


def train(folder: Path, steps: int, seed: int, say: Callable[[str], None]) -> nn.Module:
    """The trained module; an interrupted training goes on from its last hundred steps."""
    torch.manual_seed(seed)
    vae = models.fresh("sd15", "vae")
    _fit(vae, vae, folder, "vae", steps, seed, say)
    return vae.eval().requires_grad_(False)


def train_decoder(vae: nn.Module, folder: Path, steps: int, seed: int, say: Callable[[str], None]) -> nn.Module:
    """The same module with a better decoder. The latents stay as they are, so that U-Nets can be trained meanwhile."""
    model: Any = models.fresh("sd15", "vae")
    model.load_state_dict(vae.state_dict())
    model.encoder.requires_grad_(False)
    model.quant_conv.requires_grad_(False)
    _fit(model, model.decoder, folder, "decoder", steps, seed + 1, say)
    result: nn.Module = model.eval().requires_grad_(False)
    return result


def _fit(
    vae: nn.Module, trained: nn.Module, folder: Path, name: str, steps: int, seed: int, say: Callable[[str], None]
) -> None:
    optimizer = torch.optim.AdamW(trained.parameters(), lr=RATE, betas=(0.9, 0.99), weight_decay=0.01)
    first, before = 0, models.kept(folder, name)
    if before:
        trained.load_state_dict(before["model"])  # type: ignore[arg-type]
        optimizer.load_state_dict(before["optimizer"])  # type: ignore[arg-type]
        first = int(before["step"])  # type: ignore[call-overload]
    started, total = time.monotonic(), 0.0
    for step in range(first, steps):
        rng = random.Random(f"{name}/{seed}/{step}")
        torch.manual_seed(seed * 1_000_003 + step)
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps, RATE, WARMUP)
        value = loss(vae, batch(step, steps, rng))
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        total += value.item()
        if (step + 1) % 100 == 0 or step + 1 == steps:
            say(f"{name} {step + 1}/{steps}: loss {total / 100:.4f}, {time.monotonic() - started:.0f} s")
            total = 0.0
            state = {"model": trained.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            models.keep(folder, name, state)


@torch.no_grad()
def scaled(vae: nn.Module, scale: float, seed: int) -> nn.Module:
    """The same autoencoder with latents of mean 0 and deviation 1/scale in each channel, as the family expects them.

    The change of units goes into the 1x1 convolutions on both sides of the latent space. scale: the family's factor.
    """
    model: Any = models.fresh("sd15", "vae")
    model.load_state_dict(vae.state_dict())
    latents = model.encode(pictures(random.Random(f"scale/{seed}"), 512)).latent_dist.mean
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
