from __future__ import annotations

import cProfile
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from schemas import TrainConfig
from trainer.plan.activations import blocks
from trainer.plan.adapter import saved_numbers
from trainer.plan.marks import saves
from trainer.plan.memory import (
    GIB,
    activation_bytes,
    adapter_parameters,
    apply,
    disk_bytes,
    estimate,
    fit,
    optimizer_bytes,
)
from trainer.plan.modules import usual
from trainer.plan.steps import count

GOLDEN = Path(__file__).parents[2] / "golden"
SQUARE = (1024, 1024)
SDXL = TrainConfig(network_dim=16, learning_rate=1e-4, mixed_precision="bf16", train_batch_size=4)


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
@pytest.mark.parametrize(("args", "name"), [((), "lora_dim16"), (("conv_dim=8", "conv_alpha=1"), "locon_dim16_conv8")])
def test_adapter_parameters_are_those_of_the_references_files(family: str, args: tuple[str, ...], name: str) -> None:
    shapes = json.loads((GOLDEN / f"keys_{family}_{name}.json").read_text())
    wanted = sum(math.prod(shape) for key, shape in shapes.items() if key.endswith(".weight"))
    assert adapter_parameters(TrainConfig(network_dim=16, network_args=args), family) == wanted


def test_parts_that_are_not_trained_have_no_adapter() -> None:
    both = adapter_parameters(TrainConfig(), "sdxl")
    unet = adapter_parameters(TrainConfig(text_encoder_lr=(0.0,)), "sdxl")
    text = adapter_parameters(TrainConfig(network_train_text_encoder_only=True), "sdxl")
    assert unet == adapter_parameters(TrainConfig(network_train_unet_only=True), "sdxl")
    assert unet + text == both


def test_parts_add_up() -> None:
    memory = estimate(SDXL, "sdxl", SQUARE)
    assert sum(memory.parts.values()) == memory.device_bytes
    assert set(memory.parts) == {
        "unet",
        "text_encoders",
        "vae",
        "adapter",
        "gradients",
        "optimizer",
        "activations",
        "overhead",
    }


@pytest.mark.parametrize(
    ("change", "part", "share"),
    [
        ({"fp8_base": True}, "unet", 0.5),
        ({"mixed_precision": "no"}, "unet", 2),
        ({"cache_latents": True}, "vae", 0),
        ({"cache_text_encoder_outputs": True}, "text_encoders", 0),
        ({"network_dim": 32}, "gradients", 2),
        ({"optimizer_type": "lion"}, "optimizer", 0.5),
        ({"optimizer_type": "PagedAdamW"}, "optimizer", 0),
    ],
)
def test_options_change_their_part(change: dict[str, object], part: str, share: float) -> None:
    before = estimate(SDXL, "sdxl", SQUARE).parts
    after = estimate(replace(SDXL, **change), "sdxl", SQUARE).parts  # type: ignore[arg-type]
    assert after[part] == before[part] * share


def test_activations_grow_with_batch_and_pixels() -> None:
    unet_only = replace(SDXL, network_train_unet_only=True)
    one = activation_bytes(replace(unet_only, train_batch_size=1), "sdxl", (512, 512))
    assert activation_bytes(unet_only, "sdxl", SQUARE) == pytest.approx(16 * one, rel=0.05)


def test_paged_states_lie_in_main_memory() -> None:
    paged = estimate(replace(SDXL, optimizer_type="PagedAdamW"), "sdxl", SQUARE, processes=2)
    plain = estimate(SDXL, "sdxl", SQUARE, processes=2)
    assert paged.host_bytes - plain.host_bytes == 2 * plain.parts["optimizer"]


@pytest.mark.parametrize(("name", "size"), [("", 8), ("adamw8bit", 2.1), ("Prodigy", 16), ("AdamWScheduleFree", 8)])
def test_optimizer_states(name: str, size: float) -> None:
    assert optimizer_bytes(TrainConfig(optimizer_type=name)) == size


def test_nothing_to_change_where_it_fits() -> None:
    assert fit(SDXL, "sdxl", SQUARE, vram_gb=80) == []


@pytest.mark.parametrize(
    ("family", "side", "rank", "gigabytes", "streams"),
    [("sdxl", 1024, 32, 8, False), ("sdxl", 1024, 32, 6, True), ("sd15", 512, 32, 4, False)],
)
def test_small_cards_are_enough_and_nothing_is_rounded_before_blocks_are_streamed(
    family: str, side: int, rank: int, gigabytes: float, streams: bool
) -> None:
    config = replace(SDXL, train_batch_size=1, network_dim=rank, network_train_unet_only=True)
    changes = fit(config, family, (side, side), vram_gb=gigabytes)
    after = apply(config, changes)
    assert estimate(after, family, (side, side)).device_bytes <= gigabytes * GIB
    assert not any(change.changes_result for change in changes)
    assert bool(after.streamed_blocks) == streams


def test_no_more_blocks_are_computed_twice_or_streamed_than_it_takes() -> None:
    config = replace(SDXL, train_batch_size=1, network_train_unet_only=True, cache_latents=True)
    for gigabytes, name in ((12, "checkpointed_blocks"), (6, "streamed_blocks")):
        after = apply(config, fit(config, "sdxl", SQUARE, vram_gb=gigabytes))
        count = getattr(after, name)
        assert count
        assert 0 < count < len(blocks("sdxl"))
        fewer = replace(after, **{name: count - 1})
        assert estimate(after, "sdxl", SQUARE).device_bytes <= gigabytes * GIB
        assert estimate(fewer, "sdxl", SQUARE).device_bytes > gigabytes * GIB


def test_changes_tell_what_they_save_and_whether_the_result_changes() -> None:
    changes = fit(SDXL, "sdxl", SQUARE, vram_gb=4)
    saved = estimate(SDXL, "sdxl", SQUARE).device_bytes - estimate(apply(SDXL, changes), "sdxl", SQUARE).device_bytes
    assert sum(change.saves_bytes for change in changes) == saved
    exact = [one.argument for one in changes if not one.changes_result and one.argument != "checkpointed_blocks"]
    assert exact[:3] == ["cache_latents", "gradient_checkpointing", "streamed_blocks"]
    assert "fp8_base" in {change.argument for change in changes if change.changes_result}
    assert all("{" not in change.cost for change in changes)


def test_smaller_batches_keep_the_pictures_of_a_step() -> None:
    changes = fit(SDXL, "sdxl", SQUARE, vram_gb=1)
    after = apply(SDXL, changes)
    assert (after.train_batch_size, after.gradient_accumulation_steps) == (1, 4)
    assert len({change.argument for change in changes}) == len(changes)


def test_captions_that_vary_are_not_cached() -> None:
    changes = fit(replace(SDXL, shuffle_caption=True), "sdxl", SQUARE, vram_gb=1)
    assert "cache_text_encoder_outputs" not in {change.argument for change in changes}


def test_disk_holds_what_rotation_leaves_the_one_being_written_and_a_state() -> None:
    config = TrainConfig(max_train_steps=40, save_every_n_epochs=1, save_last_n_epochs=2, save_precision="fp16")
    used = disk_bytes(config, "sd15", count(config, 4))
    trained = adapter_parameters(config, "sd15")
    assert used == 3 * 2 * saved_numbers(config, "sd15", usual("sd15")) + (4 + 8) * trained


def test_what_stands_beside_a_file_takes_as_much_again_and_the_average_memory() -> None:
    config = TrainConfig(max_train_steps=40, save_every_n_epochs=1, save_last_n_epochs=2, save_precision="fp16")
    trained, model = adapter_parameters(config, "sd15"), 2 * saved_numbers(config, "sd15", usual("sd15"))
    steps = count(config, 4)
    plain = disk_bytes(config, "sd15", steps)
    assert disk_bytes(replace(config, save_peft=True), "sd15", steps) == plain + 3 * model
    assert disk_bytes(replace(config, ema_decay=0.9), "sd15", steps) == plain + 3 * model + 4 * trained
    assert disk_bytes(replace(config, ema_decay=0.9, save_peft=True), "sd15", steps) == plain + 6 * model + 4 * trained
    averaged = estimate(replace(SDXL, ema_decay=0.9), "sdxl", SQUARE)
    assert averaged.parts["ema"] == 4 * adapter_parameters(SDXL, "sdxl")
    assert sum(averaged.parts.values()) == averaged.device_bytes


def test_disk_holds_caches() -> None:
    config = TrainConfig(flip_aug=True)
    steps = count(config, 4)
    cached = disk_bytes(config, "sdxl", steps, cached_pixels=1024 * 1024) - disk_bytes(config, "sdxl", steps)
    assert cached == 2 * 4 * 4 * 128 * 128


def work_of(saved: int) -> int:
    """Function calls, built-in ones too, that finding the fullest moment of so many saves takes."""
    config = TrainConfig(save_every_n_steps=1, save_state=True, save_last_n_steps=4, max_train_steps=saved)
    profile = cProfile.Profile()
    profile.runcall(disk_bytes, config, "sd15", count(config, 10))
    return sum(int(entry.callcount) for entry in profile.getstats())


def test_the_work_of_a_plan_grows_as_its_saves_do() -> None:
    small, large = work_of(200), work_of(2000)
    assert large < 11 * small


def test_the_fullest_moment_counts_each_file_once() -> None:
    """The last step's file and the end's state stand beside what rotation has left; a name written twice is one."""
    config = TrainConfig(save_every_n_steps=2, save_last_n_steps=2, max_train_steps=9, save_precision="float")
    steps = count(config, 3)
    held: set[str] = set()
    most = 0
    for save in saves(config, steps):
        held |= set(save.written)
        most = max(most, len(held))
        held -= set(save.removes)
    one = disk_bytes(replace(config, save_every_n_steps=None), "sd15", steps)
    model = saved_numbers(config, "sd15", usual("sd15")) * 4
    assert disk_bytes(config, "sd15", steps) == one + (most - 1) * model
