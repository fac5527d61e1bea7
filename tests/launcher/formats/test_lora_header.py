from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from launcher.formats import read
from launcher.formats.lora_header import untold
from schemas.problems import ConfigError

MODULE = "lora_unet_down_blocks_0_attentions_0_proj_in"


def save(path: Path, metadata: dict[str, str], rank: int = 4) -> Path:
    header = {
        "__metadata__": metadata,
        f"{MODULE}.alpha": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]},
        f"{MODULE}.lora_down.weight": {
            "dtype": "F32",
            "shape": [rank, 320, 1, 1],
            "data_offsets": [4, 4 + rank * 1280],
        },
        f"{MODULE}.lora_up.weight": {
            "dtype": "F32",
            "shape": [320, rank, 1, 1],
            "data_offsets": [4 + rank * 1280, 4 + rank * 2560],
        },
    }
    words = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(words)) + words + struct.pack("<f", 2.0) + bytes(rank * 2560))
    return path


def stated(path: Path) -> dict[str, Any]:
    return {name: setting.value for name, setting in read(path).arguments.items() if setting.origin == "file"}


def test_facts_of_the_reference_become_arguments(tmp_path: Path) -> None:
    metadata = {
        "ss_network_dim": "4",
        "ss_network_alpha": "2.0",
        "ss_learning_rate": "0.0001",
        "ss_unet_lr": "None",
        "ss_optimizer": "prodigyopt.prodigy.Prodigy(decouple=True,betas=(0.9, 0.99))",
        "ss_resolution": "(512, 768)",
        "ss_network_args": '{"conv_dim": "4"}',
        "ss_batch_size_per_device": "2",
        "ss_cache_latents": "True",
        "ss_base_model_version": "sd_v1_v",
        "ss_network_module": "networks.lora",
        "ss_steps": "10",
    }
    assert stated(save(tmp_path / "a.safetensors", metadata)) == {
        "network_dim": 4,
        "network_alpha": 2.0,
        "learning_rate": 1e-4,
        "optimizer_type": "Prodigy",
        "optimizer_args": ("decouple=True", "betas=(0.9, 0.99)"),
        "resolution": "512,768",
        "network_args": ("conv_dim=4",),
        "train_batch_size": 2,
        "cache_latents": True,
        "v_parameterization": True,
        "network_module": "networks.lora",
    }


def test_every_key_has_a_fate_and_the_rest_is_unknown(tmp_path: Path) -> None:
    draft = read(save(tmp_path / "a.safetensors", {"ss_network_dim": "4", "ss_steps": "10", "ss_vae_name": "None"}))
    assert {key: fate.status for key, fate in draft.keys.items()} == {
        "ss_network_dim": "used",
        "ss_steps": "no-effect",
        "ss_vae_name": "no-effect",
    }
    assert "seed" in draft.carry["unknown"]
    assert "network_dim" not in draft.carry["unknown"]


def test_tensors_alone_tell_rank_alpha_and_parts(tmp_path: Path) -> None:
    draft = read(save(tmp_path / "a.safetensors", {}, rank=8))
    found = {name: (setting.value, setting.origin) for name, setting in draft.arguments.items()}
    assert found["network_dim"] == (8, "computed")
    assert found["network_alpha"] == (2.0, "computed")
    assert found["network_train_unet_only"] == (True, "computed")


def test_our_own_config_goes_first(tmp_path: Path) -> None:
    own = json.dumps({"network_dim": 4, "seed": 7, "optimizer_args": ["a=1"]})
    path = save(tmp_path / "a.safetensors", {"kohyakit_config": own, "ss_seed": "1"})
    assert stated(path) == {"network_dim": 4, "seed": 7, "optimizer_args": ("a=1",)}


def test_a_damaged_config_falls_back(tmp_path: Path) -> None:
    draft = read(save(tmp_path / "a.safetensors", {"kohyakit_config": "{", "ss_seed": "1"}))
    assert draft.arguments["seed"].value == 1
    assert [problem.code for problem in draft.problems] == ["bad-header"]


def test_a_file_without_lora_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", 2) + b"{}")
    with pytest.raises(ConfigError) as fault:
        read(path)
    assert fault.value.problems[0].code == "not-lora"


def test_what_the_header_does_not_tell_is_listed(tmp_path: Path) -> None:
    theirs = read(save(tmp_path / "a.safetensors", {"ss_min_snr_gamma": "None", "ss_learning_rate": "0.1"}))
    names = untold(theirs)
    assert "noise_offset" in names
    assert not {"min_snr_gamma", "learning_rate", "network_dim", "output_name", "mixed_precision"} & set(names)
    assert untold(read(save(tmp_path / "b.safetensors", {"kohyakit_config": "{}"}))) == []
