"""What stands on the disk when something goes wrong, and that one command starts a run and goes on with it."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import schemas.files.run_folder
from schemas.files.weights import read_header
from trainer import loop
from trainer.input import cache_files
from trainer.output import (
    lora_file,
    results,
    run_folder,
    states,
)
from trainer.output import (
    previews as sampling,
)
from trainer.output.states import (
    is_whole,
    newest_state,
    read_progress,
    save_state,
)
from trainer.plan import marks
from trainer.watch import report

Start = Callable[..., int]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def die_at(patch: pytest.MonkeyPatch, owner: Any, name: str, when: Callable[..., bool], *, after: bool = False) -> None:
    """`owner.name` raises what nobody catches when `when` says so: to the disk that is a kill."""
    real = getattr(owner, name)

    def struck(*args: Any, **kwargs: Any) -> Any:
        if not after and when(*args):
            raise SystemExit(9)
        done = real(*args, **kwargs)
        if after and when(*args):
            raise SystemExit(9)
        return done

    patch.setattr(owner, name, struck)


def same(one: Path, other: Path) -> bool:
    left, right = load_file(one), load_file(other)
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


ROTATING: dict[str, Any] = {"max_train_steps": 8, "save_every_n_steps": 2, "save_last_n_steps": 2, "save_state": True}


AROUND = [(name, after) for name in ("write_weights", "save_state", "_rotate_states") for after in (False, True)]
FAST = [("write_weights", True), ("save_state", True)]


@pytest.fixture
def whole(start: Start, tmp_path: Path) -> Callable[..., Path]:
    """whole(options) is the folder of a run with these options that nothing disturbed."""

    def made(**options: Any) -> Path:
        key = repr(options)
        if key not in UNDISTURBED:
            UNDISTURBED[key] = tmp_path / "whole"
            assert start(output_dir=UNDISTURBED[key], **options) == 0
        return UNDISTURBED[key]

    return made


UNDISTURBED: dict[str, Path] = {}


@pytest.mark.parametrize(
    ("name", "after"), [pytest.param(*one, marks=[] if one in FAST else pytest.mark.slow) for one in AROUND]
)
def test_a_kill_around_any_part_of_a_save_leaves_the_same_files(
    name: str, after: bool, start: Start, whole: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, parted = whole(**ROTATING), tmp_path / "parted"
    with monkeypatch.context() as patch:
        die_at(patch, results.Results, name, lambda *args: is_step(args, 6), after=after)
        with pytest.raises(SystemExit):
            start(output_dir=parted, resume=parted / "n0m3.run", **ROTATING)
    assert start(output_dir=parted, resume=parted / "n0m3.run", **ROTATING) == 0
    assert names(expected) == names(parted)
    assert names(expected / "n0m3.run") == names(parted / "n0m3.run")
    assert same(expected / "n0m3.safetensors", parted / "n0m3.safetensors")


def is_step(args: tuple[Any, ...], step: int) -> bool:
    moment = args[1]
    return (moment.step if isinstance(moment, marks.Save) else moment.at.step) == step


def test_the_same_command_starts_goes_on_and_refuses_to_begin_again(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "out" / "n0m3.run"
    with monkeypatch.context() as patch:
        die_at(patch, loop.Run, "update", lambda run, *rest: run.at.step == 1)
        with pytest.raises(SystemExit):
            start(resume=run)
    assert newest_state(run) == run / "state-00000000"  # before the first mark there is one too
    assert start(resume=run) == 0
    assert names(run) == {"config.toml", "log.jsonl"}
    assert start(resume=run) == 1
    assert "already has results" in capsys.readouterr().err
    assert names(run) == {"config.toml", "log.jsonl"}


def test_an_unfinished_run_is_not_begun_again_by_mistake(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        die_at(patch, results.Results, "finish", lambda *rest: True)
        with pytest.raises(SystemExit):
            start(save_every_n_steps=2)
    for copy in (tmp_path / "out").glob("*.safetensors"):
        copy.unlink()
    assert start() == 1
    assert "n0m3.run/state-00000004" in capsys.readouterr().err
    assert start(overwrite=True, max_train_steps=2, save_state_on_train_end=True) == 0
    assert [state.name for state in states.states_in(tmp_path / "out" / "n0m3.run")] == ["state-00000002"]


def test_going_back_to_an_older_state_drops_what_came_after(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, options = tmp_path / "out" / "n0m3.run", {"save_every_n_steps": 1, "save_state": True}
    assert start(**options) == 0
    with monkeypatch.context() as patch:
        die_at(patch, loop.Run, "update", lambda run, *rest: True)
        with pytest.raises(SystemExit):
            start(resume=run / "state-00000002", **options)
    assert newest_state(run) == run / "state-00000002"


def full_disk(patch: pytest.MonkeyPatch, full: Callable[[Path], bool], number: int = errno.ENOSPC) -> None:
    """The disk has no room for files that `full` names: half of the file is written, then the system says no."""
    real = lora_file.write_atomically

    def write(path: Path, fill: Callable[[Any], object], check: Any = None) -> None:
        if not full(path):
            return real(path, fill, check)

        class Short:
            def __init__(self, stream: Any) -> None:
                self.stream = stream

            def write(self, data: bytes) -> int:
                self.stream.write(bytes(data)[: len(data) // 2])
                raise OSError(number, os.strerror(number))

            def flush(self) -> None:
                self.stream.flush()

        return real(path, lambda stream: fill(Short(stream)), check)

    for module in (lora_file, states, cache_files, sampling, run_folder, report):
        patch.setattr(module, "write_atomically", write)


@pytest.mark.parametrize(
    "what",
    ["n0m3-step00000004.safetensors", "optimizer.pt", pytest.param("n0m3.safetensors", marks=pytest.mark.slow)],
)
def test_a_full_disk_says_what_is_needed_and_leaves_the_rest_whole(
    what: str, start: Start, whole: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out, saved = tmp_path / "out", {"max_train_steps": 6, "save_every_n_steps": 2}
    expected = whole(**saved)
    with monkeypatch.context() as patch:
        steps: list[int] = []
        full_disk(patch, lambda path: path.name == what and (len(steps) > 2 or what != "optimizer.pt"))
        patch.setattr(loop, "Record", counted(loop.Record, steps))
        assert start(**saved) == 3
    said = capsys.readouterr().err
    assert "No space left on device" in said
    assert "a LoRA takes 0." in said
    assert "Traceback" not in said
    assert f"kohyakit resume {out / 'n0m3.run'}" in said
    assert not any(".tmp" in name for name in names(out) | names(out / "n0m3.run"))
    assert newest_state(out / "n0m3.run") is not None
    assert start(resume=out / "n0m3.run", **saved) == 0
    assert same(out / "n0m3.safetensors", expected / "n0m3.safetensors")


def counted(real: Any, steps: list[int]) -> Any:
    def make(step: int, *rest: Any, **more: Any) -> Any:
        steps.append(step)
        return real(step, *rest, **more)

    return make


def test_no_room_for_a_safety_state_is_a_warning(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps: list[int] = []
    monkeypatch.setattr(results, "SOONEST", -1.0)
    monkeypatch.setattr(results, "SHARE", 0.0)
    monkeypatch.setattr(results, "LATEST", -1.0)
    full_disk(monkeypatch, lambda path: path.name == "optimizer.pt" and bool(steps))
    monkeypatch.setattr(loop, "Record", counted(loop.Record, steps))
    assert start() == 0
    assert "warning: no room for a training state: it takes" in capsys.readouterr().out


def test_states_are_kept_after_a_minute_then_ever_less_often(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, saved = [0.0], []
    monkeypatch.setattr(results.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(results.states, "save_state", lambda folder, *rest: saved.append(now[0]))
    made = results.Results.__new__(results.Results)
    made.main, made._began, made._state_due, made._marks = True, 0.0, results.SOONEST, {}
    made.config, made._named = None, None  # type: ignore[assignment]
    made.folder = results.RunFolder(tmp_path, "n0m3")
    run = type("Run", (), {"at": loop.Position(1), "parts": None})()
    monkeypatch.setattr(results.Results, "parts", staticmethod(lambda run: {}))
    for second in range(0, 3600, 10):
        now[0] = float(second)
        made.keep_state_when_due(run)
    assert saved == [70, 150, 310, 630, 1240, 1850, 2460, 3070]


def test_a_signal_while_the_end_is_saved_lets_it_be_saved(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = results.Results.finish

    def interrupted(self: Any, run: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        finish(self, run)

    monkeypatch.setattr(results.Results, "finish", interrupted)
    assert start() == 0
    assert (tmp_path / "out" / "n0m3.safetensors").exists()


def test_a_second_signal_stops_inside_a_save_and_leaves_it_undone(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        serialize = states.safetensors.torch.save

        def impatient(*given: Any) -> bytes:
            if (out / "n0m3.run" / "log.jsonl").stat().st_size:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)
            return serialize(*given)

        patch.setattr(states.safetensors.torch, "save", impatient)
        assert start(save_every_n_steps=2) == 130
    assert not list(out.rglob("*.tmp"))
    assert all(is_whole(state) for state in (out / "n0m3.run").glob("state-*"))
    assert start(save_every_n_steps=2, resume=out / "n0m3.run") == 0


def test_one_state_may_stand_for_a_step_and_an_epoch(start: Start, tmp_path: Path) -> None:
    run = tmp_path / "out" / "n0m3.run"
    assert start(save_state=True, train_batch_size=2, save_every_n_steps=5, save_every_n_epochs=1, max_train_epochs=3,
                 save_last_n_steps_state=1) == 0  # fmt: skip
    kept = {state.name: (read_progress(state) or {})["saves"] for state in states.states_in(run)}
    assert kept == {
        "state-00000005": ["n0m3-000001-state"],  # the name of the step has been rotated away
        "state-00000010": ["n0m3-000002-state"],
        "state-00000015": ["n0m3-step00000015-state", "n0m3-state"],
    }


def test_a_save_reads_no_state_but_its_own_however_many_are_kept(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[Path] = []
    real = schemas.files.run_folder.judge

    def counted(folder: Path, **how: Any) -> Any:
        judged.append(folder)
        return real(folder, **how)

    for module in (schemas.files.run_folder, states):
        monkeypatch.setattr(module, "judge", counted)
    counts = []
    for steps in (4, 12):
        judged.clear()
        options: dict[str, Any] = {"output_name": f"n{steps}", "max_train_steps": steps, "save_every_n_steps": 1}
        assert start(**options, save_state=True, save_last_n_steps_state=steps - 2) == 0
        counts.append(len(judged))
        kept = states.states_in(tmp_path / "out" / f"n{steps}.run")
        assert [int(state.name[6:]) for state in kept] == list(range(2, steps + 1))
    assert counts[1] - counts[0] <= 8 * 3  # of the eight saves more that the longer run makes


def test_a_copy_within_an_epoch_tells_the_epochs_done_before_it(start: Start, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert start(train_batch_size=2, save_every_n_steps=4, save_every_n_epochs=1, max_train_epochs=2) == 0
    told = {file.name: read_header(file).metadata["ss_epoch"] for file in sorted(out.glob("*.safetensors"))}
    assert told == {
        "n0m3-000001.safetensors": "1",
        "n0m3-step00000004.safetensors": "0",
        "n0m3-step00000008.safetensors": "1",
        "n0m3.safetensors": "2",
    }


def test_a_state_that_was_ready_but_for_its_name_is_kept_by_the_sweep(tmp_path: Path) -> None:
    save_state(tmp_path / "state-00000004", {}, {"step": 4})
    (tmp_path / "state-00000004").rename(tmp_path / ".state-00000004.77.tmp")
    (tmp_path / ".state-00000002.77.old").mkdir()
    (tmp_path / ".state-00000006.77.tmp").mkdir()
    states.sweep_states(tmp_path)
    assert names(tmp_path) == {"state-00000004"}


PLACES = ["log.jsonl", "config.toml", ".png", "state", "n0m3-step00000002.safetensors"]


NUMBERS = [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS]
REFUSED = [(number, what) for number in NUMBERS for what in PLACES]
QUICK = list(zip(NUMBERS * 2, PLACES, strict=False))


@pytest.mark.parametrize(
    ("number", "what"), [pytest.param(*one, marks=[] if one in QUICK else pytest.mark.slow) for one in REFUSED]
)
def test_a_disk_that_refuses_any_kind_of_file_ends_the_run_with_3_and_its_words(
    number: int, what: str, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("n0m3 --w 64 --h 64 --s 1 --d 1\n", encoding="utf-8")
    with monkeypatch.context() as patch:
        full_disk(patch, lambda path: what in f"{path.parent.name}/{path.name}", number)
        options = {"sample_prompts": str(prompts), "sample_every_n_steps": 1}
        code = start(max_train_steps=3, save_every_n_steps=2, **options)
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert code == 3
    assert os.strerror(number) in said
    assert ("Make room" in said) == (number in (errno.ENOSPC, errno.EDQUOT))
