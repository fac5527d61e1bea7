"""Rules on the learning-rate schedule and on the length of the run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from schemas.config import TrainConfig
from schemas.network_args import setting
from schemas.optimizers import OPTIMIZERS, resolve
from schemas.problems import Problem, nearest
from schemas.rules.arguments import parse_literal_args
from schemas.rules.registry import rule, trusted
from schemas.schedulers import SCHEDULERS, TORCH_SCHEDULERS, Arguments, step_rules
from schemas.terminal import shell_word


@rule
def known_scheduler(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """lr_scheduler is a known name; lr_scheduler_type, which goes before it, a class of torch or a trusted one."""
    custom = config.lr_scheduler_type
    if custom:
        package = custom.rpartition(".")[0]
        if not package and custom not in TORCH_SCHEDULERS:
            guess = nearest(custom, TORCH_SCHEDULERS)
            yield Problem(
                code="unknown-scheduler",
                key="lr_scheduler_type",
                got=custom,
                must=f"must be one of {', '.join(TORCH_SCHEDULERS)}, or a dotted class name",
                fix=f"--set lr_scheduler_type={guess}" if guess else "--set lr_scheduler_type= to use lr_scheduler",
            )
        if package not in ("", "torch.optim.lr_scheduler") and not trusted(config, custom):
            yield Problem(
                code="untrusted-module",
                key="lr_scheduler_type",
                got=custom,
                must="is not a class of torch.optim.lr_scheduler and would run its code",
                fix=f"if you trust it: --trust {shell_word(custom)}",
            )
    elif config.lr_scheduler.partition(":")[0] not in SCHEDULERS:
        yield Problem(
            code="unknown-scheduler",
            key="lr_scheduler",
            got=config.lr_scheduler,
            must=f"must be one of {', '.join(SCHEDULERS)}",
            fix=f"--set lr_scheduler={nearest(config.lr_scheduler, SCHEDULERS) or 'constant'}",
        )


@rule
def scheduler_arguments(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """lr_scheduler_args are name=value with Python literals, of names and values that this schedule takes."""
    given, problems = parse_literal_args(config.lr_scheduler_args, "lr_scheduler_args")
    yield from problems
    if config.lr_scheduler_type:
        name = config.lr_scheduler_type.removeprefix("torch.optim.lr_scheduler.")
        if name in TORCH_SCHEDULERS:
            yield from _torch_arguments(config, name, given)
        return
    name = config.lr_scheduler.partition(":")[0]
    if name in SCHEDULERS:
        yield from _arguments(config, name, SCHEDULERS[name], given)
        yield from _own_needs(config, name, given)


def _arguments(config: TrainConfig, name: str, taken: Arguments, given: dict[str, Any]) -> Iterator[Problem]:
    for key, value in given.items():
        form = taken.get(key)
        if form is None:
            can = f"it takes {', '.join(taken)}" if taken else "what can be set has an option of its own"
            must = f"the {name} schedule does not take {key} ({can})"
        elif not form.fits(value):
            must = f"{key} {form.must}"
        else:
            continue
        fix = _without(config, key)
        yield Problem(code="bad-schedule-argument", key="lr_scheduler_args", got=f"{key}={value}", must=must, fix=fix)


def _without(config: TrainConfig, name: str) -> str:
    pairs = [item.partition("=") for item in config.lr_scheduler_args]
    kept = {key.strip(): text.strip() for key, sign, text in pairs if sign and key.strip() != name}
    return setting("lr_scheduler_args", kept)


def _torch_arguments(config: TrainConfig, name: str, given: dict[str, Any]) -> Iterator[Problem]:
    row = TORCH_SCHEDULERS[name]
    if not row.usable:
        yield Problem(
            code="unknown-scheduler",
            key="lr_scheduler_type",
            got=config.lr_scheduler_type,
            must="wants a function, which no config can give it",
            fix="--set lr_scheduler_type= to use lr_scheduler",
        )
        return
    yield from _arguments(config, name, row.args, given)
    if config.max_train_epochs is None:
        yield from one_cycle_is_long_enough(config, config.max_train_steps)
    missing = [key for key in row.needs if key not in given]
    if missing:
        yield Problem(
            code="scheduler-needs-argument",
            key="lr_scheduler_args",
            must=f"must contain {' and '.join(missing)} for {name}",
            fix=f"add {' '.join(f'{key}=...' for key in missing)}, or --set lr_scheduler_type= to use lr_scheduler",
        )


def one_cycle_is_long_enough(config: TrainConfig, steps: int) -> Iterator[Problem]:
    """OneCycleLR ends the run where its total_steps are over."""
    given, _ = parse_literal_args(config.lr_scheduler_args, "lr_scheduler_args")
    total = given.get("total_steps")
    if not config.lr_scheduler_type.endswith("OneCycleLR") or not isinstance(total, int) or total >= steps:
        return
    pairs = {key: repr(value) for key, value in given.items()} | {"total_steps": str(steps)}
    yield Problem(
        code="bad-schedule-argument",
        key="lr_scheduler_args",
        got=f"total_steps={total}",
        must=f"total_steps must be at least the run's {steps} steps",
        fix=setting("lr_scheduler_args", pairs),
    )


def _own_needs(config: TrainConfig, name: str, given: dict[str, Any]) -> Iterator[Problem]:
    """What single schedules cannot do without."""
    ratio = config.lr_scheduler_min_lr_ratio
    if name == "cosine_with_min_lr" and (ratio is None) == ("min_lr" not in given):
        yield Problem(
            code="scheduler-needs-argument",
            key="lr_scheduler_min_lr_ratio",
            got=ratio,
            must="must be given for cosine_with_min_lr" + (", or else min_lr, not both" if ratio is not None else ""),
            fix="--set lr_scheduler_min_lr_ratio=0.1" if ratio is None else _without(config, "min_lr"),
        )
    elif name == "cosine_with_min_lr" and ratio is None and not config.learning_rate:
        yield Problem(
            code="bad-schedule-argument",
            key="learning_rate",
            got=config.learning_rate,
            must="min_lr needs a learning_rate above 0",
            fix=f"--set lr_scheduler_min_lr_ratio=0.1 {_without(config, 'min_lr')}",
        )
    end = given.get("lr_end", 1e-7)
    if name == "polynomial" and isinstance(end, (int, float)) and config.learning_rate <= end:
        yield Problem(
            code="bad-schedule-argument",
            key="learning_rate",
            got=config.learning_rate,
            must=f"polynomial needs a learning_rate above its end {end:g}",
            fix="--set learning_rate=1e-4, or lower lr_end",
        )
    if name == "piecewise_constant":
        try:
            step_rules(given.get("step_rules"))
        except ValueError:
            must = "must contain step_rules for piecewise_constant"
            if "step_rules" in given:
                must = 'step_rules must be such as "1:30,0.5:60,0.1": factor 1 before step 30, 0.5 before 60, then 0.1'
            yield Problem(
                code="bad-schedule-argument" if "step_rules" in given else "scheduler-needs-argument",
                key="lr_scheduler_args",
                got=given.get("step_rules"),
                must=must,
                fix="--set lr_scheduler_args=\"step_rules='1:10,0.1:20,0.01'\"",
            )


@rule
def warmup_fits_the_scheduler(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """constant, adafactor and custom schedules take no warmup (traps T19), schedule-free optimizers no schedule."""
    if config.optimizer_type.lower().endswith("schedulefree"):
        yield from _idle_schedule(config)
        return
    if not config.lr_warmup_steps:
        return
    shape = config.lr_scheduler_type or config.lr_scheduler
    if config.lr_scheduler_type or shape.partition(":")[0] in ("constant", "adafactor"):
        instead = " or --set lr_scheduler=constant_with_warmup" if shape == "constant" else ""
        yield Problem(
            code="warmup-without-use",
            key="lr_warmup_steps",
            got=config.lr_warmup_steps,
            must=f"must be 0 with the schedule {shape}",
            fix=f"--set lr_warmup_steps=0{instead}",
        )
    elif config.max_train_epochs is None and config.lr_warmup_steps >= config.max_train_steps:
        yield Problem(
            code="warmup-too-long",
            severity="warning",
            key="lr_warmup_steps",
            got=config.lr_warmup_steps,
            must=f"the run ends at step {config.max_train_steps}, before the full rate is reached",
            fix=f"--set lr_warmup_steps={config.max_train_steps // 10}",
        )


def _idle_schedule(config: TrainConfig) -> Iterator[Problem]:
    for name in ("lr_scheduler", "lr_scheduler_type", "lr_warmup_steps", "lr_decay_steps"):
        if getattr(config, name) not in ("", "constant", 0):
            yield Problem(
                code="no-effect",
                severity="note",
                key=name,
                got=getattr(config, name),
                must=f"has no effect: {config.optimizer_type} needs no schedule and gets none, in Kohya either",
                fix="give warmup_steps in optimizer_args" if name == "lr_warmup_steps" else None,
            )


@rule
def adafactor_schedule(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """The adafactor schedule belongs to Adafactor with relative_step; without it, hints."""
    shape = "" if config.lr_scheduler_type else config.lr_scheduler
    adafactor = resolve(config.optimizer_type) == OPTIMIZERS["AdaFactor"]
    if shape == "adafactor" or (shape.startswith("adafactor:") and not adafactor):
        yield Problem(
            code="adafactor-schedule",
            key="lr_scheduler",
            got=shape,
            must="works only with the optimizer AdaFactor and relative_step",
            fix="--set lr_scheduler=constant_with_warmup",
        )
    elif adafactor and not shape.startswith("adafactor:") and "." not in config.optimizer_type and config.max_grad_norm:
        yield Problem(
            code="adafactor-clipping",
            severity="note",
            key="max_grad_norm",
            got=config.max_grad_norm,
            must="Adafactor with a fixed rate is usually run with 0, it limits its updates itself",
        )


@rule
def length_of_the_run(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """initial_step and initial_epoch lie inside the run; max_train_epochs goes before max_train_steps."""
    epochs = config.max_train_epochs
    if epochs is None and not config.max_train_steps:
        yield Problem(
            code="no-length",
            key="max_train_steps",
            got=config.max_train_steps,
            must="must be at least 1 where max_train_epochs is not given",
            fix="--set max_train_epochs=10, or --set max_train_steps=1600",
        )
        return
    if epochs is None and (config.initial_step or 0) >= config.max_train_steps:
        yield Problem(
            code="starts-after-end",
            key="initial_step",
            got=config.initial_step,
            must=f"must be below max_train_steps ({config.max_train_steps})",
            fix="lower initial_step, or raise max_train_steps",
        )
    if epochs is not None and (config.initial_epoch or 0) > epochs:
        yield Problem(
            code="starts-after-end",
            key="initial_epoch",
            got=config.initial_epoch,
            must=f"must not be above max_train_epochs ({epochs})",
            fix="lower initial_epoch, or raise max_train_epochs",
        )
    if epochs is not None and config.max_train_steps not in (0, 1600):
        yield Problem(
            code="no-effect",
            severity="note",
            key="max_train_steps",
            got=config.max_train_steps,
            must="has no effect: max_train_epochs decides the length",
        )
