"""Every refusal, warning and silent rewrite of the reference (section 17, traps part A) that a config alone can show.

Those that need pictures, prompts or weights are in tests/trainer/dataset and tests/launcher/test_preflight.py.
"""

from __future__ import annotations

from typing import Any

import pytest

from schemas.config import TrainConfig, from_flat
from schemas.problems import ConfigError
from schemas.rules import check
from tests.schemas.rules.sound import SOUND

CACHED = {"cache_text_encoder_outputs": True, "network_train_unet_only": True}
ADAFACTOR = {"optimizer_type": "AdaFactor"}

# what the reference does -> (severity here, code, key, options, family)
REFUSED: dict[str, tuple[str, str, str, dict[str, Any], str]] = {
    "v2 with SDXL": ("error", "family-mismatch", "v2", {"v2": True}, "sdxl"),
    "adaptive noise scale alone": (
        "error",
        "needs-noise-offset",
        "adaptive_noise_scale",
        {"adaptive_noise_scale": 0.1},
        "sd15",
    ),
    "v scaling without v": (
        "error",
        "needs-v-parameterization",
        "scale_v_pred_loss_like_noise_pred",
        {"scale_v_pred_loss_like_noise_pred": True},
        "sd15",
    ),
    "v-like loss with v": (
        "error",
        "excludes-v-parameterization",
        "v_pred_like_loss",
        {"v_pred_like_loss": 1.0, "v_parameterization": True},
        "sd2",
    ),
    "resolution shape": ("error", "bad-resolution", "resolution", {"resolution": "512x512"}, "sd15"),
    "face crop": ("error", "bad-range", "face_crop_aug_range", {"face_crop_aug_range": "1"}, "sd15"),
    "no resolution": ("error", "missing-option", "resolution", {"resolution": None}, "sd15"),
    "buckets below": (
        "error",
        "bucket-limits",
        "min_bucket_reso",
        {"enable_bucket": True, "min_bucket_reso": 640},
        "sd15",
    ),
    "buckets above": (
        "error",
        "bucket-limits",
        "max_bucket_reso",
        {"enable_bucket": True, "max_bucket_reso": 448},
        "sd15",
    ),
    "bucket step": (
        "error",
        "bucket-step",
        "bucket_reso_steps",
        {"enable_bucket": True, "bucket_reso_steps": 32},
        "sd15",
    ),
    "bucket step SDXL": (
        "error",
        "bucket-step",
        "bucket_reso_steps",
        {"enable_bucket": True, "bucket_reso_steps": 48},
        "sdxl",
    ),
    "cache and colour": ("error", "cache-excludes", "color_aug", {"cache_latents": True, "color_aug": True}, "sd15"),
    "cache and crop": (
        "error",
        "cache-excludes",
        "random_crop",
        {"cache_latents_to_disk": True, "random_crop": True},
        "sd15",
    ),
    "text cache, shuffle": ("error", "cache-excludes", "shuffle_caption", {**CACHED, "shuffle_caption": True}, "sdxl"),
    "text cache, dropout": (
        "error",
        "cache-excludes",
        "caption_dropout_rate",
        {**CACHED, "caption_dropout_rate": 0.1},
        "sdxl",
    ),
    "text cache, tag dropout": (
        "error",
        "cache-excludes",
        "caption_tag_dropout_rate",
        {**CACHED, "caption_tag_dropout_rate": 0.1},
        "sdxl",
    ),
    "text cache, warm-up": ("error", "cache-excludes", "token_warmup_step", {**CACHED, "token_warmup_step": 5}, "sdxl"),
    "text cache, trained": (
        "error",
        "cache-excludes",
        "cache_text_encoder_outputs",
        {"cache_text_encoder_outputs": True},
        "sdxl",
    ),
    "full fp16": ("error", "precision-mismatch", "full_fp16", {"full_fp16": True, "mixed_precision": "bf16"}, "sd15"),
    "full bf16": ("error", "precision-mismatch", "full_bf16", {"full_bf16": True}, "sd15"),
    "fp8": ("error", "precision-mismatch", "fp8_base", {"fp8_base": True}, "sd15"),
    "two optimizers": (
        "error",
        "two-optimizers",
        "use_8bit_adam",
        {"use_8bit_adam": True, "use_lion_optimizer": True},
        "sd15",
    ),
    "fused, other optimizer": (
        "error",
        "fused-backward-pass",
        "fused_backward_pass",
        {"fused_backward_pass": True},
        "sd15",
    ),
    "fused, accumulation": (
        "error",
        "fused-backward-pass",
        "fused_backward_pass",
        {**ADAFACTOR, "fused_backward_pass": True, "gradient_accumulation_steps": 2},
        "sd15",
    ),
    "tensorboard without folder": ("error", "missing-option", "logging_dir", {"log_with": "all"}, "sd15"),
    "warmup, constant": ("error", "warmup-without-use", "lr_warmup_steps", {"lr_warmup_steps": 0.1}, "sd15"),
    "warmup, adafactor": (
        "error",
        "warmup-without-use",
        "lr_warmup_steps",
        {**ADAFACTOR, "lr_warmup_steps": 9},
        "sd15",
    ),
    "warmup, custom": (
        "error",
        "warmup-without-use",
        "lr_warmup_steps",
        {"lr_scheduler_type": "StepLR", "lr_warmup_steps": 9},
        "sd15",
    ),
    "initial step": ("error", "starts-after-end", "initial_step", {"initial_step": 1600}, "sd15"),
    "crop with masks": (
        "error",
        "masks-exclude-random-crop",
        "random_crop",
        {"masked_loss": True, "random_crop": True, "dataset_config": "d.toml"},
        "sd15",
    ),
    "missing package": (
        "error",
        "missing-package",
        "optimizer_type",
        {"optimizer_type": "no_such_package_here.Optimizer", "trust": ("no_such_package_here",)},
        "sd15",
    ),
    "T1 model": (
        "error",
        "missing-option",
        "pretrained_model_name_or_path",
        {"pretrained_model_name_or_path": None},
        "sd15",
    ),
    "T1 output": ("error", "missing-option", "output_dir", {"output_dir": None}, "sd15"),
    "T1 data": ("error", "missing-option", "train_data_dir", {"train_data_dir": None}, "sd15"),
    "T19 min lr": (
        "error",
        "scheduler-needs-argument",
        "lr_scheduler_min_lr_ratio",
        {"lr_scheduler": "cosine_with_min_lr"},
        "sd15",
    ),
    "T19 bare adafactor": ("error", "adafactor-schedule", "lr_scheduler", {"lr_scheduler": "adafactor"}, "sd15"),
    "T19 workers": (
        "error",
        "persistent-without-workers",
        "persistent_data_loader_workers",
        {"persistent_data_loader_workers": True, "max_data_loader_n_workers": 0},
        "sd15",
    ),
    "T19 both only": (
        "error",
        "nothing-trained",
        "network_train_unet_only",
        {"network_train_unet_only": True, "network_train_text_encoder_only": True},
        "sd15",
    ),
    "T20 previews without prompts": (
        "warning",
        "missing-option",
        "sample_prompts",
        {"sample_every_n_epochs": 1},
        "sd15",
    ),
    "T20 prompt file": ("error", "prompt-file-type", "sample_prompts", {"sample_prompts": "prompts.md"}, "sd15"),
    "T22 unknown": ("warning", "unknown-network-arg", "network_args", {"network_args": ("convdim=8",)}, "sd15"),
    "T22 one weight": ("error", "bad-network-arg", "network_args", {"network_args": ("up_lr_weight=0.5",)}, "sd15"),
    "T22 too many": (
        "warning",
        "list-cut",
        "network_args",
        {"network_args": ("down_lr_weight=" + ",".join("1" * 13),)},
        "sd15",
    ),
    "T26 zero": ("error", "clip-skip-range", "clip_skip", {"clip_skip": 0}, "sd15"),
    "T26 too deep": ("error", "clip-skip-range", "clip_skip", {"clip_skip": 13}, "sd15"),
    "T34 hub": ("error", "bad-repository", "huggingface_repo_id", {"huggingface_repo_id": "a/b/c"}, "sd15"),
    "T35 literal": ("error", "bad-literal", "optimizer_args", {"optimizer_args": ("betas=0.9=0.99",)}, "sd15"),
    "T61 range": ("error", "timestep-range", "min_timestep", {"min_timestep": 600, "max_timestep": 500}, "sd15"),
}
WARNED: dict[str, tuple[str, str, str, dict[str, Any], str]] = {
    "v2 with clip skip": ("warning", "clip-skip-v2", "clip_skip", {"v2": True, "clip_skip": 2}, "sd2"),
    "SDXL with clip skip": ("warning", "no-effect", "clip_skip", {"clip_skip": 1}, "sdxl"),
    "zero SNR without v": ("warning", "zero-snr-without-v", "zero_terminal_snr", {"zero_terminal_snr": True}, "sd15"),
    "low rate": ("warning", "rate-too-low", "learning_rate", {"optimizer_type": "Prodigy"}, "sd15"),
    "in_json and colour": (
        "warning",
        "augmentation-with-metadata",
        "color_aug",
        {"in_json": "m.json", "color_aug": True},
        "sd15",
    ),
    "in_json and crop": (
        "warning",
        "augmentation-with-metadata",
        "random_crop",
        {"in_json": "m.json", "random_crop": True},
        "sd15",
    ),
    "bucket limits, no upscale": (
        "note",
        "no-effect",
        "min_bucket_reso",
        {"enable_bucket": True, "bucket_no_upscale": True, "min_bucket_reso": 320},
        "sd15",
    ),
    "T32 narrow buckets": (
        "warning",
        "narrow-buckets",
        "max_bucket_reso",
        {"enable_bucket": True, "resolution": "1024,1024"},
        "sdxl",
    ),
    "T43 no masks": ("warning", "no-masks", "masked_loss", {"masked_loss": True}, "sd15"),
    "T43 mask folder": ("note", "no-effect", "conditioning_data_dir", {"conditioning_data_dir": "masks"}, "sd15"),
    "T35 spelling": ("note", "argument-spelling", "optimizer_args", {"optimizer_args": ("amsgrad=true",)}, "sd15"),
    "T48 two rates": ("warning", "text-rates", "text_encoder_lr", {"text_encoder_lr": (1e-5, 2e-5)}, "sdxl"),
}
REWRITTEN: dict[str, tuple[str, str, str, dict[str, Any], str]] = {
    "caption extention": ("note", "rewritten", "caption_extension", {"caption_extention": ".txt"}, "sd15"),
    "latents to disk": ("note", "rewritten", "cache_latents", {"cache_latents_to_disk": True}, "sd15"),
    "texts to disk": (
        "note",
        "rewritten",
        "cache_text_encoder_outputs",
        {"cache_text_encoder_outputs_to_disk": True, "network_train_unet_only": True},
        "sdxl",
    ),
    "previews every 0": ("note", "rewritten", "sample_every_n_steps", {"sample_every_n_steps": 0}, "sd15"),
    "previews every -1": ("note", "rewritten", "sample_every_n_epochs", {"sample_every_n_epochs": -1}, "sd15"),
    "bucket minimum": ("note", "rewritten", "min_bucket_reso", {"enable_bucket": True, "min_bucket_reso": 300}, "sd15"),
    "bucket maximum": (
        "note",
        "rewritten",
        "max_bucket_reso",
        {"enable_bucket": True, "max_bucket_reso": 1000},
        "sd15",
    ),
    "relative step": ("note", "rewritten", "lr_scheduler", ADAFACTOR, "sd15"),
    "relative step, rates": ("note", "rewritten", "unet_lr", {**ADAFACTOR, "unet_lr": 1e-4}, "sd15"),
    "save ratio": (
        "note",
        "rewritten",
        "save_every_n_epochs",
        {"save_n_epoch_ratio": 2, "max_train_epochs": 10},
        "sd15",
    ),
    "epochs over steps": (
        "note",
        "no-effect",
        "max_train_steps",
        {"max_train_epochs": 10, "max_train_steps": 500},
        "sd15",
    ),
    "deepspeed": ("error", "unsupported-option", "deepspeed", {"deepspeed": True}, "sd15"),
    "network module": ("note", "rewritten", "network_module", {"network_module": None}, "sd15"),
}
TABLE = {**REFUSED, **WARNED, **REWRITTEN}


@pytest.mark.parametrize("item", TABLE)
def test_said_before_training(item: str) -> None:
    severity, code, key, options, family = TABLE[item]
    found = check(TrainConfig(**{**SOUND, **options}), family)
    assert (severity, code, key) in {(problem.severity, problem.code, problem.key) for problem in found}


@pytest.mark.parametrize(
    ("given", "must"),
    [
        ({"learning_rte": 1}, "learning_rate"),  # T2
        ({"lr_warmup_steps": "abc"}, "whole number"),
        ({"mixed_precision": "fp15"}, "one of no, fp16, bf16"),
        ({"save_model_as": "diffusers"}, "safetensors"),  # T29
        ({"text_encoder_lr1": 1e-4}, "text_encoder_lr"),
        ({"max_timestep": 1001}, "at most 1000"),  # T61
        ({"seed": 2**32}, "at most 4294967295"),  # T63
        ({"clip_skip": 25}, "at most 24"),
    ],
)
def test_values_are_checked_whoever_gives_them(given: dict[str, Any], must: str) -> None:
    with pytest.raises(ConfigError) as fault:
        from_flat(given)
    assert must in str(fault.value)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"output_name": "../evil"}, "not-a-name"),
        ({"output_name": "a\\b"}, "not-a-name"),
        ({"log_prefix": "../"}, "not-a-name"),
        ({"metadata_thumbnail": "/etc/passwd"}, "not-a-picture"),
        ({"optimizer_type": "torch.hub.load"}, "untrusted-module"),
        ({"optimizer_type": "transformers.pipeline"}, "untrusted-module"),
    ],
)
def test_what_a_preset_may_not_name(options: dict[str, Any], code: str) -> None:
    assert code in {problem.code for problem in check(TrainConfig(**{**SOUND, **options}), "sd15")}


@pytest.mark.parametrize("name", ["torch.optim.AdamW", "bitsandbytes.optim.adamw.AdamW8bit", "name-v1.5 (2)"])
def test_what_it_may(name: str) -> None:
    options = {"optimizer_type": name} if "." in name and "(" not in name else {"output_name": name}
    found = check(TrainConfig(**{**SOUND, **options}), "sd15")
    assert {problem.code for problem in found} <= {"missing-package"}
