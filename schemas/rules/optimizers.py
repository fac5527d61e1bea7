"""Rules on the optimizer: it exists, it takes its arguments, its rates are ones it can learn with."""

from __future__ import annotations

from collections.abc import Iterator

from schemas import optimizers
from schemas.argument import name_values
from schemas.config import TrainConfig
from schemas.network_args import LORA_PLUS, without
from schemas.network_args import RATES as BLOCK_RATES
from schemas.packages import may_import, needs, untrusted
from schemas.problems import Problem
from schemas.rules.rates import group_rates, rates_of, trained_parts
from schemas.rules.registry import rule


@rule
def known_optimizer(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """One optimizer is chosen; it exists, may be imported, takes its arguments, and its package is installed."""
    chosen, problems = optimizers.read(config)
    yield from problems
    if not chosen.path:
        return
    if not may_import(config, chosen.path):
        yield untrusted(chosen.path, "optimizer_type", "is not on the list of known packages and would run its code")
    yield from needs(chosen.path.partition(".")[0], "optimizer_type", chosen.name)


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
    chosen, _ = optimizers.read(config)
    if not chosen.path or config.lr_scheduler.startswith("adafactor"):
        return
    rates = [rate for part in trained_parts(config, family) if (rate := rates_of(config)[part])]
    rates = rates or [config.learning_rate]
    if chosen.own_rate:
        if min(rates) <= 0.1:
            yield Problem(
                code="rate-too-low",
                severity="warning",
                key="learning_rate",
                got=min(rates),
                must=f"{chosen.path} sets its own rate and wants about 1 here",
                fix="--set learning_rate=1 --set unet_lr=1 --set text_encoder_lr=1",
            )
    elif max(rates) >= 0.1:
        yield Problem(
            code="rate-too-high",
            severity="warning",
            key="learning_rate",
            got=max(rates),
            must="is a rate for Prodigy or D-Adaptation; others usually diverge with it",
            fix=" ".join(_lower(config)) + ", or choose Prodigy",
        )
    yield from _one_rate(config, family, chosen)


def _one_rate(config: TrainConfig, family: str | None, chosen: optimizers.Chosen) -> Iterator[Problem]:
    """Where they meet groups of different rates, most of them end at the first step."""
    texts, _ = name_values(config.network_args, "network_args")
    causes = [name for name in (*LORA_PLUS, *BLOCK_RATES) if name in texts]
    parts = {rates_of(config)[part] for part in trained_parts(config, family)} - {0.0}
    fixes = [f"--set {name}=1" for name in ("learning_rate", "unet_lr", "text_encoder_lr")] if len(parts) > 1 else []
    fixes += [without(texts, *causes)] if causes else []
    by_args = causes and len(parts) < 2
    key = "network_args" if by_args else "text_encoder_lr" if config.text_encoder_lr else "unet_lr"
    yield from optimizers.rates_differ(chosen, group_rates(config, family), key, " ".join(fixes))


@rule
def fused_backward(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """fused_backward_pass is for Adafactor without accumulation."""
    chosen, _ = optimizers.read(config)
    if config.fused_backward_pass and (not chosen.is_adafactor or config.gradient_accumulation_steps > 1):
        yield Problem(
            code="fused-backward-pass",
            key="fused_backward_pass",
            got=True,
            must="works only with AdaFactor and without gradient accumulation",
            fix="--set fused_backward_pass=false",
        )
