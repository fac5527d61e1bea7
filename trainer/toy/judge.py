"""Reads shape, colour and background from a 64 x 64 picture: a small convolutional classifier with three answers.

It was trained on drawn pictures by `python -m benchmarks.toy_world`; docs/learning.md states how well it reads them.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from trainer.input.pixels import to_tensor
from trainer.toy import world

WEIGHTS = Path(__file__).parent / "judge.safetensors"
SHAPES = (*world.SHAPES, world.CONCEPT)
COLOURS = tuple(world.COLOURS)
ANSWERS = {"shape": SHAPES, "colour": COLOURS, "background": world.BACKGROUNDS}


@dataclass(frozen=True)
class Verdict:
    """What a picture shows, and how sure it is (0 to 1) that it shows the concept."""

    shape: str
    colour: str
    background: str
    concept: float


class Judge(nn.Module):
    """[B,3,64,64] in [-1,1] to logits by attribute."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 48, 64, 64)
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
            layers += [nn.Conv2d(after, after, 3, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
        self.body = nn.Sequential(*layers)
        inner = widths[-1]
        self.heads = nn.ModuleDict({name: nn.Linear(2 * inner, len(answers)) for name, answers in ANSWERS.items()})

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        features = self.body(pixels)
        pooled = torch.cat([features.mean(dim=(2, 3)), features.amax(dim=(2, 3))], dim=1)
        return {name: head(pooled) for name, head in self.heads.items()}


@functools.cache
def judge() -> Judge:
    """The shipped classifier."""
    model = Judge()
    model.load_state_dict({name: tensor.float() for name, tensor in load_file(WEIGHTS).items()})
    return model.eval().requires_grad_(False)


def read(images: Sequence[Image.Image]) -> list[Verdict]:
    """A verdict for each picture; pictures of another size are reduced to 64 x 64 first."""
    side = (world.SIDE, world.SIDE)
    rows = [image.convert("RGB") if image.size == side else image.convert("RGB").resize(side) for image in images]
    with torch.no_grad():
        found = judge()(torch.stack([to_tensor(np.asarray(row)) for row in rows]))
    sure = found["shape"].softmax(dim=1)[:, SHAPES.index(world.CONCEPT)]
    best = {name: logits.argmax(dim=1).tolist() for name, logits in found.items()}
    return [
        Verdict(
            SHAPES[best["shape"][n]],
            COLOURS[best["colour"][n]],
            world.BACKGROUNDS[best["background"][n]],
            float(sure[n]),
        )
        for n in range(len(rows))
    ]
