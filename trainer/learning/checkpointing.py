"""Gradient checkpointing of some blocks of the U-Net instead of all: as many as memory asks for."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from schemas import TrainConfig
from trainer.learning.offload import checkpointed_in_main_memory
from trainer.plan.blocks import checkpoint_order, is_block

Checkpoint = Callable[..., Any]


def blocks_of(unet: nn.Module) -> dict[str, nn.Module]:
    """Path -> block, of those that can be checkpointed and streamed one by one."""
    return {name: module for name, module in unet.named_modules() if is_block(name)}


def width_of(block: nn.Module) -> int:
    """Channels that leave a block."""
    inner: Any = block
    return int(getattr(inner, "out_channels", None) or inner.norm1.normalized_shape[0])


def plain(module: nn.Module, *inputs: Any) -> Any:
    """`module(*inputs)`, of which only the inputs are kept until backward."""
    return checkpoint(module.__call__, *inputs, use_reentrant=False)


def enable(unet: Any, config: TrainConfig, streamed: Collection[str] = ()) -> None:
    """Checkpoint what `config` says, and the `streamed` blocks; loss and gradients are the same for any choice."""
    if not config.gradient_checkpointing and not streamed:
        return
    unet.train()
    kept = checkpointed_in_main_memory if config.cpu_offload_checkpointing else plain
    if config.gradient_checkpointing and not config.checkpointed_blocks:
        unet.enable_gradient_checkpointing(kept)
        return
    blocks = blocks_of(unet)
    order = checkpoint_order({name: width_of(block) for name, block in blocks.items()})
    chosen = {*streamed, *(order[: config.checkpointed_blocks or 0] if config.gradient_checkpointing else ())}
    again = {id(blocks[name]) for name in chosen}

    def run(module: nn.Module, *inputs: Any) -> Any:
        return kept(module, *inputs) if id(module) in again else module(*inputs)

    unet.enable_gradient_checkpointing(run)


def is_recomputing() -> bool:
    """Whether this is the second forward of a checkpointed block, in the midst of backward."""
    return torch._C._current_graph_task_id() != -1
