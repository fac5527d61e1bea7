from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from schemas.config import TrainConfig, from_flat
from schemas.rules import effective

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "optimizers.json").read_text())["cases"]
RELATIVE = [case for case in GOLDEN if str(case.get("lr_scheduler_after", "")).startswith("adafactor:")]


def changed(**options: object) -> dict[str, object]:
    return {
        change.argument: change.after for change in effective(TrainConfig(network_module="networks.lora", **options))[1]
    }  # type: ignore[arg-type]


def test_nothing_changes_in_a_plain_config() -> None:
    assert changed() == {}


def test_network_module_is_announced() -> None:
    config, changes = effective(TrainConfig())
    assert config.network_module == "networks.lora"
    assert changes[0].argument == "network_module"


def test_disk_caches_include_the_caches() -> None:
    assert changed(cache_latents_to_disk=True) == {"cache_latents": True}


def test_old_optimizer_flags() -> None:
    assert changed(use_8bit_adam=True) == {"optimizer_type": "AdamW8bit", "use_8bit_adam": False}
    assert changed(use_8bit_adam=True, use_lion_optimizer=True) == {}


def test_old_caption_extension() -> None:
    assert changed(caption_extention=".txt") == {"caption_extension": ".txt", "caption_extention": None}


def test_marks_at_or_below_zero_are_off() -> None:
    assert changed(sample_every_n_steps=-1, save_every_n_steps=0) == {
        "sample_every_n_steps": None,
        "save_every_n_steps": None,
    }


def test_validation_and_norms_of_0_are_off() -> None:
    names = ("validate_every_n_steps", "validate_every_n_epochs", "max_validation_steps", "scale_weight_norms")
    assert changed(**dict.fromkeys(names, 0)) == dict.fromkeys(names)


def test_relative_steps_keep_the_rate_of_a_part_beside_a_learning_rate_of_0() -> None:
    rates = {"optimizer_type": "AdaFactor", "unet_lr": 1e-4}
    assert changed(**rates, learning_rate=0.0) == {"lr_scheduler": "adafactor:0.0"}
    assert changed(**rates, learning_rate=1e-3) == {"lr_scheduler": "adafactor:0.001", "unet_lr": None}


def test_copies_per_run_become_copies_per_epoch() -> None:
    assert changed(save_n_epoch_ratio=4, max_train_epochs=10) == {"save_every_n_epochs": 2}


def test_bucket_limits_become_multiples() -> None:
    assert changed(enable_bucket=True, min_bucket_reso=300, max_bucket_reso=1000) == {
        "min_bucket_reso": 256,
        "max_bucket_reso": 1024,
    }


@pytest.mark.parametrize("case", RELATIVE, ids=lambda case: case["args"])
def test_adafactor_with_relative_step(case: dict[str, str]) -> None:
    words = shlex.split(case["args"])
    flat: dict[str, object] = {}
    for word in words:
        if word.startswith("--"):
            name = word[2:]
            flat[name] = True if name == "fused_backward_pass" else []
        else:
            flat[name] = [*flat[name], word]  # type: ignore[misc]
    flat = {
        key: value[0] if isinstance(value, list) and not key.endswith("_args") else value for key, value in flat.items()
    }
    config, _ = effective(from_flat(flat)[0])
    assert config.lr_scheduler == case["lr_scheduler_after"]
    assert (config.unet_lr, config.text_encoder_lr) == (None, ())


def test_a_text_encoder_that_is_not_trained_stays_so_under_adafactor() -> None:
    config, _ = effective(TrainConfig(optimizer_type="AdaFactor", text_encoder_lr=(0.0,)))
    assert config.text_encoder_lr == (0.0,)


def test_twice_changes_nothing_more() -> None:
    once, _ = effective(
        TrainConfig(optimizer_type="adafactor", unet_lr=1e-4, cache_latents_to_disk=True, use_lion_optimizer=True)
    )
    assert effective(once) == (once, [])
