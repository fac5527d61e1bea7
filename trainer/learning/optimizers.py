"""Optimizer and learning-rate scheduler by their names (reference section 8)."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from schemas import optimizers, schedulers
from schemas.config import TrainConfig
from schemas.packages import may_import, missing_package
from schemas.problems import ConfigError, error, errors, taken
from schemas.schedulers import Schedule
from trainer.plan.rates import multiplier
from trainer.plan.steps import Steps


@dataclass
class BuiltOptimizer:
    """An optimizer and what the LoRA's header says of it.

    `name` is module and class, `args` the arguments as text (ss_optimizer is name(args)). `config` is the config as
    the reference leaves it: Adafactor with relative_step has dropped every rate there and replaced lr_scheduler.
    """

    optimizer: torch.optim.Optimizer
    name: str
    args: str
    config: TrainConfig

    @property
    def schedule_free(self) -> bool:
        return is_schedule_free(self.optimizer)

    def train_mode(self) -> None:
        """Put the weights where gradients are taken; for schedule-free optimizers, a no-op for others."""
        if self.schedule_free:
            self.optimizer.train()  # type: ignore[attr-defined]

    def eval_mode(self) -> None:
        """Put the weights where they are sampled from and saved; for schedule-free optimizers, a no-op for others."""
        if self.schedule_free:
            self.optimizer.eval()  # type: ignore[attr-defined]

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, eval mode; afterwards train mode with the very weights of before, which two switches would round."""
        groups = self.optimizer.param_groups if self.schedule_free else []
        before = [(weight, weight.detach().clone()) for group in groups for weight in group["params"]]
        self.eval_mode()
        try:
            yield
        finally:
            self.train_mode()
            with torch.no_grad():
                for weight, kept in before:
                    weight.copy_(kept)


def is_schedule_free(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer keeps separate weights for training and for use, by what it can do (trap T64)."""
    return callable(getattr(optimizer, "train", None)) and callable(getattr(optimizer, "eval", None))


Groups = Sequence[Mapping[str, Any]] | Sequence[torch.nn.Parameter]


def build_optimizer(groups: Groups, config: TrainConfig) -> BuiltOptimizer:
    """The optimizer of `config` over `groups`: parameters, or dicts with params, lr and name; in train mode.

    The config has passed the rules. ConfigError for what only the class itself knows: that it is not there, or refuses
    its arguments.
    """
    if not groups:
        raise error(
            "nothing-to-train",
            "no part of the network is trained",
            key="learning_rate",
            fix="give unet_lr or text_encoder_lr a value above 0, and at most one network_train_*_only",
        )
    chosen = taken(optimizers.read(config))
    args = dict(chosen.args)
    given: list[Any] = [dict(group) if isinstance(group, Mapping) else group for group in groups]
    # some classes refuse a default rate of 0, which no group then uses
    fixed: dict[str, Any] = {"lr": config.learning_rate or _first_rate(given), **chosen.fixed}
    if chosen.relative_step:
        args["relative_step"], fixed["lr"] = True, None
        config = _without_rates(config)
        for group in given:
            if isinstance(group, dict):
                group.pop("lr", None)
    made = optimizer_class(chosen.path, config)
    try:
        optimizer = made(given, **fixed, **args)
    except Exception as fault:  # classes of many packages, each with refusals of its own kind
        must = f"{made.__name__} refuses its arguments: {fault or type(fault).__name__}"
        wrong = optimizers.bad_argument(" ".join(config.optimizer_args), must, "correct or remove them")
        raise ConfigError([wrong]) from fault
    if is_schedule_free(optimizer):
        optimizer.train()  # type: ignore[attr-defined]
    text = ",".join(f"{key}={value}" for key, value in args.items())
    return BuiltOptimizer(optimizer, f"{made.__module__}.{made.__qualname__}", text, config)


def _first_rate(groups: Sequence[Any]) -> float:
    return next((float(group["lr"]) for group in groups if isinstance(group, dict) and "lr" in group), 0.0)


def check_rates(groups: Groups, config: TrainConfig) -> None:
    """ConfigError where groups of different rates meet an optimizer that would end at the first step with them.

    Of our own adapters the rules know the rates; a module of the user's makes its groups itself.
    """
    rates = {str(group.get("name")): float(group["lr"]) for group in groups if isinstance(group, Mapping)}
    fix = "--set learning_rate=1 --set unet_lr=1 --set text_encoder_lr=1, and no rates of blocks or halves"
    wrong = errors(optimizers.rates_differ(taken(optimizers.read(config)), rates, "learning_rate", fix))
    if wrong:
        raise ConfigError(wrong)


def _without_rates(config: TrainConfig) -> TrainConfig:
    """`config` as Adafactor's relative step leaves it (reference section 8.3)."""
    started = config.lr_scheduler.startswith("adafactor:")
    scheduler = config.lr_scheduler if started else f"adafactor:{config.learning_rate}"
    rates: dict[str, Any] = {"learning_rate": None, "unet_lr": None, "text_encoder_lr": ()}
    return dataclasses.replace(config, lr_scheduler=scheduler, **rates)


def optimizer_class(dotted: str, config: TrainConfig) -> type[torch.optim.Optimizer]:
    """The class that a dotted name means; ConfigError where its package has no such optimizer."""
    found = import_class(dotted, "optimizer_type", config)
    if found is None or not issubclass(found, torch.optim.Optimizer):
        raise ConfigError([optimizers.unknown(dotted)])
    return found


def import_class(dotted: str, key: str, config: TrainConfig) -> type | None:
    """The class that `dotted` names, None if there is no such class in its package.

    Only known packages and the names that the config trusts are imported; ConfigError for a package that cannot be.
    """
    assert may_import(config, dotted), dotted
    module, _, name = dotted.rpartition(".")
    package = module.partition(".")[0]
    try:
        importlib.import_module(package)
    except ImportError as fault:
        raise ConfigError([missing_package(package, key, dotted, str(fault))]) from fault
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as fault:
        if fault.name is None or not f"{module}.".startswith(f"{fault.name}."):
            raise  # the module exists and lacks something of its own
        return None
    return found if isinstance(found, type) else None


def build_scheduler(optimizer: torch.optim.Optimizer, config: TrainConfig, steps: Steps) -> LRScheduler:
    """The scheduler, to be stepped once after every update on any number of processes (trap T28).

    The curves are those of trainer.plan.rates, so that the plan shows what happens here. Schedule-free optimizers keep
    their rates, as does Adafactor with relative_step, whose scheduler only reports them.
    """
    if is_schedule_free(optimizer):
        return LambdaLR(optimizer, lambda update: 1.0)
    if any(group.get("relative_step") for group in optimizer.param_groups):
        from transformers.optimization import AdafactorSchedule

        initial = config.lr_scheduler.partition("adafactor:")[2] or config.learning_rate
        return AdafactorSchedule(optimizer, float(initial))
    if config.lr_scheduler_type:
        return _torch_scheduler(optimizer, config, taken(schedulers.read(config)))
    return LambdaLR(optimizer, multiplier(config, steps.total, steps.processes))


def _torch_scheduler(optimizer: torch.optim.Optimizer, config: TrainConfig, schedule: Schedule) -> LRScheduler:
    custom = config.lr_scheduler_type
    made = import_class(schedule.name, "lr_scheduler_type", config)
    if made is None or not issubclass(made, LRScheduler):
        raise ConfigError([schedulers.unusable(custom, "is not a scheduler class")])
    if "metrics" in inspect.signature(made.step).parameters:
        raise ConfigError([schedulers.unusable(custom, "waits for a measured loss, which training does not give it")])
    try:
        return made(optimizer, **schedule.args)
    except (TypeError, ValueError) as fault:
        got, must = " ".join(config.lr_scheduler_args), f"{custom} refuses its arguments: {fault}"
        raise ConfigError([schedulers.bad_argument(got, must, "correct or remove them")]) from fault
