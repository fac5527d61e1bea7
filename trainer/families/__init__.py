"""What the loop may ask of a model family, and the values that pass between them. `get` finds a family by name."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from schemas import TrainConfig, error

NAMES = ("sd15", "sd2", "sdxl")


@dataclass
class Models:
    """The loaded base model, frozen and in eval mode. One tokenizer for each text encoder."""

    family: str
    unet: nn.Module
    vae: nn.Module
    text_encoders: tuple[nn.Module, ...]
    tokenizers: tuple[Any, ...]


@dataclass
class Conditioning:
    """Encoded captions: `hidden` [B,T,D]; `pooled` [B,P] for SDXL (P = 1280 at full size), else None."""

    hidden: Tensor
    pooled: Tensor | None = None

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Conditioning:
        pooled = None if self.pooled is None else self.pooled.to(device=device, dtype=dtype)
        return Conditioning(self.hidden.to(device=device, dtype=dtype), pooled)

    def detach_cpu(self) -> Conditioning:
        return Conditioning(self.hidden.detach().cpu(), None if self.pooled is None else self.pooled.detach().cpu())

    @staticmethod
    def stack(parts: Sequence[Conditioning]) -> Conditioning:
        """One batch of several; all must have the same T."""
        pooled = [part.pooled for part in parts if part.pooled is not None]
        return Conditioning(torch.cat([part.hidden for part in parts]), torch.cat(pooled) if pooled else None)


@dataclass
class Sizes:
    """SDXL's size conditioning in pixels, each [B,2]: original (h,w), crop (top,left), target (h,w)."""

    original: Tensor
    crop: Tensor
    target: Tensor

    def to(self, device: torch.device | str) -> Sizes:
        return Sizes(self.original.to(device), self.crop.to(device), self.target.to(device))


@dataclass(frozen=True)
class Target:
    """A module that an adapter may change: `path` in the loaded model, `key` in kohya's files."""

    part: Literal["te", "te1", "te2", "unet"]
    path: str
    key: str
    kind: Literal["linear", "conv1x1", "conv3x3"]
    place: Literal["text", "transformer", "resnet", "sampler"]
    block: int | None  # index of the per-block options (reference section 7.5); None in text encoders


class Family(Protocol):
    """Everything that differs between SD1.5, SD2 and SDXL."""

    name: str
    latent_scale: float
    cache_suffix: Literal["sd", "sdxl"]
    preview_size: int

    def load(self, config: TrainConfig, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> Models: ...

    def encode(self, models: Models, captions: Sequence[str], config: TrainConfig) -> Conditioning: ...

    def predict(
        self, unet: nn.Module, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning, sizes: Sizes | None
    ) -> Tensor: ...

    def targets(self, models: Models) -> list[Target]: ...

    def metadata(self, config: TrainConfig) -> dict[str, str]: ...


def get(name: str) -> Family:
    """The family of that name; ConfigError `unknown-family` when there is none."""
    if name not in NAMES:
        must = "cannot be trained here; the families are " + ", ".join(NAMES)
        raise error("unknown-family", must, got=name, fix="use a Stable Diffusion 1.5, 2.x or SDXL base model")
    family: Family = importlib.import_module(f"trainer.families.{name}").FAMILY
    return family
