"""What the trainer refuses from a config alone, the rules have refused: drawn configs, built on tiny modules."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas import TrainConfig, errors, rules
from schemas.network_args import ALGOS, MODULES, NETWORK_ARGS, SUPPORTED
from schemas.optimizers import OPTIMIZERS, ROWS, TORCH
from schemas.schedulers import SCHEDULERS, TORCH_SCHEDULERS
from tests.tiny import tiny_checkpoint
from trainer.adapters import attach
from trainer.families import Models, get
from trainer.learning.optimizers import build_optimizer, build_scheduler, check_rates
from trainer.plan.adapter import misfits, trained_numbers
from trainer.plan.modules import layers_of
from trainer.plan.steps import count

NUMBERS = ["-3", "-1", "0", "0.5", "1", "2", "3", "4", "nan", "inf", "1e400", "x", "", "None", "2.0", "True", "false"]
LISTS = [
    ",".join(["1"] * 25),
    ",".join(["0"] * 25),
    "1,1",
    "sine",
    "cosine+.5",
    "zeros",
    "zeros+nan",
    "linear+x",
    "0,0,0",
]
RATES = [0.0, 1e-4, 1e-3, 1.0]
LITERALS = ["-1", "0", "0.5", "1", "2", "1e-8", "True", "None", "'x'", "(0.9, 0.99)", "(0.9,)", "(0.9, 0.99, 0.9)",
            "(1.0, 1.0)", "1e999"]  # fmt: skip
SETTINGS = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": True, "database": None}


def wrong(config: TrainConfig, family: str | None = "sd15", model: str | None = None) -> list[Any]:
    found = errors([one for one in rules.check(config, family) if one.code != "missing-option"])
    return found + (errors(misfits(config, family, model)) if family and model and not found else [])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Models]:
    file = str(tiny_checkpoint(tmp_path_factory.mktemp("model"), "sd15"))
    config = TrainConfig(pretrained_model_name_or_path=file)
    return file, get("sd15").load(config, dtype=torch.float32)


@st.composite
def networks(draw: st.DrawFn) -> TrainConfig:
    module = draw(st.sampled_from(SUPPORTED))
    names = draw(st.lists(st.sampled_from(MODULES[module]), max_size=3, unique=True))
    texts = {}
    for name in names:
        values = (
            [*ALGOS, "x", ""] if name == "algo" else ["full", "attn-only", "attn-mlp"] if name == "preset" else NUMBERS
        )
        listed = NETWORK_ARGS[name].type.startswith("numbers")
        texts[name] = draw(st.sampled_from([*LISTS, *NUMBERS] if listed else values))
    return TrainConfig(
        network_module=module,
        network_dim=draw(st.sampled_from([None, 1, 2, 3, 4, 6])),
        network_args=tuple(f"{name}={text}" for name, text in texts.items()),
        learning_rate=draw(st.sampled_from(RATES)),
        unet_lr=draw(st.sampled_from([None, *RATES])),
        text_encoder_lr=draw(st.sampled_from([(), *((rate,) for rate in RATES)])),
        network_train_unet_only=draw(st.booleans()),
        optimizer_type=draw(st.sampled_from(["", "Prodigy", "DAdaptSGD", "Muon"])),
    )


@settings(max_examples=30, **SETTINGS)
@given(config=networks())
def test_networks(base: tuple[str, Models], config: TrainConfig) -> None:
    file, models = base
    if wrong(config, "sd15", file):
        return
    models = copy.deepcopy(models)
    adapter = attach(models, get("sd15").targets(models), config)
    groups = adapter.groups(config)
    assert groups, "nothing trains"
    check_rates(groups, config)
    built = build_optimizer(groups, config)
    for group in built.optimizer.param_groups:
        for weight in group["params"]:
            weight.grad = torch.zeros_like(weight)
    built.optimizer.step()
    trained = sum(weight.numel() for group in groups for weight in group["params"])
    scalars = sum(1 for name, _ in adapter.named_parameters() if name.endswith(".scalar"))
    if "loraplus" not in " ".join(config.network_args):  # a ratio of 0 rests half of the adapter
        assert trained_numbers(config, "sd15", layers_of("sd15", file)) == trained - scalars


ARGUMENTS = sorted({name for row in ROWS for name in row.args} | {"lr", "nosuch"})


@settings(max_examples=400, **SETTINGS)
@given(
    name=st.sampled_from([*OPTIMIZERS, *TORCH, *(row.path for row in ROWS if row.path.startswith(("torch", "trans")))]),
    args=st.dictionaries(st.sampled_from(ARGUMENTS), st.sampled_from(LITERALS), max_size=2),
    own=st.data(),
    rate=st.sampled_from(RATES),
)
def test_optimizers(name: str, args: dict[str, str], own: st.DataObject, rate: float) -> None:
    row = next((row for row in ROWS if name in row.names or row.path in (name, f"torch.optim.{name}")), None)
    assert row is not None
    if row.args:  # most drawn names belong to others
        args |= {own.draw(st.sampled_from(sorted(row.args))): own.draw(st.sampled_from(LITERALS))}
    config = TrainConfig(
        optimizer_type=name, learning_rate=rate, unet_lr=1e-3, optimizer_args=tuple(f"{k}={v}" for k, v in args.items())
    )
    if wrong(config, None):
        return
    weight = torch.nn.Parameter(torch.ones(64, 80))
    built = build_optimizer([{"params": [weight], "lr": 1e-3, "name": "unet"}], config)
    built.train_mode()
    weight.grad = torch.ones_like(weight)
    if not {"differentiable", "capturable", "use_triton", "fused", "foreach", "maximize"} & args.keys():
        built.optimizer.step()


@settings(max_examples=300, **SETTINGS)
@given(
    name=st.sampled_from(sorted(SCHEDULERS)),
    kind=st.sampled_from(["", *TORCH_SCHEDULERS]),
    args=st.dictionaries(
        st.sampled_from(sorted({name for taken in SCHEDULERS.values() for name in taken})),
        st.sampled_from([*LITERALS, "'1:2,0.5'", "'linear'"]),
        max_size=2,
    ),
    own=st.data(),
    ratio=st.sampled_from([None, 0.0, 0.1]),
    rate=st.sampled_from([0.0, 1e-8, 1e-3]),
)
def test_schedules(name: str, kind: str, args: Any, own: st.DataObject, ratio: float | None, rate: float) -> None:
    if kind:
        row = TORCH_SCHEDULERS[kind]
        args = {key: own.draw(st.sampled_from(["1", "5", *LITERALS])) for key in row.needs}
        if row.args:
            args |= {own.draw(st.sampled_from(sorted(row.args))): own.draw(st.sampled_from(LITERALS))}
    config = TrainConfig(
        lr_scheduler=name, lr_scheduler_type=kind, lr_scheduler_args=tuple(f"{k}={v}" for k, v in args.items()),
        lr_scheduler_min_lr_ratio=ratio, learning_rate=rate, unet_lr=1e-3, max_train_steps=8,
    )  # fmt: skip
    if wrong(config, None):
        return
    weight = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = build_optimizer([{"params": [weight], "lr": 1e-3}], config).optimizer
    scheduler = build_scheduler(optimizer, config, count(config, 8))
    for _ in range(8):
        optimizer.step()
        scheduler.step()
