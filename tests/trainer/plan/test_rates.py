from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from schemas import ConfigError, TrainConfig, from_flat
from schemas.derive import add_flags
from trainer.plan.rates import curve, literal_args, multiplier, relative_step
from trainer.plan.steps import count

CASES = json.loads((Path(__file__).parents[2] / "golden" / "schedules.json").read_text())["cases"]
OPTIMIZERS = ("--optimizer_type", "--lr_scheduler_type")  # their curves are tested with trainer.learning.optimizers
PLAIN = [case for case in CASES if not case["args"].startswith(OPTIMIZERS)]


def config_of(case: dict[str, Any]) -> TrainConfig:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    flags = vars(parser.parse_args(shlex.split(case["args"])))
    base = {"max_train_steps": case["max_train_steps"], "learning_rate": case["group_base_lrs"][0]}
    return from_flat(base | flags)[0]


def ids(case: dict[str, Any]) -> str:
    return f"{case['args']} x{case['num_processes']}"


def expected_rates(case: dict[str, Any]) -> list[Any]:
    if case.get("kind") == "accumulation":
        return [batch["lr"] for batch in case["micro_batches"] if batch["update"]] + [case["final_lr"]]
    return list(case["lr"])


def deliberate(case: dict[str, Any]) -> bool:
    """Trap T28: a whole-number warmup lasts too short in the reference on several processes; not reproduced."""
    return case["num_processes"] > 1 and case["args"].endswith("lr_warmup_steps 10")


@pytest.mark.parametrize("case", [c for c in PLAIN if "refused" not in c and not deliberate(c)], ids=ids)
def test_rates_are_the_references(case: dict[str, Any]) -> None:
    config = config_of(case)
    bases = case["group_base_lrs"]
    factor = multiplier(config, case["max_train_steps"], case["num_processes"])
    for update, rate in enumerate(expected_rates(case)):
        rates = rate if isinstance(rate, list) else [rate]
        assert [base * factor(update) for base in bases] == pytest.approx(rates, rel=1e-12, abs=1e-18)


@pytest.mark.parametrize("case", [c for c in PLAIN if "refused" in c], ids=ids)
def test_what_the_reference_refuses_is_refused(case: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        multiplier(config_of(case), case["max_train_steps"])
    assert caught.value.problems[0].fix


def test_whole_number_warmup_counts_updates_on_any_number_of_processes() -> None:
    case = next(case for case in CASES if deliberate(case))
    factor = multiplier(config_of(case), 100, 2)
    assert [factor(update) for update in (0, 5, 10)] == [0, 0.5, 1]
    assert case["lr"][5] == pytest.approx(1e-4)  # the reference is done after half of them


def test_a_share_is_truncated_as_the_reference_does() -> None:
    factor = multiplier(TrainConfig(lr_scheduler="linear", lr_warmup_steps=0.05), 150, 2)  # int(15.0) / 2 updates
    assert factor(7) == pytest.approx(7 / 7.5)


@pytest.mark.parametrize("case", [c for c in PLAIN if c.get("kind") == "accumulation"], ids=ids)
def test_updates_fall_where_the_references_do(case: dict[str, Any]) -> None:
    config = config_of(
        case | {"args": f"{case['args']} --gradient_accumulation_steps {case['gradient_accumulation_steps']}"}
    )
    steps = count(config, case["batches_per_epoch"])
    assert steps.total == sum(batch["update"] for batch in case["micro_batches"])
    assert steps.epochs * steps.batches_per_epoch == len(case["micro_batches"])


@pytest.mark.parametrize(
    "case",
    [
        c
        for c in CASES
        if c["args"].startswith("--optimizer_type AdaFactor") and c["scheduler_class"] == "AdafactorSchedule"
    ],
    ids=ids,
)
def test_adafactor_rates(case: dict[str, Any]) -> None:
    rate = relative_step("warmup_init=True" in case["args"])
    assert [rate(update) for update in range(1, 101)] == pytest.approx(case["lr"][1:], rel=1e-9)


def test_curve_ends_at_both_ends_of_the_run() -> None:
    config = TrainConfig(lr_scheduler="linear", learning_rate=1e-4, unet_lr=2e-4, max_train_steps=1000)
    points = curve(config, count(config, 10), points=5)
    assert [step for step, _ in points] == [0, 250, 500, 750, 1000]
    assert [rate for _, rate in points] == pytest.approx([2e-4, 1.5e-4, 1e-4, 5e-5, 0])


def test_curve_of_schedule_free_optimizers_is_flat() -> None:
    config = TrainConfig(
        optimizer_type="AdamWScheduleFree", lr_scheduler="cosine", learning_rate=1e-3, max_train_steps=3
    )
    assert curve(config, count(config, 3)) == [[0, 1e-3], [1, 1e-3], [2, 1e-3], [3, 1e-3]]


def test_every_bad_argument_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        literal_args(["a=1", "b", "c=(", "d=1=2"], "optimizer_args")
    assert [problem.got for problem in caught.value.problems] == ["b", "c=(", "d=1=2"]


@pytest.mark.parametrize(("shape", "middle"), [("linear", 0.5), ("cosine", 0.5), ("1-sqrt", 1 - 0.5**0.5)])
def test_shapes_of_warmup_and_decay(shape: str, middle: float) -> None:
    config = TrainConfig(
        lr_scheduler="warmup_stable_decay",
        lr_warmup_steps=10,
        lr_decay_steps=10,
        lr_scheduler_args=(f'warmup_type="{shape}"', f'decay_type="{shape}"'),
    )
    factor = multiplier(config, 40)
    assert [factor(5), factor(20), factor(35)] == pytest.approx([middle, 1, middle])


@pytest.mark.parametrize("arg", ["num_cycles='a'", "nosuch=1"])
def test_arguments_that_a_schedule_cannot_use(arg: str) -> None:
    with pytest.raises(ConfigError, match="num_cycles"):
        multiplier(TrainConfig(lr_scheduler="cosine", lr_scheduler_args=(arg,)), 10)


def test_polynomial_needs_a_rate_above_its_end() -> None:
    with pytest.raises(ConfigError, match="above its end"):
        multiplier(TrainConfig(lr_scheduler="polynomial", learning_rate=1e-8), 10)


def test_no_curve_for_a_scheduler_class() -> None:
    config = TrainConfig(lr_scheduler_type="StepLR")
    assert curve(config, count(config, 3)) == []
