"""Learning, not just running: a LoRA teaches a toy model a frog, which it could not draw, and it keeps what it knew.

The full table of docs/learning.md is made by the tests marked slow: `pytest -m slow tests/trainer/test_learning.py`.
"""

from __future__ import annotations

import functools
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.families import Models
from trainer.toy import judge, scoring, world

TOY = Path(world.__file__).parent
Start = Callable[..., int]
LEARNED = 0.8  # share of the pictures asked for with the token that show a frog
KEPT = 0.5  # share of what the base model draws right that must stay right, with no regularisation pictures
CONV: dict[str, Any] = {"network_args": ["conv_dim=16", "conv_alpha=16"]}
PICTURES, STEPS = 24, 20  # of a score


@pytest.fixture(scope="module")
def frogs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped training set in a numbered folder."""
    parent = tmp_path_factory.mktemp("frogs")
    shutil.copytree(TOY / "frogs", parent / f"1_{world.TOKEN}")
    return parent


@pytest.fixture
def teach(start: Start, frogs: Path, tmp_path: Path) -> Callable[..., Path]:
    """teach("sd15", updates, option=...) trains on the frogs and gives the LoRA file."""

    def run(model: str, updates: int, name: str = "frog", **options: Any) -> Path:
        values = {
            "pretrained_model_name_or_path": TOY / f"{model}.safetensors",
            "train_data_dir": frogs,
            "output_name": name,
            "network_dim": 16,
            "network_alpha": 16,
            "unet_lr": 4e-3,
            "text_encoder_lr": 1e-3,
            "lr_scheduler": "cosine",
            "train_batch_size": 4,
            "max_train_steps": updates,
            "min_snr_gamma": 5,
            "v_parameterization": model.endswith("-v"),
            "min_bucket_reso": 64,
            **options,
        }
        assert start(model.removesuffix("-v"), **values) == 0
        return tmp_path / "out" / f"{name}.safetensors"

    return run


def drawn(model: str, lora: Path | None = None, weight: float = 1.0) -> Models:
    return scoring.load(TOY / f"{model}.safetensors", lora, weight)


def frogginess(model: str, lora: Path | None = None, weight: float = 1.0) -> float:
    v = model.endswith("-v")
    return scoring.learned(drawn(model, lora, weight), count=PICTURES, v=v, steps=STEPS).concept


@functools.cache
def kept(model: str, lora: Path | None = None) -> float:
    """Share of pictures of known shapes that show that shape."""
    v = model.endswith("-v")
    return scoring.quality(drawn(model, lora), count=PICTURES, v=v, steps=STEPS).shape


@pytest.mark.parametrize("model", ["sd15", "sdxl", "sd15-v"])
def test_base_models_have_never_seen_a_frog(model: str) -> None:
    assert frogginess(model) <= 0.05


def test_learns_and_more_is_better(teach: Callable[..., Path]) -> None:
    """Twenty steps are too few; going on from them through network_weights makes up for it."""
    short = teach("sdxl", 20, "short", **CONV)
    long = teach("sdxl", 280, "long", **CONV, network_weights=short)
    few, many = frogginess("sdxl", short), frogginess("sdxl", long)
    assert few < many
    assert many >= LEARNED
    assert kept("sdxl", long) >= KEPT * kept("sdxl")
    base, off = drawn("sdxl"), drawn("sdxl", long, 0.0)
    for one, other in zip(base.unet.parameters(), off.unet.parameters(), strict=True):
        assert torch.equal(one, other)


def test_sd15_learns(teach: Callable[..., Path]) -> None:
    assert frogginess("sd15", teach("sd15", 200, **CONV)) >= 0.5


LYCORIS = "lycoris.kohya"
BOTH = ["conv_dim=16", "conv_alpha=16"]
KINDS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "LoCon": CONV,
    "LoCon, U-Net only": {**CONV, "network_train_unet_only": True},
    "LyCORIS LoCon": {"network_module": LYCORIS, "network_args": ["algo=locon", *BOTH]},
    "DoRA": {"network_module": LYCORIS, "network_args": ["algo=locon", "dora_wd=True", *BOTH]},
    "LoKr": {"network_module": LYCORIS, "network_args": ["algo=lokr", "factor=4", *BOTH]},
    "LoHa": {"network_module": LYCORIS, "network_args": ["algo=loha", *BOTH]},
}
MATRIX = [("sdxl", kind) for kind in KINDS if kind != "LoRA"] + [
    ("sd15", "LoRA"),
    ("sd15", "LoCon"),
    ("sd15-v", "LoCon"),
]
RISEN = 0.25  # share of frogs that every kind reaches in these few steps; what each one reached is in docs/learning.md


@pytest.mark.slow
@pytest.mark.parametrize(("model", "kind"), MATRIX)
def test_every_kind_learns(model: str, kind: str, teach: Callable[..., Path]) -> None:
    lora = teach(model, 300, **KINDS[kind])
    found, known = frogginess(model, lora), kept(model, lora)
    print(f"\n| {kind} | `{model}` | {found:.0%} | {known:.0%} |")  # a row of docs/learning.md, with pytest -s
    assert found >= RISEN


def test_judge_reads_drawn_pictures() -> None:
    rates = judge_rates()
    assert min(rates.values()) >= 0.95


def judge_rates() -> dict[str, float]:
    rng = random.Random("drawn")
    shown = [world.chosen(rng) for _ in range(100)]
    shown += [world.Picture(world.CONCEPT, rng.choice(world.BACKGROUNDS)) for _ in range(20)]
    verdicts = judge.read([world.draw(one, rng) for one in shown])
    pairs = list(zip(verdicts, shown, strict=True))
    return {
        "shape": sum(got.shape == one.shape for got, one in pairs) / len(pairs),
        "colour": sum(got.colour == one.colour for got, one in pairs[:100]) / 100,
        "background": sum(got.background == one.background for got, one in pairs) / len(pairs),
    }
