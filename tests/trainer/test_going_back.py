"""What the trainer does with the state it is asked for: read and compared first, and only then is anything removed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from schemas.files.run_folder import STATE, judge
from trainer import loop

Start = Callable[..., int]
STATES: dict[str, Any] = {"save_every_n_steps": 2, "save_state": True}
ROOT = Path(__file__).parents[2]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def states(run: Path) -> list[int]:
    return sorted(int(match[1]) for path in run.iterdir() if (match := STATE.fullmatch(path.name)))


@pytest.fixture
def run(start: Start, tmp_path: Path) -> Path:
    """The run folder of a finished run of 4 steps with states of steps 2 and 4."""
    assert start(**STATES) == 0
    return tmp_path / "out" / "n0m3.run"


def flipped(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))


def no_end(run: Path) -> None:
    """As a kill before the end leaves it: no final LoRA."""
    (run.parent / "n0m3.safetensors").unlink()


def test_a_state_that_is_not_there_costs_no_other(start: Start, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(run.parent)
    assert start(resume=run / "state-00000005", **STATES) == 1
    assert tree(run.parent) == before
    said = capsys.readouterr().err
    assert "does not exist" in said
    assert f"kohyakit resume {run / 'state-00000004'}, which is whole" in said


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda state: flipped(state / "adapter.safetensors"), "adapter.safetensors is not what was written"),
        (lambda state: flipped(state / "optimizer.pt"), "optimizer.pt is not what was written"),
        (lambda state: (state / "optimizer.pt").unlink(), "optimizer.pt is missing"),
        (lambda state: (state / "progress.json").write_text('{"step": -1}'), "progress.json says step -1"),
    ],
)
def test_a_damaged_state_is_named_and_costs_no_other(
    start: Start, run: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], Any], said: str
) -> None:
    spoil(run / "state-00000002")
    before = tree(run.parent)
    assert start(resume=run / "state-00000002", **STATES) == 1
    assert tree(run.parent) == before
    told = capsys.readouterr().err
    assert said in told
    assert f"kohyakit resume {run / 'state-00000004'}" in told


def test_the_newest_whole_state_is_gone_on_from(
    start: Start, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    no_end(run)
    whole = (run / "state-00000004" / "adapter.safetensors").read_bytes()
    flipped(run / "state-00000004" / "adapter.safetensors")
    assert start(resume=run, **STATES) == 0
    said = capsys.readouterr().out
    assert "state-00000004 is damaged and not used: adapter.safetensors" in said
    assert "resumed at step 2 of 4" in said
    assert (run / "state-00000004" / "adapter.safetensors").read_bytes() == whole
    assert judge(run / "state-00000004", contents=True).whole


def test_a_state_that_does_not_fit_costs_no_other(start: Start, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "config.toml").unlink()  # so that nobody can compare the options
    before = tree(run.parent)
    assert start(resume=run / "state-00000002", network_dim=8, **STATES) == 1
    assert tree(run.parent) == before
    assert "has rank 4" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value"), [("learning_rate", 1e-5), ("lr_scheduler", "cosine"), ("optimizer_type", "Lion"), ("seed", 8)]
)
def test_another_run_is_refused_without_a_launcher_too(
    start: Start, run: Path, capsys: pytest.CaptureFixture[str], name: str, value: Any
) -> None:
    no_end(run)
    before = tree(run.parent)
    assert start(resume=run / "state-00000002", **{**STATES, name: value}) == 1
    assert tree(run.parent) == before
    assert f"{name}: is " in capsys.readouterr().err


def test_nothing_is_left_of_a_finished_run(start: Start, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(run.parent)
    assert start(resume=run, **STATES) == 1
    assert "there is nothing left to train" in capsys.readouterr().err
    assert tree(run.parent) == before
    assert start(resume=run, **{**STATES, "max_train_steps": 6}) == 0


def test_a_schedule_that_is_lengthened_goes_on_at_its_own_rate(start: Start, tmp_path: Path) -> None:
    rates = {}
    for length in (6, 4):
        folder = tmp_path / str(length)
        assert start(lr_scheduler="cosine", output_dir=folder, **{**STATES, "max_train_steps": length}) == 0
        rates[length] = logged(folder / "n0m3.run")
    run = tmp_path / "4" / "n0m3.run"
    assert start(lr_scheduler="cosine", output_dir=run.parent, resume=run, **{**STATES, "max_train_steps": 6}) == 0
    assert logged(run)[4:] == rates[6][4:]
    assert all(rate > 0 for rate in logged(run)[4:])


def logged(run: Path) -> list[float]:
    lines = (run / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["lr"]["unet"] for line in lines]


def test_a_seed_that_was_drawn_is_drawn_once(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "out" / "n0m3.run"
    with monkeypatch.context() as patch:
        patch.setattr(loop.Run, "update", lambda *words, **more: sys.exit(9))
        with pytest.raises(SystemExit):
            start(resume=run, seed=None)
    seed = judge(run / "state-00000000").progress["seed"]
    assert start(resume=run, seed=None, save_state=True) == 0
    assert judge(run / "state-00000004").progress["seed"] == seed


def test_a_trainer_without_its_launcher_leaves_the_run_to_another_one(
    start: Start, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its launcher was killed while torch was loading; another one has begun since."""
    no_end(run)
    code = "from pathlib import Path; from schemas.files.run_lock import hold_for_launcher; "
    code += f"held = hold_for_launcher(Path({str(run)!r})); print(held[1], flush=True); input()"
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
    assert other.stdout is not None
    token = other.stdout.readline().decode().strip()
    before = tree(run)
    try:
        monkeypatch.setenv("KOHYAKIT_LOCK", "of the one that was killed")
        assert start(resume=run, **STATES) == 1
        assert f"is being trained by process {other.pid}" in capsys.readouterr().err
        assert tree(run) == before
        with monkeypatch.context() as patch:  # known before torch is there, and before it takes the lock itself
            patch.setitem(sys.modules, "trainer.loop", None)
            patch.setattr("trainer.output.results.hold_for_trainer", None)
            assert start(resume=run, **STATES) == 1
            assert start(overwrite=True, **STATES) == 1
        monkeypatch.setenv("KOHYAKIT_LOCK", token)
        assert start(resume=run, **STATES) == 0
    finally:
        other.kill()
        other.communicate()


def test_a_refused_start_leaves_no_folder(start: Start, tmp_path: Path) -> None:
    (tmp_path / "theirs-state").mkdir()
    (tmp_path / "theirs-state" / "optimizer.bin").write_bytes(b"x")
    for asked in (tmp_path / "theirs-state", tmp_path / "nowhere", tmp_path):
        assert start(resume=asked) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"theirs-state"}
