"""Why a run ends before its last step: numbers that are not numbers any more, or a disk that takes no more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from schemas import TrainConfig


class TrainingStopped(RuntimeError):
    """The run cannot go on; the text says why, and what of it was saved."""


class NotFinite(TrainingStopped):
    """A loss or gradient that is NaN or infinite; the step is not taken."""

    def __init__(self, what: str, value: float) -> None:
        super().__init__(f"the {what} is {value}")
        self.what = what


def likely_causes(config: TrainConfig) -> list[str]:
    """What most often makes a loss or gradient NaN or infinite with such options, and what to change."""
    causes = []
    if config.mixed_precision == "fp16" and not config.no_half_vae:
        causes.append("the VAE overflows in fp16: set no_half_vae")
    if config.full_fp16:
        causes.append("full_fp16 keeps gradients in fp16: unset it")
    rates = [config.learning_rate, config.unet_lr or 0.0, *config.text_encoder_lr]
    if max(rates) >= 1e-3 and not config.optimizer_type.lower().startswith(("prodigy", "dadapt")):
        causes.append(f"a learning rate of {max(rates):g} is high: try a tenth of it")
    causes.append("a broken picture or cache file: run `kohyakit dataset check`")
    return causes


def size_in_bytes(value: Any) -> int:
    """Bytes of all tensors in nested containers: about what they take in a file."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return sum(size_in_bytes(item) for item in value.values())
    return sum(size_in_bytes(item) for item in value) if isinstance(value, list | tuple) else 0
