"""Each rule once: what it finds, and that a sound config passes."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from schemas.config import TrainConfig, from_flat, table
from schemas.derive import add_flags
from schemas.optimizers import OPTIMIZERS, resolve
from schemas.problems import ConfigError
from schemas.rules import RULES, UNSUPPORTED, WITHOUT_EFFECT, check
from schemas.rules.model import text_projection_of_a_plan
from tests.schemas.rules.sound import SOUND


def codes(family: str | None = "sd15", **options: Any) -> set[tuple[str, str | None]]:
    return {(problem.code, problem.key) for problem in check(TrainConfig(**{**SOUND, **options}), family)}


def test_a_sound_config_has_no_findings() -> None:
    assert codes() == set()


def test_required_options_are_all_named() -> None:
    keys = {problem.key for problem in check(TrainConfig()) if problem.code == "missing-option"}
    assert keys == {"pretrained_model_name_or_path", "output_dir", "train_data_dir", "resolution"}


CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("no-effect", "sdxl_text_projection", {"sdxl_text_projection": "as_stored"}),
    ("missing-name", "output_name", {"output_name": None}),
    ("clip-skip-range", "clip_skip", {"clip_skip": 0}),
    ("clip-skip-range", "clip_skip", {"clip_skip": 13}),
    ("needs-v-parameterization", "scale_v_pred_loss_like_noise_pred", {"scale_v_pred_loss_like_noise_pred": True}),
    ("excludes-v-parameterization", "v_pred_like_loss", {"v_pred_like_loss": 0.5, "v_parameterization": True}),
    ("zero-snr-without-v", "zero_terminal_snr", {"zero_terminal_snr": True}),
    ("precision-mismatch", "full_fp16", {"full_fp16": True}),
    ("precision-mismatch", "full_bf16", {"full_bf16": True, "mixed_precision": "fp16"}),
    ("precision-mismatch", "fp8_base", {"fp8_base": True}),
    ("timestep-range", "min_timestep", {"min_timestep": 500, "max_timestep": 500}),
    ("needs-noise-offset", "adaptive_noise_scale", {"adaptive_noise_scale": 0.1}),
    ("no-effect", "adaptive_noise_scale", {"adaptive_noise_scale": 0.1, "noise_offset": 0.0}),
    ("snr-before-rescaling", "zero_terminal_snr", {"zero_terminal_snr": True, "min_snr_gamma": 5.0}),
    ("no-effect", "huber_scale", {"huber_scale": 2.0, "loss_type": "huber"}),
    ("no-effect", "sdpa", {"sdpa": True, "xformers": True}),
    ("missing-option", "logging_dir", {"log_with": "tensorboard"}),
    ("bad-resolution", "resolution", {"resolution": "512x512"}),
    ("bad-resolution", "resolution", {"resolution": "512,512,512"}),
    ("no-effect", "train_data_dir", {"dataset_config": "d.toml"}),
    ("augmentation-with-metadata", "color_aug", {"in_json": "m.json", "color_aug": True}),
    ("no-effect", "dataset_repeats", {"dataset_repeats": 3}),
    (
        "persistent-without-workers",
        "persistent_data_loader_workers",
        {"persistent_data_loader_workers": True, "max_data_loader_n_workers": 0},
    ),
    ("bucket-step", "bucket_reso_steps", {"enable_bucket": True, "bucket_reso_steps": 32}),
    ("bucket-limits", "min_bucket_reso", {"enable_bucket": True, "min_bucket_reso": 576}),
    ("bucket-limits", "bucket_reso_steps", {"enable_bucket": True, "resolution": "64", "bucket_reso_steps": 128}),
    ("bucket-limits", "max_bucket_reso", {"enable_bucket": True, "resolution": "1088"}),
    ("cache-excludes", "color_aug", {"cache_latents_to_disk": True, "color_aug": True}),
    ("cache-excludes", "random_crop", {"cache_latents": True, "random_crop": True}),
    ("no-effect", "skip_cache_check", {"skip_cache_check": True}),
    ("sdxl-only", "cache_text_encoder_outputs", {"cache_text_encoder_outputs": True, "network_train_unet_only": True}),
    ("cache-excludes", "cache_text_encoder_outputs", {"cache_text_encoder_outputs": True}),
    ("cache-excludes", "shuffle_caption", {"cache_text_encoder_outputs_to_disk": True, "shuffle_caption": True}),
    ("no-masks", "masked_loss", {"masked_loss": True}),
    (
        "masks-exclude-random-crop",
        "random_crop",
        {"masked_loss": True, "random_crop": True, "dataset_config": "d.toml"},
    ),
    ("no-effect", "validate_every_n_steps", {"validate_every_n_steps": 5}),
    ("validation-of-metadata", "validation_split", {"validation_split": 0.2, "in_json": "m.json"}),
    ("missing-option", "sample_prompts", {"sample_every_n_steps": 5}),
    ("prompt-file-type", "sample_prompts", {"sample_prompts": "a cat"}),
    ("no-effect", "save_last_n_steps", {"save_last_n_steps": 5}),
    ("no-header", "save_model_as", {"save_model_as": "pt"}),
    ("two-optimizers", "use_8bit_adam", {"use_8bit_adam": True, "optimizer_type": "Lion"}),
    ("unknown-optimizer", "optimizer_type", {"optimizer_type": "AdamZ"}),
    ("unknown-optimizer", "optimizer_type", {"optimizer_type": "rmsprop"}),
    ("untrusted-module", "optimizer_type", {"optimizer_type": "my.own.Optimizer"}),
    ("missing-package", "optimizer_type", {"optimizer_type": "my_own_package_that_is_not_there.Optimizer"}),
    ("not-name-value", "optimizer_args", {"optimizer_args": ("weight_decay",)}),
    ("rate-in-arguments", "optimizer_args", {"optimizer_args": ("lr=1",)}),
    (
        "nesterov-without-momentum",
        "optimizer_args",
        {"optimizer_type": "SGDNesterov", "optimizer_args": ("momentum=0",)},
    ),
    ("rate-too-low", "learning_rate", {"optimizer_type": "Prodigy"}),
    ("rates-differ", "text_encoder_lr", {"optimizer_type": "Prodigy", "unet_lr": 1.0, "text_encoder_lr": (0.5,)}),
    ("rate-too-high", "learning_rate", {"learning_rate": 1.0}),
    ("fused-backward-pass", "fused_backward_pass", {"fused_backward_pass": True}),
    ("unknown-scheduler", "lr_scheduler", {"lr_scheduler": "rex"}),
    ("unknown-scheduler", "lr_scheduler_type", {"lr_scheduler_type": "StepLRR"}),
    ("untrusted-module", "lr_scheduler_type", {"lr_scheduler_type": "my.Scheduler"}),
    ("scheduler-needs-argument", "lr_scheduler_min_lr_ratio", {"lr_scheduler": "cosine_with_min_lr"}),
    ("scheduler-needs-argument", "lr_scheduler_args", {"lr_scheduler": "piecewise_constant"}),
    ("warmup-without-use", "lr_warmup_steps", {"lr_warmup_steps": 10}),
    ("warmup-without-use", "lr_warmup_steps", {"lr_warmup_steps": 5, "lr_scheduler_type": "StepLR"}),
    ("no-effect", "lr_warmup_steps", {"lr_warmup_steps": 9, "optimizer_type": "AdamWScheduleFree"}),
    ("no-effect", "lr_scheduler", {"lr_scheduler": "cosine", "optimizer_type": "adamwschedulefree"}),
    ("warmup-too-long", "lr_warmup_steps", {"lr_warmup_steps": 2000, "lr_scheduler": "cosine"}),
    ("adafactor-schedule", "lr_scheduler", {"lr_scheduler": "adafactor"}),
    (
        "adafactor-clipping",
        "max_grad_norm",
        {"optimizer_type": "AdaFactor", "optimizer_args": ("relative_step=False",)},
    ),
    ("no-length", "max_train_steps", {"max_train_steps": 0}),
    ("no-threshold", "huber_c", {"huber_c": 0.0, "loss_type": "huber"}),
    ("no-threshold", "huber_scale", {"huber_scale": 0.0, "loss_type": "smooth_l1", "huber_schedule": "constant"}),
    ("starts-after-end", "initial_step", {"initial_step": 1600}),
    ("starts-after-end", "initial_epoch", {"initial_epoch": 5, "max_train_epochs": 4}),
    ("no-effect", "max_train_steps", {"max_train_steps": 100, "max_train_epochs": 4}),
    ("other-family-module", "network_module", {"network_module": "networks.lora_flux"}),
    ("untrusted-module", "network_module", {"network_module": "my.network"}),
    ("unknown-network-arg", "network_args", {"network_args": ("convdim=8",)}),
    ("not-name-value", "network_args", {"network_args": ("conv_dim",)}),
    ("bad-network-arg", "network_args", {"network_args": ("conv_dim=eight",)}),
    ("bad-network-arg", "network_args", {"network_args": ("block_dims=1,2,3",)}),
    ("bad-network-arg", "network_args", {"network_args": ("down_lr_weight=0.5",)}),
    ("list-cut", "network_args", {"network_args": ("up_lr_weight=" + ",".join("1" * 14),)}),
    ("bad-network-arg", "network_args", {"network_module": "lycoris.kohya", "network_args": ("algo=lorra",)}),
    (
        "nothing-trained",
        "network_train_unet_only",
        {"network_train_unet_only": True, "network_train_text_encoder_only": True},
    ),
    ("nothing-trained", "learning_rate", {"unet_lr": 0.0, "network_train_unet_only": True}),
    ("text-rates", "text_encoder_lr", {"text_encoder_lr": (1e-5, 2e-5)}),
    ("dim-without-weights", "dim_from_weights", {"dim_from_weights": True}),
    ("multiplier-without-weights", "base_weights_multiplier", {"base_weights_multiplier": (1.0,)}),
]


@pytest.mark.parametrize(
    ("code", "key", "options"), CASES, ids=[f"{code}-{index}" for index, (code, _, _) in enumerate(CASES)]
)
def test_finding(code: str, key: str, options: dict[str, Any]) -> None:
    assert (code, key) in codes(**options)


@pytest.mark.parametrize(
    ("code", "key", "options"), CASES, ids=[f"{code}-{index}" for index, (code, _, _) in enumerate(CASES)]
)
def test_every_error_offers_a_fix(code: str, key: str, options: dict[str, Any]) -> None:
    found = check(TrainConfig(**{**SOUND, **options}), "sd15")
    assert [problem.code for problem in found if problem.severity == "error" and not problem.fix] == []


@pytest.mark.parametrize("family", ["sd3", "flux", "lora", "sdxl-refiner"])
def test_other_families_are_refused(family: str) -> None:
    assert ("unsupported-family", "pretrained_model_name_or_path") in codes(family)


def test_v2_and_the_checkpoint_agree() -> None:
    assert ("family-mismatch", "v2") in codes("sdxl", v2=True)
    assert ("family-mismatch", "v2") in codes("sd2")
    assert codes("sd2", v2=True) == set()


def test_sdxl_says_clip_skip_and_narrow_buckets() -> None:
    found = codes("sdxl", clip_skip=1, enable_bucket=True, resolution="1024,1024")
    assert found == {("no-effect", "clip_skip"), ("narrow-buckets", "max_bucket_reso")}
    assert codes("sdxl", enable_bucket=True, bucket_reso_steps=32, max_bucket_reso=2048) == set()


def test_trust_lets_a_foreign_scheduler_through() -> None:
    assert codes(lr_scheduler_type="my.Scheduler", trust=("my",)) == set()


def test_unknown_lycoris_argument_is_only_a_warning() -> None:
    config = TrainConfig(**{**SOUND, "network_module": "lycoris.kohya", "network_args": ("algo=lokr", "new_one=1")})
    assert [(problem.code, problem.severity) for problem in check(config, "sd15")] == [
        ("unknown-network-arg", "warning")
    ]


def test_block_lists_of_the_right_length_pass() -> None:
    assert codes(network_args=("block_dims=" + ",".join(["4"] * 25), "down_lr_weight=sine+.5")) == set()
    assert codes("sdxl", network_args=("block_dims=" + ",".join(["4"] * 23),)) == set()


@pytest.mark.parametrize("name", sorted(UNSUPPORTED))
def test_unsupported_options_are_refused(name: str) -> None:
    value = True if table()[name].kind is bool else "x"
    assert ("unsupported-option", name) in codes(**{name: value})


def test_options_without_effect_are_named_and_secrets_hidden() -> None:
    found = check(TrainConfig(**SOUND, huggingface_token="hf_secret", tokenizer_cache_dir="t"), "sd15")
    assert {problem.key for problem in found} == {"huggingface_token", "tokenizer_cache_dir"}
    assert "hf_secret" not in str(found)


def test_lists_name_known_options() -> None:
    assert {*UNSUPPORTED, *WITHOUT_EFFECT} <= set(table())


def test_every_rule_is_documented() -> None:
    assert [rule for rule in RULES if not rule.__doc__] == []


@pytest.mark.parametrize("name", ["", "adamw", "ADAFACTOR", "NAdam", "torch.optim.NAdam", "sgdnesterov8bit"])
def test_names_resolve(name: str) -> None:
    path = resolve(name)
    assert path is not None
    assert path in OPTIMIZERS.values() or path == "torch.optim.NAdam"


def test_rewrites_are_reported_as_notes() -> None:
    found = check(TrainConfig(**{**SOUND, "cache_latents_to_disk": True}), "sd15")
    assert [(problem.code, problem.key, problem.severity) for problem in found] == [
        ("rewritten", "cache_latents", "note")
    ]


def accepted_by_the_reference() -> list[Any]:
    """(arguments, family, more) of golden cases that the reference trains or would begin to train."""
    found = []
    for name in ("schedules", "network", "optimizers"):
        cases = json.loads((Path(__file__).parents[2] / "golden" / f"{name}.json").read_text(encoding="utf-8"))["cases"]
        for case in cases:
            if "refused" not in case and case.get("groups") != []:
                steps = {"max_train_steps": case["max_train_steps"]} if "max_train_steps" in case else {}
                found.append(pytest.param(case["args"], case.get("model", "sd15"), steps, id=f"{name}: {case['args']}"))
    return found


@pytest.mark.parametrize(("args", "family", "more"), accepted_by_the_reference())
def test_no_rule_refuses_what_the_reference_accepts(args: str, family: str, more: dict[str, Any]) -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    config, _ = from_flat({**SOUND, **more, **vars(parser.parse_args(shlex.split(args)))})
    wrong = [str(problem) for problem in check(config, family) if problem.severity == "error"]
    assert [said for said in wrong if "not installed" not in said] == []


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ({"lr_warmup_steps": "100%"}, 1.0),
        ({"lr_warmup_steps": 1.0}, 1.0),
        ({"lr_warmup_steps": "1"}, 1),
        ({"lr_warmup_steps": "25%"}, 0.25),
        ({"lr_decay_steps": 200.0}, 200),
        ({"max_train_steps": 0, "max_train_epochs": 3}, 0),
        ({"scale_weight_norms": 0}, 0.0),
        ({"token_warmup_min": 0}, 0),
        ({"lr_scheduler_num_cycles": 0}, 0),
    ],
)
def test_values_that_the_reference_can_use_are_read(given: dict[str, Any], read: float) -> None:
    config, _ = from_flat({**SOUND, "lr_scheduler": "cosine", **given})
    value = getattr(config, next(iter(given)))
    assert (value, type(value)) == (read, type(read))
    assert not [problem for problem in check(config, "sd15") if problem.severity == "error"]


def test_a_share_above_the_whole_run_is_refused() -> None:
    for given in ("150%", 1.5, "-5%"):
        with pytest.raises(ConfigError, match="share of the run"):
            from_flat({"lr_warmup_steps": given})


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("algo=lokr", "decompose_both=False"), ["decompose_both=False"]),
        (("algo=locon", "use_cp=False", "use_tucker=True", "decompose_both=False"), ["use_tucker=True"]),
        (("algo=ia3", "train_on_input=True"), ["train_on_input=True"]),
        (("algo=locon", "use_tucker=True", "rank_dropout_scale=False"), []),
    ],
)
def test_what_lycoris_reads_otherwise_is_said(args: tuple[str, ...], said: list[str]) -> None:
    config = TrainConfig(**{**SOUND, "network_module": "lycoris.kohya", "network_args": args})
    assert [problem.got for problem in check(config, "sd15") if problem.code == "lycoris-trait"] == said


def test_a_schedule_free_optimizer_with_a_warmup_is_not_refused() -> None:
    config = TrainConfig(**{**SOUND, "lr_warmup_steps": 9, "optimizer_type": "RAdamScheduleFree"})
    assert not [problem for problem in check(config, "sd15") if problem.code == "warmup-without-use"]


@pytest.mark.parametrize("reading", ["transposed", "as_stored"])
def test_how_sdxls_text_projection_is_read_is_said_once(reading: str) -> None:
    config = TrainConfig(**{**SOUND, "pretrained_model_name_or_path": "xl.safetensors"}, sdxl_text_projection=reading)
    (found,) = text_projection_of_a_plan(config, "sdxl")
    code = "text-projection" if reading == "transposed" else "text-projection-as-stored"
    assert (found.code, found.severity) == (code, "note")
    assert ("as_stored" in str(found.fix)) == (reading == "transposed")


def test_a_folder_of_sdxl_has_one_reading() -> None:
    folder = {**SOUND, "pretrained_model_name_or_path": "stabilityai/sdxl"}
    assert ("no-effect", "sdxl_text_projection") in codes("sdxl", **folder, sdxl_text_projection="as_stored")
    assert not [*text_projection_of_a_plan(TrainConfig(**folder), "sdxl")]
    assert not [*text_projection_of_a_plan(TrainConfig(**SOUND), "sd15")]
