"""Runs that are killed anywhere and resumed equal undisturbed ones; the slow part does so for every kind of run."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks import torture
from benchmarks.results import differences, unsound
from benchmarks.torture import CASES, Blow, Case, Count, Undisturbed, make_inputs, torment, undisturbed
from trainer.states import save_state


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    make_inputs(folder)
    return folder


def faults(case: Case, inputs: Path, folder: Path, blows: list[Blow], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What goes wrong when a run of that kind suffers these blows, one a start; all of them must hit."""
    whole, count = undisturbed(case, inputs, folder / "whole"), Count()
    monkeypatch.setattr(torture, "MOST_KILLS", len(blows))
    waiting = iter(blows)
    monkeypatch.setattr(torture, "random_blow", lambda *rest, **more: next(waiting))
    torment(case, inputs, folder / "run", whole, count)
    assert count.kills == len(blows)
    return count.faults


def test_a_run_killed_in_its_cache_its_steps_and_its_saves_equals_an_undisturbed_one(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Writes: the run folder, five pictures' caches, a first state, then log, previews, copies and states.
    blows = [Blow(write=9, late=1e-3), Blow(steps=1), Blow(write=40), Blow(write=60, late=5e-4)]
    assert faults(CASES[2], inputs, tmp_path, blows, monkeypatch) == []


# Inside a step, and between the files of a save; the slow test below hits anything.
STRUCK = [
    (CASES[0], [Blow(steps=1), Blow(write=14, late=2e-3)]),  # LoKr, accumulation, chance in the data
    (CASES[3], [Blow(steps=1), Blow(write=40)]),  # schedule-free, previews, saves by epoch
    (CASES[4], [Blow(steps=3, late=1e-3)]),  # states of 8 bits
]


@pytest.mark.parametrize(("case", "blows"), STRUCK, ids=lambda one: getattr(one, "name", "").replace(" ", "-"))
def test_other_kinds_of_runs_are_gone_on_with_to_the_bit(
    case: Case, blows: list[Blow], inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert faults(case, inputs, tmp_path, blows, monkeypatch) == []


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
@pytest.mark.slow
def test_any_kind_of_run_killed_at_random_equals_an_undisturbed_one(case: Case, inputs: Path, tmp_path: Path) -> None:
    random.seed(case.name)
    whole, count = undisturbed(case, inputs, tmp_path / "whole"), Count()
    for number in range(3):
        torment(case, inputs, tmp_path / f"run-{number}", whole, count)
    assert count.faults == []
    assert count.kills > 3


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Two equal folders as runs leave them."""
    one, other = tmp_path / "one", tmp_path / "other"
    run = one / "out" / "n0m3.run"
    save_state(run / "state-00000002", {}, {"step": 2})
    save_file({"x": torch.zeros(2)}, one / "out" / "n0m3.safetensors")
    (run / "log.jsonl").write_text(json.dumps({"step": 1, "loss": 0.5}) + "\n", encoding="utf-8")
    (one / "data").mkdir()
    shutil.copytree(one, other)
    return one, other


def test_the_torture_finds_no_fault_where_there_is_none(two: tuple[Path, Path]) -> None:
    assert differences(*two) == []
    assert unsound(two[0]) == []


def test_the_torture_sees_other_weights_losses_and_files(two: tuple[Path, Path]) -> None:
    one, other = two
    save_file({"x": torch.ones(2)}, other / "out" / "n0m3.safetensors")
    (other / "out" / "n0m3.run" / "log.jsonl").write_text(json.dumps({"step": 1, "loss": 0.6}) + "\n", encoding="utf-8")
    (other / "out" / ".n0m3.safetensors.7.tmp").touch()
    found = differences(one, other)
    assert [line.rpartition(": ")[2] for line in found] == ["only resumed", "other tensors", "other losses"]


def test_the_torture_sees_what_is_half_written(two: tuple[Path, Path]) -> None:
    file = two[0] / "out" / "n0m3.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    (two[0] / "out" / "n0m3.run" / "state-00000002" / "complete").unlink()
    assert [line.partition(":")[0] for line in unsound(two[0])] == ["out/n0m3.safetensors", "state-00000002"]


def test_a_blow_hits_within_the_undisturbed_run(tmp_path: Path) -> None:
    whole = Undisturbed(tmp_path, 2.0, [30, 4])
    for _ in range(200):
        blow = torture.random_blow(whole, cold=False)
        assert (blow.seconds or 0.0) <= 2.0
        assert (blow.write or 1) <= whole.writes[blow.victim]
