from __future__ import annotations

import pytest

from schemas import ConfigError, TrainConfig
from trainer.plan.steps import count


def test_accumulation_steps_the_last_incomplete_group() -> None:
    steps = count(TrainConfig(max_train_steps=20, gradient_accumulation_steps=2), batches=7)
    assert (steps.batches_per_epoch, steps.updates_per_epoch, steps.epochs, steps.total) == (7, 4, 5, 20)


def test_epochs_override_steps() -> None:
    steps = count(TrainConfig(max_train_steps=9999, max_train_epochs=3, gradient_accumulation_steps=4), batches=6)
    assert (steps.updates_per_epoch, steps.epochs, steps.total) == (2, 3, 6)


def test_batches_are_shared_by_processes() -> None:
    steps = count(TrainConfig(max_train_steps=10, gradient_accumulation_steps=2), batches=11, processes=3)
    assert (steps.batches_per_epoch, steps.updates_per_epoch, steps.epochs) == (4, 2, 5)


@pytest.mark.parametrize(("given", "updates"), [(0, 0), (15, 15), (0.15, 15), (0.999, 99), (1, 1), (1.0, 100)])
def test_warmup_is_updates_or_a_share_of_the_run(given: float, updates: int) -> None:
    config = TrainConfig(max_train_steps=100, lr_warmup_steps=given, lr_decay_steps=given)
    steps = count(config, batches=10, processes=2)
    assert (steps.warmup, steps.decay) == (updates, updates)


def test_epoch_of_a_step_and_end_of_an_epoch() -> None:
    steps = count(TrainConfig(max_train_steps=10), batches=4)
    assert [steps.epoch_of(step) for step in (0, 1, 4, 5, 10)] == [0, 1, 1, 2, 3]
    assert [steps.epoch_end(epoch) for epoch in (1, 2, 3)] == [4, 8, 10]


def test_no_pictures() -> None:
    with pytest.raises(ConfigError, match="no picture"):
        count(TrainConfig(), batches=0)
