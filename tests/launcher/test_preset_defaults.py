"""Shipped presets preview and hold a share out without being told; files from elsewhere do as they say."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from launcher.check.plan import make_plan
from launcher.check.preflight import check_run
from launcher.check.resolve import resolve
from launcher.check.show import plan_lines
from tests.tiny import tiny_checkpoint
from trainer.dataset.prompts import read_prompts

CAPTION = "N0m3, a portrait number {} -- by the sea, --w 64"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("model"), "sd15")


def folder(place: Path, count: int, caption: str | None = CAPTION) -> Path:
    images = place / "data" / "10_N0m3"
    images.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (512, 512), (number * 5, 80, 80)).save(images / f"{number:02}.png")
        if caption is not None:
            (images / f"{number:02}.txt").write_text(caption.format(number), encoding="utf-8")
    return images.parent


def sets(place: Path, model: Path, count: int, **more: str) -> dict[str, str]:
    return {
        "train_data_dir": str(folder(place, count, more.pop("caption", CAPTION) or None)),
        "output_dir": str(place / "out"),
        "pretrained_model_name_or_path": str(model),
        **more,
    }


def test_a_preset_previews_with_prompts_from_the_captions(tmp_path: Path, model: Path) -> None:
    checked = check_run(resolve("sd15-character", sets(tmp_path, model, 6)))
    assert checked.ok
    found = read_prompts("made.txt", text=checked.resolved.draft.prompts)
    assert [prompt.prompt for prompt in found] == [
        "N0m3",
        "N0m3, a portrait number 0 by the sea, w 64",
        "N0m3, a portrait number 3 by the sea, w 64",
        "a portrait number 0 by the sea, w 64",
    ]
    assert [prompt.seed for prompt in found] == [1, 2, 3, 4]
    assert {(prompt.width, prompt.height) for prompt in found} == {(512, 512)}


@pytest.mark.parametrize(
    ("name", "resolution", "size"),
    [("sd15-character", "768", (768, 768)), ("sd15-style", "576,448", (576, 448)), ("sdxl-8gb", "", (1024, 1024))],
)
def test_previews_are_as_large_as_what_is_trained(
    name: str, resolution: str, size: tuple[int, int], tmp_path: Path, model: Path
) -> None:
    more = {"resolution": resolution} if resolution else {}
    checked = check_run(resolve(name, sets(tmp_path, model, 6, **more)))
    found = read_prompts("made.txt", text=checked.resolved.draft.prompts)
    assert {(prompt.width, prompt.height) for prompt in found} == {size}


@pytest.mark.parametrize("name", ["sample_every_n_epochs", "sample_every_n_steps"])
def test_previews_can_be_declined_as_the_note_says(name: str, tmp_path: Path, model: Path) -> None:
    checked = check_run(resolve("sd15-character", {**sets(tmp_path, model, 6), name: "0"}))
    assert checked.ok
    assert not checked.resolved.config.sample_prompts
    assert not [problem for problem in checked.problems if problem.code == "made-prompts"]


@pytest.mark.parametrize("name", ["sample_every_n_epochs", "sample_every_n_steps"])
def test_where_prompts_are_made_nothing_says_that_they_are_missing(name: str, tmp_path: Path, model: Path) -> None:
    checked = check_run(resolve("sd15-character", {**sets(tmp_path, model, 6), name: "3"}))
    assert getattr(checked.resolved.config, name) == 3
    assert [one.code for one in checked.problems if one.key == "sample_prompts"] == ["made-prompts"]


def test_where_steps_are_saved_previews_are_made_at_those_steps(tmp_path: Path, model: Path) -> None:
    checked = check_run(resolve("sd15-character", {**sets(tmp_path, model, 6), "save_every_n_steps": "20"}))
    assert checked.resolved.config.sample_every_n_steps == 20
    assert not checked.resolved.config.sample_every_n_epochs


def test_the_plan_shows_previews_and_what_is_held_out(tmp_path: Path, model: Path) -> None:
    from launcher.check.machine import this_machine

    plan = make_plan(resolve("sd15-character", sets(tmp_path, model, 24)), this_machine())
    text = "\n".join(plan_lines(plan))
    assert "of prompts made from the captions" in text
    assert "2 images held out" in text
    assert "--set validation_split=0 to train on all" in text
    assert "--set sample_every_n_epochs=0 for none" in text
    assert plan.previews
    assert plan.steps is not None
    assert plan.steps.total == plan.steps.epochs * plan.steps.updates_per_epoch
    assert plan.as_json()["arguments"]["validation_split"] == {"value": 0.1, "origin": "computed", "from": None}


def test_few_images_are_all_trained_on(tmp_path: Path, model: Path) -> None:
    checked = check_run(resolve("sd15-character", sets(tmp_path, model, 19)))
    assert checked.resolved.config.validation_split == 0
    assert len(checked.scan.samples) == 19  # type: ignore[union-attr]


def test_the_command_line_has_the_last_word(tmp_path: Path, model: Path) -> None:
    given = {"validation_split": "0", "sample_every_n_epochs": "0", "sample_prompts": ""}
    checked = check_run(resolve("sd15-character", {**sets(tmp_path, model, 24), **given}))
    assert checked.resolved.config.validation_split == 0
    assert not checked.resolved.config.sample_prompts
    assert not checked.scan.validation  # type: ignore[union-attr]


def test_images_without_captions_are_called_by_their_folder(tmp_path: Path, model: Path) -> None:
    checked = check_run(resolve("sd15-character", sets(tmp_path, model, 3, caption="")))
    assert checked.resolved.draft.prompts == "N0m3 --d 1 --w 512 --h 512\na photo --d 2 --w 512 --h 512"


@pytest.mark.parametrize("name", ["civitai-sd15", "toy"])
def test_presets_that_repeat_something_hold_nothing_out(name: str, tmp_path: Path, model: Path) -> None:
    checked = check_run(resolve(name, sets(tmp_path, model, 24)))
    assert checked.resolved.config.validation_split == 0


def test_a_file_from_elsewhere_is_left_alone(tmp_path: Path, model: Path) -> None:
    from launcher.check.resolve import preset_path

    own = tmp_path / "own.json"
    own.write_bytes(preset_path("sd15-character").read_bytes())  # type: ignore[union-attr]
    checked = check_run(resolve(str(own), sets(tmp_path, model, 24)))
    assert checked.resolved.config.validation_split == 0
    assert checked.resolved.draft.prompts is None
