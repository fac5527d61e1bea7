from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from schemas.options import NetworkOptions
from schemas.problems import ConfigError
from trainer.adapters import attach
from trainer.adapters.adapter import find_modules
from trainer.adapters.lora import planned_shapes
from trainer.adapters.network_args import lora_args

CONV = ("conv_dim=2", "conv_alpha=1")


def difference(layer):
    """ΔW = (α / r) B A, written out."""
    a, b = (factor.detach() for factor in layer.factors())
    return (layer.alpha / layer.rank) * (b @ a).view_as(layer.base_layer.weight)


@pytest.mark.parametrize("key", ["lora_unet_proj", "lora_unet_point", "lora_unet_conv"])
def test_forward_is_the_base_with_the_difference_added(net, key):
    _, adapter = net(network_dim=3, network_alpha=2.0, network_args=CONV)
    layer, base = adapter.layers[key], adapter.layers[key].base_layer
    x = torch.randn(2, 7, 6) if key.endswith("proj") else torch.randn(2, 3, 8, 8)
    weight = base.weight + difference(layer)
    wanted = (
        F.linear(x, weight, base.bias)
        if key.endswith("proj")
        else F.conv2d(x, weight, base.bias, base.stride, base.padding)
    )
    torch.testing.assert_close(layer(x), wanted, atol=1e-5, rtol=1e-5)


def test_starts_as_the_base_model(tiny):
    models, targets = tiny("sd15")
    x, text = torch.randn(1, 4, 8, 8), torch.randn(1, 5, 32)
    before = models.unet(x, torch.tensor(5), text).sample
    attach(models, targets, NetworkOptions(network_dim=4, network_args=("conv_dim=4",)))
    assert torch.equal(models.unet(x, torch.tensor(5), text).sample, before)


def test_down_is_kaiming_uniform_and_up_is_zero(net):
    _, adapter = net(zero=True, network_dim=64)
    layer = adapter.layers["lora_unet_proj"]
    bound = 1 / math.sqrt(6)  # √(6 / ((1 + a²) fan_in)), a = √5
    assert 0.9 * bound < layer.down.weight.abs().max() <= bound
    assert not layer.up.weight.any()


def test_peft_merging_gives_the_same_result(net):
    models, adapter = net(network_dim=3, network_args=CONV)
    x, picture = torch.randn(4, 6), torch.randn(2, 3, 8, 8)
    before = models.unet.proj(x), models.unet.conv(picture), models.unet.point(picture)
    for layer in adapter.layers.values():
        layer.merge()
    after = models.unet.proj(x), models.unet.conv(picture), models.unet.point(picture)
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_multiplier_scales_and_zero_is_the_base(net):
    models, adapter = net(network_dim=2, network_alpha=2.0)
    x = torch.randn(3, 6)
    base, full = models.unet.proj.base_layer(x), models.unet.proj(x)
    adapter.set_multiplier(0.5)
    torch.testing.assert_close(models.unet.proj(x), base + (full - base) / 2)
    adapter.set_multiplier(0)
    assert torch.equal(models.unet.proj(x), base)


def test_only_the_adapter_trains_and_in_float32(net):
    models, adapter = net(dtype=torch.bfloat16, network_dim=2)
    training = [parameter for root in (models.unet, *models.text_encoders) for parameter in root.parameters()
                if parameter.requires_grad]  # fmt: skip
    assert len(training) == len(adapter.parameters()) == 6
    assert {parameter.dtype for parameter in training} == {torch.float32}
    adapter.to_dtype(torch.bfloat16)
    assert {parameter.dtype for parameter in adapter.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("autocast", [True, False])
def test_half_base_keeps_its_dtype(net, autocast):
    models, adapter = net(dtype=torch.bfloat16, network_dim=2, network_args=CONV)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = models.unet.proj(torch.randn(2, 3, 6, dtype=torch.bfloat16))
        picture = models.unet.conv(torch.randn(1, 3, 8, 8, dtype=torch.bfloat16))
    assert out.dtype == picture.dtype == torch.bfloat16
    (out.sum() + picture.sum()).backward()
    assert adapter.layers["lora_unet_proj"].down.weight.grad.dtype == torch.float32


def test_gradients_are_those_of_the_formula(net):
    models, adapter = net(network_dim=2, network_alpha=1.0)
    layer, x = adapter.layers["lora_unet_proj"], torch.randn(2, 4, 6, requires_grad=True)
    models.unet.proj(x).square().sum().backward()
    mine = [x.grad.clone(), layer.down.weight.grad.clone(), layer.up.weight.grad.clone()]
    x.grad = layer.down.weight.grad = layer.up.weight.grad = None
    delta = layer.alpha / layer.rank * layer.up.weight @ layer.down.weight
    F.linear(x, layer.base_layer.weight + delta, layer.base_layer.bias).square().sum().backward()
    for one, other in zip(mine, [x.grad, layer.down.weight.grad, layer.up.weight.grad], strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_network_dropout_acts_between_down_and_up(net):
    _, adapter = net(network_dim=8, network_dropout=0.5)
    layer = adapter.layers["lora_unet_proj"]
    x = torch.randn(1, 6)
    adapter.train()
    torch.manual_seed(3)
    found = layer(x)
    torch.manual_seed(3)
    h = F.dropout(F.linear(x, layer.down.weight), 0.5)
    torch.testing.assert_close(found, layer.base_layer(x) + layer.scaling["default"] * F.linear(h, layer.up.weight))


def test_rank_dropout_drops_channels_of_a_sample_for_all_tokens(net):
    _, adapter = net(network_dim=16, network_args=("rank_dropout=0.5",))
    layer = adapter.layers["lora_unet_proj"]
    h = layer._drop(torch.ones(3, 7, 16), channel=-1)
    assert set(h.unique().tolist()) == {0.0, 2.0}  # 1 / (1 - p)
    assert torch.equal(h, h[:, :1].expand_as(h))
    assert not torch.equal(h[0], h[1])


def test_module_dropout_skips_whole_modules_in_training_only(net):
    _, adapter = net(network_dim=2, network_args=("module_dropout=0.5",))
    layer, x = adapter.layers["lora_unet_proj"], torch.randn(2, 6)
    base = layer.base_layer(x)
    adapter.train()
    seen = {torch.equal(layer(x), base) for _ in range(40)}
    adapter.eval()
    assert seen == {True, False}
    assert not any(torch.equal(layer(x), base) for _ in range(10))


def test_max_norm_scales_both_factors(net):
    _, adapter = net(network_dim=3, network_args=CONV)
    before = {key: float(difference(layer).norm()) for key, layer in adapter.layers.items()}
    limit = sorted(before.values())[1] * 1.001
    count, mean, largest = adapter.apply_max_norm(limit)
    after = {key: float(difference(layer).norm()) for key, layer in adapter.layers.items()}
    assert count == 2
    for key, norm in before.items():
        assert after[key] == pytest.approx(min(norm, limit), rel=1e-4)
    assert (mean, largest) == pytest.approx((sum(after.values()) / 4, max(after.values())), rel=1e-4)


def test_state_goes_round(net):
    _, one = net(network_dim=3, network_alpha=2.0, network_args=CONV)
    _, other = net(network_dim=3, network_alpha=2.0, network_args=CONV, zero=True)
    loaded = other.load_state_dict(one.state_dict())
    assert (loaded.matched, loaded.missing, loaded.unexpected) == (4, (), ())
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


def test_alpha_of_the_file_governs_file_and_strength(net):
    """Trap T24: dim 8, alpha 8 continued with network_alpha 1."""
    models, first = net(network_dim=2, network_alpha=2.0)
    x = torch.randn(3, 6)
    wanted = models.unet.proj(x)
    models, second = net(network_dim=2, network_alpha=1.0, weights=first.state_dict())
    torch.testing.assert_close(models.unet.proj(x), wanted)
    assert float(second.state_dict()["lora_unet_proj.alpha"]) == 2
    assert [note.code for note in second.notes] == ["alpha-from-file"]


def test_other_rank_is_refused_with_both_numbers(net):
    _, first = net(network_dim=2)
    with pytest.raises(ConfigError, match=r"network_dim: is 3, but network_weights has rank 2") as caught:
        net(network_dim=3, weights=first.state_dict())
    assert caught.value.problems[0].code == "rank-mismatch"
    assert "set network_dim to 2" in caught.value.problems[0].fix


def test_conv_rank_is_named_as_conv_dim(net):
    _, first = net(network_dim=2, network_args=("conv_dim=2",))
    with pytest.raises(ConfigError, match="conv_dim: is 1"):
        net(network_dim=2, network_args=("conv_dim=1",), weights=first.state_dict())


def test_dim_from_weights_takes_shapes_and_keeps_dropouts(net):
    """Trap T49: the reference drops the dropouts."""
    _, first = net(network_dim=5, network_alpha=3.0, network_args=CONV)
    _, second = net(dim_from_weights=True, network_dropout=0.25, weights=first.state_dict())
    ranks = {key: (layer.rank, layer.alpha) for key, layer in second.layers.items()}
    assert ranks["lora_unet_proj"] == (5, 3.0)
    assert ranks["lora_unet_conv"] == (2, 1.0)
    assert second.layers["lora_unet_proj"].dropouts.activation == 0.25


def test_partial_file_is_counted(net):
    _, first = net(network_dim=2, network_train_unet_only=True)
    _, second = net(network_dim=2, weights=first.state_dict())
    assert "fills 2 modules; 1 start fresh, 0 fit nowhere" in second.notes[0].must


def test_file_for_nothing_here_is_refused(net):
    with pytest.raises(ConfigError, match="matches no module"):
        net(network_dim=2, weights={"lora_unet_x.lora_down.weight": torch.zeros(2, 2)})


def test_other_kinds_are_refused_by_the_plain_module(net):
    with pytest.raises(ConfigError, match=r"lycoris\.kohya"):
        net(network_dim=2, weights={"lora_unet_proj.hada_w1_a": torch.zeros(2, 2)})


@pytest.mark.parametrize(("options", "parts"), [
    ({}, {"te": 1, "unet": 2}),
    ({"network_train_unet_only": True}, {"unet": 2}),
    ({"network_train_text_encoder_only": True}, {"te": 1}),
    ({"network_args": ("conv_dim=1",)}, {"te": 1, "unet": 3}),
])  # fmt: skip
def test_parts(net, options, parts):
    assert net(**options)[1].modules_count == parts


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
@pytest.mark.parametrize(("kind", "args"), [("lora_dim16", ()), ("locon_dim16_conv8", ("conv_dim=8",))])
def test_tensors_are_those_of_the_reference(full, golden, family, kind, args):
    models, targets = full[family]
    options = NetworkOptions(network_dim=16, network_args=args)
    shapes = planned_shapes(targets, options, lora_args(options, family))
    found = {}
    for key, base in find_modules(models, [target for target in targets if target.key in shapes]).items():
        rank, spatial = shapes[key].rank, base.weight.shape[2:]
        found[f"{key}.alpha"] = []
        found[f"{key}.lora_down.weight"] = [rank, base.weight.shape[1], *spatial]
        found[f"{key}.lora_up.weight"] = [base.weight.shape[0], rank, *(1 for _ in spatial)]
    assert found == golden(f"keys_{family}_{kind}")


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_attached_layers_have_the_planned_shapes(tiny, family):
    models, targets = tiny(family)
    options = NetworkOptions(network_dim=4, network_args=("conv_dim=2",))
    bases = find_modules(models, targets)
    state = attach(models, targets, options).state_dict()
    assert len(state) == 3 * len(targets)
    for target in targets:
        base, rank = bases[target.key], 2 if target.kind == "conv3x3" else 4
        spatial = base.weight.shape[2:]
        assert state[f"{target.key}.alpha"].shape == ()
        assert state[f"{target.key}.lora_down.weight"].shape == (rank, base.weight.shape[1], *spatial)
        assert state[f"{target.key}.lora_up.weight"].shape == (base.weight.shape[0], rank, *(1 for _ in spatial))
