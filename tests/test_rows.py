"""The seams of the tables: optimizer, schedule, network argument, option, dataset setting: one row each."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from docs.pages import options
from launcher.formats import dataset_toml, json_schemas
from schemas import (
    ConfigError,
    TrainConfig,
    config,
    from_flat,
    network_args,
    optimizers,
    packages,
    rules,
    schedulers,
)
from schemas.argument import Argument
from schemas.datasets import SETTINGS, Setting
from schemas.derive import add_flags, json_schema
from schemas.network_args import NetworkArg, network_values
from schemas.optimizers import Optimizer
from schemas.options import opt
from schemas.schedulers import Scheduler
from trainer.dataset.spec import resolve_document
from trainer.learning.optimizers import build_optimizer, build_scheduler
from trainer.plan.memory import optimizer_bytes
from trainer.plan.rates import curve
from trainer.plan.steps import count


class HeavyBall(torch.optim.SGD):
    """SGD with momentum alone."""

    def __init__(self, params: Any, lr: float, heaviness: float, nesterov: bool = False) -> None:
        super().__init__(params, lr, momentum=heaviness, nesterov=nesterov)


def refused(asked: TrainConfig, *codes: str) -> list[Any]:
    """What the rules get under these codes."""
    return [problem.got for problem in rules.check(asked, "sd15") if problem.code in codes]


@pytest.fixture
def heavy_ball(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ROWS", "BY_PATH", "OPTIMIZERS", "_FOLDED"):
        monkeypatch.setattr(optimizers, name, getattr(optimizers, name).copy())
    monkeypatch.setitem(packages.PACKAGES, "tests", packages.Package("toy"))
    form = {"heaviness": Argument("number", gt=0, lt=1)}
    optimizers.register(Optimizer("tests.test_rows.HeavyBall", ("HeavyBall",), 4, one_rate=True, args=form,
                                  usual={"heaviness": 0.8}, fixed={"nesterov": True}))  # fmt: skip


def test_an_optimizer_is_a_row(heavy_ball: None) -> None:
    asked = TrainConfig(optimizer_type="heavyball", learning_rate=1e-3)
    codes = ("unknown-optimizer", "untrusted-module", "missing-package", "bad-optimizer-argument", "rates-differ")
    assert refused(asked, *codes) == []
    assert refused(TrainConfig(optimizer_type="HeavyBall", optimizer_args=("heaviness=2",)), *codes) == ["heaviness=2"]
    assert refused(TrainConfig(optimizer_type="HeavyBall", optimizer_args=("betas=2",)), *codes) == ["betas=2"]
    assert refused(TrainConfig(optimizer_type="HeavyBall", unet_lr=1e-3), "rates-differ")
    built = build_optimizer([{"params": [torch.nn.Parameter(torch.zeros(2))], "lr": 1e-3}], asked)
    group = built.optimizer.param_groups[0]
    assert (built.args, group["momentum"], group["nesterov"]) == ("heaviness=0.8", 0.8, True)
    assert optimizer_bytes(asked) == 4


def test_a_schedule_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    falls = Scheduler(
        lambda config, args, run: lambda i: args.get("base", 0.5) ** i, {"base": Argument("number", gt=0)}
    )
    monkeypatch.setitem(schedulers.SCHEDULERS, "halving", falls)
    asked = TrainConfig(lr_scheduler="halving", learning_rate=1.0, max_train_steps=3)
    assert refused(asked, "unknown-scheduler", "bad-schedule-argument") == []
    wrong = TrainConfig(lr_scheduler="halving", lr_scheduler_args=("base=0",))
    assert refused(wrong, "bad-schedule-argument") == ["base=0"]
    assert curve(asked, count(asked, 3)) == [[0, 1.0], [1, 0.5], [2, 0.25], [3, 0.125]]
    built = build_optimizer([{"params": [torch.nn.Parameter(torch.zeros(2))], "lr": 1.0}], asked)
    scheduler = build_scheduler(built.optimizer, asked, count(asked, 3))
    built.optimizer.step()
    scheduler.step()
    assert scheduler.get_last_lr() == [0.5]


def test_a_network_argument_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    row = NetworkArg(
        "How stiff the toy is.", "1", Argument("whole", ge=1, le=9), ("networks.lora",), idle=("networks.oft",)
    )
    monkeypatch.setitem(network_args.NETWORK_ARGS, "stiffness", row)
    asked = TrainConfig(network_args=("stiffness=3",))
    assert network_values(asked) == ({"stiffness": 3}, [])
    assert refused(asked, "unknown-network-arg", "bad-network-arg", "no-effect") == []
    assert refused(TrainConfig(network_args=("stiffness=10",)), "bad-network-arg") == ["stiffness=10"]
    for module, code in (("networks.oft", "no-effect"), ("networks.loha", "unknown-network-arg")):
        assert refused(TrainConfig(network_module=module, network_args=("stiffness=3",)), code) == ["stiffness=3"]
    assert network_args.modules_with("stiffness") == ["networks.lora"]


@dataclass(frozen=True, kw_only=True)
class ToyOptions:
    """Toys."""

    toy_strength: float = opt(0.5, "How strong the toy is.", ge=0, le=1)


def test_an_option_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    more = dataclass(frozen=True, kw_only=True)(type("TrainConfig", (TrainConfig, ToyOptions), {}))
    monkeypatch.setattr(config, "TrainConfig", more)
    monkeypatch.setattr(config, "GROUPS", (*config.GROUPS, ToyOptions))
    monkeypatch.setattr(options, "GROUPS", config.GROUPS)
    config.table.cache_clear()
    try:
        read = from_flat({"toy_strength": 0.7})[0]
        assert read.toy_strength == 0.7  # type: ignore[attr-defined]
        with pytest.raises(ConfigError, match="toy_strength"):
            from_flat({"toy_strength": 2.0})
        parser = argparse.ArgumentParser()
        add_flags(parser)
        assert vars(parser.parse_args(["--toy_strength", "1"])) == {"toy_strength": "1"}
        assert json_schema()["properties"]["toy_strength"]["maximum"] == 1
        assert "How strong the toy is." in options.page()
    finally:
        config.table.cache_clear()


def test_a_dataset_setting_is_a_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(SETTINGS, "toy_share", Setting("float", "dataset", meaning="Share of toys."))
    text = f"[[datasets]]\ntoy_share = 0.5\n[[datasets.subsets]]\nimage_dir = '{tmp_path}'\n"
    assert dataset_toml.read(text).keys["datasets.0.toy_share"].status == "used"
    document: dict[str, Any] = {"datasets": [{"toy_share": 0.5, "subsets": [{"image_dir": str(tmp_path)}]}]}
    problems: list[Any] = []
    assert resolve_document(document, TrainConfig(resolution="64"), problems)
    assert problems == []
    document["datasets"][0]["toy_share"] = "half"
    document["datasets"][0]["subsets"][0]["toy_share"] = 0.5
    resolve_document(document, TrainConfig(resolution="64"), problems)
    assert [(one.code, one.key) for one in problems] == [
        ("bad-value", "datasets/0/toy_share"), ("unknown-option", "datasets/0/subsets/0/toy_share"),
    ]  # fmt: skip
    one = json_schemas.dataset()["properties"]["datasets"]["items"]["properties"]
    assert one["toy_share"]["description"] == "Share of toys."
