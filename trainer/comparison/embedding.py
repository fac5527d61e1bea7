"""Likeness of images by any CLIP- or DINO-like model of transformers: to a set of images, and to its nearest one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from schemas.problems import error

AT_ONCE = 16


class Embedder:
    """Unit vectors of images; ConfigError `no-embedder` when the folder holds no model of images."""

    def __init__(self, place: str) -> None:
        from transformers import AutoImageProcessor, AutoModel

        if not (Path(place) / "config.json").is_file():
            must = "holds no model: there is no config.json in it"
            raise error("no-embedder", must, key="--embedder", got=place, fix="name a downloaded CLIP or DINO folder")
        try:
            self.processor: Any = AutoImageProcessor.from_pretrained(place, local_files_only=True)
            self.model: Any = AutoModel.from_pretrained(place, local_files_only=True).eval()
        except Exception as fault:  # a folder may hold anything
            said = str(fault).strip().splitlines()
            must = f"cannot be loaded: {said[0] if said else type(fault).__name__}"
            raise error("no-embedder", must, key="--embedder", got=place, fix="name a CLIP or DINO model") from None
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model.to(self.device)

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        """[N, D]."""
        rows = []
        for start in range(0, len(images), AT_ONCE):
            given = self.processor(images=list(images[start : start + AT_ONCE]), return_tensors="pt")
            pixels = given["pixel_values"].to(self.device)
            if hasattr(self.model, "get_image_features"):
                said = self.model.get_image_features(pixel_values=pixels)
            else:
                said = self.model(pixel_values=pixels)
            if not isinstance(said, Tensor):
                pooled = getattr(said, "pooler_output", None)
                said = pooled if pooled is not None else said.last_hidden_state[:, 0]
            rows.append(torch.nn.functional.normalize(said.float(), dim=-1).cpu())
        return torch.cat(rows)


def likeness(found: Tensor, trained: Tensor) -> dict[str, float]:
    """Mean cosine to all training images, and to the nearest one of each image."""
    cosines = found @ trained.T
    return {"to_set": float(cosines.mean()), "to_nearest": float(cosines.max(1).values.mean())}


def own_nearest(trained: Tensor) -> float:
    """How near a training image is to its nearest other one, on average: what copies nothing may reach."""
    cosines = trained @ trained.T
    cosines.fill_diagonal_(-1)
    return float(cosines.max(1).values.mean())
