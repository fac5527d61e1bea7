"""quantize_base: the U-Net's frozen weights rest in 8-bit or 4-bit numbers and are widened where they are used.

int8: one scale for each output channel, the largest weight of the channel / 127. nf4: the 16 quantiles of a normal
distribution, one scale for 64 weights (Dettmers et al. 2023, "QLoRA"), by bitsandbytes. Autograd keeps the narrow
weight, not its widened copy; whoever else asks a layer for its `weight` gets it widened.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from trainer.learning.float8 import compute_dtype

BLOCK = 64  # weights that share a scale of nf4
Kind = Literal["int8", "nf4"]


def quantize(model: nn.Module, kind: Kind) -> int:
    """Store every frozen Linear and Conv2d of `model` narrowly; how many were. Call before an adapter is attached.

    Embeddings, norms and biases stay as they are. For nf4, layers whose weights do not fill whole blocks do too.
    """
    done = 0
    module: Any
    for module in model.modules():
        form = {nn.Linear: NarrowLinear, nn.Conv2d: NarrowConv}.get(type(module))
        if form is None or (kind == "nf4" and module.weight.numel() % (2 * BLOCK)):
            continue
        weight: Any = module._parameters.pop("weight")
        if weight.requires_grad:
            raise ValueError("only frozen weights can be stored narrowly")
        module.__class__ = form
        narrow: Any = module
        narrow.shape, narrow.dtype, narrow.kind = weight.shape, weight.dtype, kind
        stored, scale = to_int8(weight) if kind == "int8" else to_nf4(weight)
        narrow.stored = nn.Parameter(stored, requires_grad=False)
        narrow.scale = nn.Parameter(scale, requires_grad=False)
        done += 1
    return done


def to_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(int8 [out, ...], float32 scale [out, 1, ...])."""
    scale = weight.float().abs().amax(dim=tuple(range(1, weight.dim())), keepdim=True).clamp(min=1e-12) / 127
    return (weight.float() / scale).round().to(torch.int8), scale


def to_nf4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(uint8 [numbers / 2, 1], float32 scale of each block)."""
    from bitsandbytes.functional import quantize_4bit

    stored, state = quantize_4bit(weight.contiguous(), blocksize=BLOCK, quant_type="nf4")
    return stored, state.absmax


def widen(stored: Tensor, scale: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """The weight [out, ...] in `dtype`."""
    if stored.dtype == torch.int8:
        return (stored * scale).to(dtype)
    from bitsandbytes.functional import QuantState, dequantize_4bit, get_4bit_type

    code = get_4bit_type("nf4", device=stored.device)
    state = QuantState(scale, shape=shape, dtype=dtype, blocksize=BLOCK, code=code, quant_type="nf4")
    found: Tensor = dequantize_4bit(stored, state)
    return found


class Narrow:
    """A layer whose weight is stored narrowly: `shape` and `dtype` are those of the wide one."""

    stored: nn.Parameter
    scale: nn.Parameter
    bias: Tensor | None
    shape: torch.Size
    dtype: torch.dtype
    kind: Kind

    @property
    def weight(self) -> Tensor:
        """The widened weight."""
        return widen(self.stored, self.scale, self.shape, self.dtype)

    @weight.deleter
    def weight(self) -> None:
        """For an adapter that takes the weight's place: LyCORIS' full form keeps it, widened, for itself."""


class NarrowLinear(Narrow, nn.Linear):  # type: ignore[misc]
    """Linear."""

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = _Product.apply(x, self.stored, self.scale, self.bias, compute_dtype(x), self.shape, None)
        return found


class NarrowConv(Narrow, nn.Conv2d):
    """Conv2d."""

    def forward(self, x: Tensor) -> Tensor:
        settings = self.stride, self.padding, self.dilation, self.groups
        found: Tensor = _Product.apply(x, self.stored, self.scale, self.bias, compute_dtype(x), self.shape, settings)
        return found


class _Product(torch.autograd.Function):
    """linear, or conv2d where there are `settings`, with the weight widened on the fly, forward and backward."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, stored: Tensor, scale: Tensor, bias: Tensor | None, dtype: torch.dtype,
        shape: torch.Size, settings: Any,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(stored, scale)
        ctx.facts = x.dtype, x.shape, dtype, shape, settings
        weight, bias = widen(stored, scale, shape, dtype), None if bias is None else bias.to(dtype)
        return (
            F.linear(x.to(dtype), weight, bias) if settings is None else F.conv2d(x.to(dtype), weight, bias, *settings)
        )

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        stored, scale = ctx.saved_tensors
        outer, place, inner, shape, settings = ctx.facts
        weight = widen(stored, scale, shape, inner)
        with torch.autocast(grad.device.type, enabled=False):
            if settings is None:
                x = grad.to(inner) @ weight
            else:
                x = conv2d_input(place, weight, grad.to(inner), *settings)
        return x.to(outer), None, None, None, None, None, None
