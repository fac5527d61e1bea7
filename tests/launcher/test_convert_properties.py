"""For any config: what a target's text says, read back, trains the same; what it cannot say is in `lost`."""

from __future__ import annotations

import string
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from launcher import formats
from launcher.about.convert import (
    NAME,
    OLD_NAMES,
    Written,
    convert,
)
from launcher.about.diff import compare
from launcher.check.resolve import Resolved, settle
from launcher.formats.base import Draft, Setting
from schemas.config import Option, table

READERS = {"args": "sd-scripts"}
OPTIONS = {
    name: option
    for name, option in table().items()
    if not option.secret and not option.kit and name not in ("config_file", "output_config")
}
LETTERS = string.ascii_letters + string.digits + "_-./:=,;'\"\\ ()[]{}%&|<>!?*~^@$#+ äß字🐸"
TEXT = st.text(LETTERS, min_size=1, max_size=12)
PAIR = st.from_regex(r"[a-z_]{1,8}=[A-Za-z0-9.,-]{1,6}", fullmatch=True)
SITE = {
    "network_dim": st.integers(1, 256), "network_alpha": st.integers(1, 256).map(float),
    "train_batch_size": st.integers(1, 9), "max_train_epochs": st.integers(1, 50),
    "clip_skip": st.integers(1, 4), "unet_lr": st.floats(1e-6, 1), "text_encoder_lr": st.tuples(st.floats(1e-6, 1)),
    "lr_scheduler": st.sampled_from(["constant", "cosine", "linear"]), "min_snr_gamma": st.integers(1, 20).map(float),
    "noise_offset": st.floats(0.001, 1), "enable_bucket": st.booleans(), "flip_aug": st.booleans(),
    "shuffle_caption": st.booleans(), "optimizer_type": st.sampled_from(["AdamW8bit", "AdaFactor", "Prodigy"]),
    "optimizer_args": st.lists(PAIR, min_size=1, max_size=3, unique_by=lambda pair: pair.partition("=")[0]).map(tuple),
}  # fmt: skip


def one(option: Option) -> st.SearchStrategy[Any]:
    """A value that the option takes."""
    low, high = option.marks.get("ge", option.marks.get("gt", 0)), option.marks.get("le", 1000)
    if option.choices:
        return st.sampled_from([option.kind(choice) for choice in option.choices])
    if option.kind is bool:
        return st.booleans()
    if option.kind is str:
        return PAIR if option.many else TEXT
    if option.kind is int:
        return st.integers(int(low) + ("gt" in option.marks), int(high))
    most = 0.99 if option.marks.get("ratio") else high
    return st.floats(low, most, exclude_min="gt" in option.marks, allow_subnormal=False)


def value(option: Option) -> st.SearchStrategy[Any]:
    return st.lists(one(option), min_size=1, max_size=3).map(tuple) if option.many else one(option)


CONFIGS = st.lists(st.sampled_from(sorted(OPTIONS)), max_size=12, unique=True).flatmap(
    lambda names: st.fixed_dictionaries({name: value(OPTIONS[name]) for name in names})
)
BASE = {"network_module": "networks.lora", "network_dim": 8, "max_train_epochs": 3}


def config(values: dict[str, Any], family: str = "sdxl") -> Resolved:
    values = {**BASE, **values, "v2": family == "sd2"}
    arguments = {name: Setting(one, "file", name) for name, one in values.items()}
    return settle(Draft("sd-scripts", "x.toml", family, arguments=arguments))


def back(found: Written, target: str) -> Resolved:
    return settle(formats.read_text(found.text, READERS.get(target, target), f"x{found.suffix}"))


def named(found: Written) -> set[str]:
    """The arguments that the list of losses names, old names of them included."""
    names = {NAME.split(entry)[0] for entry in found.lost}
    return names | {OLD_NAMES.get(name, name) for name in names}


fast = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@pytest.mark.parametrize("target", ["sd-scripts", "args"])
@fast
@given(values=CONFIGS)
def test_the_trainers_own_forms_say_everything(target: str, values: dict[str, Any]) -> None:
    mine = config(values)
    found = convert(mine, target)
    assert found.lost == []
    assert compare(mine, back(found, target)) == ([], [])


@pytest.mark.parametrize("target", ["kohya-gui", "snapshot"])
@pytest.mark.parametrize("family", ["sd15", "sd2", "sdxl"])
@fast
@given(values=CONFIGS)
def test_a_form_says_the_same_or_tells_why_not(target: str, family: str, values: dict[str, Any]) -> None:
    mine = config(values, family)
    found = convert(mine, target)
    training, beside = compare(mine, back(found, target))
    assert {entry["argument"] for entry in [*training, *beside]} <= named(found)
    assert [entry for entry in found.lost if "it reads as" in entry] == []  # each with its own reason


@fast
@given(values=st.fixed_dictionaries({}, optional=SITE))
def test_the_site_says_all_it_has_words_for(values: dict[str, Any]) -> None:
    """Without optimizer_args the site has some of its own; .txt captions it takes for granted."""
    fixed = {"optimizer_type": "Prodigy", "optimizer_args": ("weight_decay=0.01",), "enable_bucket": True,
             "max_bucket_reso": 1024, "caption_extension": ".txt", "resolution": "512,512",
             "unet_lr": 1e-4}  # fmt: skip
    given = {**fixed, **values, "learning_rate": values.get("unet_lr", 1e-4)}
    mine = config(given, "sd15")
    found = convert(mine, "civitai")
    assert found.lost == []
    training, _ = compare(mine, back(found, "civitai"))
    assert training == []


@fast
@given(values=CONFIGS)
def test_the_site_loses_nothing_silently(values: dict[str, Any]) -> None:
    mine = config(values)
    found = convert(mine, "civitai")
    training, _ = compare(mine, back(found, "civitai"))
    assert {entry["argument"] for entry in training} <= named(found)


@pytest.mark.parametrize("target", ["kohya-gui", "sd-scripts", "args"])
@fast
@given(values=CONFIGS)
def test_a_second_conversion_changes_nothing(target: str, values: dict[str, Any]) -> None:
    once = convert(config(values), target)
    assert convert(back(once, target), target).text == once.text
