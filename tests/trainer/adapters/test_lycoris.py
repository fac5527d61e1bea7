from __future__ import annotations

import pytest
import torch

from schemas import TrainConfig
from schemas.network_args import network_values
from schemas.options import NetworkOptions
from schemas.problems import ConfigError
from tests.tiny import run, stir
from trainer.adapters import attach

ALGOS = ("lora", "locon", "loha", "lokr", "dylora", "glora", "full", "diag-oft", "boft", "ia3")
TENSORS = {
    "lora": {"alpha", "lora_down.weight", "lora_up.weight"},
    "locon": {"alpha", "lora_down.weight", "lora_up.weight"},
    "loha": {"alpha", "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"},
    "lokr": {"alpha", "lokr_w1", "lokr_w2"},
    "dylora": {"alpha", "lora_down.weight", "lora_up.weight"},
    "glora": {"alpha", "a1.weight", "a2.weight", "b1.weight", "b2.weight"},
    "full": {"diff", "diff_b"},
    "diag-oft": {"alpha", "oft_blocks"},
    "boft": {"alpha", "oft_blocks"},
    "ia3": {"weight", "on_input"},
}


def lycoris(models, targets, *args, weights=None, **options):
    options = {"network_module": "lycoris.kohya", "network_dim": 8, "network_args": args, **options}
    return attach(models, targets, NetworkOptions(**options), weights=weights)


@pytest.mark.parametrize("algo", ALGOS)
def test_every_algo_starts_as_the_base_trains_and_goes_round(tiny, algo):
    models, targets = tiny("sd15")
    before = run(models)
    adapter = lycoris(models, targets, f"algo={algo}")
    torch.testing.assert_close(run(models), before, atol=1e-4, rtol=1e-4)
    (run(models).sum() + models.text_encoders[0](torch.tensor([[1, 2]])).last_hidden_state.sum()).backward()
    if algo != "dylora":  # trains one block of ranks at a time
        assert all(parameter.grad is not None for parameter in adapter.parameters())
    assert {name.partition(".")[2] for name in adapter.state_dict()} >= TENSORS[algo]
    stir(adapter, 0.05)
    after = adapter.state_dict()
    models, targets = tiny("sd15")
    second = lycoris(models, targets, f"algo={algo}", weights=after)
    for name, tensor in second.state_dict().items():
        torch.testing.assert_close(tensor, after[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("algo", ALGOS)
def test_exact_state_is_exact(tiny, algo):
    models, targets = tiny("sd15")
    adapter = lycoris(models, targets, f"algo={algo}", "preset=attn-mlp", network_train_unet_only=True)
    stir(adapter, 0.05)
    kept = {name: tensor.clone() for name, tensor in adapter.exact_state().items()}
    stir(adapter, 0.05)
    adapter.load_exact_state(kept)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in adapter.exact_state().items())


def test_sdxl_keys_are_kohyas(tiny):
    models, targets = tiny("sdxl")
    adapter = lycoris(models, targets, "algo=loha", "train_norm=True")
    assert {target.key for target in targets} <= set(adapter.layers)
    rest = set(adapter.layers) - {target.key for target in targets}
    assert all("norm" in key or key.endswith(("in_layers_0", "out_layers_0")) for key in rest)
    assert all(key.startswith(("lora_unet_input_blocks", "lora_unet_middle", "lora_unet_output")) for key in rest)
    assert set(adapter.modules_count) == {"te1", "te2", "unet"}


def test_sd_full_preset_takes_the_ends_of_the_unet_too(tiny):
    models, targets = tiny("sd15")
    extra = set(lycoris(models, targets).layers) - {target.key for target in targets}
    assert extra == {f"lora_unet_{name}" for name in
                     ("conv_in", "conv_out", "time_embedding_linear_1", "time_embedding_linear_2")}  # fmt: skip


@pytest.mark.parametrize(("preset", "ending", "present"), [
    ("attn-mlp", "_attn1_to_q", True), ("attn-mlp", "_conv1", False),
    ("attn-only", "_attn2_to_out_0", True), ("attn-only", "_ff_net_2", False),
    ("unet-convblock-only", "_conv1", True), ("unet-convblock-only", "_q_proj", False),
])  # fmt: skip
def test_presets(tiny, preset, ending, present):
    models, targets = tiny("sd15")
    layers = lycoris(models, targets, f"preset={preset}").layers
    assert any(key.endswith(ending) for key in layers) == present


def test_ranks_of_convolutions_and_linears(tiny):
    models, targets = tiny("sd15")
    layers = lycoris(models, targets, "conv_dim=2", "conv_alpha=1", network_alpha=3.0).layers
    conv, linear = layers["lora_unet_mid_block_resnets_0_conv1"], layers["lora_unet_mid_block_resnets_0_time_emb_proj"]
    assert (conv.lora_dim, float(conv.alpha)) == (2, 1)
    assert (linear.lora_dim, float(linear.alpha)) == (8, 3)


def test_dora_writes_its_scale(tiny):
    models, targets = tiny("sd15")
    adapter = lycoris(models, targets, "dora_wd=True", network_train_unet_only=True)
    assert adapter.state_dict()["lora_unet_mid_block_resnets_0_conv1.dora_scale"].shape == (96, 1, 1, 1)


def test_alpha_of_the_file_scales_too(tiny):
    """Trap T24."""
    models, targets = tiny("sd15")
    first = lycoris(models, targets, network_alpha=8.0, network_train_unet_only=True)
    stir(first, 0.05)
    wanted = run(models)
    models, targets = tiny("sd15")
    lycoris(models, targets, network_alpha=1.0, network_train_unet_only=True, weights=first.state_dict())
    torch.testing.assert_close(run(models), wanted, atol=1e-4, rtol=1e-4)


def test_dim_from_weights_takes_the_kind_from_the_file(tiny):
    models, targets = tiny("sd15")
    first = lycoris(models, targets, "algo=loha", "preset=attn-mlp", network_alpha=2.0)
    stir(first, 0.05)
    wanted = run(models)
    models, targets = tiny("sd15")
    second = lycoris(models, targets, dim_from_weights=True, network_dropout=0.1, weights=first.state_dict())
    torch.testing.assert_close(run(models), wanted, atol=1e-4, rtol=1e-4)
    assert set(second.layers) == set(first.layers)
    assert [note.code for note in second.notes] == ["no-effect"]


def test_max_norm_and_multiplier(tiny):
    models, targets = tiny("sd15")
    before = run(models)
    adapter = lycoris(models, targets, "algo=loha", network_train_unet_only=True)
    stir(adapter, 0.05)
    count, _, largest = adapter.apply_max_norm(1e-3)
    assert count > 0
    assert largest <= 1.001e-3
    adapter.set_multiplier(0)
    torch.testing.assert_close(run(models), before, atol=1e-4, rtol=1e-4)


def test_lora_plus_group(tiny):
    models, targets = tiny("sd15")
    adapter = lycoris(models, targets, "loraplus_lr_ratio=2", network_train_unet_only=True)
    groups = adapter.groups(TrainConfig(learning_rate=1e-4))
    assert [(group["name"], group["lr"]) for group in groups] == [("unet", 1e-4), ("unet plus", 2e-4)]


def test_it_follows_its_model(tiny):
    models, targets = tiny("sd15")
    adapter = lycoris(models, targets, "algo=loha", "rank_dropout=0.5", network_train_unet_only=True)
    models.unet.eval()
    assert not any(layer.training for layer in adapter.layers.values())
    models.unet.to("meta")
    assert {parameter.device.type for parameter in adapter.parameters()} == {"meta"}


@pytest.mark.parametrize("word", ["algo=lokrr", "train_norm=maybe", "factor=x"])
def test_bad_arguments_are_refused(word):
    _, (problem,) = network_values(NetworkOptions(network_module="lycoris.kohya", network_args=(word,)))
    assert problem.got == word


def test_a_preset_that_cannot_be_read_is_refused(tiny):
    models, targets = tiny("sd15")
    with pytest.raises(ConfigError, match="preset must be one of"):
        lycoris(models, targets, "preset=nosuch")


def test_dylora_wants_whole_blocks(tiny):
    models, targets = tiny("sd15")
    with pytest.raises(ConfigError, match="multiple of block_size"):
        lycoris(models, targets, "algo=dylora", "block_size=3")


def test_other_ranks_are_refused(tiny):
    models, targets = tiny("sd15")
    weights = lycoris(models, targets, "algo=loha", network_dim=2).state_dict()
    models, targets = tiny("sd15")
    with pytest.raises(ConfigError) as caught:
        lycoris(models, targets, "algo=loha", network_dim=3, weights=weights)
    assert caught.value.problems[0].code == "rank-mismatch"


def test_arguments_mean_what_they_mean_to_lycoris_own_kohya_module(tiny):
    """Its conv_dim=0 leaves 3x3 convolutions out, any decompose_both is yes, use_cp goes before use_tucker."""
    plain = ("preset=full", "algo=lokr", "factor=8")
    models, targets = tiny("sd15")
    layers = lycoris(models, targets, *plain, "conv_dim=0", network_dim=1).layers
    conv = {target.key for target in targets if target.kind == "conv3x3"}
    assert layers.keys() - conv
    assert not layers.keys() & conv
    decomposed = lycoris(*tiny("sd15"), *plain, "decompose_both=False", network_dim=1)
    assert any(name.endswith("lokr_w1_a") for name, _ in decomposed.named_parameters())
    for names, wanted in ((("use_cp=False", "use_tucker=True"), False), (("use_cp=True", "use_tucker=False"), True)):
        adapter = lycoris(*tiny("sd15"), "algo=locon", "conv_dim=2", *names)
        assert any("lora_mid" in name for name, _ in adapter.named_parameters()) == wanted


def test_a_conv_alpha_of_0_is_the_rank_and_unsent_switches_change_nothing(tiny):
    adapter = lycoris(*tiny("sd15"), "algo=locon", "conv_dim=2", "conv_alpha=0", "rank_dropout_scale=True")
    layer = next(layer for key, layer in adapter.layers.items() if layer.lora_down.weight.shape[2:] == (3, 3))
    assert (float(layer.alpha), layer.rank_dropout_scale) == (2.0, False)
    adapter = lycoris(*tiny("sd15"), "algo=ia3", "train_on_input=True")
    assert not any(layer.train_input for layer in adapter.layers.values())
