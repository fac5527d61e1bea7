"""Every learning-rate schedule as one row: its name, its own arguments, its curve in pure Python (section 8.5).

A curve is a function from the update (0 is the first) to a factor on each group's rate. Definitions are those of
transformers' and diffusers' schedules. Every length is counted in optimizer updates (trap T28).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from schemas.argument import Argument, parse_literal_args, setting
from schemas.config import TrainConfig
from schemas.problems import Problem, nearest

Arguments = Mapping[str, Argument]
Curve = Callable[[int], float]
NUMBER, POSITIVE, COUNT = Argument("number"), Argument("number", ge=0), Argument("whole", ge=0)
STEPS, FLAG = Argument("whole", ge=1), Argument("flag")
TORCH = "torch.optim.lr_scheduler"
WAVES: dict[str, Callable[[float, float], float]] = {  # rising from 0 to 1 with p; cycles count for the cosine only
    "linear": lambda p, cycles: p,
    "cosine": lambda p, cycles: 0.5 * (1 - math.cos(math.pi * 2 * cycles * p)),
    "1-sqrt": lambda p, cycles: 1 - math.sqrt(1 - p),
}


def flat(update: int) -> float:
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


@dataclass(frozen=True)
class Updates:
    """Lengths of a run in updates; shares of it may be fractions of one."""

    total: int
    warmup: float
    decay: float


@dataclass(frozen=True)
class Scheduler:
    """One value of lr_scheduler: its curve for a config, its lr_scheduler_args and a run's lengths, and what it takes.

    `warmup`: the curve rises before it begins; it has a rise of its own; it has none, which is ignored or refused.
    """

    curve: Callable[[TrainConfig, Mapping[str, Any], Updates], Curve]
    args: Arguments = field(default_factory=dict)
    warmup: Literal["rises", "own", "ignored", "refused"] = "rises"


def _lowest(config: TrainConfig, args: Mapping[str, Any]) -> float:
    ratio = config.lr_scheduler_min_lr_ratio
    return float(args["min_lr"]) / config.learning_rate if ratio is None else ratio


def _stable(config: TrainConfig, args: Mapping[str, Any], run: Updates) -> Curve:
    return stable(
        run.warmup,
        run.total - run.warmup - run.decay,
        run.decay,
        shape=(args.get("warmup_type", "linear"), args.get("decay_type", "cosine")),
        lowest=config.lr_scheduler_min_lr_ratio or 0.0,
        cycles=config.lr_scheduler_num_cycles / 2,
    )


WAVE = Argument("text", choices=tuple(WAVES))
LR_END = 1e-7  # where polynomial ends unless told otherwise
SCHEDULERS: dict[str, Scheduler] = {
    "constant": Scheduler(lambda config, args, run: flat, warmup="refused"),
    "constant_with_warmup": Scheduler(lambda config, args, run: flat),
    "linear": Scheduler(lambda config, args, run: linear(run.warmup, run.total)),
    "cosine": Scheduler(
        lambda config, args, run: cosine(run.warmup, run.total, cycles=args.get("num_cycles", 0.5)),
        {"num_cycles": NUMBER},
    ),
    "cosine_with_restarts": Scheduler(
        lambda config, args, run: restarts(run.warmup, run.total, config.lr_scheduler_num_cycles)
    ),
    "polynomial": Scheduler(
        lambda config, args, run: polynomial(
            run.warmup, run.total, power=config.lr_scheduler_power, start=config.learning_rate,
            end=args.get("lr_end", LR_END),
        ),
        {"lr_end": POSITIVE},
    ),
    "inverse_sqrt": Scheduler(
        lambda config, args, run: inverse_sqrt(run.warmup, config.lr_scheduler_timescale or run.warmup or 10_000)
    ),
    "cosine_with_min_lr": Scheduler(
        lambda config, args, run: cosine(
            run.warmup, run.total, cycles=config.lr_scheduler_num_cycles / 2, lowest=_lowest(config, args)
        ),
        {"min_lr": POSITIVE},
    ),
    "warmup_stable_decay": Scheduler(_stable, {"warmup_type": WAVE, "decay_type": WAVE}, "own"),
    "piecewise_constant": Scheduler(
        lambda config, args, run: piecewise(args.get("step_rules")), {"step_rules": Argument("any")}, "ignored"
    ),
    # goes with the rates that Adafactor makes itself
    "adafactor": Scheduler(lambda config, args, run: flat, warmup="refused"),
}  # fmt: skip


@dataclass(frozen=True)
class TorchScheduler:
    """A class of torch: the arguments it must be given, and all that it takes. `usable`: literals can say them."""

    needs: tuple[str, ...]
    args: Arguments = field(default_factory=dict)
    usable: bool = True


_CYCLE: Arguments = {"cycle_momentum": FLAG, "base_momentum": POSITIVE, "max_momentum": POSITIVE}
_SHARE = Argument("number", gt=0, le=1)
# lr_scheduler_type -> its arguments
TORCH_SCHEDULERS: dict[str, TorchScheduler] = {
    "LambdaLR": TorchScheduler(("lr_lambda",), usable=False),
    "MultiplicativeLR": TorchScheduler(("lr_lambda",), usable=False),
    "StepLR": TorchScheduler(("step_size",), {"step_size": STEPS, "gamma": NUMBER}),
    "MultiStepLR": TorchScheduler(("milestones",), {"milestones": Argument("wholes", ge=0), "gamma": NUMBER}),
    "ConstantLR": TorchScheduler((), {"factor": _SHARE, "total_iters": COUNT}),
    "LinearLR": TorchScheduler(
        (), {"start_factor": _SHARE, "end_factor": Argument("number", ge=0, le=1), "total_iters": STEPS}
    ),
    "ExponentialLR": TorchScheduler(("gamma",), {"gamma": Argument("number", gt=0)}),
    "PolynomialLR": TorchScheduler((), {"total_iters": STEPS, "power": POSITIVE}),
    "CosineAnnealingLR": TorchScheduler(("T_max",), {"T_max": STEPS, "eta_min": POSITIVE}),
    "CyclicLR": TorchScheduler(
        ("base_lr", "max_lr"),
        {
            "base_lr": POSITIVE, "max_lr": POSITIVE, "step_size_up": STEPS,
            "step_size_down": Argument("whole", ge=1, optional=True),
            "mode": Argument("text", choices=("triangular", "triangular2", "exp_range")), "gamma": NUMBER,
            "scale_mode": Argument("text", choices=("cycle", "iterations")), **_CYCLE,
        },
    ),
    "OneCycleLR": TorchScheduler(
        ("max_lr", "total_steps"),
        {
            "max_lr": POSITIVE, "total_steps": STEPS, "pct_start": Argument("number", ge=0, le=1),
            "anneal_strategy": Argument("text", choices=("cos", "linear")), **_CYCLE,
            "div_factor": Argument("number", gt=0), "final_div_factor": Argument("number", gt=0), "three_phase": FLAG,
        },
    ),
    "CosineAnnealingWarmRestarts": TorchScheduler(("T_0",), {"T_0": STEPS, "T_mult": STEPS, "eta_min": POSITIVE}),
}  # fmt: skip


@dataclass(frozen=True)
class Schedule:
    """The schedule that a config asks for; one of the two rows, none for a class that is not listed.

    `initial` is what stands behind a colon in lr_scheduler: the rate that Adafactor's schedule reports first.
    """

    name: str
    initial: str
    row: Scheduler | None
    torch: TorchScheduler | None
    args: Mapping[str, Any]

    def curve(self, config: TrainConfig, run: Updates) -> Curve:
        """The factor on each group's rate, by update."""
        assert self.row is not None, self.name
        shape = self.row.curve(config, self.args, run)
        return warmed(shape, run.warmup) if self.row.warmup == "rises" else shape


def read(config: TrainConfig) -> tuple[Schedule, list[Problem]]:
    """The schedule of a config, and everything that is wrong with its name and its arguments."""
    given, problems = parse_literal_args(config.lr_scheduler_args, "lr_scheduler_args")
    custom = config.lr_scheduler_type
    if custom:
        name = custom.removeprefix(f"{TORCH}.")
        torch = TORCH_SCHEDULERS.get(name)
        if config.lr_warmup_steps:
            problems.append(warmup_without_use(config, custom))
        if torch is None and "." not in name:
            problems.append(_unknown("lr_scheduler_type", custom, TORCH_SCHEDULERS, ", or a dotted class name"))
        elif torch is not None:
            problems += _wrong_torch(config, name, torch, given)
        return Schedule(custom if "." in custom else f"{TORCH}.{custom}", "", None, torch, given), problems
    name, _, initial = config.lr_scheduler.partition(":")
    row = SCHEDULERS.get(name)
    if row is None:
        names = [one for one in SCHEDULERS if one != "adafactor"]
        problems.append(_unknown("lr_scheduler", config.lr_scheduler, names))
    else:
        problems += [*_wrong(config, name, row.args, given), *_own_needs(config, name, given)]
        if config.lr_warmup_steps and row.warmup == "refused":
            problems.append(warmup_without_use(config, name))
    return Schedule(name, initial, row, None, given), problems


def warmup_without_use(config: TrainConfig, name: str) -> Problem:
    """The error that a schedule takes no warmup."""
    instead = " or --set lr_scheduler=constant_with_warmup" if name == "constant" else ""
    return Problem(code="warmup-without-use", key="lr_warmup_steps", got=config.lr_warmup_steps,
                   must=f"must be 0 with the schedule {name}",
                   fix=f"--set lr_warmup_steps=0{instead}")  # fmt: skip


def bad_argument(got: Any, must: str, fix: str, key: str = "lr_scheduler_args") -> Problem:
    """The error that a schedule does not take its arguments, or not so."""
    return Problem(code="bad-schedule-argument", key=key, got=got, must=must, fix=fix)


def unusable(custom: str, why: str) -> Problem:
    """The error that a class cannot be the schedule."""
    return Problem(code="unknown-scheduler", key="lr_scheduler_type", got=custom, must=why,
                   fix="--set lr_scheduler_type= to use lr_scheduler")  # fmt: skip


def _unknown(key: str, got: str, names: Iterable[str], more: str = "") -> Problem:
    guess = nearest(got, names)
    usual = "--set lr_scheduler=constant" if key == "lr_scheduler" else "--set lr_scheduler_type= to use lr_scheduler"
    fix = f"--set {key}={guess}" if guess else usual
    return dataclasses.replace(unusable(got, f"must be one of {', '.join(names)}{more}"), key=key, fix=fix)


def _needs(key: str, got: Any, must: str, fix: str) -> Problem:
    return Problem(code="scheduler-needs-argument", key=key, got=got, must=must, fix=fix)


def _wrong(config: TrainConfig, name: str, taken: Arguments, given: Mapping[str, Any]) -> Iterator[Problem]:
    for key, value in given.items():
        form = taken.get(key)
        if form is None:
            can = f"it takes {', '.join(taken)}" if taken else "what can be set has an option of its own"
            must = f"the {name} schedule does not take {key} ({can})"
        elif not form.fits(value):
            must = f"{key} {form.must}"
        else:
            continue
        yield bad_argument(f"{key}={value}", must, _without(config, key))


def _without(config: TrainConfig, name: str) -> str:
    pairs = [item.partition("=") for item in config.lr_scheduler_args]
    kept = {key.strip(): text.strip() for key, sign, text in pairs if sign and key.strip() != name}
    return setting("lr_scheduler_args", kept)


def _wrong_torch(config: TrainConfig, name: str, row: TorchScheduler, given: Mapping[str, Any]) -> Iterator[Problem]:
    if not row.usable:
        yield unusable(config.lr_scheduler_type, "wants a function, which no config can give it")
        return
    yield from _wrong(config, name, row.args, given)
    if config.max_train_epochs is None:
        yield from one_cycle_is_long_enough(config, config.max_train_steps)
    missing = [key for key in row.needs if key not in given]
    if missing:
        fix = f"add {' '.join(f'{key}=...' for key in missing)}, or --set lr_scheduler_type= to use lr_scheduler"
        yield _needs("lr_scheduler_args", None, f"must contain {' and '.join(missing)} for {name}", fix)


def one_cycle_is_long_enough(config: TrainConfig, steps: int) -> Iterator[Problem]:
    """OneCycleLR ends the run where its total_steps are over."""
    given, _ = parse_literal_args(config.lr_scheduler_args, "lr_scheduler_args")
    total = given.get("total_steps")
    if not config.lr_scheduler_type.endswith("OneCycleLR") or not isinstance(total, int) or total >= steps:
        return
    pairs = {key: repr(value) for key, value in given.items()} | {"total_steps": str(steps)}
    must = f"total_steps must be at least the run's {steps} steps"
    yield bad_argument(f"total_steps={total}", must, setting("lr_scheduler_args", pairs))


def _own_needs(config: TrainConfig, name: str, given: Mapping[str, Any]) -> Iterator[Problem]:
    """What single schedules cannot do without."""
    ratio, rate = config.lr_scheduler_min_lr_ratio, config.learning_rate
    if name == "cosine_with_min_lr" and (ratio is None) == ("min_lr" not in given):
        must = "must be given for cosine_with_min_lr" + (", or else min_lr, not both" if ratio is not None else "")
        fix = "--set lr_scheduler_min_lr_ratio=0.1" if ratio is None else _without(config, "min_lr")
        yield _needs("lr_scheduler_min_lr_ratio", ratio, must, fix)
    elif name == "cosine_with_min_lr" and ratio is None and not rate:
        fix = f"--set lr_scheduler_min_lr_ratio=0.1 {_without(config, 'min_lr')}"
        yield bad_argument(rate, "min_lr needs a learning_rate above 0", fix, "learning_rate")
    end = given.get("lr_end", LR_END)
    if name == "polynomial" and isinstance(end, (int, float)) and rate <= end:
        must = f"polynomial needs a learning_rate above its end {end:g}"
        yield bad_argument(rate, must, "--set learning_rate=1e-4, or lower lr_end", "learning_rate")
    if name == "piecewise_constant":
        try:
            step_rules(given.get("step_rules"))
        except ValueError:
            fix = "--set lr_scheduler_args=\"step_rules='1:10,0.1:20,0.01'\""
            must = 'step_rules must be such as "1:30,0.5:60,0.1": factor 1 before step 30, 0.5 before 60, then 0.1'
            if "step_rules" in given:
                yield bad_argument(given["step_rules"], must, fix)
            else:
                yield _needs("lr_scheduler_args", None, "must contain step_rules for piecewise_constant", fix)


def step_rules(rules: Any) -> tuple[list[tuple[int, float]], float]:
    """([(until update, factor)], factor from then on) of a text such as "1:30,0.5:60,0.1"; ValueError for others."""
    *parts, last = str(rules).split(",")
    bounds = sorted((int(until), float(value)) for value, until in (part.split(":") for part in parts))
    final = float(last)
    if not all(0 <= value < float("inf") for value in (final, *(value for _, value in bounds))):
        raise ValueError("a factor is no number")
    return bounds, final
