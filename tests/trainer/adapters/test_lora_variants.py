from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from schemas import TrainConfig
from schemas.options import NetworkOptions
from schemas.rules.network import idle_network_args, ranks_of_dylora
from trainer.adapters import attach
from trainer.adapters.lora import planned_shapes
from trainer.adapters.network_args import lora_args

DYLORA = {"network_module": "networks.dylora", "network_dim": 4, "network_alpha": 2.0}
FA = {"network_module": "networks.lora_fa", "network_dim": 4}


def names(weights):
    return {name.partition(".")[0] for name in weights}


@pytest.mark.parametrize("module", ["networks.dylora", "networks.lora_fa"])
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_files_are_those_of_a_plain_lora(full, family, module, golden):
    """Trap T23: 264 text modules on SDXL, in two name spaces."""
    options = NetworkOptions(network_module=module, network_dim=16)
    shapes = planned_shapes(full[family][1], options, lora_args(options, family, module))
    assert set(shapes) == names(golden(f"keys_{family}_lora_dim16"))


def test_dylora_names_both_text_encoders_of_sdxl_apart(tiny):
    """Trap T23."""
    models, targets = tiny("sdxl")
    counts = attach(models, targets, NetworkOptions(**DYLORA)).modules_count
    assert counts["te1"]
    assert counts["te2"]


@pytest.mark.parametrize("unit", [1, 2])
def test_dylora_trains_one_unit_of_a_drawn_rank(net, unit):
    _, adapter = net(**DYLORA, network_args=(f"unit={unit}",))
    layer, x = adapter.layers["lora_unet_proj"], torch.randn(3, 6)
    layer.train()
    seen = set()
    for _ in range(40):
        layer.zero_grad()
        out = layer(x)
        out.sum().backward()
        trained = layer.down.weight.grad.abs().sum(1).nonzero().flatten().tolist()
        kept = trained[-1] + 1
        assert trained == list(range(kept - unit, kept))
        seen.add(kept)
        a, b = layer.down.weight[:kept], layer.up.weight[:, :kept]
        torch.testing.assert_close(out, layer.base_layer(x) + (2 / kept) * F.linear(F.linear(x, a), b))
    assert seen == set(range(unit, 5, unit))


def test_dylora_uses_all_ranks_outside_training(net):
    models, adapter = net(**DYLORA)
    _, plain = net(network_dim=4, network_alpha=2.0, weights=adapter.state_dict())
    adapter.eval()
    x, picture = torch.randn(3, 6), torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(models.unet.proj(x), plain.layers["lora_unet_proj"](x))
    torch.testing.assert_close(models.unet.point(picture), plain.layers["lora_unet_point"](picture))


def test_dylora_draws_the_same_rank_when_recomputing(net):
    _, adapter = net(**DYLORA)
    layer, x = adapter.layers["lora_unet_proj"], torch.randn(3, 6, requires_grad=True)
    layer.train()
    for seed in range(6):
        found = []
        for run in (layer, lambda given: checkpoint(layer, given, use_reentrant=False)):
            torch.manual_seed(seed)
            layer.zero_grad()
            run(x).square().sum().backward()
            found.append(layer.down.weight.grad.clone())
        assert torch.equal(*found)


def test_dylora_wants_whole_units():
    (problem,) = ranks_of_dylora(TrainConfig(**DYLORA, network_args=("unit=3",)), "sd15")
    assert "multiple of unit=3" in problem.must
    assert problem.fix == "--set network_dim=6, or change unit"


def test_what_dylora_does_not_know_is_said():
    config = TrainConfig(**DYLORA, network_dropout=0.1, network_args=("rank_dropout=0.1", "mid_lr_weight=0.5"))
    assert [note.got for note in idle_network_args(config, "sd15")] == ["rank_dropout=0.1", "mid_lr_weight=0.5", 0.1]


def test_fa_draws_down_from_a_normal_and_keeps_it(net):
    models, adapter = net(**{**FA, "network_dim": 512}, zero=True)
    layer = adapter.layers["lora_unet_proj"]
    assert float(layer.down.weight.std()) == pytest.approx(math.sqrt(2 / (6 + 512)), rel=0.05)
    before = layer.down.weight.clone()
    groups = adapter.groups(TrainConfig(learning_rate=1e-2))
    assert [len(group["params"]) for group in groups] == [1, 2]
    models.unet.proj(torch.randn(2, 6)).sum().backward()
    assert layer.down.weight.grad is None
    torch.optim.AdamW(groups).step()
    assert torch.equal(layer.down.weight, before)
    assert layer.up.weight.any()


def test_fa_saves_and_loads_both_factors(net):
    _, one = net(**FA)
    _, other = net(**FA, weights=one.state_dict())
    assert all(torch.equal(tensor, other.exact_state()[name]) for name, tensor in one.exact_state().items())
    other.to_dtype(torch.bfloat16)
    assert {tensor.dtype for name, tensor in other.state_dict().items() if "lora" in name.partition(".")[2]} == {
        torch.bfloat16
    }


def test_fa_norm_limit_leaves_down_alone(net):
    _, adapter = net(**FA)
    layer = adapter.layers["lora_unet_proj"]
    before = layer.down.weight.clone()
    _, _, largest = adapter.apply_max_norm(1e-2)
    assert largest == pytest.approx(1e-2, rel=1e-3)
    assert torch.equal(layer.down.weight, before)
    a, b = (factor.detach() for factor in layer.factors())
    assert float((layer.alpha / layer.rank * b @ a).norm()) <= 1.001e-2


def test_fa_knows_no_lora_plus(net):
    args = ("loraplus_lr_ratio=4",)
    assert [note.code for note in idle_network_args(TrainConfig(**FA, network_args=args), "sd15")] == ["no-effect"]
    _, adapter = net(**FA, network_args=args)
    assert len(adapter.groups(TrainConfig(learning_rate=1e-3))) == 2
