"""The key table against itself and the option table."""

from __future__ import annotations

import pytest

from launcher.formats.kohya_gui import defaults, hidden, keys
from launcher.formats.kohya_gui.table import read_key
from schemas.config import table as options


def test_every_default_is_read_as_it_is() -> None:
    for name, value in defaults().items():
        reading = read_key(keys()[name], value)
        assert (reading.value, reading.said) == (value, None), name


def test_every_sd_argument_is_an_option() -> None:
    for key in keys().values():
        if key.role == "argument" and key.current and key.counts_for("sdxl") and not key.only:
            assert key.argument in options(), key.name


def test_renamed_keys_lead_to_todays() -> None:
    for key in keys().values():
        assert key.renamed_to is None or key.renamed_to in keys()


def test_every_key_has_a_meaning() -> None:
    assert all(key.meaning().endswith(".") for key in keys().values())


@pytest.mark.parametrize(
    ("name", "raw", "value", "severity"),
    [
        ("epoch", "3", 3, "note"),
        ("epoch", 3.0, 3, "note"),
        ("epoch", 1.9, 1, "warning"),
        ("epoch", "1.0", 0, "warning"),
        ("epoch", "", 0, "note"),
        ("max_token_length", "", 75, "note"),
        ("lr_scheduler_num_cycles", "", 1, "note"),
        ("lr_scheduler_power", "", 1.0, "note"),
        ("learning_rate", "1e-4", 1e-4, "note"),
        ("min_bucket_reso", "64", 64, "note"),
        ("network_dim", 32.0, 32.0, "note"),
        ("min_timestep", False, 0, "note"),
        ("flip_aug", 1, True, "note"),
        ("flip_aug", "", False, "note"),
        ("training_comment", 7, "7", "note"),
        ("vae", False, "", "note"),
    ],
)
def test_odd_spellings_are_read_as_kohya_reads_them(name: str, raw: object, value: object, severity: str) -> None:
    reading = read_key(keys()[name], raw)
    assert (reading.value, type(reading.value), reading.severity) == (value, type(value), severity)


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("epoch", "many"),
        ("epoch", [1]),
        ("epoch", 10**400),
        ("epoch", float("inf")),
        ("network_dim", 1.5),
        ("network_dim", True),
        ("flip_aug", "false"),
        ("flip_aug", 2),
        ("vae", True),
        ("vae", "a\0b"),
        ("vae", "\ud800"),
        ("LoRA_type", "Standart"),
        ("LoRA_type", ""),
        ("noise_offset_type", "Pyramid"),
    ],
)
def test_what_nobody_can_read_is_an_error(name: str, raw: object) -> None:
    assert read_key(keys()[name], raw).severity == "error"


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("wandb_api_key", "anything", "***"),
        ("training_comment", "see hf_abcdefghij", "see ***"),
        ("additional_parameters", "--wandb_api_key=abc --sdpa", "--wandb_api_key=*** --sdpa"),
        ("training_comment", "0123456789abcdef0123456789abcdef01234567", "***"),
        ("training_comment", "plain", "plain"),
        ("network_args", ("a=hf_abcdefghij",), ("a=***",)),
    ],
)
def test_secrets_are_hidden(name: str, value: object, shown: object) -> None:
    assert hidden(name, value) == shown
