"""Learning rates over a run: what the plan shows is what the optimizer is driven by (rows in schemas.schedulers)."""

from __future__ import annotations

import math

from schemas import optimizers, schedulers
from schemas.config import TrainConfig
from schemas.problems import ConfigError, errors, taken
from schemas.schedulers import Curve, Updates, flat, one_cycle_is_long_enough
from trainer.plan.steps import Steps, portion


def multiplier(config: TrainConfig, total_updates: int, processes: int = 1) -> Curve:
    """The curve of `lr_scheduler`. `processes` matters only for how the reference truncates shares of the run."""
    warmup = portion(config.lr_warmup_steps, total_updates, processes)
    decay = portion(config.lr_decay_steps, total_updates, processes)
    return taken(schedulers.read(config)).curve(config, Updates(total_updates, warmup, decay))


def relative_step(warmup_init: bool) -> Curve:
    """The rate that Adafactor with relative_step computes for a parameter still near 0 (Shazeer and Stern 2018).

    Update 0 has no rate yet: 0. LoRA's up factors start at 0, where the floor 1e-3 on the parameter's scale holds.
    """

    def rate(i: int) -> float:
        return 1e-3 * min(1e-6 * i if warmup_init else 1e-2, 1 / math.sqrt(i)) if i else 0.0

    return rate


def curve(config: TrainConfig, steps: Steps, points: int = 101) -> list[list[float]]:
    """At most `points` pairs [update, rate] over the run: the U-Net's rate, or the text encoders' if only they train.

    Empty for lr_scheduler_type, whose class only the trainer can ask, and where the config's schedule is wrong.
    """
    only_text = config.network_train_text_encoder_only and config.text_encoder_lr
    base = config.text_encoder_lr[0] if only_text else config.unet_lr
    base = config.learning_rate if base is None else base
    count = max(2, min(points, steps.total + 1))
    marks = sorted({round(i * steps.total / (count - 1)) for i in range(count)})
    optimizer, wrong = optimizers.read(config)
    if errors([*wrong, *([] if optimizer.schedule_free else schedulers.read(config)[1])]):
        return []  # said by the rules
    if optimizer.relative_step:
        rate = relative_step(bool(optimizer.args.get("warmup_init")))
        return [[mark, rate(mark)] for mark in marks]
    if config.lr_scheduler_type:
        short = [*one_cycle_is_long_enough(config, steps.total)]
        if short:
            raise ConfigError(short)
        return []
    factor = flat if optimizer.schedule_free else multiplier(config, steps.total, steps.processes)
    return [[mark, base * factor(mark)] for mark in marks]
