"""`network_args`: name=value words, read per network module (reference section 7.4, trap T22)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from schemas.argument import name_values
from schemas.network_args import BLOCKS, LORA_PLUS, NO_EFFECT, network_values
from schemas.options import NetworkOptions
from schemas.problems import Problem, taken


@dataclass(frozen=True)
class LoraPlus:
    """Ratios of the up matrices' rate to the down matrices' (Hayou et al. 2024); None leaves them equal."""

    both: float | None = None
    unet: float | None = None
    text: float | None = None

    def ratio(self, part: str) -> float | None:
        """The ratio of a part ("unet", "te", "te1", "te2")."""
        return (self.unet if part == "unet" else self.text) or self.both


@dataclass(frozen=True)
class LoraArgs:
    """What `network_args` of networks.lora and its kin say; block lists run over the U-Net's block index."""

    conv_dim: int | None = None
    conv_alpha: float = 1.0
    rank_dropout: float = 0.0
    module_dropout: float = 0.0
    block_dims: tuple[int, ...] | None = None
    block_alphas: tuple[float, ...] | None = None
    conv_block_dims: tuple[int, ...] | None = None
    conv_block_alphas: tuple[float, ...] | None = None
    lr_weight: tuple[float, ...] | None = None
    loraplus: LoraPlus = LoraPlus()
    unit: int = 1  # of networks.dylora: ranks trained at once
    notes: tuple[Problem, ...] = ()

    @property
    def by_block(self) -> bool:
        """Whether each block has a rank of its own."""
        return self.block_dims is not None or self.lr_weight is not None

    @property
    def conv(self) -> bool:
        """Whether resnets and samplers are adapted too."""
        return self.conv_dim is not None or (self.by_block and self.conv_block_dims is not None)


def arguments(options: NetworkOptions, family: str | None = None) -> dict[str, Any]:
    """name -> typed value of the options' network_args, which have passed the rules."""
    return taken(network_values(options, family))


def lora_plus(given: Mapping[str, Any]) -> LoraPlus:
    """The three LoRA+ ratios."""
    return LoraPlus(*(given.get(name) for name in LORA_PLUS))


def lora_args(options: NetworkOptions, family: str, module: str = "networks.lora") -> LoraArgs:
    """`network_args` of networks.lora, dylora or lora_fa for a model of `family`."""
    given = arguments(dataclasses.replace(options, network_module=module), family)
    texts, _ = name_values(options.network_args, "network_args")
    notes = []
    for name in NO_EFFECT[module]:
        if texts.get(name, "") not in ("", "None", "0"):
            notes.append(no_effect(name, f"{module} does not take it", f"remove {name}"))
    if module == "networks.dylora" and options.network_dropout:
        notes.append(no_effect("network_dropout", f"{module} has no dropouts", "remove it", key="network_dropout"))
    if "dropout" in given:
        notes.append(no_effect("dropout", f"{module} takes network_dropout", "set network_dropout"))
    weights = given.get("lr_weight")
    if weights is None and "block_dims" not in given:
        for name in BLOCKS[1:]:
            if name in given:
                notes.append(no_effect(name, "it counts only beside block_dims or an lr weight", "give block_dims"))
    if weights is None and "block_lr_zero_threshold" in given:
        notes.append(no_effect("block_lr_zero_threshold", "it counts only beside an lr weight", "remove it"))
    plain = ("conv_dim", "conv_alpha", "rank_dropout", "module_dropout", "unit", *BLOCKS)
    return LoraArgs(
        **{name: given[name] for name in plain if name in given},  # conv_dim 0: of the resnets, only layers not 3x3
        lr_weight=weights,
        loraplus=lora_plus(given),
        notes=tuple(notes),
    )


def no_effect(name: str, why: str, fix: str, *, key: str = "network_args") -> Problem:
    """The warning that a setting changes nothing here."""
    must = f"does nothing: {why}"
    return Problem(code="no-effect", severity="warning", key=key, got=name, must=must, fix=fix)
