"""Architecture numbers of a checkpoint, read from the shapes of its tensors; what shapes cannot tell is shipped.

Head counts are such a thing. Rules: the SD1.5 U-Net has 8 heads at every width; the U-Nets of SD2 and SDXL and all text
encoders have heads of 64 channels, or a single head where 64 does not divide the width. GroupNorm has 32 groups, so the
widths of U-Net and VAE are multiples of 32. A checkpoint may say otherwise in its metadata: `kohyakit_config`, JSON of
{"unet": {...}, "vae": {...}, "text_encoder": {...}}, whose values replace the derived ones.
"""

from __future__ import annotations

import copy
import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from schemas import error
from schemas.files.documents import parse_json
from trainer.families.ldm_keys import Shape

Config = dict[str, Any]
SHIPPED = Path(__file__).parent / "data" / "configs.json"
HEAD = 64  # channels of an attention head
SDXL_OPEN_CLIP = "conditioner.embedders.1.model."


@functools.cache
def _shipped() -> dict[str, dict[str, Config]]:
    document: dict[str, dict[str, Config]] = json.loads(SHIPPED.read_text(encoding="utf-8"))
    return document


def shipped(family: str) -> dict[str, Config]:
    """Full-size configs by part: unet, vae, text_encoder, text_encoder_2 (SDXL), scheduler."""
    return copy.deepcopy(_shipped()[family])


def heads(width: int) -> int:
    """Attention heads of a layer of that width: of 64 channels each, or a single one where 64 does not divide it."""
    return 1 if width % HEAD else width // HEAD


def overrides(metadata: Mapping[str, str], file: str) -> dict[str, Config]:
    """What the checkpoint itself says in `kohyakit_config`; {} without it."""
    text = metadata.get("kohyakit_config")
    try:
        document = parse_json(text) if text else {}
    except ValueError:
        raise error("bad-metadata", "is not JSON", file=file, key="kohyakit_config", fix="write it again") from None
    values = document.items() if isinstance(document, dict) else ()
    return {part: config for part, config in values if isinstance(config, dict)}


def count(shapes: Mapping[str, Shape], start: str) -> int:
    """How many numbered modules follow `start`, counted from their highest number."""
    pattern = re.compile(re.escape(start) + r"(\d+)\.")
    numbers = [int(found[1]) for name in shapes if (found := pattern.match(name))]
    return max(numbers, default=-1) + 1


class Shapes:
    """Shapes by name; a name that is missing is a ConfigError with the file and the name."""

    def __init__(self, shapes: Mapping[str, Shape], file: str) -> None:
        self.shapes, self.file = shapes, file

    def __call__(self, name: str, axis: int = 0) -> int:
        shape = self.shapes.get(name)
        if shape is None or len(shape) <= axis:
            must = "is missing: the file is no whole checkpoint of this family"
            raise error("missing-tensor", must, file=self.file, key=name, fix="use a complete base model")
        return shape[axis]


def unet_config(shapes: Mapping[str, Shape], family: str, file: str, prefix: str = "model.diffusion_model.") -> Config:
    """Arguments of UNet2DConditionModel."""
    config, size = shipped(family)["unet"], Shapes(shapes, file)
    config.pop("_class_name")
    stops = [n for n in range(1, 64) if f"{prefix}input_blocks.{n}.0.op.weight" in shapes]
    span = stops[0] if stops else 3
    starts = [1] + [stop + 1 for stop in stops]
    depths = [count(shapes, f"{prefix}input_blocks.{n}.1.transformer_blocks.") for n in starts]
    middle = count(shapes, f"{prefix}middle_block.1.transformer_blocks.")
    widths = [size(f"{prefix}input_blocks.{n}.0.in_layers.2.weight") for n in starts]
    projection = shapes.get(f"{prefix}middle_block.1.proj_in.weight", ())
    config |= {
        "in_channels": size(f"{prefix}input_blocks.0.0.weight", 1),
        "out_channels": size(f"{prefix}out.2.weight"),
        "layers_per_block": span - 1,
        "block_out_channels": widths,
        "down_block_types": ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths],
        "up_block_types": ["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(depths)],
        # The last number is also the middle block's depth.
        "transformer_layers_per_block": [depth or 1 for depth in depths[:-1]] + [depths[-1] or middle],
        "cross_attention_dim": size(f"{prefix}middle_block.1.transformer_blocks.0.attn2.to_k.weight", 1),
        "use_linear_projection": len(projection) == 2,
        # diffusers takes the number of heads under this name.
        "attention_head_dim": 8 if family == "sd15" else [heads(width) for width in widths],
    }
    if family == "sdxl":  # the conditioning vector: pooled text, then six sizes as sinusoids (reference section 3.8)
        vector, pooled = size(f"{prefix}label_emb.0.0.weight", 1), size(f"{SDXL_OPEN_CLIP}text_projection", 1)
        config |= {"projection_class_embeddings_input_dim": vector, "addition_time_embed_dim": (vector - pooled) // 6}
    return config


def vae_config(shapes: Mapping[str, Shape], family: str, file: str, prefix: str = "first_stage_model.") -> Config:
    """Arguments of AutoencoderKL."""
    config, size = shipped(family)["vae"], Shapes(shapes, file)
    config.pop("_class_name")
    levels = count(shapes, f"{prefix}encoder.down.")
    return config | {
        "in_channels": size(f"{prefix}encoder.conv_in.weight", 1),
        "out_channels": size(f"{prefix}decoder.conv_out.weight"),
        "block_out_channels": [size(f"{prefix}encoder.down.{n}.block.0.conv1.weight") for n in range(levels)],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": count(shapes, f"{prefix}encoder.down.0.block."),
        "latent_channels": size(f"{prefix}decoder.conv_in.weight", 1),
    }


def clip_config(shapes: Mapping[str, Shape], family: str, file: str, prefix: str) -> Config:
    """Arguments of CLIPTextConfig for a text encoder in transformers' own layout; prefix includes `text_model.`."""
    size = Shapes(shapes, file)
    return shipped(family)["text_encoder"] | _text_widths(
        size,
        token=f"{prefix}embeddings.token_embedding.weight",
        position=f"{prefix}embeddings.position_embedding.weight",
        inner=f"{prefix}encoder.layers.0.mlp.fc1.weight",
        layers=count(shapes, f"{prefix}encoder.layers."),
    )


def open_clip_config(shapes: Mapping[str, Shape], family: str, file: str, prefix: str) -> Config:
    """The same for OpenCLIP's layout. SD2 does without the last layer (it uses the one before), so it is left out."""
    size = Shapes(shapes, file)
    part = "text_encoder_2" if family == "sdxl" else "text_encoder"
    layers = count(shapes, f"{prefix}transformer.resblocks.")
    config = shipped(family)[part] | _text_widths(
        size,
        token=f"{prefix}token_embedding.weight",
        position=f"{prefix}positional_embedding",
        inner=f"{prefix}transformer.resblocks.0.mlp.c_fc.weight",
        layers=layers - (family == "sd2"),
    )
    if family == "sdxl":
        config["projection_dim"] = size(f"{prefix}text_projection", 1)
    return config


def _text_widths(size: Shapes, *, token: str, position: str, inner: str, layers: int) -> Config:
    width = size(token, 1)
    return {
        "vocab_size": size(token),
        "hidden_size": width,
        "intermediate_size": size(inner),
        "num_hidden_layers": layers,
        "num_attention_heads": heads(width),
        "max_position_embeddings": size(position),
    }
