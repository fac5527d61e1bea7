"""Rules on the optimizer: it exists, it takes its arguments, its rates are ones it can learn with."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator
from typing import Any

from schemas.config import TrainConfig
from schemas.network_args import LORA_PLUS, setting, without
from schemas.network_args import RATES as BLOCK_RATES
from schemas.optimizers import (
    ELSEWHERE,
    OPTIMIZERS,
    PACKAGES,
    ROWS,
    TORCH,
    Optimizer,
    known_class,
    resolve,
    row_of,
    sets_its_own_rate,
)
from schemas.problems import Problem, nearest
from schemas.rules.arguments import network_args, parse_literal_args
from schemas.rules.rates import group_rates, rates_of, trained_parts
from schemas.rules.registry import rule, trusted
from schemas.terminal import shell_word


@functools.cache
def installed(package: str) -> bool:
    """Whether a top-level package can be imported; nothing is imported."""
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False


@rule
def one_optimizer(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """use_8bit_adam, use_lion_optimizer and optimizer_type exclude each other."""
    given = [name for name in ("use_8bit_adam", "use_lion_optimizer", "optimizer_type") if getattr(config, name)]
    if len(given) > 1:
        yield Problem(
            code="two-optimizers",
            key=given[0],
            got=", ".join(given),
            must="only one option may choose the optimizer",
            fix=f"keep optimizer_type and remove {', '.join(name for name in given if name != 'optimizer_type')}",
        )


@rule
def known_optimizer(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """The optimizer exists, may be imported, and its package is installed."""
    path = resolve(config.optimizer_type)
    if path is None:
        names = [*OPTIMIZERS, *TORCH]
        guess = nearest(config.optimizer_type, names)
        yield Problem(
            code="unknown-optimizer",
            key="optimizer_type",
            got=config.optimizer_type,
            must=f"must be one of {', '.join(names)}, or a dotted class name",
            fix=f"--set optimizer_type={guess or 'AdamW'}"
            + (" --set optimizer_args=" if config.optimizer_args else ""),
        )
        return
    if config.optimizer_type.strip() in ELSEWHERE:
        must = f"is of another trainer's package; {path} is the same optimizer, and trains here"
        key, got = "optimizer_type", config.optimizer_type
        yield Problem(code="same-optimizer", severity="note", key=key, got=got, must=must)
    package = path.split(".")[0]
    if not known_class(path) and not trusted(config, path):
        yield Problem(
            code="untrusted-module",
            key="optimizer_type",
            got=path,
            must="is not on the list of known packages and would run its code",
            fix=f"if you trust it: --trust {shell_word(path)}",
        )
    if not installed(package):
        yield Problem(
            code="missing-package",
            key="optimizer_type",
            got=config.optimizer_type,
            must=f"needs the package {package}, which is not installed",
            fix=f"pip install {PACKAGES.get(package, package)}",
        )


@rule
def optimizer_arguments(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """optimizer_args are name=value with Python literals, of names and values that this optimizer takes."""
    given, problems = parse_literal_args(config.optimizer_args, "optimizer_args")
    yield from problems
    if "lr" in given:
        yield Problem(
            code="rate-in-arguments",
            key="optimizer_args",
            got=given["lr"],
            must="must not contain lr",
            fix=f"{_leave_out(config, 'lr')} --set learning_rate={shell_word(given['lr'])}",
        )
    row = row_of(resolve(config.optimizer_type))
    if row is None or not row.args:
        return
    wrong = [name for name, value in given.items() if name not in row.args or not row.args[name].fits(value)]
    for name, value in given.items():
        form = row.args.get(name)
        if name != "lr" and name in wrong:
            must = _not_taken(name, row) if form is None else f"{name} of {row.made} {form.must}"
            way_out = _leave_out(config, *wrong)  # of all at once: a --set replaces the whole list
            fix = way_out if form is None else f"correct it, or {way_out}"
            yield Problem(
                code="bad-optimizer-argument", key="optimizer_args", got=f"{name}={value}", must=must, fix=fix
            )
    yield from _nesterov(config, row, given)
    yield from _adafactor_by_its_class(config, row, given)


def _bad_argument(name: str, value: Any, must: str, fix: str) -> Problem:
    return Problem(code="bad-optimizer-argument", key="optimizer_args", got=f"{name}={value}", must=must, fix=fix)


def _not_taken(name: str, row: Optimizer) -> str:
    others = [other.made for other in ROWS if name in other.args]
    guess = nearest(name, row.args)
    hint = f"; did you mean {guess}?" if guess else f"; it belongs to {', '.join(others[:3])}" if others else ""
    return f"{row.made} does not take {name}{hint} (it takes {', '.join(row.args)})"


def _leave_out(config: TrainConfig, *names: str) -> str:
    """The --set of optimizer_args without some of them."""
    return setting("optimizer_args", {name: text for name, text in _pairs(config).items() if name not in names})


def _pairs(config: TrainConfig) -> dict[str, str]:
    """name -> text of optimizer_args, as written."""
    pairs = [item.partition("=") for item in config.optimizer_args]
    return {name.strip(): text.strip().rstrip(",") for name, sign, text in pairs if sign}


def _nesterov(config: TrainConfig, row: Optimizer, given: dict[str, Any]) -> Iterator[Problem]:
    """SGD with Nesterov's momentum needs a momentum and no dampening; SGDNesterov sets nesterov itself."""
    always = config.optimizer_type.lower().startswith("sgdnesterov")
    if row.made not in ("SGD", "SGD8bit") or not (always or given.get("nesterov")):
        return
    if always and "nesterov" in given:
        must = f"must not contain nesterov: {config.optimizer_type} sets it"
        yield _bad_argument("nesterov", given["nesterov"], must, _leave_out(config, "nesterov"))
    if not given.get("momentum", 0.9 if always else 0):
        yield Problem(
            code="nesterov-without-momentum",
            key="optimizer_args",
            got=given.get("momentum", 0),
            must="Nesterov needs a positive momentum",
            fix=f"{_leave_out(config, 'momentum')} for the usual 0.9" if always else "add momentum=0.9",
        )
    if given.get("dampening"):
        yield Problem(
            code="bad-optimizer-argument",
            key="optimizer_args",
            got=f"dampening={given['dampening']}",
            must="Nesterov needs dampening=0",
            fix=_leave_out(config, "dampening"),
        )


def _adafactor_by_its_class(config: TrainConfig, row: Optimizer, given: dict[str, Any]) -> Iterator[Problem]:
    """Under its class's name Adafactor is made as it is, and cannot set its own rates beside ours."""
    if "." not in config.optimizer_type or row.made != "Adafactor":
        return
    on = [name for name, usual in (("relative_step", True), ("warmup_init", False)) if given.get(name, usual)]
    if on:
        kept = {name: text for name, text in _pairs(config).items() if name not in on}
        yield Problem(
            code="bad-optimizer-argument",
            key="optimizer_args",
            got=" ".join(config.optimizer_args) or None,
            must=f"{' and '.join(on)} must be False for {config.optimizer_type}, which gets its rates from here",
            fix=f"--set optimizer_type=AdaFactor, or {setting('optimizer_args', kept | dict.fromkeys(on, 'False'))}",
        )


def _lower(config: TrainConfig) -> Iterator[str]:
    """A usual rate in place of each that is far too high, and of the one that counts where no other is given."""
    for name in ("learning_rate", "unet_lr", "text_encoder_lr"):
        given = getattr(config, name)
        rates = given if isinstance(given, tuple) else (given,)
        if name == "learning_rate" or any(rate and rate >= 0.1 for rate in rates):
            yield f"--set {name}=1e-4"


@rule
def rates_fit_the_optimizer(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """Self-tuning optimizers want rates of about 1 and one rate for all; the others diverge with such rates."""
    path = resolve(config.optimizer_type)
    if path is None or config.lr_scheduler.startswith("adafactor"):
        return
    rates = [rate for part in trained_parts(config, family) if (rate := rates_of(config)[part])]
    rates = rates or [config.learning_rate]
    if sets_its_own_rate(path):
        if min(rates) <= 0.1:
            yield Problem(
                code="rate-too-low",
                severity="warning",
                key="learning_rate",
                got=min(rates),
                must=f"{path} sets its own rate and wants about 1 here",
                fix="--set learning_rate=1 --set unet_lr=1 --set text_encoder_lr=1",
            )
        yield from _one_rate(config, family, path)
    elif max(rates) >= 0.1:
        yield Problem(
            code="rate-too-high",
            severity="warning",
            key="learning_rate",
            got=max(rates),
            must="is a rate for Prodigy or D-Adaptation; others usually diverge with it",
            fix=" ".join(_lower(config)) + ", or choose Prodigy",
        )


def _one_rate(config: TrainConfig, family: str | None, path: str) -> Iterator[Problem]:
    """Where they meet groups of different rates, most of them end at the first step."""
    rates, row = group_rates(config, family), row_of(path)
    if len(set(rates.values())) < 2:
        return
    differ = {next(name for name, rate in rates.items() if rate == value): value for value in set(rates.values())}
    shown = ", ".join(f"{name} {rate:g}" for name, rate in sorted(differ.items(), key=lambda one: one[1])[:4])
    texts, _ = network_args(config.network_args)
    causes = [name for name in (*LORA_PLUS, *BLOCK_RATES) if name in texts]
    parts = {rates_of(config)[part] for part in trained_parts(config, family)} - {0.0}
    fixes = [f"--set {name}=1" for name in ("learning_rate", "unet_lr", "text_encoder_lr")] if len(parts) > 1 else []
    fixes += [without(texts, *causes)] if causes else []
    yield Problem(
        code="rates-differ",
        severity="error" if row is not None and row.one_rate else "warning",
        key="network_args" if causes and len(parts) < 2 else "text_encoder_lr" if config.text_encoder_lr else "unet_lr",
        got=shown,
        must=f"{path} finds one rate for everything "
        + ("and ends at the first step where rates differ" if row is not None and row.one_rate else "(unusual)"),
        fix=" ".join(fixes),
    )


@rule
def fused_backward(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """fused_backward_pass is for Adafactor without accumulation."""
    if config.fused_backward_pass and (
        resolve(config.optimizer_type) != OPTIMIZERS["AdaFactor"] or config.gradient_accumulation_steps > 1
    ):
        yield Problem(
            code="fused-backward-pass",
            key="fused_backward_pass",
            got=True,
            must="works only with AdaFactor and without gradient accumulation",
            fix="--set fused_backward_pass=false",
        )
