"""Draws with a toy model, with or without a LoRA, and lets the classifier say what came out."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from schemas import TrainConfig
from schemas.files.weights import checkpoint_family
from trainer.adapters import merge_weights
from trainer.families import Models, get
from trainer.output.lora_file import load_weights
from trainer.output.previews import decode, guided, sampler
from trainer.toy import judge, world

STEPS, GUIDANCE, BATCH = 30, 4.0, 24
SURE = 0.5  # of the classifier, for a picture to count as one of the concept


def load(checkpoint: Path, lora: Path | None = None, weight: float = 1.0) -> Models:
    """A toy model in 32 bit; `lora` is added to its weights, `weight` times."""
    family = get(checkpoint_family(checkpoint))
    config = TrainConfig(pretrained_model_name_or_path=str(checkpoint))
    models = family.load(config, dtype=torch.float32)
    if lora is not None:
        targets = family.targets(models)
        merge_weights(models, targets, load_weights(lora, targets), weight)
    return models


@torch.no_grad()
def generated(
    models: Models,
    captions: Sequence[str],
    *,
    seed: int = 0,
    v: bool = False,
    steps: int = STEPS,
    scale: float = GUIDANCE,
) -> list[Image.Image]:
    """A picture of the model's size for each caption, by Euler steps with classifier-free guidance."""
    family, config = get(models.family), TrainConfig(v_parameterization=v)
    side = world.SIDES[models.family] // 8
    pictures: list[Image.Image] = []
    for start in range(0, len(captions), BATCH):
        group = list(captions[start : start + BATCH])
        words = family.encode(models, ["" for _ in group] + group, config)
        scheduler = sampler("euler", v_prediction=v)
        scheduler.set_timesteps(steps)
        generator = torch.Generator().manual_seed(seed + start)
        latents = torch.randn(len(group), 4, side, side, generator=generator) * scheduler.init_noise_sigma
        latents = guided(models, family, scheduler, latents, words, scale)
        pictures += decode(models.vae, latents / family.latent_scale)
    return pictures


@dataclass(frozen=True)
class Quality:
    """Shares, 0 to 1, of pictures of known things that are as asked, and of those that show the concept instead."""

    shape: float
    colour: float
    background: float
    concept: float


def quality(models: Models, *, count: int = 200, seed: int = 0, v: bool = False, steps: int = STEPS) -> Quality:
    """How many of `count` pictures of known things came out as asked."""
    rng = random.Random(f"measure/{seed}")
    asked = [world.chosen(rng) for _ in range(count)]
    captions = [f"a {one.size} {one.colour} {one.shape} {one.place}, {one.background}" for one in asked]
    verdicts = judge.read(generated(models, captions, seed=seed, v=v, steps=steps))
    pairs = list(zip(verdicts, asked, strict=True))
    return Quality(
        sum(got.shape == one.shape for got, one in pairs) / count,
        sum(got.colour == one.colour for got, one in pairs) / count,
        sum(got.background == one.background for got, one in pairs) / count,
        sum(got.concept > SURE for got in verdicts) / count,
    )


@dataclass(frozen=True)
class Learned:
    """Shares, 0 to 1, of pictures asked for with the token that show the concept, and that show the background too."""

    concept: float
    background: float


def learned(models: Models, *, count: int = 48, seed: int = 0, v: bool = False, steps: int = STEPS) -> Learned:
    """How well a model draws the concept, every background equally often."""
    asked = [world.Picture(world.CONCEPT, world.BACKGROUNDS[n % len(world.BACKGROUNDS)]) for n in range(count)]
    captions = [world.concept_caption(one) for one in asked]
    verdicts = judge.read(generated(models, captions, seed=seed, v=v, steps=steps))
    return Learned(
        sum(got.concept > SURE for got in verdicts) / count,
        sum(got.background == one.background for got, one in zip(verdicts, asked, strict=True)) / count,
    )
