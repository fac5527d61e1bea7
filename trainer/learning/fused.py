"""fused_backward_pass: Adafactor steps each weight as its gradient arrives, so that gradients never are all there."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from schemas import TrainConfig


def can_fuse(config: TrainConfig, processes: int) -> str | None:
    """None where stepping early gives the very numbers of an ordinary step, else what stands in the way."""
    if processes > 1:
        return "gradients are shared between processes first"
    if config.max_grad_norm:
        return "max_grad_norm needs the norm of all gradients"
    if config.mixed_precision == "fp16":
        return "fp16 checks all gradients before a step"
    return None


class FusedBackward:
    """Hooks on every weight of an optimizer that works on each weight by itself, as Adafactor does."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer: Any = optimizer
        self._norms: list[Tensor] = []
        for number, group in enumerate(optimizer.param_groups):
            for weight in group["params"]:
                weight.register_post_accumulate_grad_hook(partial(self._step, number))

    def _step(self, number: int, weight: Tensor) -> None:
        assert weight.grad is not None
        self._norms.append(torch.linalg.vector_norm(weight.grad.float()))
        weight.grad.nan_to_num_(0.0, 0.0, 0.0)  # what is no number moves nothing; the norm tells, and the run stops
        groups = self.optimizer.param_groups
        self.optimizer.param_groups = [{**groups[number], "params": [weight]}]
        try:
            type(self.optimizer).step(self.optimizer)  # past the scheduler's count of steps
        finally:
            self.optimizer.param_groups = groups
        weight.grad = None

    def norm(self, device: torch.device) -> Tensor:
        """The norm of all gradients since the last call."""
        norms, self._norms = self._norms, []
        return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros((), device=device)
