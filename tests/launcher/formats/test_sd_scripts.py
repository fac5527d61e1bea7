from __future__ import annotations

from typing import Any

import pytest

from launcher.formats.base import Draft
from launcher.formats.sd_scripts import read, split_pairs, write


def values(draft: Draft) -> dict[str, Any]:
    return {name: setting.value for name, setting in draft.arguments.items()}


def test_sections_mean_nothing_and_later_ones_win() -> None:
    draft = read('network_dim = 8\n[a]\nresolution = "512"\nnetwork_dim = 16\n[b]\nnetwork_dim = 32\n')
    assert values(draft) == {"network_dim": 32, "resolution": "512"}
    assert draft.lines["network_dim"] == 6
    assert draft.arguments["network_dim"].key == "network_dim"


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("resolution = 1024", "resolution", "1024"),
        ("resolution = [512, 768]", "resolution", "512,768"),
        ('learning_rate = "1e-4"', "learning_rate", 1e-4),
        ('network_args = "conv_dim=4 algo=lora"', "network_args", ("conv_dim=4", "algo=lora")),
        (
            'optimizer_args = "weight_decay=0.1, betas=0.9,0.99"',
            "optimizer_args",
            ("weight_decay=0.1", "betas=0.9,0.99"),
        ),
        ("persistent_data_loader_workers = 1", "persistent_data_loader_workers", True),
        ('xformers = "xformers"', "xformers", True),
        ('xformers = "False"', "xformers", False),
        ('xformers = "sdpa"', "sdpa", True),
        ("text_encoder_lr = 5e-5", "text_encoder_lr", (5e-5,)),
        ('max_train_epochs = ""', "max_train_epochs", None),
        ("resume = false", "resume", None),
        ("max_token_length = 255", "max_token_length", 225),
        ("lr_warmup_steps = 100.0", "lr_warmup_steps", 100),
        ('lr_decay_steps = "100%"', "lr_decay_steps", 1.0),
        ("lr_restart_cycles = 3", "lr_scheduler_num_cycles", 3),
        ('save_precision = "fp32"', "save_precision", "float"),
    ],
)
def test_odd_spellings_are_read_and_said(line: str, name: str, value: Any) -> None:
    draft = read(line)
    assert values(draft) == {name: value}
    fates = {fate.status for fate in draft.keys.values()}
    assert draft.problems or fates == {"renamed"} or name == "text_encoder_lr"


def test_an_unreadable_value_is_left_for_resolve() -> None:
    assert values(read('network_dim = "many"')) == {"network_dim": "many"}


def test_unknown_key_gets_the_nearest_name_and_its_line() -> None:
    draft = read("seed = 1\nlearning_rte = 1\n")
    assert draft.keys["learning_rte"].status == "unknown"
    assert [(p.code, p.line, p.fix) for p in draft.problems] == [("unknown-key", 2, "did you mean learning_rate?")]


@pytest.mark.parametrize(
    "line", ["epoch = 1", 'noise_offset_type = "Original"', 'dynamo_backend = "no"', "learning_rate_te = 0.1"]
)
def test_leftovers_of_the_gui_have_no_effect(line: str) -> None:
    draft = read(line)
    assert [fate.status for fate in draft.keys.values()] == ["no-effect"]
    assert (draft.arguments, draft.problems) == ({}, [])


def test_other_families_and_kinds_are_seen() -> None:
    assert read('ae = "ae.safetensors"\nnetwork_module = "networks.lora_flux"').family == "flux"
    assert read("cache_text_encoder_outputs = true").family == "sdxl"
    assert read('token_string = "x"').kind == "textual-inversion"
    assert read("v2 = true").family == "sd2"


def test_secrets_are_not_shown() -> None:
    draft = read('wandb_api_key = "0123456789"')
    assert draft.keys["wandb_api_key"].value == "***"


def test_writing_and_reading_give_the_same() -> None:
    given = {
        "network_dim": 8,
        "learning_rate": 1e-4,
        "optimizer_args": ("a=1",),
        "shuffle_caption": True,
        "vae": None,
        "resolution": "512,768",
    }
    draft = read(write({**given, "wandb_api_key": "secret"}))
    assert values(draft) == {name: value for name, value in given.items() if value is not None}


def test_pairs() -> None:
    assert split_pairs('"a=1" b=2, c=(0.9, 0.99)') == ["a=1", "b=2", "c=(0.9, 0.99)"]
