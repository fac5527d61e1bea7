"""LoRA layers (Hu et al. 2021) in peft's slots, with kohya's init, scale and dropouts (reference section 7.4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners import lora as peft_lora
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from trainer.adapters.low_rank import low_rank_linear

NAME = "default"  # peft's name of the one adapter


@dataclass(frozen=True)
class Shape:
    """Rank and alpha of one module."""

    rank: int
    alpha: float


@dataclass(frozen=True)
class Dropouts:
    """Chances of dropping one r-dim activation, one rank channel of a sample, one whole module."""

    activation: float = 0.0
    rank: float = 0.0
    module: float = 0.0

    @property
    def inner(self) -> bool:
        return self.activation > 0 or self.rank > 0


class KohyaLayer(LoraLayer):
    """The half that Linear and Conv2d share: y = W x + (multiplier α / r) B A x.

    It sits in peft's slots (`lora_A`, `lora_B`, `scaling`), so peft's merging works on it; only the forward is ours. A
    is Kaiming-uniform with a = √5, B is 0; both are float32 and drawn on the CPU, so that a seed gives the same start
    anywhere.
    """

    base_layer: Any
    down: Any
    up: Any

    def _fill(self, base: nn.Module, shape: Shape, dropouts: Dropouts, down: Any, up: Any) -> None:
        LoraLayer.__init__(self, base)
        self._active_adapter = NAME
        self.fan_in_fan_out = False
        self.dropouts = dropouts
        self.multiplier = 1.0
        self.r[NAME] = shape.rank
        self.lora_dropout[NAME] = nn.Identity()
        self.lora_bias[NAME] = self.use_rslora[NAME] = self.use_dora[NAME] = False
        device: torch.device = self.base_layer.weight.device
        # torch fills a new Linear or Conv2d with the very Kaiming draw that A needs; B comes from the meta device.
        up.weight = nn.Parameter(torch.zeros(up.weight.shape, device=device))
        self.lora_A[NAME], self.lora_B[NAME] = down.to(device), up
        # Plain references: the look-up through two containers would cost more than the small products on a GPU.
        self.__dict__["down"], self.__dict__["up"] = self.lora_A[NAME], self.lora_B[NAME]
        self.set_alpha(shape.alpha)

    @property
    def rank(self) -> int:
        return self.r[NAME]

    @property
    def alpha(self) -> float:
        return self.lora_alpha[NAME]

    def set_alpha(self, alpha: float) -> None:
        """The alpha that is saved and that scales."""
        self.lora_alpha[NAME] = alpha
        self.scaling[NAME] = self.multiplier * alpha / self.rank

    def set_multiplier(self, multiplier: float) -> None:
        """Strength on top of alpha / r."""
        self.multiplier = multiplier
        self.set_alpha(self.alpha)

    def factors(self) -> tuple[Tensor, Tensor]:
        """(A [r, in·k·k], B [out, r]) with ΔW = (α / r) B A."""
        return self.down.weight.flatten(1), self.up.weight.flatten(1)

    def _operands(self, x: Tensor) -> tuple[Tensor, Tensor, float]:
        """(A, B, scale) of this call, in the dtype that meets `x`; under autocast the products cast for themselves."""
        a, b = self.down.weight, self.up.weight
        if a.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
            a, b = a.to(x.dtype), b.to(x.dtype)
        return a, b, self.scaling[NAME]

    def _idle(self) -> bool:
        """Whether this call is the base layer alone: switched off, merged, of no strength, or dropped as a whole."""
        if self._disable_adapters or self.merged_adapters or self.scaling[NAME] == 0:
            return True
        return self.training and self.dropouts.module > 0 and bool(torch.rand(()) < self.dropouts.module)

    def _drop(self, h: Tensor, channel: int) -> Tensor:
        """Dropout on the r-dim activations; rank dropout zeroes whole channels of a sample, both keep the mean."""
        if self.dropouts.activation:
            h = F.dropout(h, self.dropouts.activation)
        if self.dropouts.rank:
            keep = 1 - self.dropouts.rank
            shape = [1] * h.dim()
            shape[0], shape[channel] = h.shape[0], h.shape[channel]
            h = h * torch.empty(shape, dtype=h.dtype, device=h.device).bernoulli_(keep).div_(keep)
        return h


class LinearLora(KohyaLayer, peft_lora.Linear):
    """Linear: A [r, in], B [out, r]."""

    def __init__(self, base: nn.Linear, shape: Shape, dropouts: Dropouts) -> None:
        nn.Module.__init__(self)
        down = nn.Linear(base.in_features, shape.rank, bias=False, device=_birthplace(base))
        up = nn.Linear(shape.rank, base.out_features, bias=False, device="meta")
        self._fill(base, shape, dropouts, down, up)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self._idle():
            found: Tensor = self.base_layer(x, *args, **kwargs)
            return found
        a, b, scale = self._operands(x)
        drops = self.training and self.dropouts.inner
        if not drops and self._plain_base():
            return low_rank_linear(x, self.base_layer.weight, self.base_layer.bias, a, b, scale)
        y: Tensor = self.base_layer(x, *args, **kwargs)
        h = F.linear(x, a)
        if drops:
            h = self._drop(h, channel=-1)
        return torch.addmm(y.flatten(0, -2), h.flatten(0, -2), b.t(), alpha=scale).view(y.shape)

    def _plain_base(self) -> bool:
        """Whether the base layer is a frozen product and no more: no 8-bit storage, no hooks in between."""
        base = self.base_layer
        hooked = "forward" in base.__dict__ or base._forward_hooks or base._forward_pre_hooks
        return type(base) is nn.Linear and not hooked and not base.weight.requires_grad


class ConvLora(KohyaLayer, peft_lora.Conv2d):
    """Conv2d: A [r, in, k, k] with the base's stride and padding, B [out, r, 1, 1]."""

    def __init__(self, base: nn.Conv2d, shape: Shape, dropouts: Dropouts) -> None:
        nn.Module.__init__(self)
        same: dict[str, Any] = {"kernel_size": base.kernel_size, "stride": base.stride, "padding": base.padding}
        down = nn.Conv2d(base.in_channels, shape.rank, **same, bias=False, device=_birthplace(base))
        up = nn.Conv2d(shape.rank, base.out_channels, 1, bias=False, device="meta")
        self._kernel_dim = 4
        self.conv_fn = F.conv2d
        self._fill(base, shape, dropouts, down, up)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y: Tensor = self.base_layer(x, *args, **kwargs)
        if self._idle():
            return y
        a, b, scale = self._operands(x)
        h = F.conv2d(x, a, None, self.base_layer.stride, self.base_layer.padding)
        if self.training and self.dropouts.inner:
            h = self._drop(h, channel=1)
        if scale != 1:
            h = h * scale
        return y + F.conv2d(h, b)


def _birthplace(base: nn.Module) -> str:
    return "meta" if base.weight.device.type == "meta" else "cpu"
