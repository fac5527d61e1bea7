"""fp8_base: the frozen weights rest in 8-bit floats and are widened where they are used, forward and backward.

Only half the memory of bf16 stays taken: autograd keeps the 8-bit weight, not its widened copy.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

FLOAT8 = torch.float8_e4m3fn


def to_float8(model: nn.Module) -> int:
    """Store the weights of every Linear and Conv2d of a frozen model as float8_e4m3fn; how many were stored so.

    Embeddings, norms and biases stay as they are, as in the reference. Call before an adapter is attached.
    """
    modules = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    for module in modules:
        if module.weight.requires_grad:
            raise ValueError("only frozen weights can be stored in 8 bit")
        module.weight.data = module.weight.data.to(FLOAT8)
        function: Any = _linear if isinstance(module, nn.Linear) else _conv
        module.forward = functools.partial(function, module)  # type: ignore[method-assign]
    return len(modules)


def compute_dtype(x: Tensor) -> torch.dtype:
    """What autocast would compute a product of `x` in."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def _linear(module: nn.Linear, x: Tensor) -> Tensor:
    found: Tensor = _Linear.apply(x, module.weight, module.bias, compute_dtype(x))
    return found


def _conv(module: nn.Conv2d, x: Tensor) -> Tensor:
    settings = module.stride, module.padding, module.dilation, module.groups
    found: Tensor = _Conv.apply(x, module.weight, module.bias, compute_dtype(x), settings)
    return found


class _Linear(torch.autograd.Function):
    """x W^T + b with W widened on the fly."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.dtypes = x.dtype, dtype
        return F.linear(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (weight,) = ctx.saved_tensors
        outer, inner = ctx.dtypes
        return (grad.to(inner) @ weight.to(inner)).to(outer), None, None, None


class _Conv(torch.autograd.Function):
    """conv2d with its kernel widened on the fly."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, settings: Any) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.dtypes, ctx.shape, ctx.settings = (x.dtype, dtype), x.shape, settings
        return F.conv2d(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype), *settings)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        (weight,) = ctx.saved_tensors
        outer, inner = ctx.dtypes
        with torch.autocast(grad.device.type, enabled=False):
            x = conv2d_input(ctx.shape, weight.to(inner), grad.to(inner), *ctx.settings)
        return x.to(outer), None, None, None, None
