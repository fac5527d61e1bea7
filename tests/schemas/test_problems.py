"""Guesses at names, and fixes of values that cannot be read."""

from __future__ import annotations

import pytest

from schemas.config import mend, table
from schemas.problems import nearest


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("learning_rte", "learning_rate"),
        ("netwrk_dim", "network_dim"),
        ("optimiser_type", "optimizer_type"),
        ("resoluton", "resolution"),
        ("max_train_epoch", "max_train_epochs"),
        ("text_encoder_rate", "text_encoder_lr"),
        ("networkdim", "network_dim"),
        ("data_path", None),
        ("rs_lora", None),
        ("validation_steps", None),
        ("train_steps", None),
        ("path", None),
    ],
)
def test_a_guess_is_near_in_letters_and_in_meaning(written: str, meant: str | None) -> None:
    assert nearest(written, table()) == meant


@pytest.mark.parametrize(
    ("name", "value", "fix"),
    [
        ("learning_rate", "0,0001", "write a point: --set learning_rate=0.0001"),
        ("learning_rate", "5e-5,", "--set learning_rate= for the default"),
        ("text_encoder_lr", ["5,0e-5", "0,0001"], "write a point: --set 'text_encoder_lr=5.0e-5 0.0001'"),
        ("network_dim", 0, "--set network_dim=1, the nearest that is allowed"),
        ("learning_rate", "fast", "--set learning_rate= for the default"),
    ],
)
def test_a_refused_number_is_mended_by_a_value_that_can_be_read(name: str, value: object, fix: str) -> None:
    assert mend(table()[name], value) == fix
