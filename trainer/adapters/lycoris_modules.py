"""LyCORIS' modules as we need them: made of a file's tensors, of any strength, added to a weight, written for readers.

The package's own readers lose the form of DoRA, LoKr's factors and its Tucker core, so a module is made here: the
tensors say how it is built, then they are put in, whatever their shapes, and held against the base weight.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from schemas.network_args import bad
from schemas.problems import ConfigError, error

try:
    from lycoris.modules.boft import ButterflyOFTModule
    from lycoris.modules.diag_oft import DiagOFTModule
    from lycoris.modules.dylora import DyLoraModule
    from lycoris.modules.full import FullModule
    from lycoris.modules.glora import GLoRAModule
    from lycoris.modules.ia3 import IA3Module
    from lycoris.modules.locon import LoConModule
    from lycoris.modules.loha import LohaModule
    from lycoris.modules.lokr import LokrModule
    from lycoris.modules.norms import NormModule
except ImportError as fault:
    raise error("package-missing", "needs the lycoris-lora package", key="network_module",
                fix="pip install lycoris-lora") from fault  # fmt: skip

__all__ = [
    "PRODUCTS",
    "DyLoraModule",
    "LoConModule",
    "NormModule",
    "RankBlocks",
    "fill",
    "for_readers",
    "merged_difference",
    "misfits",
    "module_from_weights",
    "tensors_of",
    "with_strength",
]

PRODUCTS = (LohaModule, LokrModule)  # they know no dropout of activations, and say so once a module
# The tensor that tells the kind of a module, in the order in which they are looked for.
MARKS: tuple[tuple[str, type[nn.Module]], ...] = (
    ("lora_up.weight", LoConModule), ("hada_w1_a", LohaModule), ("lokr_w1", LokrModule), ("lokr_w1_a", LokrModule),
    ("a1.weight", GLoRAModule), ("oft_blocks", DiagOFTModule), ("diff", FullModule), ("w_norm", NormModule),
    ("on_input", IA3Module),
)  # fmt: skip
ENDINGS = tuple(dict.fromkeys(name for _, kind in MARKS for name in kind.weight_list))  # type: ignore[attr-defined]
# What holds the rank, as (tensor, its axis), in the order in which they are looked for.
RANKS = (
    ("lora_down.weight", 0), ("hada_w1_b", 0), ("lokr_t2", 0), ("lokr_w2_b", 0), ("lokr_w1_b", 0), ("a2.weight", 0),
    ("oft_blocks", -1),
)  # fmt: skip


class RankBlocks(DyLoraModule):
    """LyCORIS' DyLoRA with all ranks in use outside training, and a draw that gradient checkpointing can repeat."""

    def get_random_rank_weight(self) -> tuple[Tensor, Tensor, float]:
        block = int(torch.randint(self.block_count, ())) if self.training else self.block_count - 1
        found: tuple[Tensor, Tensor, float] = self.get_weight(block * self.block_size)
        return found


# -- strength ----------------------------------------------------------------------------------------------------------


def with_strength(layer: Any) -> Any:
    """The same module, whose multiplier m gives W + m ΔW, as other programs read it, and W itself at 0.

    LyCORIS scales DoRA's and the rescaled OFT's factor alone, so that ΔW stays whole at any strength.
    """
    if getattr(layer, "wd", False):
        layer.apply_weight_decompose = MethodType(_decomposed, layer)
    if getattr(layer, "rescaled", False):
        layer.make_weight = MethodType(_rescaled, layer)
    return layer


def _decomposed(layer: Any, weight: Tensor, multiplier: float = 1) -> Tensor:
    whole: Tensor = type(layer).apply_weight_decompose(layer, weight)
    if multiplier == 1:
        return whole
    base = layer._current_weight().to(whole)
    return base + multiplier * (whole - base)


def _rescaled(layer: Any, scale: float = 1, device: Any = None, diff: bool = False) -> Tensor:
    whole: Tensor = type(layer).make_weight(layer, 1, device, diff)
    if scale == 1:
        return whole
    base = torch.zeros_like(whole) if diff else layer.org_weight.to(whole)
    return base + scale * (whole - base)


# -- files -------------------------------------------------------------------------------------------------------------


def tensors_of(key: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """ending -> tensor of one module."""
    return {ending: weights[f"{key}.{ending}"] for ending in ENDINGS if f"{key}.{ending}" in weights}


def module_from_weights(
    key: str, base: nn.Module, weights: Mapping[str, Tensor], training: Mapping[str, Any] | None = None
) -> Any:
    """The LyCORIS module that a file's tensors of `key` describe; ConfigError when no algorithm knows them.

    `training` is what no tensor tells: dropouts and the like, as keyword arguments of LyCORIS' modules; its `blocks` is
    the block size of a DyLoRA, whose files look like a LoRA's.
    """
    own, said = tensors_of(key, weights), dict(training or {})
    blocks = said.pop("blocks", None)
    kind = next((kind for mark, kind in MARKS if mark in own), None)
    if kind is None:
        names = [name.partition(".")[2] for name in weights if name.startswith(f"{key}.")]
        raise error("other-network-kind", f"{key} is of a kind that LyCORIS does not know", key="network_weights",
                    got=names, fix="use another file")  # fmt: skip
    if kind is DiagOFTModule and own["oft_blocks"].dim() == 4:
        kind = ButterflyOFTModule
    try:
        with torch.no_grad():
            made = _built(kind, key, base, own, said, blocks)
            wrong = misfits(made, own, base)
            if not wrong:
                fill(made, own)
                return made
    except (RuntimeError, ValueError, TypeError, AssertionError, KeyError, IndexError) as fault:
        wrong = [str(fault).splitlines()[0]]
    shapes = {name: list(tensor.shape) for name, tensor in own.items()}
    raise error("wrong-family", f"{key} does not fit the base model's module ({', '.join(wrong)})",
                key="network_weights", got=shapes, fix="use a file of the base model's own family")  # fmt: skip


def _built(
    kind: Any, key: str, base: Any, own: Mapping[str, Tensor], said: dict[str, Any], blocks: int | None
) -> Any:  # fmt: skip
    if kind is NormModule:
        return NormModule(key, base, 1.0, said.get("rank_dropout", 0.0), said.get("module_dropout", 0.0))
    rank = next((own[name].shape[axis] for name, axis in RANKS if name in own), 1)
    if kind in PRODUCTS:
        said["dropout"] = 0.0
    if kind is IA3Module:
        said["train_on_input"] = bool(own["on_input"])
    elif kind in (DiagOFTModule, ButterflyOFTModule):
        said |= {"rescaled": "rescale" in own, "constraint": float(own.get("alpha", 0.0))}
    elif kind is LoConModule and blocks:
        if rank % blocks:
            must = f"the rank is {rank} in the file, which block_size must divide"
            raise ConfigError([bad("block_size", str(blocks), must, {}, fix="set block_size to a divisor")])
        kind, said["block_size"] = RankBlocks, blocks
    scale = own.get("dora_scale")
    if scale is not None:
        said |= {"weight_decompose": True, "wd_on_out": scale.shape[0] == base.weight.shape[0]}
    said["use_tucker"] = any(name in own for name in ("lora_mid.weight", "hada_t1", "lokr_t2"))
    made = kind(key, base, 1.0, rank, float(own.get("alpha", rank)), **said)
    return with_strength(_with_factors(made, own, rank) if kind is LokrModule else made)


def _with_factors(made: Any, own: Mapping[str, Tensor], rank: int) -> Any:
    """A LoKr that holds exactly the file's factors: which shapes they may have is a matter of many arguments."""
    for name in LokrModule.weight_list[:8]:
        if hasattr(made, name):
            delattr(made, name)
        if name in own:
            setattr(made, name, nn.Parameter(own[name].detach().float().clone()))
    made.use_w1, made.use_w2, made.tucker = "lokr_w1" in own, "lokr_w2" in own, "lokr_t2" in own
    made.lora_dim = rank
    return made


def misfits(layer: Any, own: Mapping[str, Tensor], base: Any) -> list[str]:
    """What keeps a file's tensors out of a layer, in words; alpha is a number and fits everywhere."""
    expected = {name: tuple(tensor.shape) for name, tensor in layer.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in own.items()}
    wrong = [
        f"{name} is {list(found[name]) if name in found else 'missing'}, not {list(expected.get(name, ())) or 'there'}"
        for name in (*expected, *(found.keys() - expected.keys()))
        if _bare(found.get(name)) != _bare(expected.get(name)) and name not in ("alpha", "scalar")
    ]
    if isinstance(layer, LokrModule) and not wrong:
        one, two = (getattr(layer, name, None) for name in ("lokr_w1", "lokr_w2"))
        rows = (layer.lokr_w1_a if one is None else one).shape[0]
        columns = (layer.lokr_w1_b if one is None else one).shape[1]
        tucker = layer.tucker and two is None
        rows *= two.shape[0] if two is not None else layer.lokr_w2_a.shape[1 if tucker else 0]
        rest = two[0].numel() if two is not None else layer.lokr_w2_b.shape[1]
        rest *= math.prod(layer.lokr_t2.shape[2:]) if tucker else 1
        if [rows, columns * rest] != [base.weight.shape[0], base.weight[0].numel()]:
            wrong.append(f"its factors make {[rows, columns * rest]}")
    return wrong


def _bare(shape: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """Shape without trailing 1s: a 1x1 convolution and a linear layer hold the same numbers."""
    while shape and shape[-1] == 1:
        shape = shape[:-1]
    return shape


@torch.no_grad()
def fill(layer: Any, own: dict[str, Tensor]) -> None:
    """Put one module's tensors in; the file's alpha scales too (trap T24), and is the rank where it has none."""
    if isinstance(layer, DyLoraModule):  # keeps its ranks in pieces and ignores load_state_dict
        for piece, part in zip(layer.up_list, own["lora_up.weight"].chunk(layer.block_count, 1), strict=True):
            piece.copy_(part.reshape(piece.shape))
        for piece, part in zip(layer.down_list, own["lora_down.weight"].chunk(layer.block_count, 0), strict=True):
            piece.copy_(part.reshape(piece.shape))
    elif hasattr(layer, "is_diff"):  # algo=full holds the difference, or after it was applied the sum
        layer.weight.copy_(
            own["diff"].to(layer.weight) + (0 if layer.is_diff else layer._org_weight[0].to(own["diff"]))
        )
        if "diff_b" in own:
            bias = own["diff_b"]
            layer.bias.copy_(bias.to(layer.bias) + (0 if layer.is_diff else layer.org_bias[0].to(bias)))
    else:
        shapes = {name: tensor.shape for name, tensor in layer.state_dict().items()}
        own = {name: tensor.reshape(shapes.get(name, tensor.shape)) for name, tensor in own.items()}
        layer.load_state_dict(own, strict=False)
    if hasattr(layer, "constraint"):
        layer.constraint = float(own.get("alpha", 0.0)) * layer.dim
    elif isinstance(layer, IA3Module):
        layer.train_input = bool(own["on_input"])
    elif isinstance(getattr(layer, "scale", None), float) and hasattr(layer, "lora_dim"):
        alpha = float(own.get("alpha", layer.lora_dim))
        layer.alpha.fill_(alpha / (layer.block_size if isinstance(layer, DyLoraModule) else 1))
        layer.scale = 1.0 if _whole(layer) else float(layer.alpha) / layer.lora_dim


def _whole(layer: Any) -> bool:
    """Whether it is a LoKr of two whole factors, which nobody scales by alpha / rank."""
    return isinstance(layer, LokrModule) and layer.use_w1 and layer.use_w2


def for_readers(layer: Any) -> dict[str, Tensor]:
    """The tensors of a module's file, whose alpha / rank is the scale that it was trained with.

    LyCORIS scales DyLoRA by alpha / blocks in training; its rs_lora is not in GLoRA's alpha nor in whole LoKr factors.
    """
    state = {name: tensor.detach() for name, tensor in layer.state_dict().items()}
    if isinstance(layer, DyLoraModule):
        state["alpha"] = state["alpha"].float() * layer.block_size
    elif isinstance(layer, GLoRAModule) and layer.rs_lora:
        state["alpha"] = torch.tensor(float(layer.scale * layer.lora_dim))
    elif _whole(layer) and layer.scale != 1.0:
        state["lokr_w1"] = state["lokr_w1"] * layer.scale
        state["alpha"] = torch.tensor(float(layer.lora_dim))
    return state


# -- merging -----------------------------------------------------------------------------------------------------------


def merged_difference(layer: Any, weight: Tensor, multiplier: float) -> Tensor:
    """multiplier ΔW of a module whose base weight is `weight` (float32)."""
    if isinstance(layer, FullModule):
        return multiplier * layer.weight
    if isinstance(layer, NormModule):
        return multiplier * layer.w_norm
    if isinstance(layer, (*PRODUCTS, LoConModule)):
        # LyCORIS' own merging multiplies alpha / rank twice for products
        difference = layer.get_weight(weight.shape) if isinstance(layer, PRODUCTS) else _low_rank(layer, weight)
        if layer.wd:
            return multiplier * (layer.apply_weight_decompose(weight + difference) - weight)
        return multiplier * difference
    merged, _ = layer.get_merged_weight(multiplier, weight.shape, weight.device)
    return merged.float().view_as(weight) - weight


def _low_rank(layer: Any, weight: Tensor) -> Tensor:
    made: Tensor = layer.make_weight(weight.device).view_as(weight) * layer.scale
    return made
