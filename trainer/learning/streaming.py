"""Streaming: frozen blocks of the U-Net rest in main memory and visit the GPU when they are computed.

Only from host to device: frozen weights need no way back. While a block computes, the next one is copied on a stream
of its own into the other of two buffers, so that two blocks lie on the device. A streamed block is always checkpointed:
backward computes it again, for which it is fetched again, and autograd keeps no streamed weight between forward and
backward. It is the plain step's numbers bit for bit. Only on a CPU a plain run may differ in the last digits, where
the weights of a mapped file begin at addresses from which its kernels sum in another order.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from schemas import TrainConfig
from trainer.learning.checkpointing import blocks_of, is_recomputing
from trainer.plan.blocks import in_forward_order, stream_order

ALIGNED = 64  # bytes; where a weight begins in its block's memory


@dataclass
class Slot:
    """One frozen weight of a block: where it belongs, and where it begins in the block's memory."""

    owner: nn.Module
    name: str
    host: nn.Parameter
    start: int

    def view(self, memory: Tensor) -> nn.Parameter:
        """The weight that lies in `memory` (bytes)."""
        piece = memory[self.start : self.start + self.host.nbytes].view(self.host.dtype).view(self.host.shape)
        return nn.Parameter(piece, requires_grad=False)


class Block:
    """A block's frozen weights in one piece of (pinned) host memory."""

    def __init__(self, module: nn.Module, kept: Collection[int], *, pin: bool) -> None:
        self.slots: list[Slot] = []
        size = 0
        for owner in module.modules():
            for name, weight in owner._parameters.items():
                if weight is not None and not weight.requires_grad and id(weight) not in kept:
                    self.slots.append(Slot(owner, name, weight, size))
                    size += -(-weight.nbytes // ALIGNED) * ALIGNED
        self.host = torch.empty(size, dtype=torch.uint8, pin_memory=pin)
        for slot in self.slots:
            place = slot.view(self.host)
            place.data.copy_(slot.host)
            slot.host = place
        self.put_back()

    def put(self, memory: Tensor) -> None:
        """Weights for the modules to compute with. New parameters: what autograd has saved stays as it is."""
        for slot in self.slots:
            slot.owner._parameters[slot.name] = slot.view(memory)

    def put_back(self) -> None:
        """The weights in main memory, which nothing computes with."""
        for slot in self.slots:
            slot.owner._parameters[slot.name] = slot.host


class Streamer:
    """Brings the blocks to the device in the order in which they are used, each while the one before it computes."""

    def __init__(self, blocks: Mapping[str, nn.Module], device: torch.device, kept: Collection[int] = ()) -> None:
        """`blocks` by their paths in the U-Net; `kept` are ids of weights that stay where they are."""
        self.device, self.cuda = device, device.type == "cuda"
        self.names = in_forward_order(blocks)
        self.blocks = [Block(blocks[name], kept, pin=self.cuda) for name in self.names]
        size = max((block.host.nbytes for block in self.blocks), default=0)
        self.buffers = [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2)]
        self.copying: Any = torch.cuda.Stream(device) if self.cuda else None
        self._in: list[int | None] = [None, None]  # the block in each buffer, or on its way there
        self._arrived: list[Any] = [None, None]
        for index, name in enumerate(self.names):
            blocks[name].register_forward_pre_hook(partial(self._enter, index))
            blocks[name].register_forward_hook(partial(self._leave, index), always_call=True)

    def host_storages(self) -> list[Any]:
        """The memory in which the blocks rest."""
        return [block.host.untyped_storage() for block in self.blocks]

    @contextmanager
    def absent(self) -> Iterator[None]:
        """The U-Net without the streamed weights, for as long as it is moved."""
        for block in self.blocks:
            for slot in block.slots:
                slot.owner._parameters[slot.name] = None
        yield
        for block in self.blocks:
            block.put_back()

    def _fetch(self, index: int) -> None:
        if not 0 <= index < len(self.blocks) or self._in[index % 2] == index:
            return
        host, buffer = self.blocks[index].host, self.buffers[index % 2]
        self._in[index % 2] = index
        if not self.cuda:
            buffer[: host.nbytes].copy_(host)
            return
        # The block that was in this buffer has been asked of the device already: the copy begins when it is done.
        self.copying.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.copying):
            buffer[: host.nbytes].copy_(host, non_blocking=True)
        self._arrived[index % 2] = self.copying.record_event()

    def _enter(self, index: int, *_: Any) -> None:
        self._fetch(index)
        if self.cuda:
            torch.cuda.current_stream(self.device).wait_event(self._arrived[index % 2])
        self.blocks[index].put(self.buffers[index % 2])
        self._fetch(index - 1 if is_recomputing() else index + 1)

    def _leave(self, index: int, *_: Any) -> None:
        self.blocks[index].put_back()


def stream(unet: nn.Module, config: TrainConfig, device: torch.device, kept: Collection[int]) -> Streamer | None:
    """The streamer of `streamed_blocks`; None where nothing is streamed."""
    if not config.streamed_blocks:
        return None
    blocks = blocks_of(unet)
    numbers = {
        name: sum(weight.numel() for weight in block.parameters() if id(weight) not in kept)
        for name, block in blocks.items()
    }
    chosen = stream_order(numbers)[: config.streamed_blocks]
    return Streamer({name: blocks[name] for name in chosen}, device, kept)
