from __future__ import annotations

import argparse
import io
import json
import math
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import Parameter

from schemas import ConfigError, TrainConfig, from_flat
from schemas.derive import add_flags
from schemas.optimizers import OPTIMIZERS as NAMES
from trainer.learning.optimizers import build_optimizer, build_scheduler, optimizer_class
from trainer.plan.steps import Steps, count

GOLDEN = Path(__file__).parents[1] / "golden"
OPTIMIZERS = [c for c in json.loads((GOLDEN / "optimizers.json").read_text())["cases"] if c["kind"] == "optimizer"]
ABSENT = "the needed package is not installed here"  # on the machine that made the golden file
SCHEDULES = json.loads((GOLDEN / "schedules.json").read_text())["cases"]
SCHEDULED = [c for c in SCHEDULES if c["num_processes"] == 1 and "lr" in c and len(c["group_base_lrs"]) == 1]


def config_of(args: str, **base: Any) -> TrainConfig:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return from_flat(base | vars(parser.parse_args(shlex.split(args))))[0]


def groups_of(rates: list[float] | None) -> Any:
    if rates is None:
        return [Parameter(torch.zeros(2, 3))]
    return [{"params": [Parameter(torch.zeros(2, 3))], "lr": rate} for rate in rates]


def steps_of(config: TrainConfig) -> Steps:
    return count(config, config.max_train_steps)


def plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else "inf" if value == math.inf else value


@pytest.mark.parametrize("case", [c for c in OPTIMIZERS if "refused" not in c], ids=lambda c: c["args"])
def test_optimizers_are_the_references(case: dict[str, Any]) -> None:
    built = build_optimizer(groups_of(case["group_lrs_in"]), config_of(case["args"]))
    assert (built.name, built.args) == (case["class_name"], case["args_in_metadata"])
    assert built.schedule_free == case["is_schedulefree"]
    assert len(built.optimizer.param_groups) == len(case["param_groups"])
    for group, wanted in zip(built.optimizer.param_groups, case["param_groups"], strict=True):
        assert {key: plain(group[key]) for key in wanted} == wanted


@pytest.mark.parametrize("case", [c for c in OPTIMIZERS if "learning_rate_after" in c], ids=lambda c: c["args"])
def test_rates_afterwards_are_the_references(case: dict[str, Any]) -> None:
    config = build_optimizer(groups_of(case["group_lrs_in"]), config_of(case["args"])).config
    text_encoder = list(config.text_encoder_lr) or None
    after = case["text_encoder_lr_after"]
    assert (config.learning_rate, config.unet_lr) == (case["learning_rate_after"], case["unet_lr_after"])
    assert text_encoder == ([after] if isinstance(after, float) else after or None)
    assert config.lr_scheduler == case["lr_scheduler_after"]


def refused(case: dict[str, Any]) -> bool:
    """Refused by the reference and here; bare words such as true are read here, with a note."""
    return "refused" in case and case["meaning"] != ABSENT and not case["args"].endswith("=true")


@pytest.mark.parametrize("case", [c for c in OPTIMIZERS if refused(c)], ids=lambda c: c["args"])
def test_what_the_reference_refuses_is_refused(case: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        build_optimizer(groups_of(case["group_lrs_in"]), config_of(case["args"]))
    assert caught.value.problems[0].fix


@pytest.mark.parametrize(
    ("args", "package", "line"),
    [
        ("--use_8bit_adam", "bitsandbytes", 'pip install "kohyakit[optimizers]"'),
        ("--optimizer_type DAdaptAdam", "dadaptation", 'pip install "kohyakit[optimizers]"'),
        ("--optimizer_type Lion", "lion_pytorch", 'pip install "kohyakit[optimizers]"'),
        (
            "--optimizer_type prodigyplus.ProdigyPlusScheduleFree",
            "prodigyplus",
            "pip install prodigy-plus-schedule-free",
        ),
    ],
)
def test_missing_package_names_the_pip_line(monkeypatch: Any, args: str, package: str, line: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError) as caught:
        build_optimizer(groups_of([1.0]), config_of(args))
    assert (caught.value.problems[0].code, caught.value.problems[0].fix) == ("missing-package", line)


@pytest.mark.parametrize("name", NAMES)
def test_every_named_optimizer_takes_a_step(name: str) -> None:
    weight = Parameter(torch.zeros(64, 80))
    config = TrainConfig(optimizer_type=name.lower(), learning_rate=0.1)
    built = build_optimizer([{"params": [weight], "lr": 0.1, "name": "unet"}], config)
    built.train_mode()
    for _ in range(8):
        weight.grad = torch.full_like(weight, 0.5)
        built.optimizer.step()
    built.eval_mode()
    assert torch.isfinite(weight).all()
    assert weight.detach().any()
    assert built.optimizer.param_groups[0]["name"] == "unet"


@pytest.mark.parametrize("case", SCHEDULED, ids=lambda c: c["args"])
def test_scheduled_rates_are_the_references(case: dict[str, Any]) -> None:
    config = config_of(case["args"], learning_rate=1e-4, max_train_steps=case["max_train_steps"])
    weight = Parameter(torch.zeros(2))
    built = build_optimizer([{"params": [weight], "lr": 1e-4}], config)
    scheduler = build_scheduler(built.optimizer, built.config, steps_of(config))
    rates = [scheduler.get_last_lr()[0]]
    for _ in case["lr"][1:]:
        weight.grad = torch.zeros(2)
        built.optimizer.step()
        scheduler.step()
        rates.append(scheduler.get_last_lr()[0])
    assert rates == pytest.approx(case["lr"], rel=1e-9, abs=1e-18)


@pytest.mark.parametrize(
    "args",
    [
        "--lr_scheduler cosine --lr_warmup_steps 3",
        "--optimizer_type AdaFactor",
        "--lr_scheduler_type StepLR --lr_scheduler_args step_size=4",
    ],
)
def test_schedule_resumes_where_it_was(args: str) -> None:
    config = config_of(args, learning_rate=1e-3, max_train_steps=12)

    def start() -> tuple[Any, Any, Parameter]:
        weight = Parameter(torch.ones(3))
        built = build_optimizer([{"params": [weight], "lr": 1e-3}], config)
        return built.optimizer, build_scheduler(built.optimizer, built.config, steps_of(config)), weight

    def run(optimizer: Any, scheduler: Any, weight: Parameter, updates: int) -> list[float]:
        rates = []
        for _ in range(updates):
            weight.grad = torch.ones(3)
            optimizer.step()
            scheduler.step()
            rates.append(scheduler.get_last_lr()[0])
        return rates

    whole = run(*start(), updates=12)
    first, second = start(), start()
    rates = run(*first, updates=5)
    second[2].data.copy_(first[2].data)
    for after, before in zip(second[:2], first[:2], strict=True):
        after.load_state_dict(stored(before.state_dict()))
    assert rates + run(*second, updates=7) == whole


def stored(state: dict[str, Any]) -> dict[str, Any]:
    """`state` written and read as a state folder does."""
    stream = io.BytesIO()
    torch.save(state, stream)
    stream.seek(0)
    return dict(torch.load(stream, weights_only=False))


def test_whole_number_warmup_is_the_same_on_two_processes() -> None:
    config = TrainConfig(lr_scheduler="constant_with_warmup", lr_warmup_steps=4, learning_rate=1.0, max_train_steps=8)
    optimizer = build_optimizer(groups_of([1.0]), config).optimizer
    scheduler = build_scheduler(optimizer, config, count(config, 8, processes=2))
    rates = []
    for _ in range(5):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates == [0, 0.25, 0.5, 0.75, 1]


def test_dotted_names_need_a_known_package_or_trust() -> None:
    with pytest.raises(ConfigError) as caught:
        optimizer_class("collections.OrderedDict", TrainConfig())
    assert caught.value.problems[0].fix == "if you trust it: --trust collections.OrderedDict"
    with pytest.raises(ConfigError, match="is not an optimizer"):
        optimizer_class("collections.OrderedDict", TrainConfig(trust=("collections",)))


def test_trust_covers_a_class_or_a_module_but_no_prefix_of_a_word() -> None:
    with pytest.raises(ConfigError, match="known packages"):
        optimizer_class("collectionsx.Optimizer", TrainConfig(trust=("collections",)))


def test_schedule_free_is_told_by_what_it_can_do() -> None:
    built = build_optimizer(groups_of([1.0]), TrainConfig(optimizer_type="prodigyplus.ProdigyPlusScheduleFree"))
    assert built.schedule_free
    assert built.name.endswith("ProdigyPlusScheduleFree")
    assert not build_optimizer(groups_of([1.0]), TrainConfig()).schedule_free


def test_schedule_free_weights_differ_between_the_modes() -> None:
    weight = Parameter(torch.ones(4))
    built = build_optimizer([weight], TrainConfig(optimizer_type="AdamWScheduleFree", learning_rate=0.1))
    built.train_mode()
    for _ in range(3):
        weight.grad = torch.ones(4)
        built.optimizer.step()
    training = weight.detach().clone()
    built.eval_mode()
    assert not torch.equal(training, weight.detach())
    built.train_mode()
    torch.testing.assert_close(weight.detach(), training)


def test_a_bare_true_is_taken() -> None:
    built = build_optimizer(groups_of([1.0]), TrainConfig(optimizer_args=("amsgrad=true",)))
    assert built.args == "amsgrad=True"
    assert built.optimizer.param_groups[0]["amsgrad"] is True


def test_nothing_to_train() -> None:
    with pytest.raises(ConfigError, match="no part of the network"):
        build_optimizer([], TrainConfig())


@pytest.mark.parametrize(
    ("name", "word"),
    [("ReduceLROnPlateau", "measured loss"), ("NoSuch", "not a scheduler"), ("os.path.join", "known packages")],
)
def test_scheduler_classes_that_cannot_be_used(name: str, word: str) -> None:
    config = TrainConfig(lr_scheduler_type=name)
    with pytest.raises(ConfigError, match=word):
        build_scheduler(build_optimizer(groups_of([1.0]), config).optimizer, config, steps_of(config))


def test_came_is_known_by_its_name_and_by_that_of_another_trainers_package() -> None:
    for name in ("CAME", "came", "pytorch_optimizer.CAME", "LoraEasyCustomOptimizer.came.CAME"):
        built = build_optimizer(groups_of([1e-4]), config_of(f"--optimizer_type {name}"))
        assert type(built.optimizer).__name__ == "CAME"
        assert built.optimizer.param_groups[0]["betas"] == (0.9, 0.999, 0.9999)
