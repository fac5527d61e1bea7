"""Which tensors an adapter has, and how large, for every kind of network: from the config and the base model's layers.

The shapes are those of the saved file. LyCORIS' factorisations: its general.py and boft.py.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from schemas import optimizers
from schemas.argument import name_values
from schemas.config import TrainConfig
from schemas.families import FAMILIES
from schemas.network_args import SUPPORTED, bad, network_values, nothing_to_adapt, with_it
from schemas.problems import Problem, errors
from schemas.rules.rates import rates_of, trained_parts
from schemas.unet import Layer, Shape
from trainer.plan.modules import layers_of

Tensors = dict[str, Shape]
FROZEN = ("alpha", "on_input")  # saved, not trained
WITHOUT_RANK = ("full", "ia3")
DECOMPOSED = ("lora", "locon", "loha", "lokr")  # DoRA is for these
NORMS = ("_norm", "_norm1", "_norm2", "_norm3", "_in_layers_0", "_out_layers_0")


@dataclass(frozen=True)
class Preset:
    """The places of a LyCORIS preset. `attention`: of the transformers, only the attention's own projections."""

    places: tuple[str, ...]
    text: str = "all"  # all, attention or none
    conv: bool = True
    attention: bool = False
    ends: str = ""  # of the U-Net's ends: "all", "linear", "conv" or none


PRESETS = {
    "full": Preset(("transformer", "resnet", "sampler"), ends="all"),
    "full-lin": Preset(("transformer", "resnet"), conv=False, ends="linear"),
    "attn-mlp": Preset(("transformer",), conv=False, ends="linear"),
    "attn-only": Preset(("transformer",), "attention", conv=False, attention=True),
    "unet-only": Preset(("transformer", "resnet", "sampler"), "none", ends="all"),
    "unet-transformer-only": Preset(("transformer",), "none", conv=False, ends="linear"),
    "unet-convblock-only": Preset(("resnet", "sampler"), "none", ends="conv"),
    "ia3": Preset((), "none", conv=False),
}


def trained_numbers(config: TrainConfig, family: str, layers: tuple[Layer, ...]) -> int:
    """Numbers that the optimizer moves. Parts whose rate is 0 are left out."""
    frozen = (*FROZEN, "lora_down.weight") if config.network_module == "networks.lora_fa" else FROZEN
    rates = rates_of(config)
    return sum(
        math.prod(shape)
        for layer, tensors in adapter(config, family, layers)
        if rates[layer.part] or config.learning_rate is None
        for name, shape in tensors.items()
        if name not in frozen
    )


def saved_numbers(config: TrainConfig, family: str, layers: tuple[Layer, ...]) -> int:
    """Numbers in the saved file."""
    return sum(math.prod(shape) for _, tensors in adapter(config, family, layers) for shape in tensors.values())


def adapter(config: TrainConfig, family: str, layers: tuple[Layer, ...]) -> Iterator[tuple[Layer, Tensors]]:
    """Each adapted layer with its tensors: kohya's ending -> shape."""
    given, _ = network_values(config, family)
    module, parts = config.adapter, trained_parts(config, family)
    layers = tuple(layer for layer in layers if layer.part in parts)
    if module == "networks.oft":
        yield from _oft(config, given, layers)
    elif module in ("networks.loha", "networks.lokr", "lycoris.kohya"):
        yield from _lycoris(config, given, layers, family)
    else:
        yield from _lora(config, given, layers)


def _lora(config: TrainConfig, given: Mapping[str, Any], layers: tuple[Layer, ...]) -> Iterator[tuple[Layer, Tensors]]:
    """networks.lora and its kin; of a module that is not ours, what networks.lora would make."""
    dim, weights, dims = config.rank, given.get("lr_weight"), given.get("block_dims")
    threes = given.get("conv_block_dims")
    by_block = weights is not None or dims is not None
    conv = "conv_dim" in given or (by_block and threes is not None)
    for layer in layers:
        if layer.place in ("norm", "end") or (layer.place in ("resnet", "sampler") and not conv):
            continue
        rank = given.get("conv_dim", 0) if layer.spatial else dim
        if by_block and layer.block is not None:
            own = threes if layer.spatial else dims
            rank = own[layer.block] if own is not None and layer.block < len(own) else rank
            rank = 0 if weights is not None and layer.block < len(weights) and weights[layer.block] == 0 else rank
        if rank > 0:
            yield layer, {**low_rank(layer.shape, rank), "alpha": ()}


def low_rank(shape: Shape, rank: int, *, flat_up: bool = False) -> Tensors:
    """A and B of a linear layer or a convolution."""
    up = (shape[0], rank) if flat_up or len(shape) == 2 else (shape[0], rank, 1, 1)
    return {"lora_down.weight": (rank, *shape[1:]), "lora_up.weight": up}


def _oft(config: TrainConfig, given: Mapping[str, Any], layers: tuple[Layer, ...]) -> Iterator[tuple[Layer, Tensors]]:
    count = config.rank
    for layer in layers:
        attention = given.get("enable_all_linear") or "_attn1_" in layer.path or "_attn2_" in layer.path
        conv = given.get("enable_conv") and layer.place in ("resnet", "sampler")
        if attention if layer.place == "transformer" else conv:
            size = layer.shape[0] // count
            yield layer, {"oft_blocks": (count, size, size), "alpha": ()}


# ------------------------------------------------------------------------------------------------------------ LyCORIS


def _lycoris(
    config: TrainConfig, given: Mapping[str, Any], layers: tuple[Layer, ...], family: str
) -> Iterator[tuple[Layer, Tensors]]:
    module, dim = str(config.network_module), config.rank
    if module == "lycoris.kohya":
        preset = PRESETS.get(given.get("preset", "full"), PRESETS["full"])  # a file of one's own: as the usual one
        algo, conv_dim = given.get("algo", "lora"), given.get("conv_dim", dim) if preset.conv else 0
    else:
        conv_dim = given.get("conv_dim", 0)
        places = ("transformer", "resnet", "sampler") if conv_dim else ("transformer",)
        preset, algo = Preset(places), module.removeprefix("networks.")
    for layer in layers:
        if layer.place == "norm":
            if given.get("train_norm") and _norm_chosen(layer, preset):
                yield layer, {"w_norm": layer.shape, "b_norm": layer.shape}
        elif _chosen(layer, preset, family):
            rank = conv_dim if layer.spatial else dim
            if rank > 0:
                yield layer, _of_kind(algo, layer, rank, given)


def _chosen(layer: Layer, preset: Preset, family: str) -> bool:
    if layer.place == "text":
        return preset.text == "all" or (preset.text == "attention" and "self_attn" in layer.path)
    if layer.place == "end":
        kind = "conv" if len(layer.shape) == 4 else "linear"
        named = not FAMILIES[family].original_paths  # presets know the ends by diffusers' names
        return named and preset.ends in ("all", kind)
    inside = not preset.attention or "_attn1_" in layer.path or "_attn2_" in layer.path
    return layer.place in preset.places and inside


def _norm_chosen(layer: Layer, preset: Preset) -> bool:
    resnet = layer.path.endswith(("_in_layers_0", "_out_layers_0"))
    if not layer.path.endswith(NORMS):
        return False
    return "resnet" in preset.places if resnet else "transformer" in preset.places and not preset.attention


def _of_kind(algo: str, layer: Layer, rank: int, given: Mapping[str, Any]) -> Tensors:
    """The tensors of one layer under an algorithm of LyCORIS."""
    shape = layer.shape
    out, width, kernel = shape[0], shape[1], shape[2:]
    tucker = layer.spatial and bool(given.get(next((n for n in ("use_conv_cp", "use_cp") if n in given), "use_tucker")))
    if algo == "full":
        return {"diff": shape, **({"diff_b": (out,)} if layer.biased else {})}
    if algo == "ia3":
        return {"weight": (1, out, *[1] * len(kernel)) if kernel else (out,), "on_input": ()}
    if algo == "diag-oft":
        size, count = factorization(out, rank)
        found: Tensors = {"oft_blocks": (count, size, size), "alpha": ()}
        return found | ({"rescale": (out, *[1] * (len(shape) - 1))} if given.get("rescaled") else {})
    if algo == "boft":
        size, count = butterfly(out, rank)
        found = {"oft_blocks": (int(count - 1).bit_count() + 1, count, size, size), "alpha": ()}
        return found | ({"rescale": (out, *[1] * (len(shape) - 1))} if given.get("rescaled") else {})
    if algo == "dylora":
        return {**low_rank(shape, rank, flat_up=True), "alpha": ()}
    if algo == "glora":
        return _glora(shape, rank)
    if algo == "loha":
        found = _loha(shape, rank, tucker=tucker)
    elif algo == "lokr":
        found = _lokr(shape, rank, given, tucker=tucker)
    elif tucker:
        found = {"lora_down.weight": (rank, width, 1, 1), "lora_mid.weight": (rank, rank, *kernel),
                 "lora_up.weight": (out, rank, 1, 1)}  # fmt: skip
    else:
        found = low_rank(shape, rank)
    found["alpha"] = ()
    if given.get("dora_wd"):
        ones = [1] * (len(shape) - 2)
        found["dora_scale"] = (out, 1, *ones) if given.get("wd_on_output", True) else (1, width, *ones)
    return found


def _glora(shape: Shape, rank: int) -> Tensors:
    out, width, ones = shape[0], shape[1], [1] * (len(shape) - 2)
    return {"a1.weight": (width, rank, *ones), "a2.weight": (rank, width, *ones), "b1.weight": (out, rank, *ones),
            "b2.weight": (rank, *shape[1:]), "alpha": ()}  # fmt: skip


def _loha(shape: Shape, rank: int, *, tucker: bool) -> Tensors:
    out, width, kernel = shape[0], shape[1], shape[2:]
    found: Tensors = {}
    for half in ("w1", "w2"):
        if tucker:
            found |= {f"hada_t{half[1]}": (rank, rank, *kernel)}
            found |= {f"hada_{half}_a": (rank, out), f"hada_{half}_b": (rank, width)}
        else:
            found |= {f"hada_{half}_a": (out, rank), f"hada_{half}_b": (rank, width * math.prod(kernel))}
    return found


def _lokr(shape: Shape, rank: int, given: Mapping[str, Any], *, tucker: bool) -> Tensors:
    factor, whole = given.get("factor") or -1, bool(given.get("full_matrix"))
    (small_in, large_in), (small_out, large_out) = factorization(shape[1], factor), factorization(shape[0], factor)
    if given.get("unbalanced_factorization"):
        small_out, large_out = large_out, small_out
    kernel, found = shape[2:], Tensors()
    if given.get("decompose_both") and rank < max(small_out, small_in) / 2 and not whole:
        found |= {"lokr_w1_a": (small_out, rank), "lokr_w1_b": (rank, small_in)}
    else:
        found["lokr_w1"] = (small_out, small_in)
    if rank >= max(large_out, large_in) / 2 or whole:
        found["lokr_w2"] = (large_out, large_in, *kernel)
    elif tucker:
        found |= {"lokr_t2": (rank, rank, *kernel), "lokr_w2_a": (rank, large_out), "lokr_w2_b": (rank, large_in)}
    else:
        found |= {"lokr_w2_a": (large_out, rank), "lokr_w2_b": (rank, large_in * math.prod(kernel))}
    return found


@functools.cache
def factorization(dimension: int, factor: int = -1) -> tuple[int, int]:
    """(smaller, larger) whole numbers whose product is `dimension`, the smaller near `factor` and at most that."""
    if factor > 0 and dimension % factor == 0:
        return min(factor, dimension // factor), max(factor, dimension // factor)
    most = dimension if factor < 0 else factor
    small, large = 1, dimension
    length = small + large
    while small < large:
        following = next(n for n in range(small + 1, dimension + 1) if dimension % n == 0)
        if following + dimension // following > length or following > most:
            break
        small, large = following, dimension // following
    return min(small, large), max(small, large)


@functools.cache
def butterfly(dimension: int, factor: int) -> tuple[int, int]:
    """(block size, number of blocks) of BOFT: the number a power of two, the size even and at most `factor`."""
    most, size = dimension if factor == -1 else factor, 0
    for even in range(2, most + 1, 2):
        if dimension % even == 0 and (dimension // even).bit_count() == 1:
            size = even
    return size, dimension // size if size else 0


# ------------------------------------------------------------------------------------------- what cannot be attached


def misfits(config: TrainConfig, family: str, model: str | None) -> Iterator[Problem]:
    """Ranks and kinds that these layers cannot take, as the trainer would find out once they are loaded."""
    given, problems = network_values(config, family)
    if errors(problems) or config.adapter not in SUPPORTED or config.dim_from_weights:
        return
    layers = layers_of(family, model)
    if config.network_module == "networks.oft":
        yield from _oft_misfit(config, given, layers)
    made = list(adapter(config, family, layers))
    if not made:
        yield nothing_to_adapt(config)
    texts, _ = name_values(config.network_args, "network_args")
    preset = given.get("preset", "full")
    if config.network_module == "lycoris.kohya" and preset not in PRESETS and not os.path.isfile(preset):
        must = f"preset must be one of {', '.join(PRESETS)}, or a preset file that can be read"
        yield bad("preset", preset, must, texts, fix=with_it(texts, "preset", "full"))
    hopeless = next((layer for layer, found in made if 0 in found.get("oft_blocks", ())), None)
    if hopeless is not None and given.get("algo") == "boft":
        must = f"cannot split the {hopeless.shape[0]} channels of {hopeless.path} at rank {config.rank}"
        yield bad("algo", "boft", must, texts, fix=with_it(texts, "algo", "diag-oft"))
    row = optimizers.read(config)[0].row
    if row is not None and row.matrices and any(len(shape) > 2 for _, found in made for shape in found.values()):
        yield Problem(
            code="matrices-only",
            key="optimizer_type",
            got=config.optimizer_type,
            must=f"{row.made} takes matrices only, and convolutions of this base model are adapted",
            fix="--set optimizer_type=AdamW",
        )


def _oft_misfit(config: TrainConfig, given: Mapping[str, Any], layers: tuple[Layer, ...]) -> Iterator[Problem]:
    count = config.rank
    unet = tuple(layer for layer in layers if layer.part == "unet")
    widths = {layer.shape[0] for layer, _ in _oft(config, given, unet)}
    if all(width % count == 0 for width in widths):
        return
    common = math.gcd(*widths)
    fitting = max(divisor for divisor in range(1, count) if common % divisor == 0)
    yield Problem(
        code="bad-network-dim",
        key="network_dim",
        got=count,
        must=f"is the number of blocks of networks.oft and must divide its layers' channels ({common})",
        fix=f"--set network_dim={fitting}",
    )
