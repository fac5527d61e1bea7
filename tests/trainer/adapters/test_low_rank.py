from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from trainer.adapters.low_rank import low_rank_linear

DOUBLE = {"dtype": torch.float64, "requires_grad": True}


@pytest.fixture
def operands():
    torch.manual_seed(0)
    weight, bias = torch.randn(5, 6, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    return torch.randn(2, 3, 6, **DOUBLE), weight, bias, torch.randn(2, 6, **DOUBLE), torch.randn(5, 2, **DOUBLE)


@pytest.mark.parametrize("with_bias", [True, False])
def test_gradients_are_the_numerical_ones(operands, with_bias):
    x, weight, bias, a, b = operands
    bias = bias if with_bias else None
    wanted = F.linear(x, weight, bias) + 0.3 * F.linear(F.linear(x, a), b)
    torch.testing.assert_close(low_rank_linear(x, weight, bias, a, b, 0.3), wanted)
    assert torch.autograd.gradcheck(lambda x, a, b: low_rank_linear(x, weight, bias, a, b, 0.3), (x, a, b))


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_what_needs_no_gradient_gets_none(operands, frozen):
    x, weight, bias, a, b = operands
    given = [x, a, b]
    given[frozen] = given[frozen].detach()
    low_rank_linear(given[0], weight, bias, given[1], given[2], 1.0).sum().backward()
    assert [tensor.grad is not None for tensor in given] == [index != frozen for index in range(3)]


def test_input_is_not_kept_for_a_frozen_down_matrix(operands):
    x, weight, bias, a, b = operands
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.shape), lambda tensor: tensor):
        low_rank_linear(x, weight, bias, a.detach(), b, 1.0)
    assert (6, 6) not in kept  # 2 x 3 tokens of 6 channels


def test_autocast_computes_in_half_and_keeps_gradients_whole(operands):
    x, weight, bias, a, b = (tensor.detach().float() for tensor in operands)
    a.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = low_rank_linear(x, weight, bias, a, b, 1.0)
    assert found.dtype == torch.bfloat16
    found.float().sum().backward()
    assert a.grad.dtype == torch.float32
