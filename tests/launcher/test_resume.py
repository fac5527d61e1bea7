from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from launcher.resume import find, go_on
from schemas import read
from schemas.problems import ConfigError


def results(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".json")


@pytest.fixture
def done(kohyakit, preset, trainer, lora, tmp_path: Path) -> Path:
    """A finished run in out/, with a LoRA of rank 4 and alpha 2 that can be read."""
    kohyakit("launch", preset(sample_prompts="a frog", sample_every_n_epochs=1))
    lora("out/frog.safetensors")
    return tmp_path / "out"


@pytest.fixture
def cut(kohyakit, preset, trainer, tmp_path: Path) -> Path:
    """A run that was killed at step 8 of 12, with a state of step 6."""
    trainer.code, trainer.steps, trainer.leaves = -9, 8, ()
    kohyakit("launch", preset())
    state = tmp_path / "out" / "frog.run" / "state-00000006"
    state.mkdir()
    (state / "progress.json").write_text('{"step": 6, "epoch": 1, "batch": 6}')
    trainer.code, trainer.steps, trainer.leaves = 0, 12, ("frog.safetensors",)
    return tmp_path / "out"


@pytest.mark.parametrize("path", ["out", "out/frog.run", "out/frog.safetensors", "snapshot"])
def test_every_kind_of_path_leads_to_the_run(done: Path, path) -> None:
    named = next(done.glob("frog_*.json")) if path == "snapshot" else done.parent / path
    found = find(str(named))
    assert (found.run, found.weights, found.name) == (done / "frog.run", done / "frog.safetensors", "frog")


def test_a_copy_leads_to_its_run_and_starts_from_itself(done: Path, lora) -> None:
    copy = lora("out/frog-000001.safetensors")
    found = find(str(copy))
    assert (found.run, found.weights, found.name) == (done / "frog.run", copy, "frog")


def test_continuing_keeps_the_older_run_under_a_number(kohyakit, done: Path, trainer, lora) -> None:
    lora("out/frog-000001.safetensors")
    found = kohyakit("resume", done, "--epochs", "3")
    assert found.exit_code == 0
    assert found.stdout.startswith("continue: a new run of 3 epochs from the weights")
    assert results(done) == [
        "frog-v1-000001.safetensors",
        "frog-v1.run",
        "frog-v1.safetensors",
        "frog.run",
        "frog.safetensors",
    ]
    config, _ = read(done / "frog.run" / "config.toml")
    assert (config.max_train_epochs, config.network_weights) == (3, str(done / "frog-v1.safetensors"))
    assert (config.network_dim, config.network_alpha, config.resume) == (4, 2.0, None)
    assert config.sample_prompts == str(done / "frog.run" / "prompt.txt")
    assert Path(config.sample_prompts).read_text() == "a frog\n"


def test_continuing_twice_counts_on(kohyakit, done: Path, lora) -> None:
    kohyakit("resume", done, "--steps", "5")
    lora("out/frog.safetensors")
    kohyakit("resume", done, "--steps", "5")
    assert [name for name in results(done) if name.endswith(".run")] == ["frog-v1.run", "frog-v2.run", "frog.run"]
    assert read(done / "frog.run" / "config.toml")[0].max_train_steps == 5


def test_another_name_moves_nothing(kohyakit, done: Path, trainer) -> None:
    trainer.leaves = ("toad.safetensors",)
    assert kohyakit("resume", done / "frog.safetensors", "--epochs", "1", "--set", "output_name=toad").exit_code == 0
    assert results(done) == ["frog.run", "frog.safetensors", "toad.run", "toad.safetensors"]


def test_rank_comes_from_the_file_and_another_is_refused(kohyakit, done: Path, lora) -> None:
    lora("out/frog.safetensors", rank=8, alpha=4)
    before = results(done)
    refused = kohyakit("resume", done, "--epochs", "1", "--set", "network_dim=16")
    assert (refused.exit_code, results(done)) == (1, before)
    assert "is 8 in" in refused.stderr
    kohyakit("resume", done, "--epochs", "1")
    assert read(done / "frog.run" / "config.toml")[0].network_dim == 8


def test_a_lora_of_another_family_is_refused_before_anything_moves(kohyakit, done: Path, lora) -> None:
    lora("out/frog.safetensors", width=2048)
    before = results(done)
    assert kohyakit("resume", done, "--epochs", "1").exit_code == 1
    assert results(done) == before


def test_a_lora_of_kohyas_alone_is_enough(kohyakit, trainer, lora, preset, tmp_path: Path) -> None:
    stated = {
        "ss_network_dim": "4",
        "ss_network_alpha": "2",
        "ss_resolution": "(64, 64)",
        "ss_learning_rate": "1e-4",
        "ss_output_name": "theirs",
        "ss_base_model_version": "sd_v1",
        "ss_network_module": "networks.lora",
    }
    file = lora("theirs/theirs.safetensors", metadata=stated)
    needs = json.loads(preset().read_text())
    trainer.leaves = ("theirs.safetensors",)
    words = [
        word
        for name in ("pretrained_model_name_or_path", "train_data_dir")
        for word in ("--set", f"{name}={needs[name]}")
    ]
    words += ["--set", "min_bucket_reso=64", "--set", "max_bucket_reso=64", "--set", "caption_extension=.txt"]
    found = kohyakit("resume", file, "--epochs", "1", *words)
    assert found.exit_code == 0, found.output
    config, _ = read(tmp_path / "theirs" / "theirs.run" / "config.toml")
    assert config.network_weights == str(tmp_path / "theirs" / "theirs-v1.safetensors")
    assert config.learning_rate == 1e-4


def test_a_finished_run_asks_how_much_further(kohyakit, done: Path) -> None:
    found = kohyakit("resume", done)
    assert found.exit_code == 1
    assert "--epochs N" in found.stderr


def test_a_run_that_was_cut_off_goes_on_exactly(kohyakit, cut: Path, trainer) -> None:
    found = kohyakit("resume", cut)
    assert found.exit_code == 0, found.output
    state = cut / "frog.run" / "state-00000006"
    assert found.stdout.startswith(f"resume: exactly, from step 6 of 12, state {state}")
    assert "nothing differs" in found.stdout
    assert read(cut / "frog.run" / "config.toml")[0].resume == str(state)
    starts = json.loads((cut / "frog.run" / "run.json").read_text())["starts"]
    assert [(start["mode"], start["exit"]) for start in starts] == [("launch", 3), ("resume", 0)]


def test_differences_from_the_first_start_are_said(kohyakit, cut: Path, photos: Path) -> None:
    (photos / "3_frog" / "0.txt").write_text("another caption altogether")
    found = kohyakit("resume", cut, "--processes", "2")
    assert "differs: the dataset has changed" in found.stdout
    assert "differs: 1 -> 2 processes" in found.stdout


def test_only_some_options_may_change_on_an_exact_resume(kohyakit, cut: Path, trainer) -> None:
    refused = kohyakit("resume", cut, "--set", "network_dim=8")
    assert (refused.exit_code, "is 4 in this run" in refused.stderr, len(trainer.starts)) == (1, True, 1)
    assert kohyakit("resume", cut, "--set", "save_every_n_steps=2").exit_code == 0


def test_a_moved_folder_still_resumes(kohyakit, cut: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.move(cut, moved)
    assert kohyakit("resume", moved / "frog.run").exit_code == 0
    config, _ = read(moved / "frog.run" / "config.toml")
    assert (config.output_dir, config.resume) == (str(moved), str(moved / "frog.run" / "state-00000006"))


def test_an_unfinished_state_does_not_count(kohyakit, cut: Path) -> None:
    (cut / "frog.run" / "state-00000008").mkdir()
    assert "from step 6" in kohyakit("resume", cut).stdout


def test_no_state_means_no_exact_resume(done: Path) -> None:
    with pytest.raises(ConfigError, match="no state"):
        go_on(str(done), {}, to_end=True)


@pytest.mark.parametrize("words", [["--epochs", "1", "--steps", "2"], ["--epochs", "1", "--set", "netwrk_dim=3"]])
def test_wrong_words(kohyakit, done: Path, words) -> None:
    assert kohyakit("resume", done, *words).exit_code == 2


def test_nothing_to_resume(kohyakit, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert kohyakit("resume", tmp_path / "empty").exit_code == 1
    assert kohyakit("resume", tmp_path / "missing").exit_code == 1


def test_print_command_moves_nothing(kohyakit, done: Path, trainer) -> None:
    before = results(done)
    found = kohyakit("resume", done, "--epochs", "1", "--print-command")
    assert (found.exit_code, results(done), len(trainer.starts)) == (0, before, 1)
