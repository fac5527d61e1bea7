"""One table of names, both ways: parameters of diffusers and transformers modules, and where the original (LDM) layout
of Stable Diffusion keeps them. Kohya's SDXL key names follow from it too (reference section 7.9).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Form = Literal["same", "conv", "transposed", "third"]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Stored:
    """Where an LDM checkpoint keeps a parameter.

    Form conv: stored with two trailing 1s; third: part number `third` of a fused q, k, v projection.
    """

    name: str
    form: Form = "same"
    third: int = 0

    def shape(self, shape: Shape) -> Shape:
        """Shape in the checkpoint of a parameter of this shape."""
        if self.form == "conv" and len(shape) == 2:
            return (*shape, 1, 1)
        if self.form == "third":
            return (3 * shape[0], *shape[1:])
        return shape[::-1] if self.form == "transposed" else shape


Names = Callable[[str], Stored]

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
UNET_PLACE = re.compile(
    r"(down_blocks|up_blocks|mid_block)(?:\.(\d+))?\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)(?:\.(.+))?"
)


def unet_name(path: str, *, layers: int, attention_up: Sequence[bool]) -> str:
    """LDM path of a U-Net module or parameter, without `model.diffusion_model.`; KeyError for an unknown one.

    layers: resnets a down block; attention_up: for each up block whether it has attention, which moves its upsampler.
    """
    for ours, theirs in UNET_ENDS.items():
        if path == ours or path.startswith(ours + "."):
            return theirs + path[len(ours) :]
    found = UNET_PLACE.fullmatch(path)
    if not found:
        raise KeyError(path)
    side, level, kind, number, rest = found.groups()
    place, i, j = rest or "", int(level or 0), int(number)
    span = layers + 1  # LDM counts a down block's sampler, and an up block's extra resnet, as one place
    if kind == "downsamplers":
        return f"input_blocks.{span * i + span}.0.{place.replace('conv', 'op', 1)}"
    if kind == "upsamplers":
        return f"output_blocks.{span * i + layers}.{2 if attention_up[i] else 1}.{place}"
    block = {
        "down_blocks": f"input_blocks.{span * i + j + 1}",
        "up_blocks": f"output_blocks.{span * i + j}",
        "mid_block": f"middle_block.{2 * j}" if kind == "resnets" else "middle_block",
    }[side]
    if kind == "attentions":
        return f"{block}.1.{place}"
    head, _, tail = place.partition(".")
    return ".".join(part for part in (block, "" if side == "mid_block" else "0", RESNET[head], tail) if part)


def unet_names(layers: int, attention_up: Sequence[bool], prefix: str = "model.diffusion_model.") -> Names:
    return lambda path: Stored(prefix + unet_name(path, layers=layers, attention_up=attention_up))


VAE_PARTS = (
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
    (r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1"),
    (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
    (r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block."),
    (r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample."),
    (r"conv_shortcut", "nin_shortcut"),
    (r"conv_norm_out", "norm_out"),
)


def vae_names(levels: int, prefix: str = "first_stage_model.") -> Names:
    """levels: resolutions of the VAE; LDM counts the decoder's from the far end."""

    def name(path: str) -> Stored:
        found = re.fullmatch(r"decoder\.up_blocks\.(\d+)\.(resnets|upsamplers)\.(\d+)\.(.+)", path)
        if found:
            level, kind, number, rest = found.groups()
            place = f"block.{number}" if kind == "resnets" else "upsample"
            path = f"decoder.up.{levels - 1 - int(level)}.{place}.{rest}"
        for ours, theirs in VAE_PARTS:
            path = re.sub(ours, theirs, path)
        flat = re.search(r"attn_1\.(q|k|v|proj_out)\.weight$", path)
        return Stored(prefix + path, "conv" if flat else "same")

    return name


def bare_text_path(path: str) -> str:
    """A text encoder's path without the `text_model` level, which only some transformers classes and versions have."""
    return path.removeprefix("text_model.")


def clip_names(prefix: str, level: str = "text_model.") -> Names:
    """CLIP-L as transformers stores it; `level` is empty for checkpoints without it."""
    return lambda path: Stored(prefix + level + bare_text_path(path))


OPEN_CLIP_ENDS = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def open_clip_names(prefix: str, projection: Literal["transposed", "as_stored"] = "transposed") -> Names:
    """OpenCLIP's text tower: fused in_proj; text_projection is stored transposed to a Linear's weight.

    `projection` "as_stored" takes it for that weight all the same, as the reference does.
    """

    def name(path: str) -> Stored:
        path = bare_text_path(path)
        if path == "text_projection.weight":
            return Stored(f"{prefix}text_projection", "transposed" if projection == "transposed" else "same")
        if path in OPEN_CLIP_ENDS:
            return Stored(prefix + OPEN_CLIP_ENDS[path])
        found = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", path)
        if not found:
            raise KeyError(path)
        layer, place, kind = found.groups()
        block = f"{prefix}transformer.resblocks.{layer}."
        fused = re.fullmatch(r"self_attn\.([qkv])_proj", place)
        if fused:
            return Stored(f"{block}attn.in_proj_{kind}", "third", "qkv".index(fused[1]))
        return Stored(f"{block}{OPEN_CLIP_LAYER[place]}.{kind}")

    return name


def layout(shapes: Iterable[tuple[str, Shape]], names: Names) -> dict[str, Shape]:
    """LDM name -> shape of a module's parameters."""
    places = ((names(path), shape) for path, shape in shapes)
    return {stored.name: stored.shape(shape) for stored, shape in places}


def to_ldm(state: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    """A module's state dict in the LDM layout."""
    found: dict[str, Tensor] = {}
    fused: dict[str, list[Tensor]] = {}
    for path, tensor in state.items():
        stored = names(path)
        if stored.form == "third":
            fused.setdefault(stored.name, [tensor] * 3)[stored.third] = tensor
        elif stored.form == "transposed":
            found[stored.name] = tensor.T.contiguous()
        else:
            found[stored.name] = tensor.reshape(stored.shape(tuple(tensor.shape)))
    return found | {name: torch.cat(thirds) for name, thirds in fused.items()}
