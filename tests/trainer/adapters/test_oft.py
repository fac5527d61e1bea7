from __future__ import annotations

import pytest
import torch

from schemas import TrainConfig
from schemas.options import NetworkOptions
from schemas.problems import ConfigError
from tests.tiny import run, stir
from trainer.adapters import attach, merge_weights
from trainer.adapters.oft import oft_targets, rotation
from trainer.output.lora_file import load_weights, save_weights


def oft(models, targets, *args, weights=None, **options):
    options = {"network_dim": 4, "network_alpha": 0.5, "network_args": args, **options}
    return attach(models, targets, NetworkOptions(network_module="networks.oft", **options), weights=weights)


@pytest.mark.parametrize("limit", [0.0, 0.3])
def test_rotation_is_orthogonal_and_held_to_its_limit(limit):
    torch.manual_seed(0)
    turn = rotation(torch.randn(3, 4, 4), limit)
    torch.testing.assert_close(turn @ turn.transpose(1, 2), torch.eye(4).expand(3, 4, 4), atol=1e-5, rtol=1e-5)
    q = torch.linalg.solve(turn + torch.eye(4), turn - torch.eye(4))  # (R + I)⁻¹ (R − I) = Q
    assert not limit or float(q.norm()) == pytest.approx(limit, rel=1e-3)


@pytest.mark.parametrize("args", [(), ("enable_all_linear=true",), ("enable_all_linear=true", "enable_conv=1")])
def test_starts_as_the_base_trains_and_equals_its_merged_form(tiny, args):
    models, targets = tiny("sd15")
    before = run(models)
    adapter = oft(models, targets, *args)
    torch.testing.assert_close(run(models), before)
    run(models).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in adapter.parameters())
    stir(adapter)
    adapter.set_multiplier(0.7)
    fresh, _ = tiny("sd15")
    assert merge_weights(fresh, targets, adapter.state_dict(), 0.7) == len(adapter.layers)
    torch.testing.assert_close(run(fresh), run(models), atol=1e-4, rtol=1e-4)
    assert (run(models) - before).abs().max() > 1e-3


def test_constraint_bounds_the_rotation(tiny):
    models, targets = tiny("sd15")
    before = run(models)
    stir(oft(models, targets, network_alpha=1e-6))
    torch.testing.assert_close(run(models), before, atol=1e-3, rtol=1e-3)


def test_keys_are_kohyas(full):
    for family, count in (("sd15", 128), ("sdxl", 560)):
        chosen = oft_targets(full[family][1], {})
        assert len(chosen) == count  # eight attention projections a transformer block: 16 and 70 blocks
        assert all(target.key.startswith("oft_unet_") for target in chosen)
    assert "oft_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q" in {target.key for target in chosen}


def test_tensors_are_blocks_and_alpha(tiny):
    models, targets = tiny("sd15")
    state = oft(models, targets).state_dict()
    name = "oft_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    assert state[f"{name}.oft_blocks"].shape == (4, 24, 24)
    assert float(state[f"{name}.alpha"]) == 0.5


@pytest.mark.parametrize("from_file", [True, False])
def test_a_saved_file_goes_on(tiny, tmp_path, from_file):
    models, targets = tiny("sdxl")
    first = oft(models, targets)
    stir(first)
    save_weights(tmp_path / "a.safetensors", first.state_dict(), {})
    wanted = first.state_dict()
    models, targets = tiny("sdxl")
    options = {"dim_from_weights": True, "network_dim": None} if from_file else {}
    weights = load_weights(tmp_path / "a.safetensors", targets, "sdxl")
    found = oft(models, targets, weights=weights, **options).state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_one_group_of_the_unet(tiny):
    models, targets = tiny("sd15")
    groups = oft(models, targets).groups(TrainConfig(learning_rate=1e-4, text_encoder_lr=(1e-5,)))
    assert [(group["name"], group["lr"]) for group in groups] == [("unet", 1e-4)]


def test_blocks_must_divide_the_channels(tiny):
    models, targets = tiny("sd15")
    with pytest.raises(ConfigError, match="must divide") as caught:
        oft(models, targets, network_dim=5)
    assert caught.value.problems[0].fix == "set it to 4"


def test_other_block_counts_are_refused(tiny):
    models, targets = tiny("sd15")
    weights = oft(models, targets, network_dim=2).state_dict()
    models, targets = tiny("sd15")
    with pytest.raises(ConfigError, match="has 2 blocks"):
        oft(models, targets, weights=weights)


def test_text_only_is_refused_and_what_it_does_not_know_is_said(tiny):
    models, targets = tiny("sd15")
    with pytest.raises(ConfigError, match="U-Net only"):
        oft(models, targets, network_train_text_encoder_only=True)
    notes = oft(models, targets, "enable_conv=False", network_dropout=0.1, scale_weight_norms=1.0).notes
    assert [note.code for note in notes] == ["no-effect", "no-effect", "unusual-spelling"]
