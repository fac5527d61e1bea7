"""Rules on the learning-rate schedule and on the length of the run."""

from __future__ import annotations

from collections.abc import Iterator

from schemas import optimizers, schedulers
from schemas.config import TrainConfig
from schemas.packages import trusted, untrusted
from schemas.problems import Problem
from schemas.rules.registry import rule


@rule
def known_schedule(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """lr_scheduler is known; lr_scheduler_type, which goes before it, a class of torch or a trusted one."""
    schedule, problems = schedulers.read(config)
    idle = optimizers.read(config)[0].schedule_free
    yield from (one for one in problems if not (idle and one.code == "warmup-without-use"))
    of_torch = schedule.name.startswith(f"{schedulers.TORCH}.")
    if config.lr_scheduler_type and not of_torch and not trusted(config, schedule.name):
        must = f"is not a class of {schedulers.TORCH} and would run its code"
        yield untrusted(schedule.name, "lr_scheduler_type", must)


@rule
def warmup_fits_the_scheduler(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """A warmup is over before the run is; some schedules ignore it, schedule-free optimizers every schedule."""
    if optimizers.read(config)[0].schedule_free:
        yield from _idle_schedule(config)
        return
    row = schedulers.read(config)[0].row
    if not config.lr_warmup_steps or row is None or row.warmup == "refused":
        return
    if row.warmup == "ignored":
        yield Problem(
            code="no-effect",
            severity="note",
            key="lr_warmup_steps",
            got=config.lr_warmup_steps,
            must=f"has no effect with {config.lr_scheduler}, which has factors of its own, in Kohya either",
            fix="--set lr_warmup_steps=0",
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
    adafactor = optimizers.read(config)[0].is_adafactor
    if shape == "adafactor" or (shape.startswith("adafactor:") and not adafactor):
        yield Problem(
            code="adafactor-schedule",
            key="lr_scheduler",
            got=shape,
            must="works only with the optimizer AdaFactor and relative_step",
            fix="--set lr_scheduler=constant_with_warmup",
        )
    elif adafactor and not shape.startswith("adafactor:") and config.max_grad_norm:
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
