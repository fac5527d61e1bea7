"""Learning, not just running: a LoRA teaches a toy model a frog, which it could not draw, and it keeps what it knew.

The full table of docs/learning.md is made by the tests marked slow: `pytest -m slow -s tests/trainer/test_learning.py`.
"""

from __future__ import annotations

import functools
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageChops, ImageStat
from safetensors.torch import load_file

from trainer.toy import judge, scoring, world

TOY = Path(world.__file__).parent
Teach = Callable[..., Path]
# Shares: of frogs among those asked for; of what the base model draws right that stays so. Measured: docs/learning.md.
LEARNED, KEPT = 0.8, 0.75
COUNT, STEPS = 48, 20  # of a score: pictures, sampling steps
RATES = {"sd15": (1.5e-3, 3e-3), "sd15-v": (1.5e-3, 3e-3), "sdxl": (2.5e-3, 1e-3)}  # of U-Net and text encoders
UPDATES = 400
BOTH = ["conv_dim=4", "conv_alpha=1"]  # convolutions serve every picture: they get less, as guides advise
CONV: dict[str, Any] = {"network_args": BOTH}


@pytest.fixture(scope="module")
def teach(start_in: Callable[..., int], tmp_path_factory: pytest.TempPathFactory) -> Teach:
    """teach("sd15", updates, pace, option=...) trains on the shipped frogs, at `pace` times RATES; gives the LoRA."""
    frogs = tmp_path_factory.mktemp("frogs")
    shutil.copytree(TOY / "frogs", frogs / f"1_{world.TOKEN}")

    def run(model: str, updates: int, pace: float = 1, **options: Any) -> Path:
        (unet, text), side = RATES[model], world.side_of(model.partition("-")[0])
        values = {
            "pretrained_model_name_or_path": TOY / f"{model}.safetensors",
            "train_data_dir": frogs,
            "output_name": "frog",
            "resolution": side,
            "network_dim": 16,
            "network_alpha": 8,
            "unet_lr": pace * unet,
            "text_encoder_lr": pace * text,
            "lr_scheduler": "cosine",
            "train_batch_size": 4,
            "max_train_steps": updates,
            "min_snr_gamma": 5,
            "v_parameterization": model.endswith("-v"),
            **options,
        }
        folder = tmp_path_factory.mktemp(model)
        assert start_in(folder, model.removesuffix("-v"), **values) == 0
        return folder / "out" / "frog.safetensors"

    return run


@dataclass(frozen=True)
class Scores:
    """Shares, 0 to 1: frogs where asked for, on the landscape asked for; other things that came out right."""

    frogs: float
    setting: float
    others: float


@functools.cache
def scores(model: str, lora: Path | None = None) -> Scores:
    loaded, v = scoring.load(TOY / f"{model}.safetensors", lora), model.endswith("-v")
    frogs = scoring.learned(loaded, count=COUNT, v=v, steps=STEPS)
    return Scores(frogs.concept, frogs.background, scoring.quality(loaded, count=COUNT, v=v, steps=STEPS).shape)


def assert_learned(model: str, lora: Path, frogs: float = LEARNED, kept: float = KEPT) -> None:
    found = scores(model, lora)
    assert found.frogs >= frogs
    assert found.setting >= LEARNED
    assert found.others >= kept * scores(model).others


@pytest.mark.parametrize(
    "model", ["sd15", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sdxl", "sd15-v"))]
)
def test_base_model_draws_everything_but_frogs(model: str) -> None:
    found = scores(model)
    assert found.frogs <= 0.05
    assert found.others >= 0.8


# A LoCon: 30 steps, and from their file on.


@pytest.fixture(scope="module")
def short(teach: Teach) -> Path:
    return teach("sd15", 30, **CONV)


@pytest.fixture(scope="module")
def continued(teach: Teach, short: Path) -> Path:
    return teach("sd15", UPDATES - 30, **CONV, network_weights=short)


@pytest.mark.slow
def test_continuing_makes_up_for_a_short_training(short: Path, continued: Path) -> None:
    assert scores("sd15", short).frogs <= scores("sd15", continued).frogs - 0.2
    assert_learned("sd15", continued)


def test_weight_zero_is_the_base_model(continued: Path) -> None:
    base, off = (scoring.load(TOY / "sd15.safetensors", lora, 0.0) for lora in (None, continued))
    for one, other in zip(base.unet.parameters(), off.unet.parameters(), strict=True):
        assert torch.equal(one, other)


def test_sd15_learns_and_merged_draws_what_the_adapter_drew(teach: Teach, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    asked = f"{world.TOKEN} {world.CONCEPT}, on sand"
    prompts.write_text(f"{asked} --w 64 --h 64 --s {STEPS} --l {scoring.GUIDANCE} --d 5\n", encoding="utf-8")
    previews = {"sample_prompts": prompts, "sample_every_n_steps": UPDATES, "sample_sampler": "euler"}
    lora = teach("sd15", UPDATES, **previews)
    assert_learned("sd15", lora)
    (preview,) = (lora.parent / "sample").glob("*.png")
    merged = scoring.load(TOY / "sd15.safetensors", lora)
    (picture,) = scoring.generated(merged, [asked], seed=5, steps=STEPS)
    with Image.open(preview) as drawn:
        assert max(ImageStat.Stat(ImageChops.difference(drawn.convert("RGB"), picture)).mean) < 1
    moved = {name.partition("_text_")[0] for name, up in load_file(lora).items() if "lora_up" in name and up.any()}
    assert "lora_te" in moved


@pytest.mark.slow
def test_sdxl_form_learns(teach: Teach) -> None:
    assert_learned("sdxl", teach("sdxl", UPDATES, **CONV))


@pytest.fixture(scope="module")
def regularisation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hundred captioned pictures of known things."""
    folder = tmp_path_factory.mktemp("regularisation")
    things = folder / "1_thing"
    things.mkdir()
    for n in range(100):
        rng = random.Random(f"regularisation/{n}")
        shown = world.chosen(rng)
        world.draw(shown, rng, world.side_of("sdxl")).save(things / f"{n:03}.png")
        (things / f"{n:03}.txt").write_text(world.caption(shown, rng), encoding="utf-8")
    return folder


LYCORIS = "lycoris.kohya"
UNET_ONLY = {"network_train_unet_only": True}
# In SDXL's form attention ends at half the size, so linear layers alone need more: rank, steps, a higher rate, and with
# that, pictures of what is to be kept.
PATIENT: dict[str, Any] = {
    "updates": 800,
    "network_dim": 32,
    "network_alpha": 16,
    "prior_loss_weight": 0.5,
    "unet_lr": 5e-3,
}
KINDS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "LoRA, U-Net only": {"pace": 5 / 3, **UNET_ONLY},
    "LoCon": CONV,
    "LoCon, U-Net only": {**CONV, **UNET_ONLY},
    "LyCORIS LoCon": {"network_module": LYCORIS, "network_args": ["algo=locon", *BOTH]},
    "DoRA": {"network_module": LYCORIS, "network_args": ["algo=locon", "dora_wd=True", *BOTH]},
    "LoKr": {"pace": 5 / 3, "network_module": LYCORIS, "network_args": ["algo=lokr", "factor=4", *BOTH]},
    "LoHa": {"pace": 1 / 2, "network_module": LYCORIS, "network_args": ["algo=loha", *BOTH]},
}


# Linear layers of the U-Net alone are too little in SDXL's form (19 % frogs); text encoders or convolutions are needed.
TOO_LITTLE = ("LoRA, U-Net only", "sdxl")


@pytest.mark.slow
@pytest.mark.parametrize("model", ["sdxl", "sd15", "sd15-v"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_learns(model: str, kind: str, teach: Teach, regularisation: Path) -> None:
    options: dict[str, Any] = {"updates": UPDATES} | KINDS[kind]
    if model == "sdxl" and kind.startswith("LoRA"):
        options |= PATIENT | {"reg_data_dir": regularisation}
    lora = teach(model, **options)
    found = scores(model, lora)
    # A row of docs/learning.md, with pytest -s.
    print(f"\n| {kind} | `{model}` | {found.frogs:.0%} | {found.others / scores(model).others:.0%} |")
    assert_learned(model, lora, frogs=0.1 if (kind, model) == TOO_LITTLE else 0.7, kept=0.7)


def test_judge_reads_drawn_pictures() -> None:
    rng = random.Random("drawn")
    shown = [world.chosen(rng) for _ in range(100)]
    shown += [world.concept(world.chosen(rng)) for _ in range(20)]
    pairs = list(zip(judge.read([world.draw(one, rng) for one in shown]), shown, strict=True))
    assert sum(got.shape == one.shape for got, one in pairs) >= 0.95 * len(pairs)
    assert sum(got.background == one.background for got, one in pairs) >= 0.95 * len(pairs)
    assert sum(got.colour == one.colour for got, one in pairs[:100]) >= 95
