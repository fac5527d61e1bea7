"""`network_args`: name=value words, read per network module (reference section 7.4, trap T22)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from schemas.network_args import BLOCKS, LORA_PLUS, network_values
from schemas.options import NetworkOptions
from schemas.problems import taken


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
    plain = ("conv_dim", "conv_alpha", "rank_dropout", "module_dropout", "unit", *BLOCKS)
    return LoraArgs(
        **{name: given[name] for name in plain if name in given},  # conv_dim 0: of the resnets, only layers not 3x3
        lr_weight=given.get("lr_weight"),
        loraplus=lora_plus(given),
    )
