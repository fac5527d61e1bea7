"""The settings of networks.lora through whole runs of a step or two."""

from __future__ import annotations

import json

import torch
from safetensors.torch import load_file

from trainer.adapters.merge import difference


def names(weights):
    return {name.partition(".")[0] for name in weights}


def test_blocks_ratios_dropouts_and_norms_together(start, tmp_path):
    args = ["down_lr_weight=1,0,0.5", "loraplus_unet_lr_ratio=4", "rank_dropout=0.1", "module_dropout=0.1"]
    assert start(network_args=args, network_dropout=0.1, scale_weight_norms=1e-3, max_train_steps=2,
                 learning_rate=1e-1, lr_scheduler="constant", train_batch_size=2) == 0  # fmt: skip
    found = load_file(tmp_path / "out" / "n0m3.safetensors")
    log = (tmp_path / "out" / "n0m3.run" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    rates = json.loads(log[0])["lr"]
    assert rates["textencoder"] == rates["unet_block4"] == 0.1
    assert (rates["unet_block2"], rates["unet_block2 plus"]) == (0.05, 0.2)
    assert "unet_block1" not in rates  # the second number of the list: block 0 holds nothing
    assert not any(name.startswith("lora_unet_down_blocks_0_attentions_0_") for name in names(found))
    assert any(name.startswith("lora_unet_down_blocks_0_attentions_1_") for name in names(found))
    norms = []
    for key in names(found):
        shape = torch.empty(found[f"{key}.lora_up.weight"].shape[0], found[f"{key}.lora_down.weight"][0].numel())
        norms.append(float(difference(key, torch.nn.ParameterDict({"weight": shape}), found, 1.0).norm()))
    assert max(norms) <= 1e-3 * 1.001
    assert max(norms) > 0.9e-3


def test_base_weights_change_the_start_and_not_the_targets(start, tmp_path, capsys):
    """Trap T40: the reference's next network adapts more modules after a base weight with convolutions."""
    assert start(network_args=["conv_dim=2"], max_train_steps=2, learning_rate=1e-1) == 0
    base = tmp_path / "out" / "n0m3.safetensors"
    plain = {"max_train_steps": 1, "output_name": "plain"}
    assert start(**plain) == 0
    merged = {"max_train_steps": 1, "output_name": "merged", "base_weights": base, "base_weights_multiplier": 0.5}
    assert start(**merged) == 0
    one, other = (load_file(tmp_path / "out" / f"{name}.safetensors") for name in ("plain", "merged"))
    assert one.keys() == other.keys()
    assert "x 0.5 into the base model" in capsys.readouterr().out
    first = [json.loads((tmp_path / "out" / f"{name}.run" / "log.jsonl").read_text(encoding="utf-8"))["loss"]
             for name in ("plain", "merged")]  # fmt: skip
    assert first[0] != first[1]


def test_rank_comes_from_the_weights(start, tmp_path):
    assert start(network_dim=3, network_alpha=2, network_args=["conv_dim=2"], max_train_steps=1) == 0
    again = {"network_weights": tmp_path / "out" / "n0m3.safetensors", "dim_from_weights": True, "output_name": "more"}
    assert start(network_dim=None, max_train_steps=1, **again) == 0
    first, second = (load_file(tmp_path / "out" / f"{name}.safetensors") for name in ("n0m3", "more"))
    assert {name: tensor.shape for name, tensor in first.items()} == {
        name: tensor.shape for name, tensor in second.items()
    }
    assert all(torch.equal(first[name], second[name]) for name in first if name.endswith(".alpha"))
