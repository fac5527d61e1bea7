"""Small base models of random weights for the whole suite: real structure and key names, widths of 32 to 96."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from trainer.adapters import Adapter
from trainer.families import Models, random_checkpoint


def tiny_checkpoint(path: Path, family: str = "sd15", dtype: str = "fp32", seed: int = 0) -> Path:
    """A single-file checkpoint in the LDM layout; `path` may be a folder."""
    file = path / f"{family}.safetensors" if path.is_dir() else path
    random_checkpoint.write(file, family, tiny=True, dtype=dtype, seed=seed)
    return file


def run(models: Models) -> Tensor:
    """What a tiny SD1.5 U-Net says of one noisy picture and text, always the same."""
    generator = torch.Generator().manual_seed(1)
    x, text = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(1, 5, 32, generator=generator)
    predicted: Tensor = models.unet(x, torch.tensor(5), text).sample
    return predicted


def stir(adapter: Adapter, strength: float = 0.1) -> None:
    """Moves an adapter's parameters by noise, as training would."""
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(torch.randn_like(parameter) * strength)
