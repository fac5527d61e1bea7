from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from schemas import TrainConfig, from_flat
from schemas.derive import add_flags
from trainer.plan import marks
from trainer.plan.steps import Steps, count

CASES = json.loads((Path(__file__).parents[2] / "golden" / "names.json").read_text())["cases"]


def of(kind: str) -> list[Any]:
    return [pytest.param(case, id=case["args"] or "defaults") for case in CASES if case["kind"] == kind]


def config_of(args: str, **more: Any) -> TrainConfig:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return from_flat(more | vars(parser.parse_args(shlex.split(args))))[0]


def planned(case: dict[str, Any]) -> tuple[TrainConfig, Steps]:
    config = config_of(case["args"], max_train_steps=case["max_train_steps"])
    return config, count(config, case["updates_per_epoch"])


@pytest.mark.parametrize("case", of("save_loop"))
def test_saves_and_rotation_are_the_references(case: dict[str, Any]) -> None:
    config, steps = planned(case)
    assert steps.epochs == case["num_epochs"]
    assert marks.save_period(config, steps.epochs) == case["save_every_n_epochs_used"]
    when = {"step": "step {0.step}", "epoch": "end of epoch {0.epoch}", "end": "end of training"}
    events = [
        {"when": when[save.when].format(save), "written": sorted(save.written), "removed": sorted(save.removes)}
        for save in marks.saves(config, steps)
    ]
    assert events == case["events"]


@pytest.mark.parametrize("case", of("save_loop"))
def test_what_is_left_at_the_end(case: dict[str, Any]) -> None:
    left: set[str] = set()
    for save in marks.saves(*planned(case)):
        left = (left | set(save.written)) - set(save.removes)
    assert sorted(left) == case["left_at_end"]


@pytest.mark.parametrize("case", of("sample_when"))
def test_previews_happen_when_the_references_do(case: dict[str, Any]) -> None:
    config, steps = planned(case)
    assert marks.previews(config, steps) == [sample.get("step", 0) for sample in case["samples"]]


@pytest.mark.parametrize("case", of("sample_name"))
def test_preview_names(case: dict[str, Any]) -> None:
    name = marks.preview_name(
        config_of(case["args"]),
        index=case["prompt"]["enum"],
        epoch=case["epoch"],
        step=case["step"],
        time="<time>",
        seed=case["prompt"].get("seed"),
    )
    assert name == case["file"]


def test_predicates_and_list_agree() -> None:
    config = TrainConfig(max_train_steps=23, save_every_n_steps=5, save_every_n_epochs=2, save_state=True)
    steps = count(config, 6)
    found = {(save.when, save.step) for save in marks.saves(config, steps)}
    expected = {("step", step) for step in range(24) if marks.saves_at_step(config, step)}
    expected |= {("epoch", steps.epoch_end(e)) for e in range(9) if marks.saves_at_epoch(config, e, steps.epochs)}
    assert found == expected | {("end", 23)}


def test_a_shortened_last_epoch_has_previews_but_no_epoch_file() -> None:
    config = TrainConfig(max_train_steps=9, save_every_n_epochs=1, sample_every_n_epochs=1)
    steps = count(config, 4)
    assert [save.step for save in marks.saves(config, steps)] == [4, 8, 9]
    assert marks.previews(config, steps) == [4, 8, 9]


def test_state_names_belong_to_their_files() -> None:
    config = TrainConfig(
        output_name="v1.2 x", max_train_steps=9, save_every_n_steps=3, save_every_n_epochs=1, save_state=True
    )
    names = [save.state_name for save in marks.saves(config, count(config, 4))]
    assert names == [
        marks.step_state_name(config, 3),
        marks.epoch_state_name(config, 1),
        marks.step_state_name(config, 6),
        marks.epoch_state_name(config, 2),
        marks.step_state_name(config, 9),
        f"{marks.last_name(config).removesuffix('.safetensors')}-state",
    ]


def test_last_copy_at_once_deleted_unless_its_state_is_kept() -> None:
    config = TrainConfig(save_every_n_epochs=1, save_last_n_epochs=0, save_state=True, save_last_n_epochs_state=2)
    save = marks.epoch_save(config, 3, count(config, 100))
    assert marks.saves_at_epoch(config, 3, 16)
    assert save.removes == ("epoch-000001-state", "epoch-000003.safetensors")
