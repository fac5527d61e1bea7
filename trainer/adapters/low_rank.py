"""y = x Wᵀ + b + s (x Aᵀ) Bᵀ with W frozen, as one node of the graph."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def low_rank_linear(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """x [..., in] through a frozen W [out, in] with A [r, in] and B [out, r] beside it, in autocast's dtype or x's own.

    Both sums, of the outputs and of the gradients of x, are added inside a matrix product: plain autograd would write
    and read each of these large tensors once more.
    """
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    found: Tensor = _LowRank.apply(x, weight, bias, a, b, scale, dtype)
    return found


class _LowRank(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float, dtype: torch.dtype
    ) -> Tensor:
        ctx.shape, ctx.scale, ctx.dtypes = x.shape, scale, (x.dtype, a.dtype, b.dtype)
        x, weight, a, b = x.to(dtype).flatten(0, -2), weight.to(dtype), a.to(dtype), b.to(dtype)
        h = x @ a.t()
        y = F.linear(x, weight, None if bias is None else bias.to(dtype)).addmm_(h, b.t(), alpha=scale)
        # x itself is kept only where A learns: LoRA-FA does without
        ctx.save_for_backward(x if ctx.needs_input_grad[3] else None, weight, a, b, h)
        return y.view(*ctx.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, h = ctx.saved_tensors
        needs_x, _, _, needs_a, needs_b, *_ = ctx.needs_input_grad
        grad = grad.flatten(0, -2)
        grad_x = grad_a = grad_b = None
        if needs_x or needs_a:
            grad_h = (grad @ b).mul_(ctx.scale)
        if needs_x:
            grad_x = (grad @ weight).addmm_(grad_h, a).view(ctx.shape).to(ctx.dtypes[0])
        if needs_a:
            grad_a = (x.t() @ grad_h).t().to(ctx.dtypes[1])  # this way round is the faster product
        if needs_b:
            grad_b = (h.t() @ grad).t().mul_(ctx.scale).to(ctx.dtypes[2])
        return grad_x, None, None, grad_a, grad_b, None, None
