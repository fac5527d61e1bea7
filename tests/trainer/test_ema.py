"""EMA of the LoRA: the average of its weights, saved beside them, exact on resume, and no part of what is trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from launcher.check.paths import existing_results
from launcher.check.resolve import resolve
from schemas import TrainConfig
from schemas.rules import check
from tests.schemas.rules.sound import SOUND
from trainer import loop
from trainer.learning.ema import Average

Start = Callable[..., int]
OPTIONS: dict[str, Any] = {"max_train_steps": 6, "save_every_n_steps": 2, "ema_decay": 0.9}


def same(one: Path, other: Path) -> bool:
    left, right = load_file(one), load_file(other)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_the_average_is_that_of_the_weights_after_each_step(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    update = Average.update

    def told(average: Average) -> None:
        if not seen:
            seen.append({name: value.clone() for name, value in average.averages.items()})
        update(average)
        seen.append({name: weight.detach().clone() for name, weight in average.weights.items()})

    monkeypatch.setattr(Average, "update", told)
    assert start(**OPTIONS) == 0
    expected = seen[0]
    for number, weights in enumerate(seen[1:], start=1):
        decay = min(0.9, (1 + number) / (10 + number))
        expected = {name: decay * expected[name] + (1 - decay) * weights[name] for name in expected}
    saved = load_file(tmp_path / "out" / "n0m3.ema.safetensors")
    assert len(seen) == 7
    assert expected.keys() <= saved.keys()
    for name, value in expected.items():
        assert torch.allclose(saved[name], value, atol=1e-7)


def test_it_changes_nothing_of_what_is_trained(start_in: Callable[..., int], tmp_path: Path) -> None:
    assert start_in(tmp_path / "with", **OPTIONS) == 0
    assert start_in(tmp_path / "without", **{**OPTIONS, "ema_decay": None}) == 0
    for name in ("n0m3.safetensors", "n0m3-step00000002.safetensors"):
        assert same(tmp_path / "with" / "out" / name, tmp_path / "without" / "out" / name)
    assert not same(tmp_path / "with" / "out" / "n0m3.safetensors", tmp_path / "with" / "out" / "n0m3.ema.safetensors")
    assert not list((tmp_path / "without" / "out").glob("*.ema.*"))


def test_every_save_has_one_and_rotation_takes_it_along(start: Start, tmp_path: Path) -> None:
    assert start(**OPTIONS, save_last_n_steps=2) == 0
    names = {path.name for path in (tmp_path / "out").glob("*.safetensors")}
    assert {name for name in names if ".ema" in name} == {
        name.replace(".safetensors", ".ema.safetensors") for name in names if ".ema" not in name
    }
    assert "n0m3-step00000002.ema.safetensors" not in names
    with safe_open(tmp_path / "out" / "n0m3.ema.safetensors", "pt") as file:
        assert file.metadata()["kohyakit_ema_decay"] == "0.9"


def test_a_resumed_run_has_the_same_average(start_in: Callable[..., int], tmp_path: Path) -> None:
    options = {**OPTIONS, "save_state": True, "network_dropout": 0.2}
    for folder in ("whole", "cut"):
        assert start_in(tmp_path / folder, **options) == 0
    state = tmp_path / "cut" / "out" / "n0m3.run" / "state-00000002"
    assert start_in(tmp_path / "cut", **options, resume=str(state)) == 0
    for name in ("n0m3.safetensors", "n0m3.ema.safetensors"):
        assert same(tmp_path / "whole" / "out" / name, tmp_path / "cut" / "out" / name)


def test_weights_that_rest_are_averaged_as_they_stay(start: Start, tmp_path: Path) -> None:
    assert start(**OPTIONS, stop_text_encoder_training=2, text_encoder_lr=[1e-3], mixed_precision="bf16") == 0
    assert (tmp_path / "out" / "n0m3.ema.safetensors").is_file()


def test_previews_show_the_average_if_asked(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a frog --w 64 --h 64 --s 1\n", encoding="utf-8")
    shown: list[bool] = []

    def look(models: Any, family: Any, mine: Any, config: Any, **_: Any) -> None:
        (run,) = runs
        shown.append(
            all(torch.equal(weight, run.average.averages[name]) for name, weight in run.average.weights.items())
        )

    runs: list[Any] = []
    began = loop.Results.begin
    monkeypatch.setattr(loop.Results, "begin", lambda results, run: (runs.append(run), began(results, run))[1])
    monkeypatch.setattr("trainer.output.results.write_previews", look)
    sampled = {"sample_prompts": prompts, "sample_every_n_steps": 3}
    assert start(**OPTIONS, **sampled, ema_previews=True) == 0
    runs.clear()
    assert start(**OPTIONS, **sampled, overwrite=True) == 0
    assert shown == [True, True, False, False]


def test_results_in_the_way_include_averages_and_copies(tmp_path: Path) -> None:
    for name in (
        "n.ema.safetensors",
        "n-000002.ema.safetensors",
        "n-step00000002.peft.safetensors",
        "nn.ema.safetensors",
    ):
        (tmp_path / name).write_bytes(b"")
    file = tmp_path / "a.toml"
    file.write_text(
        f"output_dir = '{tmp_path}'\noutput_name = 'n'\nnetwork_module = 'networks.lora'\n", encoding="utf-8"
    )
    assert len(existing_results(resolve(str(file)))) == 3


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"ema_previews": True}, "no-effect"),
        ({"ema_decay": 0.9, "optimizer_type": "AdamWScheduleFree"}, "two-averages"),
    ],
)
def test_what_does_not_go_with_it(options: dict[str, Any], code: str) -> None:
    assert code in {problem.code for problem in check(TrainConfig(**{**SOUND, **options}), "sd15")}
