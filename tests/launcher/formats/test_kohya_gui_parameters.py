"""Free words of the form as the trainer's and the launcher's parsers read them."""

from __future__ import annotations

from typing import Any

import pytest

from launcher.formats.kohya_gui.entries import free_words
from launcher.formats.kohya_gui.parameters import launcher_words, pairs_problem, trainer_words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("--max_grad_norm=0", {"max_grad_norm": 0.0}),
        ("--max_grad_norm 0", {"max_grad_norm": 0.0}),
        ("--network_train_unet_only --sdpa", {"network_train_unet_only": True, "sdpa": True}),
        ('--lr_scheduler_args "T_max=9" "eta_min=0e-0"', {"lr_scheduler_args": ("T_max=9", "eta_min=0e-0")}),
        ("--text_encoder_lr 1e-4 -0.0", {"text_encoder_lr": (1e-4, 0.0)}),
        ("--text_encoder_lr", {"text_encoder_lr": ()}),
        ("--lr_warmup_steps=0.05", {"lr_warmup_steps": 0.05}),
        ("--lr_warmup_steps 5%", {"lr_warmup_steps": 0.05}),
        ("--network_drop 0.1", {"network_dropout": 0.1}),
        ("--log_prefix=", {"log_prefix": ""}),
        ("", {}),
    ],
)
def test_words_of_the_trainer(text: str, expected: dict[str, Any]) -> None:
    found = trainer_words(free_words(text))
    assert (found.arguments, found.findings) == (expected, [])


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("--max_grad_nrm=0", "unknown-option"),
        ("--network_dim eight", "bad-value"),
        ("--network_dim", "bad-value"),
        ("--sdpa=true", "bad-value"),
        ("--vae my model.pt", "stray-word"),
        ("word", "stray-word"),
        ("--config_file x.toml", "other-config-file"),
        ("--optimizer_args betas=(0.9,0.99)", "quoted-word"),
    ],
)
def test_words_that_go_wrong(text: str, code: str) -> None:
    assert code in [finding[0] for finding in trainer_words(free_words(text)).findings]


def test_words_of_other_trainers_are_kept() -> None:
    found = trainer_words(["--guidance_scale", "3"], foreign=True)
    assert (found.foreign, found.findings) == ({"guidance_scale": ["3"]}, [])


def test_words_of_the_launcher() -> None:
    found = launcher_words(["--main_process_ip=10.0.0.1", "--same_network", "--machine_rank", "1"])
    assert found == {"main_process_ip": "10.0.0.1", "same_network": True, "machine_rank": "1"}


@pytest.mark.parametrize("text", ["", "a=1", '"a=1" "b=2,3"', "a=1 b=2"])
def test_fair_argument_text(text: str) -> None:
    assert pairs_problem(text) is None
