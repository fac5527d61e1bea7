"""cpu_offload_checkpointing moves what is kept, and changes no number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.autograd.graph import saved_tensors_hooks

from trainer import __main__
from trainer.learning import checkpointing, offload
from trainer.learning.offload import checkpointed_in_main_memory

Start = Callable[..., int]


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.Dropout(0.5), torch.nn.Linear(64, 4))
        self.calls = 0

    def forward(self, x: torch.Tensor, scale: float) -> torch.Tensor:
        self.calls += 1
        found: torch.Tensor = self.inner(x) * scale
        return found.tanh()


def gradients(run: Callable[..., torch.Tensor], block: Block) -> list[torch.Tensor]:
    torch.manual_seed(1)
    x = torch.ones(2, 4, requires_grad=True)
    return list(torch.autograd.grad(run(run(x)).sum(), [x, *block.parameters()]))


def test_gradients_are_the_same_with_dropout_and_only_inputs_are_kept() -> None:
    block = Block()
    plain = gradients(lambda x: block(x, 2.0), block)
    kept: list[torch.Size] = []

    def watched(x: torch.Tensor) -> torch.Tensor:
        with saved_tensors_hooks(lambda value: (kept.append(value.shape), value)[1], lambda value: value):
            found: torch.Tensor = checkpointed_in_main_memory(block, x, 2.0)
            return found

    moved = gradients(lambda x: checkpointed_in_main_memory(block, x, 2.0), block)
    assert all(torch.equal(one, other) for one, other in zip(plain, moved, strict=True))
    assert block.calls == 2 + 4  # each block once more in backward
    watched(torch.ones(2, 4, requires_grad=True))
    assert torch.Size([2, 64]) not in kept


def test_what_waits_is_handed_to_main_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    packed: list[torch.Size] = []

    class Seen(offload.save_on_cpu):  # type: ignore[misc]
        def __init__(self, pin_memory: bool = False) -> None:
            super().__init__(pin_memory=pin_memory)
            real = self.pack_hook
            self.pack_hook = lambda value: (packed.append(value.shape), real(value))[1]

    monkeypatch.setattr(offload, "save_on_cpu", Seen)
    block = Block()
    gradients(lambda x: checkpointed_in_main_memory(block, x, 2.0), block)
    assert packed.count(torch.Size([2, 4])) == 2
    assert torch.Size([2, 64]) not in packed


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_a_run_gives_the_same_lora(family: str, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[Any] = []
    real = checkpointing.checkpointed_in_main_memory
    monkeypatch.setattr(checkpointing, "checkpointed_in_main_memory", lambda *given: (used.append(1), real(*given))[1])
    # on a CPU the launcher and the trainer leave the option out
    monkeypatch.setattr(__main__, "adapt_to", lambda read, **_: (replace(read, mixed_precision="no"), []))
    for name, offloaded in (("plain", False), ("moved", True)):
        assert start(family, output_dir=tmp_path / name, gradient_checkpointing=True, max_train_steps=2,
                     cpu_offload_checkpointing=offloaded) == 0  # fmt: skip
        assert bool(used) == offloaded
    one, other = (load_file(tmp_path / name / "n0m3.safetensors") for name in ("plain", "moved"))
    assert all(torch.equal(one[key], other[key]) for key in one)
