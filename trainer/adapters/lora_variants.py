"""Kinds of LoRA that train it otherwise and save it alike: DyLoRA and LoRA-FA."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from schemas.network_args import bad
from schemas.problems import ConfigError
from trainer.adapters.lora import Lora
from trainer.adapters.lora_layers import ConvLora, Dropouts, KohyaLayer, LinearLora, Shape
from trainer.adapters.network_args import LoraArgs


class RandomRank(KohyaLayer):
    """DyLoRA (Valipour et al. 2023), frozen form: a training call uses the first b ranks, trains their last unit.

    b is drawn anew at each call from u, 2u, ..., r; the scale is α / b, so that a file cut to b ranks acts as trained.
    """

    unit: int

    def _operands(self, x: Tensor) -> tuple[Tensor, Tensor, float]:
        a, b, scale = super()._operands(x)
        if not self.training:
            return a, b, scale
        # torch's own generator, on the CPU: gradient checkpointing draws the same rank again when it recomputes.
        kept = self.unit * int(torch.randint(1, self.rank // self.unit + 1, ()))
        old = kept - self.unit
        a = torch.cat([a[:old].detach(), a[old:kept]])
        b = torch.cat([b[:, :old].detach(), b[:, old:kept]], 1)
        return a, b, scale * self.rank / kept


class RandomRankLinear(RandomRank, LinearLora):
    """Linear."""


class RandomRankConv(RandomRank, ConvLora):
    """Conv2d."""


class DyLora(Lora):
    """networks.dylora: one training gives LoRAs of every rank that is a multiple of `unit` (reference section 7.10).

    Each text encoder of SDXL has key names of its own, where the reference lets them collide (trap T23).
    """

    module = "networks.dylora"

    @staticmethod
    def layer(base: Any, shape: Shape, dropouts: Dropouts, args: LoraArgs) -> KohyaLayer:
        if shape.rank % args.unit:
            must = f"the rank is {shape.rank} in network_weights, which unit must divide"
            raise ConfigError([bad("unit", str(args.unit), must, {}, fix="set unit to a divisor")])
        kind = RandomRankLinear if isinstance(base, nn.Linear) else RandomRankConv
        made = kind(base, shape, Dropouts())
        made.unit = args.unit
        return made


class LoraFa(Lora):
    """networks.lora_fa (Zhang et al. 2023): A stays as it was drawn, from N(0, 2 / (fan_in + r)); only B trains."""

    module = "networks.lora_fa"

    @staticmethod
    def layer(base: Any, shape: Shape, dropouts: Dropouts, args: LoraArgs) -> KohyaLayer:
        made = Lora.layer(base, shape, dropouts, args)
        a = made.down.weight
        if a.device.type != "meta":
            fan_in = a[0].numel()
            drawn = torch.randn(a.shape) * math.sqrt(2 / (fan_in + shape.rank))
            a.data.copy_(drawn)
        return made

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return (named for named in super().named_parameters() if named[0].endswith("lora_up.weight"))

    def to_dtype(self, dtype: torch.dtype) -> None:
        for _, parameter in super().named_parameters():
            parameter.data = parameter.data.to(dtype)

    def _scale(self, layer: KohyaLayer, ratio: Tensor) -> None:
        layer.up.weight.mul_(ratio)  # A is not to change
