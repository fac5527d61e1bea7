"""Learning-rate curves in pure Python: what the plan shows is what the optimizer is driven by.

A curve is a function from the update (0 is the first) to a factor on each group's rate. Definitions are those of
transformers' and diffusers' schedules (reference section 8.5). Every length is counted in optimizer updates, whatever
the number of processes (trap T28).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any

from schemas.config import TrainConfig
from schemas.problems import ConfigError, error, errors, nearest
from schemas.rules.arguments import parse_literal_args
from schemas.rules.schedule import one_cycle_is_long_enough, scheduler_arguments
from schemas.schedulers import SCHEDULERS, step_rules
from trainer.plan.steps import Steps, portion

Curve = Callable[[int], float]
WITHOUT_WARMUP = ("constant", "adafactor", "piecewise_constant")
WAVES: dict[str, Callable[[float, float], float]] = {  # rising from 0 to 1 with p; cycles count for the cosine only
    "linear": lambda p, cycles: p,
    "cosine": lambda p, cycles: 0.5 * (1 - math.cos(math.pi * 2 * cycles * p)),
    "1-sqrt": lambda p, cycles: 1 - math.sqrt(1 - p),
}


def multiplier(config: TrainConfig, total_updates: int, processes: int = 1) -> Curve:
    """The curve of `lr_scheduler`; ConfigError for an unknown name, a missing or unusable argument, useless warmup.

    `adafactor:<lr>` is the constant curve that goes with Adafactor's own rates. `processes` matters only for how the
    reference truncates shares of the run.
    """
    name, _, initial = config.lr_scheduler.partition(":")
    if name not in SCHEDULERS or (name == "adafactor" and not initial):
        raise _unknown(config.lr_scheduler)
    args = schedule_args(config, name)
    warmup = portion(config.lr_warmup_steps, total_updates, processes)
    decay = portion(config.lr_decay_steps, total_updates, processes)
    if warmup and name in WITHOUT_WARMUP[:2]:
        raise error(
            "warmup-without-use",
            f"must be 0 with the schedule {name}",
            key="lr_warmup_steps",
            got=config.lr_warmup_steps,
            fix="--set lr_warmup_steps=0 or --set lr_scheduler=constant_with_warmup",
        )
    build: dict[str, Callable[[], Curve]] = {
        "constant": lambda: _constant,
        "adafactor": lambda: _constant,
        "constant_with_warmup": lambda: _constant,
        "linear": lambda: linear(warmup, total_updates),
        "cosine": lambda: cosine(warmup, total_updates, cycles=args.get("num_cycles", 0.5)),
        "cosine_with_restarts": lambda: restarts(warmup, total_updates, config.lr_scheduler_num_cycles),
        "polynomial": lambda: _polynomial(config, warmup, total_updates, args.get("lr_end", 1e-7)),
        "inverse_sqrt": lambda: inverse_sqrt(warmup, config.lr_scheduler_timescale or warmup or 10_000),
        "cosine_with_min_lr": lambda: cosine(
            warmup, total_updates, cycles=config.lr_scheduler_num_cycles / 2, lowest=_lowest(config, args)
        ),
        "warmup_stable_decay": lambda: _stable(config, total_updates, warmup, decay, args),
        "piecewise_constant": lambda: piecewise(args.get("step_rules")),
    }
    shape = build[name]()
    rises = name not in WITHOUT_WARMUP and name != "warmup_stable_decay"  # the latter has a warmup of its own
    return warmed(shape, warmup) if rises else shape


def _constant(update: int) -> float:
    return 1.0


def warmed(curve: Curve, warmup: float) -> Curve:
    """`curve` after a linear rise over the first `warmup` updates."""
    return lambda i: i / max(1.0, warmup) if i < warmup else curve(i)


def linear(warmup: float, total: int) -> Curve:
    return lambda i: max(0.0, (total - i) / max(1.0, total - warmup))


def cosine(warmup: float, total: int, *, cycles: float = 0.5, lowest: float = 0.0) -> Curve:
    """Half a cosine wave (for `cycles` 1/2) from 1 down to `lowest`."""

    def factor(i: int) -> float:
        progress = (i - warmup) / max(1.0, total - warmup)
        wave = 0.5 * (1 + math.cos(math.pi * cycles * 2 * progress))
        return max(0.0, wave * (1 - lowest) + lowest)

    return factor


def restarts(warmup: float, total: int, cycles: int) -> Curve:
    """Cosine that falls to 0 and starts again at 1, `cycles` times (SGDR, Loshchilov and Hutter 2017)."""

    def factor(i: int) -> float:
        progress = (i - warmup) / max(1.0, total - warmup)
        return 0.0 if progress >= 1 else max(0.0, 0.5 * (1 + math.cos(math.pi * (cycles * progress % 1.0))))

    return factor


def polynomial(warmup: float, total: int, *, power: float, start: float, end: float) -> Curve:
    """From rate `start` to rate `end` as (1 - progress)^power, as a factor on `start`."""

    def factor(i: int) -> float:
        if i > total or total <= warmup:
            return end / start
        remaining = 1 - (i - warmup) / (total - warmup)
        return float(((start - end) * remaining**power + end) / start)

    return factor


def inverse_sqrt(warmup: float, timescale: float) -> Curve:
    return lambda i: 1 / math.sqrt((i + timescale - warmup) / timescale)


def stable(warmup: float, flat: float, decay: float, *, shape: tuple[str, str], lowest: float, cycles: float) -> Curve:
    """Rise, stay at 1, fall to `lowest`; `shape` names the waves of rise and fall (see WAVES)."""
    rise, fall = shape

    def factor(i: int) -> float:
        if i < warmup:
            wave = WAVES[rise](i / max(1.0, warmup), 0.5)
        elif i < warmup + flat:
            return 1.0
        elif i < warmup + flat + decay:
            p = (i - warmup - flat) / max(1.0, decay)
            # transformers' "1-sqrt" fall is 1 - sqrt(p), not the mirrored rise
            wave = 1 - math.sqrt(p) if fall == "1-sqrt" else 1 - WAVES[fall](p, cycles)
        else:
            return lowest
        return max(0.0, wave * (1 - lowest) + lowest)

    return factor


def piecewise(rules: Any) -> Curve:
    """`rules` as "1:30,0.5:60,0.1": factor 1 before update 30, 0.5 before 60, 0.1 from then on."""
    bounds, final = step_rules(rules)
    return lambda i: next((value for until, value in bounds if i < until), final)


def relative_step(warmup_init: bool) -> Curve:
    """The rate that Adafactor with relative_step computes for a parameter still near 0 (Shazeer and Stern 2018).

    Update 0 has no rate yet: 0. LoRA's up factors start at 0, where the floor 1e-3 on the parameter's scale holds.
    """

    def rate(i: int) -> float:
        return 1e-3 * min(1e-6 * i if warmup_init else 1e-2, 1 / math.sqrt(i)) if i else 0.0

    return rate


def _polynomial(config: TrainConfig, warmup: float, total: int, end: float) -> Curve:
    return polynomial(warmup, total, power=config.lr_scheduler_power, start=config.learning_rate, end=end)


def _lowest(config: TrainConfig, args: dict[str, Any]) -> float:
    ratio = config.lr_scheduler_min_lr_ratio
    return float(args["min_lr"]) / config.learning_rate if ratio is None else ratio


def _stable(config: TrainConfig, total: int, warmup: float, decay: float, args: dict[str, Any]) -> Curve:
    shape = (args.get("warmup_type", "linear"), args.get("decay_type", "cosine"))
    return stable(
        warmup,
        total - warmup - decay,
        decay,
        shape=shape,
        lowest=config.lr_scheduler_min_lr_ratio or 0.0,
        cycles=config.lr_scheduler_num_cycles / 2,
    )


def _unknown(name: str) -> ConfigError:
    guess = nearest(name, SCHEDULERS) or "constant"
    if name == "adafactor":
        return error(
            "adafactor-schedule",
            "works only with the optimizer AdaFactor and relative_step",
            key="lr_scheduler",
            got=name,
            fix="set optimizer_type to AdaFactor and leave lr_scheduler out",
        )
    return error(
        "unknown-scheduler",
        "must be one of " + ", ".join(n for n in SCHEDULERS if n != "adafactor"),
        key="lr_scheduler",
        got=name,
        fix=f"did you mean {guess}?",
    )


def schedule_args(config: TrainConfig, name: str) -> dict[str, Any]:
    """lr_scheduler_args of the named schedule; ConfigError for those it does not take, or not so."""
    wrong = errors([*scheduler_arguments(dataclasses.replace(config, lr_scheduler=name, lr_scheduler_type=""), None)])
    if wrong:
        raise ConfigError(wrong)
    return literal_args(config.lr_scheduler_args, "lr_scheduler_args")


def curve(config: TrainConfig, steps: Steps, points: int = 101) -> list[list[float]]:
    """At most `points` pairs [update, rate] over the run: the U-Net's rate, or the text encoders' if only they train.

    Empty for lr_scheduler_type, whose class only the trainer can ask.
    """
    only_text = config.network_train_text_encoder_only and config.text_encoder_lr
    base = config.text_encoder_lr[0] if only_text else config.unet_lr
    base = config.learning_rate if base is None else base
    count = max(2, min(points, steps.total + 1))
    marks = sorted({round(i * steps.total / (count - 1)) for i in range(count)})
    args = literal_args(config.optimizer_args, "optimizer_args")
    if uses_relative_step(config, args):
        rate = relative_step(bool(args.get("warmup_init")))
        return [[mark, rate(mark)] for mark in marks]
    if config.lr_scheduler_type:
        short = [*one_cycle_is_long_enough(config, steps.total)]
        if short:
            raise ConfigError(short)
        return []
    fixed = config.optimizer_type.lower().endswith("schedulefree")  # the trainer asks the class itself
    factor = _constant if fixed else multiplier(config, steps.total, steps.processes)
    return [[mark, base * factor(mark)] for mark in marks]


def uses_relative_step(config: TrainConfig, args: dict[str, Any]) -> bool:
    """Whether Adafactor sets its own rates (reference section 8.3): by default, and whenever warmup_init is on."""
    if config.optimizer_type.lower() != "adafactor":
        return False
    return bool(args.get("relative_step", True) or args.get("warmup_init", False))


def literal_args(items: Iterable[str], key: str) -> dict[str, Any]:
    """name=value items with Python literals as values; ConfigError names every item that is not one."""
    found, problems = parse_literal_args(items, key)
    if errors(problems):
        raise ConfigError(errors(problems))
    return found
