"""networks.loha and networks.lokr, against networks.lora's places and peft's layers."""

from __future__ import annotations

import peft
import pytest
import torch

from schemas.options import NetworkOptions
from tests.tiny import run, stir
from trainer.adapters import attach
from trainer.adapters.lora import planned_shapes
from trainer.adapters.network_args import lora_args
from trainer.families import get
from trainer.output.lora_file import load_weights, save_weights

ENDINGS = {"loha": {"alpha", "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"},
           "lokr": {"alpha", "lokr_w1", "lokr_w2_a", "lokr_w2_b"}}  # fmt: skip


def product(models, targets, kind, *args, weights=None, **options):
    options = {"network_module": f"networks.{kind}", "network_dim": 2, "network_alpha": 1.0, **options}
    return attach(models, targets, NetworkOptions(network_args=args, **options), weights=weights)


@pytest.mark.parametrize(("family", "kind", "args"), [
    ("sd15", "loha", ()), ("sd15", "lokr", ()), ("sd15", "loha", ("conv_dim=2", "use_tucker=True")),
    ("sdxl", "lokr", ("conv_dim=2",)),
])  # fmt: skip
def test_places_are_those_of_lora_and_a_file_goes_on(tiny, tmp_path, family, kind, args):
    models, targets = tiny(family)
    first = product(models, targets, kind, *args)
    options = NetworkOptions(network_dim=2, network_args=args[:1])
    assert set(first.layers) == set(planned_shapes(targets, options, lora_args(options, family)))
    stir(first)
    save_weights(tmp_path / "a.safetensors", first.state_dict(), {})
    weights = load_weights(tmp_path / "a.safetensors", targets, family)
    for options in ({}, {"dim_from_weights": True, "network_dim": None}):
        found = product(*tiny(family), kind, *args, weights=weights, **options).state_dict()
        assert all(torch.allclose(found[name], tensor) for name, tensor in weights.items())


def test_tensors_are_named_as_kohya_does(tiny):
    for kind, endings in ENDINGS.items():
        state = product(*tiny("sd15"), kind, network_train_unet_only=True).state_dict()
        assert {name.partition(".")[2] for name in state} == endings
    assert state["lora_unet_mid_block_attentions_0_proj_in.lokr_w1"].dim() == 2


def test_conv_alpha_is_one_unless_given(tiny):
    layers = product(*tiny("sd15"), "loha", "conv_dim=4", network_alpha=2.0).layers
    conv, linear = layers["lora_unet_mid_block_resnets_0_conv1"], layers["lora_unet_mid_block_resnets_0_time_emb_proj"]
    assert (conv.lora_dim, float(conv.alpha)) == (4, 1)
    assert (linear.lora_dim, float(linear.alpha)) == (2, 2)


def test_factor_of_lokr(tiny):
    layer = product(*tiny("sd15"), "lokr", "factor=2").layers["lora_unet_mid_block_attentions_0_proj_in"]
    assert layer.lokr_w1.shape == (2, 2)


def test_what_it_does_not_know_is_said(tiny):
    notes = product(*tiny("sd15"), "loha", "loraplus_lr_ratio=4", network_dropout=0.1).notes
    assert [note.got for note in notes] == ["dropout", "loraplus_lr_ratio"]


@pytest.mark.parametrize("kind", ["loha", "lokr"])
def test_peft_computes_the_same_from_our_tensors(tiny, kind):
    """peft has layers of its own for both, with the same tensors under the same names."""
    models, targets = tiny("sd15")
    adapter = product(models, targets, kind, network_train_unet_only=True)
    stir(adapter)
    wanted, state = run(models), adapter.state_dict()
    fresh, _ = tiny("sd15")
    paths = {target.path: target.key for target in adapter.targets.values()}
    build = {"loha": peft.LoHaConfig, "lokr": peft.LoKrConfig}[kind]
    peft.inject_adapter_in_model(build(r=2, alpha=1, target_modules=list(paths)), fresh.unet)
    loaded = 0
    with torch.no_grad():
        for name, parameter in fresh.unet.named_parameters():
            path, _, rest = name.partition(".hada_" if kind == "loha" else ".lokr_")
            if rest:
                ending = f"{'hada' if kind == 'loha' else 'lokr'}_{rest.removesuffix('.default')}"
                parameter.copy_(state[f"{paths[path]}.{ending}"])
                loaded += 1
    assert loaded == sum("alpha" not in name for name in state)
    torch.testing.assert_close(run(fresh), wanted, atol=1e-4, rtol=1e-4)


def test_families_have_the_targets(tiny):
    models, _ = tiny("sdxl")
    assert set(product(models, get("sdxl").targets(models), "loha").modules_count) == {"te1", "te2", "unet"}
