"""8-bit storage computes what the widened weights would, forward and backward."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from trainer.learning.float8 import FLOAT8, to_float8

LAYERS = [
    (nn.Linear(6, 4), (3, 5, 6)),
    (nn.Linear(6, 4, bias=False), (3, 6)),
    (nn.Conv2d(3, 4, 3, stride=2, padding=1), (2, 3, 9, 8)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=["linear", "no-bias", "conv"])
@pytest.mark.parametrize("autocast", [False, True])
def test_output_and_input_gradient_equal_the_widened_layer(
    layer: nn.Module, shape: tuple[int, ...], autocast: bool
) -> None:
    stored, widened = copy.deepcopy(layer).requires_grad_(False), copy.deepcopy(layer).requires_grad_(False)
    assert to_float8(stored) == 1
    widened.weight.data = widened.weight.data.to(FLOAT8).float()  # type: ignore[union-attr, operator]
    grads = []
    for module in (stored, widened):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1), requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = module(x)
        y.float().square().sum().backward()
        grads.append((y, x.grad))
    assert stored.weight.dtype == FLOAT8
    for ours, plain in zip(*grads, strict=True):
        assert torch.equal(ours, plain) or torch.allclose(ours.float(), plain.float(), rtol=1e-2, atol=1e-2)


def test_weights_that_train_are_refused() -> None:
    with pytest.raises(ValueError, match="frozen"):
        to_float8(nn.Linear(2, 2))
