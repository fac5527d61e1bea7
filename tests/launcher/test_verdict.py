"""Which epoch is chosen, from numbers whose answer is plain."""

from __future__ import annotations

import pytest

from launcher.report.verdict import SWAY_LIMIT, Epoch, epochs_of, judge

NOISE = (0.002, -0.001, 0.0, -0.002, 0.001, 0.0, 0.001, -0.001)


def epochs(*gains, sway=None, images=8):
    """One epoch for each mean difference to the base model, the same noise on all images of an epoch."""
    sways = sway or [0.01 * number for number in range(1, len(gains) + 1)]
    return [
        Epoch(f"epoch {number}", number, f"{number}.safetensors",
              [gain + 0.3 * NOISE[(place + number) % 8] for place in range(images)], {}, 0.1, sways[number - 1])
        for number, gain in enumerate(gains, 1)
    ]  # fmt: skip


def test_the_lowest_is_kept_and_what_follows_is_over_trained():
    found = judge(epochs(-0.02, -0.05, -0.04, -0.01))
    assert (found.action, found.epoch.number, found.over_trained_since) == ("stop-earlier", 2, "epoch 3")
    assert "epoch 3" in found.evidence[-1]
    assert "standard errors" in found.evidence[-1]


def test_still_falling_is_to_be_continued():
    found = judge(epochs(-0.01, -0.03, -0.05))
    assert (found.action, found.epoch.number, found.over_trained_since) == ("continue", 3, None)


def test_of_equals_the_earlier_is_kept_and_the_tie_is_told():
    found = judge(epochs(-0.01, -0.05, -0.0502))
    assert (found.action, found.epoch.number) == ("keep", 2)
    assert "epoch 3" in found.doubt[0]


def test_an_epoch_that_costs_other_prompts_too_much_is_not_kept():
    high = SWAY_LIMIT * 2
    found = judge(epochs(-0.03, -0.06, sway=[0.01, high]))
    assert (found.action, found.epoch.number, found.over_trained_since) == ("stop-earlier", 1, "epoch 2")
    every = judge(epochs(-0.03, -0.06, sway=[high, high]))
    least = judge(epochs(-0.03, -0.06, sway=[SWAY_LIMIT * 1.4, SWAY_LIMIT * 1.2]))
    assert (least.action, least.epoch.number, least.over_trained_since) == ("stop-earlier", 2, "epoch 1")
    assert (every.action, every.epoch, every.over_trained_since) == ("stop-earlier", None, "epoch 1")


@pytest.mark.parametrize(
    ("gains", "sway", "action"),
    [
        ((0.0, -0.0001), [0.0001, 0.0002], "continue"),
        ((0.02, 0.03), [SWAY_LIMIT, SWAY_LIMIT], "stop-earlier"),
        ((0.0, -0.0001), [SWAY_LIMIT * 0.9, SWAY_LIMIT * 0.9], "cannot-tell"),
    ],
)
def test_nothing_gained(gains, sway, action):
    found = judge(epochs(*gains, sway=sway))
    assert (found.action, found.epoch) == (action, None)


def test_without_held_out_images_nothing_can_be_told():
    found = judge([Epoch("epoch 1", 1, "1", [], {}, 0.2, 0.01)])
    assert (found.action, found.epoch) == ("cannot-tell", None)
    assert judge([]).action == "cannot-tell"


def test_a_single_image_is_no_measurement():
    assert judge(epochs(-0.02, -0.05, images=1)).epoch is None


def test_few_images_are_a_doubt():
    assert any("5 held-out images are few" in said for said in judge(epochs(-0.02, -0.05, images=5)).doubt)


def test_measurements_become_paired_differences_by_band():
    measured = {
        "base": {"losses": [[1.0, 3.0], [2.0, 4.0]]},
        "bands": {"low noise": (0, 1), "high noise": (1, 2)},
        "measured": [
            {"place": "epoch 1", "file": "a", "weight": 1.0, "losses": [[0.5, 3.0], [1.0, 4.5]], "drift": [0.1, 0.3],
             "sway": [0.02]},
            {"place": "epoch 1", "file": "a", "weight": 0.5},
        ],
    }  # fmt: skip
    (one,) = epochs_of(measured, {"a": 1})
    assert one.gains == [-0.25, -0.25]
    assert one.bands["low noise"][0] == -0.75
    assert one.bands["high noise"][0] == 0.25
    assert (one.drift, one.sway, one.number) == (0.2, 0.02, 1)
