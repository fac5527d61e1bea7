"""The toy models' architecture: a real family's module structure at small widths, in about 12 MB of fp16."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from trainer.families import architecture, single_file
from trainer.families.architecture import Config
from trainer.families.single_file import PartName

# With the real models' 32 groups, a norm would leave nothing of layers as narrow and pictures as small as these.
GROUPS: Config = {"norm_num_groups": 8}
VAE: Config = {"block_out_channels": [32, 32, 64, 64], "layers_per_block": 1} | GROUPS
UNET: dict[str, Config] = {
    "sd15": {"block_out_channels": [64, 64, 64, 32], "cross_attention_dim": 24, "attention_head_dim": 2} | GROUPS,
    "sdxl": {
        "block_out_channels": [64, 64, 64],
        "transformer_layers_per_block": [1, 1, 1],
        "attention_head_dim": [1, 1, 1],
        "cross_attention_dim": 2 * 16,
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 16 + 6 * 8,
    }
    | GROUPS,
}
UNSEEN = ("norm_num_groups", "attention_head_dim")  # what shapes do not tell: it stands in the checkpoint's header
TEXT_WIDTH = {"sd15": 24, "sdxl": 16}  # a large part of a toy model is its tables of 49,408 token vectors of this width
ABOUT = "kohyakit toy model: trained from nothing on drawn shapes, for learning and testing only"


def config(family: str, part: PartName) -> Config:
    """A part's config: the shipped full-size one with small widths."""
    small: Config = VAE if part == "vae" else UNET[family] if part == "unet" else _text(TEXT_WIDTH[family])
    return architecture.shipped(family)[part] | small


def _text(width: int) -> Config:
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": 4,
        "num_attention_heads": 1,
        "projection_dim": width,
    }


def parts(family: str) -> tuple[PartName, ...]:
    """The names of a family's modules, the VAE first."""
    return ("vae", "unet", "text_encoder", "text_encoder_2") if family == "sdxl" else ("vae", "unet", "text_encoder")


def fresh(family: str, part: PartName) -> nn.Module:
    """A module with torch's own initial weights."""
    return single_file.build(part, config(family, part))


def write(path: Path, family: str, modules: Mapping[PartName, nn.Module], *, prediction: str = "epsilon") -> None:
    """A single-file checkpoint in the original key layout, fp16, whole or not at all."""
    tensors: dict[str, Tensor] = single_file.export(modules, family)
    unseen = {part: {name: value for name, value in config(family, part).items() if name in UNSEEN} for part in modules}
    metadata = {
        "format": "pt",
        "modelspec.title": ABOUT,
        "modelspec.prediction_type": prediction,
        "kohyakit_config": json.dumps({part: values for part, values in unseen.items() if values}),
    }
    partial = path.with_name(path.name + ".partial")
    save_file({name: tensor.to(torch.float16).contiguous() for name, tensor in tensors.items()}, partial, metadata)
    partial.replace(path)
