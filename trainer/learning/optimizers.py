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

from schemas.config import TrainConfig
from schemas.optimizers import OPTIMIZERS, PACKAGES, TORCH, resolve, row_of
from schemas.problems import error, nearest
from schemas.rules.registry import trusted
from schemas.terminal import shell_word
from trainer.plan.rates import literal_args, multiplier, uses_relative_step
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

    Raises ConfigError for two optimizers at once, unknown or untrusted names, missing packages (with the pip line) and
    arguments that the optimizer does not take.
    """
    if not groups:
        raise error(
            "nothing-to-train",
            "no part of the network is trained",
            key="learning_rate",
            fix="give unet_lr or text_encoder_lr a value above 0, and at most one network_train_*_only",
        )
    chosen = optimizer_name(config)
    _check_fused(config, chosen)
    args = literal_args(config.optimizer_args, "optimizer_args")
    given: list[Any] = [dict(group) if isinstance(group, Mapping) else group for group in groups]
    # some classes refuse a default rate of 0, which no group then uses
    fixed: dict[str, Any] = {"lr": config.learning_rate or _first_rate(given)}
    if chosen.lower().startswith("sgdnesterov"):
        args.setdefault("momentum", 0.9)
        fixed["nesterov"] = True
    elif chosen.lower() == "adafactor":
        args.setdefault("relative_step", True)
        if uses_relative_step(config, args):
            args["relative_step"], fixed["lr"] = True, None
            config = _without_rates(config)
            for group in given:
                if isinstance(group, dict):
                    group.pop("lr", None)
    made = optimizer_class(chosen, config)
    try:
        optimizer = made(given, **fixed, **args)
    except Exception as fault:  # classes of many packages, each with refusals of its own kind
        raise error(
            "bad-optimizer-argument",
            f"{made.__name__} refuses its arguments: {fault or type(fault).__name__}",
            key="optimizer_args",
            got=" ".join(config.optimizer_args),
            fix="correct or remove them",
        ) from fault
    if is_schedule_free(optimizer):
        optimizer.train()  # type: ignore[attr-defined]
    text = ",".join(f"{key}={value}" for key, value in args.items())
    return BuiltOptimizer(optimizer, f"{made.__module__}.{made.__qualname__}", text, config)


def _first_rate(groups: Sequence[Any]) -> float:
    return next((float(group["lr"]) for group in groups if isinstance(group, dict) and "lr" in group), 0.0)


def check_rates(groups: Groups, config: TrainConfig) -> None:
    """ConfigError where groups of different rates meet an optimizer that would end at the first step with them."""
    row = row_of(resolve(config.optimizer_type))
    rates = {float(group["lr"]): str(group.get("name")) for group in groups if isinstance(group, Mapping)}
    if row is None or not row.one_rate or len(rates) < 2:
        return
    raise error(
        "rates-differ",
        f"{row.path} finds one rate for everything and ends at the first step where rates differ",
        key="learning_rate",
        got=", ".join(f"{name} {rate:g}" for rate, name in sorted(rates.items())),
        fix="--set learning_rate=1 --set unet_lr=1 --set text_encoder_lr=1, and no rates of blocks or halves",
    )


def optimizer_name(config: TrainConfig) -> str:
    """The optimizer asked for, by optimizer_type or one of the two old switches; AdamW if by none."""
    asked = [
        name for name, given in (("AdamW8bit", config.use_8bit_adam), ("Lion", config.use_lion_optimizer)) if given
    ]
    asked += [config.optimizer_type] if config.optimizer_type else []
    if len(asked) > 1:
        raise error(
            "two-optimizers",
            "only one optimizer can be chosen",
            key="optimizer_type",
            got=asked,
            fix="keep optimizer_type and remove use_8bit_adam and use_lion_optimizer",
        )
    return asked[0] if asked else "AdamW"


def _check_fused(config: TrainConfig, chosen: str) -> None:
    if config.fused_backward_pass and chosen.lower() != "adafactor":
        raise error(
            "fused-backward-pass",
            "works with AdaFactor only",
            key="fused_backward_pass",
            got=chosen,
            fix="remove fused_backward_pass",
        )
    if config.fused_backward_pass and config.gradient_accumulation_steps > 1:
        raise error(
            "fused-backward-pass",
            "does not go with gradient accumulation",
            key="fused_backward_pass",
            got=config.gradient_accumulation_steps,
            fix="set gradient_accumulation_steps to 1",
        )


def _without_rates(config: TrainConfig) -> TrainConfig:
    """`config` as Adafactor's relative step leaves it (reference section 8.3)."""
    started = config.lr_scheduler.startswith("adafactor:")
    scheduler = config.lr_scheduler if started else f"adafactor:{config.learning_rate}"
    rates: dict[str, Any] = {"learning_rate": None, "unet_lr": None, "text_encoder_lr": ()}
    return dataclasses.replace(config, lr_scheduler=scheduler, **rates)


def optimizer_class(name: str, config: TrainConfig) -> type[torch.optim.Optimizer]:
    """The class of an optimizer_type: a known name in any case, a class of torch.optim, or a dotted name."""
    dotted = resolve(name)
    found = import_class(dotted, "optimizer_type", config) if dotted else None
    if found is None or not issubclass(found, torch.optim.Optimizer):
        guess = nearest(name, [*OPTIMIZERS, *TORCH]) or "AdamW"
        raise error(
            "unknown-optimizer",
            "is not an optimizer",
            key="optimizer_type",
            got=name,
            fix=f"--set optimizer_type={guess}",
        )
    return found


def import_class(dotted: str, key: str, config: TrainConfig) -> type | None:
    """The class that `dotted` names, None if there is no such class in its package.

    Only known packages and the names that the config trusts are imported; ConfigError otherwise, and for a package
    that is not installed.
    """
    module, _, name = dotted.rpartition(".")
    package = module.partition(".")[0]
    if package not in PACKAGES and not trusted(config, dotted):
        raise error(
            "untrusted-module",
            "is not on the list of known packages and would run its code",
            key=key,
            got=dotted,
            fix=f"if you trust it: --trust {shell_word(dotted)}",
        )
    try:
        importlib.import_module(package)
    except ImportError as fault:
        raise error(
            "missing-package",
            f"needs the package {package}: {fault}",
            key=key,
            got=dotted,
            fix=f"pip install {PACKAGES.get(package, package)}",
        ) from fault
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
        return _torch_scheduler(optimizer, config)
    return LambdaLR(optimizer, multiplier(config, steps.total, steps.processes))


def _torch_scheduler(optimizer: torch.optim.Optimizer, config: TrainConfig) -> LRScheduler:
    name = config.lr_scheduler_type
    if config.lr_warmup_steps:
        raise error(
            "warmup-without-use",
            f"must be 0 with the schedule {name}",
            key="lr_warmup_steps",
            got=config.lr_warmup_steps,
            fix="--set lr_warmup_steps=0",
        )
    made = import_class(name if "." in name else f"torch.optim.lr_scheduler.{name}", "lr_scheduler_type", config)
    if made is None or not issubclass(made, LRScheduler):
        guess = nearest(name, dir(torch.optim.lr_scheduler))
        raise error(
            "unknown-scheduler",
            "is not a scheduler class",
            key="lr_scheduler_type",
            got=name,
            fix=f"did you mean {guess}?" if guess else "use lr_scheduler instead",
        )
    if "metrics" in inspect.signature(made.step).parameters:
        raise error(
            "unknown-scheduler",
            "waits for a measured loss, which training does not give it",
            key="lr_scheduler_type",
            got=name,
            fix="use lr_scheduler constant_with_warmup or cosine",
        )
    try:
        return made(optimizer, **literal_args(config.lr_scheduler_args, "lr_scheduler_args"))
    except (TypeError, ValueError) as fault:
        raise error(
            "bad-schedule-argument",
            f"{name} refuses its arguments: {fault}",
            key="lr_scheduler_args",
            got=" ".join(config.lr_scheduler_args),
            fix="correct or remove them",
        ) from fault
