"""Names of adapter tensors in every spelling, brought to one: the part of the model, its module, kohya's ending.

Kohya writes flat names, diffusers and peft dotted paths, OneTrainer and ComfyUI the original (LDM) paths. A module is
told by its LDM path, flat, whatever the spelling; a text encoder's by transformers' path (section 7.9).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Container
from dataclasses import dataclass

MOST_NAMES = 500_000  # remembered: a file is looked at several times, and may hold hundreds of thousands

# ending -> (algorithm, kohya's ending); algorithm "" is of tensors that come beside any
TAILS: dict[str, tuple[str, str]] = {
    **{name: ("lokr", name) for name in (
        "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t1", "lokr_t2")},
    **{name: ("loha", name) for name in (
        "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")},
    **{name: ("glora", name) for name in ("a1.weight", "a2.weight", "b1.weight", "b2.weight")},
    **{name: ("oft", name) for name in ("oft_blocks", "oft_diag", "oft_R.weight")},
    "on_input": ("ia3", "on_input"),
    **{name: ("full", name) for name in ("diff", "diff_b")},
    **{name: ("lora", name) for name in ("lora_down.weight", "lora_up.weight", "lora_mid.weight")},
    **{f"{a}.weight": ("lora", f"{b}.weight") for a, b in (
        ("lora_A", "lora_down"), ("lora_B", "lora_up"), ("lora.down", "lora_down"), ("lora.up", "lora_up"),
        ("lora_linear_layer.down", "lora_down"), ("lora_linear_layer.up", "lora_up"))},
    **{name: ("norm", name) for name in ("w_norm", "b_norm")},
    **{name: ("", name) for name in ("alpha", "dora_scale", "rescale", "scalar")},
    **dict.fromkeys((
        "network_alpha", "lora.alpha", "lora.network_alpha", "lora.down.weight.alpha",
        "lora_linear_layer.down.weight.alpha", "lora_linear_layer.network_alpha"), ("", "alpha")),
    **dict.fromkeys(("lora_magnitude_vector", "lora_magnitude_vector.weight"), ("", "dora_scale")),
}  # fmt: skip
LONGEST = max(tail.count(".") for tail in TAILS) + 1  # pieces
# peft puts the adapter's name between; diffusers before 0.20 joins module and "lora"
NAMED = re.compile(r"^(.+)\.(lora_[AB]|lora_magnitude_vector)\.\w+(\.weight)?$")
JOINED = re.compile(r"^(.+)_lora\.((?:down|up)\.weight|alpha|network_alpha|down\.weight\.alpha)$")

FLUX = ("double_blocks_", "single_transformer_blocks_", "single_blocks_")
SD3 = ("joint_blocks_", "transformer_transformer_blocks_", "lora_te3_")
PARTS = (  # the longer beginnings first
    ("te2", ("lora_te2_", "te2_", "text_encoder_2_", "text_encoders_clip_g_", "clip_g_", "conditioner_embedders_1_")),
    ("te1", ("lora_te1_", "te1_", "text_encoder_1_", "text_encoders_clip_l_", "clip_l_", "conditioner_embedders_0_")),
    ("te", ("lora_te_", "te_", "text_encoder_", "text_encoders_clip_h_", "clip_h_", "cond_stage_model_")),
    ("unet", ("lora_unet_", "oft_unet_", "unet_", "model_diffusion_model_", "diffusion_model_", "lora_prior_unet_",
              "lora_prior_", "lora_transformer_", "prior_", "transformer_")),
)  # fmt: skip
WRAPPERS = ("base_model_model_", "lycoris_", "module_")
TEXT_LEVELS = ("transformer_", "model_", "text_model_", "text_encoder_")
TEXT_STARTS = ("text_model_", "encoder_layers_", "transformer_resblocks_")
OLD_PATHS = (  # names of old diffusers files inside a path
    (re.compile(r"_processor_to_(q|k|v)$"), r"_to_\1"),
    (re.compile(r"_processor_to_out$"), "_to_out_0"),
    (re.compile(r"_self_attn_to_(q|k|v|out)$"), r"_self_attn_\1_proj"),
    (re.compile(r"^resblocks_(\d+)_attn_out_proj$"), r"encoder_layers_\1_self_attn_out_proj"),
    (re.compile(r"^resblocks_(\d+)_mlp_c_fc$"), r"encoder_layers_\1_mlp_fc1"),
    (re.compile(r"^resblocks_(\d+)_mlp_c_proj$"), r"encoder_layers_\1_mlp_fc2"),
)
ENDS = {"conv_in": "input_blocks_0_0", "conv_out": "out_2", "conv_norm_out": "out_0",
        "time_embedding_linear_1": "time_embed_0", "time_embedding_linear_2": "time_embed_2",
        "add_embedding_linear_1": "label_emb_0_0", "add_embedding_linear_2": "label_emb_0_2"}  # fmt: skip
RESNET = {"norm1": "in_layers_0", "conv1": "in_layers_2", "time_emb_proj": "emb_layers_1", "norm2": "out_layers_0",
          "conv2": "out_layers_3", "conv_shortcut": "skip_connection"}  # fmt: skip
BLOCK = re.compile(r"(?:(down|up)_blocks_(\d+)|mid_block)_(resnets|attentions|downsamplers|upsamplers)_(\d+)_(.+)")
UPSAMPLER = re.compile(r"(output_blocks_\d+)_[12]_conv")


@dataclass(frozen=True)
class Module:
    """A module of the model: "unet", "te" (SD), "te1", "te2" (SDXL), and its flat LDM path (transformers' for text)."""

    part: str
    path: str


SAME = {"te": ("te", "te1"), "te1": ("te1", "te")}  # the only encoder of SD, the first of SDXL


def same(meant: Module, known: Container[Module]) -> Module | None:
    """The module among `known` that a name means: "te" is the first of two encoders where there are two."""
    others = (Module(part, meant.path) for part in SAME.get(meant.part, (meant.part,)))
    return next((other for other in others if other in known), None)


@functools.lru_cache(MOST_NAMES)
def split(name: str) -> tuple[str, str, str] | None:
    """(module as written, algorithm, kohya's ending) of an adapter tensor; None for other tensors."""
    if "_lora." in name and (joined := JOINED.match(name)):
        if joined[2].endswith("alpha"):
            return joined[1], "", "alpha"
        return joined[1], "lora", f"lora_{joined[2]}"
    pieces = name.rsplit(".", LONGEST)
    for count in range(len(pieces) - 1, 0, -1):  # the longest ending that is one
        tail = ".".join(pieces[-count:])
        if tail in TAILS:
            return name[: -len(tail) - 1], *TAILS[tail]
    named = NAMED.match(name)
    if named:
        algo, ending = TAILS[named[2] + (".weight" if named[2] != "lora_magnitude_vector" else "")]
        return named[1], algo, ending
    if name.startswith("lora_") and name.count(".") == 1 and name.endswith(".weight"):
        return name.removesuffix(".weight"), "", "weight"  # (IA)3
    return None


@functools.lru_cache(MOST_NAMES)
def module(name: str) -> Module:
    """The module that a name as written means; an unknown one is of the U-Net, under its flat name."""
    flat = name.replace(".", "_")
    for wrapper in WRAPPERS:
        flat = flat.removeprefix(wrapper)
    if flat.startswith(TEXT_STARTS):
        return Module("te", _text_path(flat))
    for part, starts in PARTS:
        for start in starts:
            if flat.startswith(start):
                rest = flat[len(start) :]
                return Module(part, _unet_path(rest) if part == "unet" else _text_path(rest))
    return Module("unet", _unet_path(flat))


def _text_path(rest: str) -> str:
    again = True
    while again:
        shorter = next((rest[len(level) :] for level in TEXT_LEVELS if rest.startswith(level)), None)
        again, rest = shorter is not None, shorter if shorter is not None else rest
    return _modern(rest)


def _modern(path: str) -> str:
    for old, new in OLD_PATHS:
        path = old.sub(new, path)
    return path


def _unet_path(rest: str) -> str:
    rest = _modern(rest)
    if rest in ENDS:
        return ENDS[rest]
    found = BLOCK.fullmatch(rest)
    if not found:
        upsampler = UPSAMPLER.fullmatch(rest)
        return f"{upsampler[1]}_conv" if upsampler else rest
    side, level, kind, number, inner = found[1], int(found[2] or 0), found[3], int(found[4]), found[5]
    if kind == "downsamplers":
        return f"input_blocks_{3 * level + 3}_0_{inner.replace('conv', 'op', 1)}"
    if kind == "upsamplers":
        return f"output_blocks_{3 * level + 2}_{inner}"
    if side is None:
        block = f"middle_block_{2 * number}" if kind == "resnets" else "middle_block_1"
    else:
        block = f"input_blocks_{3 * level + number + 1}" if side == "down" else f"output_blocks_{3 * level + number}"
        block += "_0" if kind == "resnets" else "_1"
    return f"{block}_{RESNET.get(inner, inner) if kind == 'resnets' else inner}"
