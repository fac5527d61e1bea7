"""Cards by name, FLOPs of a step, time and price."""

from __future__ import annotations

from dataclasses import replace

import pytest

from schemas import TrainConfig
from trainer.plan import cards, work
from trainer.plan.cards import CARDS, find
from trainer.plan.steps import count

SDXL = TrainConfig(network_dim=32, mixed_precision="bf16", network_train_unet_only=True, cache_latents=True,
                   cache_text_encoder_outputs=True)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "memory", "card"),
    [
        ("NVIDIA GeForce RTX 3060", None, "RTX 3060"),
        ("4090", None, "RTX 4090"),
        ("rtx 4060 ti", None, "RTX 4060 Ti"),
        ("NVIDIA GeForce RTX 4060 Ti", 16, "RTX 4060 Ti 16GB"),
        ("NVIDIA A100-SXM4-80GB", None, "A100 80GB"),
        ("Tesla T4", None, "T4"),
        ("NVIDIA A10G", None, "A10G"),
        ("NVIDIA H100 80GB HBM3", None, "H100"),
    ],
)
def test_a_card_is_found_as_people_and_drivers_write_it(name: str, memory: int | None, card: str) -> None:
    found = find(name, memory and memory * 2**30)
    assert found is not None
    assert found.name == card


@pytest.mark.parametrize("name", ["foo", "", "NVIDIA device", "a card of 8 GB"])
def test_other_names_are_no_card(name: str) -> None:
    assert find(name) is None


def test_every_card_is_found_by_its_own_name() -> None:
    assert [find(card.name) for card in CARDS] == list(CARDS)


def test_a_step_of_sdxl_is_as_much_work_as_was_counted() -> None:
    """14.6 TFLOP, and 20.8 with checkpointing, at 1024 pixels and batch 1; SD1.5 at 512 pixels 1.8."""
    assert work.step_flops(SDXL, "sdxl", 128 * 128) == pytest.approx(14.9e12, rel=0.03)
    assert work.step_flops(replace(SDXL, gradient_checkpointing=True), "sdxl", 128 * 128) == pytest.approx(
        21e12, rel=0.03
    )
    sd15 = replace(SDXL, cache_text_encoder_outputs=False)
    assert work.step_flops(sd15, "sd15", 64 * 64) == pytest.approx(1.84e12, rel=0.03)
    assert work.step_flops(SDXL, "sdxl", 128 * 128, 4) == 4 * work.step_flops(SDXL, "sdxl", 128 * 128)


def test_time_and_price_follow_from_steps_and_card() -> None:
    config = replace(SDXL, max_train_steps=1000, price_per_hour=2.0, gradient_accumulation_steps=2)
    steps = count(config, 100)
    slow, fast = (find(name) for name in ("RTX 3060", "RTX 4090"))
    assert slow is not None
    assert fast is not None
    one, other = (work.time_of(config, "sdxl", 128 * 128, steps, card) for card in (slow, fast))
    assert one.seconds / other.seconds == pytest.approx(fast.half / slow.half)
    assert one.seconds == pytest.approx(1000 * one.step_seconds)
    assert one.cost == pytest.approx(2 * one.seconds / 3600)
    assert one.step_flops == 2 * work.step_flops(config, "sdxl", 128 * 128)
    assert cards.peak(slow, "no") < cards.peak(slow, "bf16")
