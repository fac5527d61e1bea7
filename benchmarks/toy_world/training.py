"""One training loop for every toy model, with AdamW, warmup and cosine. Interrupted, it goes on."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

DECAY, CLIP = 0.01, 1.0  # of the weights; of the gradient's norm
AVERAGED, OFTEN = (
    20,
    4,
)  # the running mean reaches back that part of a course, and is brought up to date every few steps
KEPT = 100  # steps between two states on disk


@dataclass(frozen=True)
class Course:
    """A training: the name of its state, its steps, the highest learning rate."""

    name: str
    steps: int
    peak: float
    warmup: int = 100
    seed: int = 0

    def rate(self, step: int) -> float:
        """Learning rate: linear warmup, then half a cosine down to nothing."""
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.peak * 0.5 * (1 + math.cos(math.pi * done))


Loss = Callable[[int, random.Random], Tensor]


def train(course: Course, trained: nn.Module, loss: Loss, folder: Path, say: Callable[[str], None]) -> None:
    """Minimises `loss(step, rng)`; in the end `trained` holds the running mean of its weights.

    What a step draws depends on course and step alone: from `rng` and from torch's generator.
    """
    for module in trained.modules():
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    learning = [value for value in trained.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=course.peak, betas=(0.9, 0.99), weight_decay=DECAY, fused=True)
    mean = {name: tensor.detach().clone() for name, tensor in trained.state_dict().items()}
    first = _gone_on(kept(folder, course.name), trained, mean, optimizer)
    started, total = time.monotonic(), 0.0
    for step in range(first, course.steps):
        torch.manual_seed(course.seed * 1_000_003 + step)
        optimizer.param_groups[0]["lr"] = course.rate(step)
        value = loss(step, random.Random(f"{course.name}/{course.seed}/{step}"))
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(learning, CLIP)
        optimizer.step()
        total += value.item()
        if step % OFTEN == 0:
            _average(mean, trained, max(0, min(1 - OFTEN * AVERAGED / course.steps, (step + 1) / (step + 10))))
        if (step + 1) % KEPT == 0 or step + 1 == course.steps:
            say(f"{course.name} {step + 1}/{course.steps}: loss {total / KEPT:.4f}, {time.monotonic() - started:.0f} s")
            total = 0.0
            keep(folder, course.name, {"model": trained.state_dict(), "mean": mean, "step": step + 1}, optimizer)
    trained.load_state_dict(mean)


@torch.no_grad()
def _average(mean: Mapping[str, Tensor], trained: nn.Module, share: float) -> None:
    """Keeps that share of the mean."""
    for name, tensor in trained.state_dict().items():
        if tensor.is_floating_point():
            mean[name].lerp_(tensor, 1 - share)


def _gone_on(before: Any, trained: nn.Module, mean: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> int:
    if before is None:
        return 0
    trained.load_state_dict(before["model"])
    mean.update(before["mean"])
    optimizer.load_state_dict(before["optimizer"])
    return int(before["step"])


def keep(folder: Path, name: str, state: Mapping[str, Any], optimizer: torch.optim.Optimizer | None = None) -> None:
    """Writes a state whole or not at all."""
    partial = folder / f"{name}.partial"
    torch.save({**state, **({"optimizer": optimizer.state_dict()} if optimizer else {})}, partial)
    partial.replace(folder / f"{name}.pt")


def kept(folder: Path, name: str) -> Any:
    """The state kept under that name, or None."""
    file = folder / f"{name}.pt"
    return torch.load(file, weights_only=True) if file.exists() else None
