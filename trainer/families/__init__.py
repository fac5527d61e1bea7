"""What the loop may ask of a model family, and the values that pass between them. `get` finds a family by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from schemas import TrainConfig, error
from schemas.families import FAMILIES, FamilyFacts, Latents, facts_of, titles


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


@dataclass(frozen=True)
class Noised:
    """What one batch asks of the network: given `latents` [B,C,h,w] at `timesteps` [B], it shall say `target`."""

    latents: Tensor
    timesteps: Tensor
    target: Tensor


Predict = Callable[[Tensor, Tensor], Tensor]  # (noised latents [B,C,h,w], timestep []) -> the network's output


class NoiseProcess(Protocol):
    """How a family's latents become noise, what its network says of that, and the way back: one object a run.

    Siblings have the same face, so that nobody else knows what is predicted. The shape is k-diffusion's denoisers'.
    """

    def noised(self, latents: Tensor, timestep: int | None = None) -> Noised:
        """Latents [B,C,h,w] as the network sees them, at times of the process' own choice, or all at `timestep`.

        All random numbers come from the global generators of torch and Python.
        """

    def loss(self, predicted: Tensor, noised: Noised, weights: Tensor, masks: Tensor | None) -> Tensor:
        """The mean loss of a batch, a scalar; `weights` [B] by image, `masks` [B,1,Y,X] in 0..1 by pixel."""

    def held_out(self) -> list[int]:
        """The timesteps at which the loss on images kept aside is measured."""

    def sample(self, predict: Predict, noise: Tensor, *, sampler: str, steps: int) -> Tensor:
        """Latents [B,C,h,w] from `noise` of unit deviation by a sampler of that name (`sample_sampler`)."""


class Family(Protocol):
    """Everything that differs between base models when they train; `facts` is what is known without torch."""

    @property
    def facts(self) -> FamilyFacts: ...

    def load(self, config: TrainConfig, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> Models: ...

    def encode(self, models: Models, captions: Sequence[str], config: TrainConfig) -> Conditioning: ...

    def encode_prompts(self, models: Models, prompts: Sequence[str], config: TrainConfig) -> Conditioning:
        """The same for previews, where a user's prompt may be longer than captions are."""

    def predict(
        self, unet: nn.Module, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning, sizes: Sizes | None
    ) -> Tensor: ...

    def noise_process(self, config: TrainConfig, device: torch.device | str = "cpu") -> NoiseProcess: ...

    def to_latents(self, vae: nn.Module, pixels: Tensor, draws: Any = None) -> Tensor:
        """Float32 latents, as caches keep them, of images [B,3,H,W] in -1..1 on the VAE's device.

        `draws` is one CPU generator an image, or None for the global one.
        """

    def to_pixels(self, vae: nn.Module, latents: Tensor) -> Tensor:
        """Float32 images [B,3,H,W] in -1..1 of latents as `to_latents` gives them."""

    def targets(self, models: Models) -> list[Target]: ...

    def text_settings(self, config: TrainConfig) -> dict[str, Any]:
        """The options that `encode` depends on, as the fingerprint of a cache has them."""

    def to_arrays(self, states: Conditioning) -> dict[str, Tensor]:
        """The conditioning of one caption as named arrays of a cache file; `from_arrays` is the way back."""

    def from_arrays(self, arrays: Mapping[str, Tensor]) -> Conditioning: ...

    def metadata(self, config: TrainConfig) -> dict[str, str]: ...


def scaled(latents: Tensor, form: Latents) -> Tensor:
    """Latents of a VAE as the network sees them."""
    return (latents - form.shift if form.shift else latents) * form.scale


def unscaled(latents: Tensor, form: Latents) -> Tensor:
    """The way back."""
    return latents / form.scale + form.shift if form.shift else latents / form.scale


def get(name: str) -> Family:
    """The family of that name; ConfigError `unknown-family` when there is none."""
    facts = facts_of(name)
    if facts is None:
        must = "cannot be trained here; the families are " + ", ".join(FAMILIES)
        raise error("unknown-family", must, got=name, fix=f"use a base model of {titles()}")
    family: Family = importlib.import_module(facts.implementation).FAMILY
    return family
