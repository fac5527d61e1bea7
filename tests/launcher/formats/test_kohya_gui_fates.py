"""What became of every key."""

from __future__ import annotations

import json
from typing import Any

import pytest

from launcher.formats.base import Fate
from launcher.formats.kohya_gui import defaults, keys, read
from schemas.problems import Problem

WHOLE = {"LoRA_type": "Standard", "optimizer": "AdamW8bit", "max_train_steps": 100, "lr_warmup": 0}


def fate(key: str, raw: Any, **values: Any) -> Fate:
    return read(json.dumps({**WHOLE, **values, key: raw})).keys[key]


def warnings(key: str, raw: Any, **values: Any) -> list[Problem]:
    found = read(json.dumps({**WHOLE, **values, key: raw}))
    return [problem for problem in found.problems if problem.key == key and problem.severity == "warning"]


def test_every_key_of_every_age_has_a_fate() -> None:
    document = {name: key.default for name, key in keys().items()} | defaults()
    found = read(json.dumps(document))
    assert set(found.keys) == set(document)
    assert "unknown" not in {one.status for one in found.keys.values()}


@pytest.mark.parametrize(
    ("key", "raw", "status", "argument", "value"),
    [
        ("network_dim", 16, "used", "network_dim", 16),
        ("network_dim", "16", "used", "network_dim", 16),
        ("flip_aug", False, "used", "flip_aug", False),
        ("max_resolution", "640,640", "used", "resolution", "640,640"),
        ("LoRA_type", "LyCORIS/LoHa", "used", "network_module", "lycoris.kohya"),
        ("text_encoder_lr", 0, "used", "network_train_unet_only", True),
        ("max_token_length", "75", "used", "max_token_length", 75),
        ("num_processes", 2, "used", None, 2),
        ("sdxl", True, "used", None, True),
        ("seed", "", "default", "seed", None),
        ("save_every_n_steps", 0, "default", "save_every_n_steps", None),
        ("caption_extension", None, "default", "caption_extension", ".txt"),
        ("max_grad_norm", 0, "no-effect", "max_grad_norm", 1.0),
        ("lr_warmup", 5, "used", "lr_warmup_steps", 0.05),
        ("caption_extension", "", "no-effect", "caption_extension", ".caption"),
        ("multires_noise_discount", 0.1, "no-effect", "multires_noise_discount", 0.3),
        ("noise_offset_type", "Original", "gui-only", None, "Original"),
        ("save_as_bool", False, "gui-only", None, None),
        ("stop_text_encoder_training", 0, "no-effect", "stop_text_encoder_training", 0),
        ("guidance_scale", 1.0, "other-family", "guidance_scale", None),
        ("img_attn_dim", "4", "other-family", "network_args", None),
        ("conv_dim", 8, "no-effect", "network_args", None),
        ("lora_network_weights", "w.safetensors", "renamed", "network_weights", "w.safetensors"),
        ("cache_latent", True, "renamed", "cache_latents", True),
        ("cache_latent", False, "no-effect", "cache_latents", True),
        ("conv_dims", "", "renamed", "network_args", None),
        ("sdxl_min_timestep", 100, "no-effect", "min_timestep", None),
        ("use_wandb", "True", "renamed", "log_with", "wandb"),
        ("use_wandb", True, "no-effect", "log_with", None),
        ("learning_rate_te", 1e-5, "no-effect", None, None),
        ("network_dimm", 8, "unknown", None, None),
        ("resolution", "640,640", "no-effect", "resolution", "512,512"),
        ("_comment", "hello", "gui-only", None, None),
        ("epoch", 9, "no-effect", "max_train_steps", 100),
    ],
)
def test_fates(key: str, raw: Any, status: str, argument: str | None, value: Any) -> None:
    found = fate(key, raw)
    assert (found.status, found.argument, found.value) == (status, argument, value)


def test_whatever_has_no_effect_says_why() -> None:
    document = {name: key.default for name, key in keys().items()} | defaults()
    found = read(json.dumps(document)).keys
    assert [name for name, one in found.items() if one.status in ("no-effect", "other-family") and not one.why] == []


def test_the_network_arguments_of_a_type() -> None:
    found = fate("conv_dim", 8, LoRA_type="Kohya LoCon")
    assert (found.status, found.value, found.why) == ("used", 8, "network_args conv_dim=8")


def test_what_additional_parameters_replace() -> None:
    found = fate("max_grad_norm", 0.5, additional_parameters="--max_grad_norm=0")
    assert (found.status, found.value) == ("no-effect", 0.0)
    found = fate("conv_dim", 8, LoRA_type="Kohya LoCon", additional_parameters="--network_args conv_dim=4")
    assert found.status == "no-effect"


def test_an_old_flag_decides_the_optimizer_only_where_none_is_named() -> None:
    old = read('{"LoRA_type": "Standard", "use_8bit_adam": true}')
    assert (old.keys["use_8bit_adam"].status, old.arguments["optimizer_type"].value) == ("renamed", "AdamW8bit")
    assert old.arguments["optimizer_type"].key == "use_8bit_adam"
    assert read('{"LoRA_type": "Standard"}').arguments["optimizer_type"].value == "AdamW"
    assert fate("use_8bit_adam", True, optimizer="Lion").status == "no-effect"


def test_old_weights_overwrite_todays_even_when_empty() -> None:
    assert fate("network_weights", "new.safetensors", lora_network_weights="").status == "no-effect"


@pytest.mark.parametrize(
    ("key", "raw", "fix"),
    [
        ("cache_latent", False, "--set cache_latents=false"),
        ("max_grad_norm", 0, "--set max_grad_norm=0"),
        ("use_wandb", True, "--set log_with=wandb"),
        ("caption_extention", ".cap", "--set caption_extension=.cap"),
        ("network_train", "Unet only", "--set network_train_unet_only=true"),
        ("network_dimm", 8, "did you mean network_dim?"),
        ("epochs", 8, "did you mean epoch?"),
        ("resolution", "640,640", "--set resolution=640,640"),
    ],
)
def test_what_kohya_drops_is_warned_about_with_a_way_out(key: str, raw: Any, fix: str) -> None:
    found = warnings(key, raw)
    assert len(found) == 1
    assert fix in (found[0].fix or "")


@pytest.mark.parametrize(
    ("key", "raw"),
    [("no_token_padding", False), ("stop_text_encoder_training_pct", 0), ("conv_alphas", ""), ("use_wandb", False),
     ("vae_batch_size", 0), ("multires_noise_discount", 0), ("block_lr", "")],
)  # fmt: skip
def test_harmless_leftovers_are_not_warned_about(key: str, raw: Any) -> None:
    assert warnings(key, raw) == []


def test_the_text_false_is_read_as_unset_with_a_warning() -> None:
    assert [problem.code for problem in warnings("huggingface_repo_id", "False")] == ["text-false"]


def test_old_tucker_flag_is_told() -> None:
    assert [problem.code for problem in warnings("use_cp", True, LoRA_type="LyCORIS/LoHa")] == ["old-use-cp"]
