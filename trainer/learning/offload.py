"""cpu_offload_checkpointing: what gradient checkpointing keeps between its blocks waits in main memory."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint


def checkpointed_in_main_memory(module: torch.nn.Module, *inputs: Any) -> Any:
    """`module(*inputs)`, of which only the inputs are kept, in main memory; backward brings them back and recomputes.

    Takes the place of diffusers' own checkpointing function; loss and gradients are the same.
    """
    on_gpu = any(isinstance(value, torch.Tensor) and value.is_cuda for value in inputs)
    with save_on_cpu(pin_memory=on_gpu):  # pinned, so that the copies run beside the computation
        return checkpoint(module.__call__, *inputs, use_reentrant=False)
