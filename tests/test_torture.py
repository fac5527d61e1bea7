"""Runs that are killed anywhere and resumed equal undisturbed ones; the slow part does so for every kind of run."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks import torture, torture_launched
from benchmarks.results import differences, unsound
from benchmarks.torture import CASES, Blow, Case, Count, Undisturbed, make_inputs, torment, undisturbed
from benchmarks.torture_launched import Hit
from trainer.output.states import save_state


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


# The launcher alone, with a resume at once or later; a rank; everything; inside the disk's calls.
LAUNCHED = [
    (1, [Hit("launcher", steps=5), Hit("all", steps=14)]),
    (1, [Hit("call", call="fsync", number=9), Hit("call", call="rename", number=12), Hit("starter", steps=10)]),
    (2, [Hit("rank", steps=8), Hit("call", call="mkdir", number=2)]),
]


@pytest.mark.parametrize(
    ("processes", "hits"), LAUNCHED, ids=lambda one: one if isinstance(one, int) else one[0].victim
)
@pytest.mark.slow
def test_launched_runs_that_lose_processes_come_to_the_same_end(
    processes: int, hits: list[Hit], inputs: Path, tmp_path: Path
) -> None:
    random.seed(processes)
    whole, count = torture_launched.undisturbed(inputs, tmp_path / "whole", processes), Count()
    torture_launched.torment(inputs, tmp_path / "run", whole, processes, count, hits)
    assert count.faults == []
    assert count.kills >= len(hits) - 1  # a resume beside a trainer that is just ending may come to the end


def test_a_launched_run_s_fault_is_seen(two: tuple[Path, Path]) -> None:
    one, other = two
    place = torture_launched.Place(other, 1)
    assert torture_launched.ended(place, one) == []
    (other / "out" / ".n0m3.safetensors.7@0badcafe.tmp").touch()
    save_file({"x": torch.ones(2)}, other / "out" / "n0m3.safetensors")
    assert [fault.rpartition(": ")[2] for fault in torture_launched.ended(place, one)] == [
        "other tensors",
        "left behind",
    ]
    (other / "out" / "n0m3.safetensors").unlink()
    (other / "said.txt").touch()
    assert torture_launched.ended(place, one) == ["no final weights\n"]


@pytest.mark.parametrize("call", ["fsync", "rename", "mkdir", "unlink"])
@pytest.mark.parametrize("number", [1, 2])
def test_a_strike_ends_the_process_inside_its_call(number: int, call: str, tmp_path: Path) -> None:
    (tmp_path / "victim.py").write_text(
        "import os\n"
        "for number in range(4):\n"
        "    print(number, flush=True)\n"
        "    handle = os.open('f', os.O_CREAT | os.O_WRONLY); os.fsync(handle); os.close(handle)\n"
        "    os.rename('f', 'g'); os.unlink('g'); os.mkdir(str(number))\n"
    )
    places = os.pathsep.join([str(torture_launched.STRIKE), str(tmp_path)])
    variables = {**os.environ, "PYTHONPATH": places, "STRIKE": f"victim:{call}:{number}:0"}
    command = [sys.executable, "-m", "victim"]
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert done.returncode == -9
    assert done.stdout.split() == [str(each) for each in range(number)]


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
