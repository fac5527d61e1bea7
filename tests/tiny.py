"""Small base models of random weights for the whole suite: real structure and key names, widths of 32 to 96."""

from __future__ import annotations

from pathlib import Path

from trainer.families import random_checkpoint


def tiny_checkpoint(path: Path, family: str = "sd15", dtype: str = "fp32", seed: int = 0) -> Path:
    """A single-file checkpoint in the LDM layout; `path` may be a folder."""
    file = path / f"{family}.safetensors" if path.is_dir() else path
    random_checkpoint.write(file, family, tiny=True, dtype=dtype, seed=seed)
    return file
