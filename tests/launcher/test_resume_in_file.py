"""`resume` in a file is `kohyakit resume`: the same comparison and refusals, a plan from the state on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import toml

from schemas import read
from tests.launcher.conftest import add_state, tree


@pytest.fixture
def written(preset, tmp_path: Path):
    """written(kind, run, **changes) is (FILE, --set words) of the run's own options with `resume`, in that kind."""

    def make(kind: str, run: Path, **changes) -> tuple[str, ...]:
        if kind == "gui":
            return (str(preset(resume=str(run), **changes)),)
        if kind == "--set":
            words = {"resume": str(run), **changes}
            return (str(preset()), *(word for name, value in words.items() for word in ("--set", f"{name}={value}")))
        file = tmp_path / "again.toml"
        kept = toml.loads((tmp_path / "out" / "frog.run" / "config.toml").read_text())
        file.write_text(toml.dumps({**kept, "resume": str(run), **changes}))
        return (str(file),)

    return make


KINDS = ("gui", "toml", "--set")


@pytest.mark.parametrize("kind", KINDS)
def test_the_unchanged_file_goes_on_exactly(kohyakit, cut: Path, written, trainer, kind: str) -> None:
    words = written(kind, cut)
    planned = kohyakit("plan", *words)
    assert planned.exit_code == 0, planned.output
    assert planned.stdout.startswith(f"resume: exactly, from step 6 of 12, state {cut / 'state-00000006'}")
    assert "verdict: exact" in planned.stdout
    assert "6 of them are done, 6 are left" in planned.stdout
    found = kohyakit("launch", *words)
    assert found.exit_code == 0, found.output
    assert found.stdout.startswith("resume: exactly, from step 6 of 12")
    assert read(cut / "config.toml")[0].resume == str(cut)
    starts = json.loads((cut / "run.json").read_text())["starts"]
    assert [(start["mode"], start["exit"]) for start in starts] == [("launch", 3), ("resume", 0)]
    assert len(list(cut.parent.glob("frog_*.json"))) == 1
    assert {path.name for path in cut.glob("state-*")} >= {"state-00000006"}


def test_the_plan_for_scripts_counts_from_the_state_on(kohyakit, cut: Path, written) -> None:
    document = json.loads(kohyakit("plan", *written("gui", cut / "state-00000004"), "--json").stdout)
    assert (document["steps"]["total"], document["steps"]["done"]) == (12, 4)
    assert min(save["step"] for save in document["steps"]["saves"]) > 4
    assert document["learning_rate"][0][0] >= 4
    assert document["said"][0].startswith("resume: exactly, from step 4 of 12")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "value"),
    [("unet_lr", 1e-5), ("lr_scheduler", "cosine"), ("optimizer_type", "Lion"), ("network_dim", 8), ("seed", 5)],
)
def test_changed_options_are_refused_as_on_the_command(
    kohyakit, cut: Path, written, trainer, kind: str, name: str, value
) -> None:
    words = written(kind, cut, **{"optimizer" if kind == "gui" and name == "optimizer_type" else name: value})
    before = tree(cut.parent)
    for command in ("plan", "launch"):
        found = kohyakit(command, *words)
        assert (found.exit_code, tree(cut.parent), len(trainer.starts)) == (1, before, 1), found.output
        assert "cannot change on an exact resume" in found.stderr
        assert "verdict" not in found.output
    assert kohyakit("resume", cut, "--set", f"{name}={value}").exit_code == 1


def test_what_may_change_on_a_resume_may_change_in_the_file(kohyakit, cut: Path, written) -> None:
    found = kohyakit("launch", *written("toml", cut, max_train_steps=20, save_every_n_steps=2))
    assert found.exit_code == 0, found.output
    assert found.stdout.startswith("resume: equivalently, from step 6")
    assert "differs: max_train_steps: 12 -> 20 (may change)" in found.stdout


def test_a_seed_that_the_file_leaves_open_is_the_runs_own(kohyakit, cut: Path, written) -> None:
    assert kohyakit("launch", *written("gui", add_state(cut, 8, seed=1), seed="")).exit_code == 0
    assert read(cut / "config.toml")[0].seed == 1


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_left_of_a_finished_run(kohyakit, cut: Path, written, trainer, lora, kind: str) -> None:
    lora("out/frog.safetensors")
    add_state(cut, 12, saves=["frog-state"])
    for asked in (cut, cut / "state-00000012"):
        for command in ("plan", "launch"):
            found = kohyakit(command, *written(kind, asked))
            assert (found.exit_code, len(trainer.starts)) == (1, 1)
            assert "there is nothing left to train" in found.stderr
    longer = kohyakit("launch", *written(kind, cut, max_train_steps=20))
    assert longer.exit_code == 0, longer.output
    assert "from step 12" in longer.stdout


def test_a_finished_run_without_states_has_nothing_left_either(kohyakit, preset, trainer, tmp_path: Path) -> None:
    kohyakit("launch", preset())
    found = kohyakit("launch", preset(resume=str(tmp_path / "out" / "frog.run")))
    assert (found.exit_code, len(trainer.starts)) == (1, 1)
    assert "is complete" in found.stderr


@pytest.mark.parametrize("kind", ["gui", "--set"])
def test_one_file_starts_a_run_and_goes_on_with_it(kohyakit, written, trainer, tmp_path: Path, kind: str) -> None:
    run = tmp_path / "out" / "frog.run"
    trainer.code, trainer.steps, trainer.leaves = -9, 0, ()
    for _ in range(2):  # killed twice before its first state
        assert kohyakit("launch", *written(kind, run)).exit_code == 3
        assert read(run / "config.toml")[0].resume is None
    add_state(run, 4)
    trainer.code, trainer.steps, trainer.leaves = 0, 12, ("frog.safetensors",)
    found = kohyakit("launch", *written(kind, run))
    assert found.exit_code == 0, found.output
    assert found.stdout.startswith("resume: exactly, from step 4")


def test_another_name_goes_on_beside_the_run(kohyakit, cut: Path, preset, trainer) -> None:
    trainer.leaves = ("toad.safetensors",)
    before = tree(cut)
    refused = kohyakit("launch", preset(resume=str(cut), output_name="toad", unet_lr=1e-5))
    assert (refused.exit_code, tree(cut)) == (1, before)
    found = kohyakit("launch", preset(resume=str(cut), output_name="toad"))
    assert found.exit_code == 0, found.output
    assert tree(cut) == before
    assert read(cut.parent / "toad.run" / "config.toml")[0].resume == str(cut)


def test_overwrite_never_takes_the_states_that_are_gone_on_from(kohyakit, cut: Path, written) -> None:
    found = kohyakit("launch", *written("gui", cut), "--overwrite")
    assert found.exit_code == 0, found.output
    assert "overwrite has no effect" in found.stdout
    assert (cut / "state-00000006").is_dir()


def test_a_damaged_state_in_a_file_is_refused_with_its_line(kohyakit, cut: Path, written, trainer) -> None:
    (cut / "state-00000006" / "optimizer.pt").unlink()
    found = kohyakit("launch", *written("gui", cut / "state-00000006"))
    assert (found.exit_code, len(trainer.starts)) == (1, 1)
    assert "frog.json\n  error[damaged-state]: resume: " in found.stderr
    assert "\n    1 | …" in found.stderr
    assert "optimizer.pt is missing" in found.stderr
    assert "state-00000004, which is whole" in found.stderr


def test_relative_places_are_the_same_run(kohyakit, cut: Path, preset, monkeypatch) -> None:
    monkeypatch.chdir(cut.parent.parent)
    for words in (("resume", "out"), ("launch", preset(output_dir="out", resume="out/frog.run"))):
        (cut.parent / "frog.safetensors").unlink(missing_ok=True)
        found = kohyakit(*words)
        assert found.exit_code == 0, found.output
        assert found.stdout.startswith("resume: exactly, from step 6")


def test_showing_the_data_leaves_the_run_alone(kohyakit, cut: Path, written, trainer) -> None:
    before = tree(cut.parent)
    found = kohyakit("launch", *written("gui", cut), "--set", "debug_dataset=true")
    assert (found.exit_code, tree(cut.parent), len(trainer.starts)) == (0, before, 1), found.output
