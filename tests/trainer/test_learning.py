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
LEARNED, KEPT = 0.8, 0.8  # shares of the pictures
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
            "network_dim": 8,
            "network_alpha": 8,
            "learning_rate": 2e-3,
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


def test_lora_learns_and_keeps_and_more_is_better(teach: Callable[..., Path]) -> None:
    """Ten steps are too few; going on from them through network_weights makes up for it."""
    short = teach("sd15", 10, "short")
    long = teach("sd15", 60, "long", network_weights=short)
    few, many = frogginess("sd15", short), frogginess("sd15", long)
    assert few < many
    assert many >= LEARNED
    assert kept("sd15", long) >= KEPT * kept("sd15")
    base, off = drawn("sd15"), drawn("sd15", long, 0.0)
    for one, other in zip(base.unet.parameters(), off.unet.parameters(), strict=True):
        assert torch.equal(one, other)


def test_locon_learns(teach: Callable[..., Path]) -> None:
    assert frogginess("sd15", teach("sd15", 60, network_args=["conv_dim=4", "conv_alpha=4"])) >= LEARNED


LYCORIS = "lycoris.kohya"
KINDS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "LoRA, U-Net only": {"network_train_unet_only": True},
    "LoRA, AdamW8bit": {"optimizer_type": "AdamW8bit"},
    "LoRA, fp32 alpha 1": {"network_alpha": 1, "learning_rate": 8e-3},
    "LoCon": {"network_args": ["conv_dim=4", "conv_alpha=4"]},
    "LoHa": {"network_module": LYCORIS, "network_args": ["algo=loha"]},
    "LoKr": {"network_module": LYCORIS, "network_args": ["algo=lokr"]},
    "DoRA": {"network_module": LYCORIS, "network_args": ["algo=locon", "dora_wd=True"]},
    "LyCORIS LoCon": {"network_module": LYCORIS, "network_args": ["algo=locon", "conv_dim=4", "conv_alpha=4"]},
    "(IA)^3": {"network_module": LYCORIS, "network_args": ["algo=ia3"], "learning_rate": 2e-2},
    "DyLoRA": {"network_module": "networks.dylora"},
    "LoRA-FA": {"network_module": "networks.lora_fa"},
    "OFT": {"network_module": "networks.oft", "network_train_unet_only": True},
}


MAIN = ("LoRA", "LoRA, U-Net only", "LoCon", "LoKr", "DoRA")
MATRIX = [("sd15", kind) for kind in KINDS] + [(model, kind) for model in ("sdxl", "sd15-v") for kind in MAIN]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "kind"), MATRIX)
def test_every_kind_learns(model: str, kind: str, teach: Callable[..., Path]) -> None:
    lora = teach(model, 120, **KINDS[kind])
    found, known = frogginess(model, lora), kept(model, lora)
    print(f"| {kind} | `{model}` | {found:.0%} | {known:.0%} |")  # a row of docs/learning.md, with pytest -s
    assert found >= LEARNED
    assert known >= KEPT * kept(model)


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
