from __future__ import annotations

import pytest
import torch
from torch import nn

from schemas.options import NetworkOptions
from schemas.problems import ConfigError
from tests.trainer.adapters.conftest import TARGETS, Net, Text
from trainer.adapters import attach, merge_weights
from trainer.families import Models


def bare(dtype=torch.float32):
    torch.manual_seed(0)
    return Models("sd15", Net().to(dtype), nn.Identity(), (Text().to(dtype),), ())


def test_merging_equals_the_adapter(net):
    models, adapter = net(network_dim=3, network_args=("conv_dim=2",))
    x, picture = torch.randn(2, 6), torch.randn(1, 3, 8, 8)
    adapter.set_multiplier(0.5)
    base = bare()
    assert merge_weights(base, TARGETS, adapter.state_dict(), 0.5) == 4
    for name, given in (("proj", x), ("point", picture), ("conv", picture)):
        one, other = getattr(base.unet, name), getattr(models.unet, name)
        torch.testing.assert_close(one(given), other(given), atol=1e-5, rtol=1e-5)


def test_base_keeps_its_dtype(net):
    base = bare(torch.bfloat16)
    merge_weights(base, TARGETS, net(network_dim=3)[1].state_dict())
    assert base.unet.proj.weight.dtype == torch.bfloat16


def test_lycoris_files_merge_too():
    other = Models("sd15", nn.ModuleDict({"proj": nn.Linear(6, 5)}), nn.Identity(), (), ())
    weights = {f"lora_unet_proj.hada_w{n}_{x}": torch.randn(5 if x == "a" else 2, 2 if x == "a" else 6)
               for n in (1, 2) for x in "ab"} | {"lora_unet_proj.alpha": torch.tensor(2.0)}  # fmt: skip
    before = other.unet["proj"].weight.clone()
    assert merge_weights(other, TARGETS[1:2], weights) == 1
    one = weights["lora_unet_proj.hada_w1_a"] @ weights["lora_unet_proj.hada_w1_b"]
    two = weights["lora_unet_proj.hada_w2_a"] @ weights["lora_unet_proj.hada_w2_b"]
    torch.testing.assert_close(other.unet["proj"].weight - before, one * two, atol=1e-5, rtol=1e-4)


def test_merging_leaves_nothing_trainable_or_injected(net):
    base = bare()
    merge_weights(base, TARGETS, net(network_dim=3, network_args=("conv_dim=2",))[1].state_dict())
    assert attach(base, TARGETS, NetworkOptions()).modules_count == {"te": 1, "unet": 2}


def test_nothing_that_matches_is_refused():
    with pytest.raises(ConfigError, match="matches no module"):
        merge_weights(bare(), TARGETS, {"lora_unet_other.alpha": torch.tensor(1.0)})


def test_other_widths_are_refused():
    weights = {"lora_unet_proj.lora_down.weight": torch.zeros(2, 9), "lora_unet_proj.lora_up.weight": torch.zeros(5, 2)}
    with pytest.raises(ConfigError, match="another width"):
        merge_weights(bare(), TARGETS, weights)


def test_partial_files_are_told(net, caplog):
    weights = {**net(network_dim=3)[1].state_dict(), "lora_unet_other.alpha": torch.tensor(1.0)}
    merge_weights(bare(), TARGETS, weights)
    assert "1 fit nowhere" in caplog.text
