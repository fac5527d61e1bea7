"""The shipped presets: ordinary Kohya GUI files that need nothing but a model, data and a place for the results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher import formats
from launcher.check.preflight import check_file
from launcher.check.resolve import resolve
from schemas import config, rules
from trainer.plan import memory

PRESETS = sorted((Path(__file__).parent.parent / "presets").glob("*.json"))
MACHINE = {"missing-package"}  # the one code that depends on what is installed
GIVEN = {"train_data_dir": "data", "output_dir": "out", "sample_prompts": "prompts.txt"}


@pytest.fixture(params=PRESETS, ids=lambda path: path.stem)
def preset(request: pytest.FixtureRequest) -> Path:
    return Path(request.param)


def test_reads_without_warning(preset: Path) -> None:
    draft = formats.read(preset)
    assert draft.format == "kohya-gui"
    assert [problem for problem in draft.problems if problem.severity != "note"] == []
    assert draft.family == ("sd15" if {"sd15", "toy"} & set(preset.stem.split("-")) else "sdxl")


def test_needs_only_a_model_data_and_a_place(preset: Path) -> None:
    draft = formats.read(preset)
    values = {name: setting.value for name, setting in draft.arguments.items()}
    values |= {name: value for name, value in GIVEN.items() if name != "sample_prompts" or draft.prompts}
    found = rules.check(config.from_flat(values)[0], draft.family)
    assert [one for one in found if one.severity != "note" and one.code not in MACHINE] == []


def test_validates_without_warning(preset: Path) -> None:
    found = check_file(resolve(preset.stem)).problems
    assert [one for one in found if one.severity != "note" and one.code not in MACHINE] == []


def test_every_key_is_known_and_does_something(preset: Path) -> None:
    draft = formats.read(preset)
    idle = {
        key: fate.why for key, fate in draft.keys.items() if fate.status in ("no-effect", "unknown", "other-family")
    }
    assert idle == {}


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("civitai-sd15", "train_batch_size", 6),
        ("civitai-sd15", "optimizer_args", ("weight_decay=0.1",)),
        ("civitai-sdxl", "optimizer_type", "Adafactor"),
        ("civitai-illustrious", "train_batch_size", 4),
        ("civitai-pony", "optimizer_type", "Prodigy"),
        ("civitai-pony", "unet_lr", 1.0),
    ],
)
def test_civitai_presets_hold_the_sites_defaults(name: str, key: str, value: object) -> None:
    draft = formats.read(next(path for path in PRESETS if path.stem == name))
    read, _ = config.from_flat({name: setting.value for name, setting in draft.arguments.items()})
    assert getattr(read, key) == value


def test_says_for_whom_it_is(preset: Path) -> None:
    assert json.loads(preset.read_text(encoding="utf-8"))["training_comment"].startswith("For ")


def test_keys_are_sorted_as_kohya_writes_them(preset: Path) -> None:
    keys = list(json.loads(preset.read_text(encoding="utf-8")))
    assert keys == sorted(keys, key=str.lower)


@pytest.mark.parametrize(
    ("name", "side", "gigabytes"),
    [
        ("sd15-anime", 512, 6),
        ("sd15-character", 512, 6),
        ("sd15-locon", 512, 6),
        ("sd15-realistic", 768, 8),
        ("sdxl-8gb", 1024, 8),
        ("sdxl-12gb", 1024, 12),
        ("sdxl-character", 1024, 12),
        ("sdxl-locon", 1024, 12),
        ("sdxl-lokr", 1024, 12),
        ("sdxl-style", 1024, 12),
    ],
)
def test_fits_the_memory_that_its_comment_names(name: str, side: int, gigabytes: int) -> None:
    draft = formats.read(next(path for path in PRESETS if path.stem == name))
    read, _ = config.from_flat({name: setting.value for name, setting in draft.arguments.items()})
    assert f"{gigabytes} GB" in str(read.training_comment)
    assert memory.estimate(read, str(draft.family), (side, side)).device_bytes < gigabytes << 30
