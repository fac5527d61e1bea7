"""Where a run goes on: after any change of the number of processes every batch of an epoch is used, none twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import ConfigError, TrainConfig
from schemas.files.resuming import state_meant
from trainer.dataset.order import BatchIndex, shard
from trainer.output.resuming import going_on
from trainer.output.states import save_state
from trainer.plan.steps import Steps, count
from trainer.watch.report import Measured, StepLog


def lengths(batches: int, processes: int, **options: Any) -> tuple[TrainConfig, Steps]:
    config = TrainConfig(**options)
    return config, count(config, batches, processes)


def marks(batches: int, processes: int) -> dict[str, Any]:
    return {"processes": processes, "batches": batches, "data": "d", "seed": 1}


def dealt(batches: int, processes: int, rounds: range, shift: int) -> list[int]:
    """Positions that `processes` use in those rounds, in order."""
    every = [BatchIndex(0, (64, 64), (number,), number) for number in range(batches)]
    shares = [shard(every, processes, rank, shift) for rank in range(processes)]
    return [share[number].position for number in rounds for share in shares]


@given(st.integers(1, 40), st.lists(st.tuples(st.integers(1, 5), st.integers(0, 9)), min_size=1, max_size=5))
def test_no_batch_is_left_out_or_repeated_but_for_the_last_round(batches: int, starts: list[tuple[int, int]]) -> None:
    progress: dict[str, Any] = {"step": 0, "epoch": 1, "batch": 0, **marks(batches, starts[0][0])}
    used: list[int] = []
    for number, (processes, rounds) in enumerate(starts):
        config, steps = lengths(batches, processes, max_train_epochs=2)
        place, _ = going_on(progress, marks(batches, processes), steps, config)
        last = number == len(starts) - 1
        end = steps.batches_per_epoch if last else min(place["batch"] + rounds, steps.batches_per_epoch)
        used += dealt(batches, processes, range(place["batch"], end), place["shift"])
        progress = {**place, "batch": end, **marks(batches, processes)}
    assert used[:batches] == list(range(batches))
    assert len(used) - batches < max(processes for processes, _ in starts)


def test_the_same_processes_go_on_exactly_there() -> None:
    config, steps = lengths(10, 2, max_train_steps=20)
    progress = {"step": 3, "epoch": 1, "batch": 3, "shift": 0, **marks(10, 2)}
    assert going_on(progress, marks(10, 2), steps, config) == ({"step": 3, "epoch": 1, "batch": 3, "shift": 0}, [])


def test_epochs_keep_their_length_and_the_change_is_told() -> None:
    config, steps = lengths(12, 2, max_train_epochs=4)
    place, notes = going_on({"step": 18, "epoch": 2, "batch": 6, **marks(12, 1)}, marks(12, 2), steps, config)
    assert place == {"step": 9, "epoch": 2, "batch": 3, "shift": 0}
    assert steps.total - place["step"] == 3 + 2 * 6
    assert "1 -> 2 processes: equivalent, not bit for bit" in notes[0]


def test_a_length_in_steps_stays_a_length_in_steps() -> None:
    config, steps = lengths(12, 2, max_train_steps=40)
    place, _ = going_on({"step": 18, "epoch": 2, "batch": 6, **marks(12, 1)}, marks(12, 2), steps, config)
    assert place["step"] == 18


def test_changed_data_are_told_and_never_lead_past_the_epoch() -> None:
    config, steps = lengths(4, 1, max_train_epochs=3)
    place, notes = going_on(
        {"step": 9, "epoch": 1, "batch": 9, **marks(10, 1), "data": "x"}, marks(4, 1), steps, config
    )
    assert place == {"step": 4, "epoch": 1, "batch": 4, "shift": 0}
    assert "have changed" in notes[0]


def test_a_run_folder_stands_for_its_newest_state(tmp_path: Path) -> None:
    run = tmp_path / "n0m3.run"
    assert state_meant(run, run).state is None
    with pytest.raises(ConfigError, match="holds no training state"):
        state_meant(tmp_path, run)
    for step in (2, 4):
        save_state(run / f"state-{step:08d}", {}, {"step": step})
    for asked, meant in ((run, 4), (run / "state-00000002", 2)):
        state = state_meant(asked, run).state
        assert state is not None
        assert state.path == run / f"state-{meant:08d}"


def test_measurements_past_the_resumed_step_are_dropped_as_steps_are(tmp_path: Path) -> None:
    log = StepLog(tmp_path / "log.jsonl", keep_until=0)
    for step in (2, 4, 6):
        log.measured(Measured(step, 1, step / 10))
    log.close()
    StepLog(tmp_path / "log.jsonl", keep_until=4).close()
    kept = [json.loads(line) for line in (tmp_path / "validation.jsonl").read_text().splitlines()]
    assert kept == [{"step": 2, "epoch": 1, "loss": 0.2}, {"step": 4, "epoch": 1, "loss": 0.4}]


def test_lines_that_are_no_record_do_not_keep_a_log_from_being_gone_on_with(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    whole = b'{"step": 1, "loss": NaN}\n{"step": 2, "loss": 1.5}\n'
    log.write_bytes(b"\xff\xfe\n[1]\n" + whole + b'{"step": 9}\n{"step": "x"}\n{}\n[\n{"step": 2')
    StepLog(log, keep_until=3).close()
    assert log.read_bytes() == whole
