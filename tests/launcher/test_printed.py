"""--print-command prints what can be run as it is printed: no file of it is missing, and every option comes back."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.config import TrainConfig, from_flat, table, to_flat
from schemas.derive import add_flags, typed_words
from tests.launcher.conftest import tree
from trainer.dataset.files import scan


def typed(words: list[str]) -> TrainConfig:
    """What the trainer makes of its words."""
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return from_flat(vars(parser.parse_args(words)))[0]


def trainer_words(line: str) -> list[str]:
    words = shlex.split(line.rpartition(" && ")[2])
    return words[words.index("trainer") + 1 :]


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=8)
VALUES = {
    "network_args": st.lists(TEXT.map(lambda text: f"a={text}"), min_size=1).map(tuple),
    "optimizer_args": st.lists(TEXT.map(lambda text: f"a={text}"), min_size=1).map(tuple),
    "text_encoder_lr": st.lists(st.floats(0, 1), min_size=1, max_size=3).map(tuple),
    "learning_rate": st.floats(0, 1),
    "output_name": st.text("aZ0ä字 '\"$`;&|()-_.#~!", max_size=8).map(lambda text: f"n{text}m"),
    "training_comment": TEXT,
    "network_dim": st.integers(1, 10**6),
    "sdpa": st.booleans(),
    "caption_prefix": TEXT.map(lambda text: f"--{text}"),
    "trust": st.lists(TEXT.filter(lambda text: not text.startswith("-")), max_size=2).map(tuple),
}


@given(st.fixed_dictionaries({}, optional=VALUES))
def test_every_option_comes_back_as_it_was(options) -> None:
    config, _ = from_flat(to_flat(TrainConfig(**options)))
    assert typed(typed_words(config)) == config


def test_the_printed_line_has_the_options_of_the_plan(kohyakit, preset) -> None:
    file = preset(network_dim=6, caption_prefix="a b; 'c' ")
    words = trainer_words(kohyakit("launch", file, "--print-command").stdout)
    planned = json.loads(kohyakit("plan", file, "--json").stdout)["arguments"]
    config = typed(words)
    for name, option in table().items():
        value = getattr(config, name)
        assert (list(value) if isinstance(value, tuple) else value) == planned[name]["value"], option.name
    assert not any(word.startswith("--config_file") for word in words)


@pytest.mark.parametrize("changes", [{"sample_prompts": "a frog's --n 'x'\nanother", "sample_every_n_epochs": 1}])
def test_what_the_file_carries_is_written_by_the_line_itself(kohyakit, preset, tmp_path: Path, changes) -> None:
    file = preset(**changes)
    before = tree(tmp_path)
    found = kohyakit("launch", file, "--print-command")
    assert tree(tmp_path) == before
    line = found.stdout.rstrip("\n")
    prelude, _, _ = line.rpartition(" && ")
    subprocess.run(["sh", "-c", prelude], check=True)
    config = typed(trainer_words(line))
    assert Path(str(config.sample_prompts)).read_text() == changes["sample_prompts"] + "\n"
    again = json.loads(kohyakit("launch", preset(**changes), "--print-command", "--json").stdout)
    assert "files" not in again  # they are there now
    assert again["command"][-1].startswith("--")


def test_a_carried_dataset_is_read_back_by_the_trainer(kohyakit, preset, photos: Path, tmp_path: Path) -> None:
    file = tmp_path / "easy.toml"
    images = photos / "3_frog"
    file.write_text(f"""
[[datasets]]
resolution = 64
[[datasets.subsets]]
image_dir = {str(images)!r}
num_repeats = 2
""")
    form = preset(dataset_config=str(file), train_data_dir="")
    line = kohyakit("launch", form, "--print-command")
    assert line.exit_code == 0, line.output
    prelude, _, _ = line.stdout.rpartition(" && ")
    subprocess.run(["sh", "-c", prelude or "true"], check=True)
    found = scan(typed(trainer_words(line.stdout.rstrip("\n"))))
    assert [sample.repeats for sample in found.samples] == [2] * 4


def test_the_printed_line_holds_from_any_folder(
    kohyakit, preset, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = preset(train_data_dir=os.path.relpath(photos), output_dir="results")
    found = kohyakit("launch", file, "--print-command")
    assert found.exit_code == 0, found.output
    config = typed(trainer_words(found.stdout.rstrip("\n")))
    assert (config.train_data_dir, config.output_dir) == (str(photos), str(tmp_path / "results"))


def test_secrets_are_named_and_not_printed(kohyakit, preset) -> None:
    found = kohyakit("launch", preset(wandb_api_key="0" * 40), "--print-command")
    assert "0" * 40 not in found.output
    assert "set WANDB_API_KEY in the environment" in found.stderr


def test_results_in_the_way_of_the_printed_command_are_told(kohyakit, preset, trainer) -> None:
    assert kohyakit("launch", preset()).exit_code == 0
    found = kohyakit("launch", preset(), "--print-command")
    assert (found.exit_code, found.stdout.count("\n")) == (0, 1)
    assert "the trainer refuses this command while results are in the way" in found.stderr
    again = kohyakit("launch", preset(), "--print-command", "--overwrite")
    assert ("--overwrite" in again.stdout, "in the way" in again.stderr) == (True, False)


def test_an_exact_resume_is_printed_with_its_run(kohyakit, cut: Path) -> None:
    found = kohyakit("resume", cut, "--print-command")
    assert (found.exit_code, f"--resume={cut}" in found.stdout) == (0, True)
