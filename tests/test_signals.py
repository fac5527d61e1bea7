"""Signals and kills as a user meets them: a real `kohyakit launch` with the trainer under it, then `resume`."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file

from benchmarks.torture import COMMON, make_inputs
from schemas import TrainConfig, write
from schemas.signals import ONE_WISH
from trainer.output.states import is_whole, newest_state, states_in

Run = subprocess.Popen[str]
PATIENCE = 60.0


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    make_inputs(folder)
    return folder


@pytest.fixture
def kohyakit(inputs: Path, tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """kohyakit(*words) starts the command in tmp_path, where run.toml would train for minutes."""
    options = {**COMMON, "pretrained_model_name_or_path": str(inputs / "base.safetensors"), "output_dir": "out",
               "train_data_dir": str(inputs / "data"), "max_train_steps": 900, "save_every_n_steps": None}  # fmt: skip
    (tmp_path / "run.toml").write_text(write(TrainConfig(**options)), encoding="utf-8")
    started: list[Run] = []
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent)}

    def start(*words: str, module: str = "launcher", **options: Any) -> Run:
        command = [sys.executable, "-m", module, *words]
        outlets = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        started.append(subprocess.Popen(command, cwd=tmp_path, env=variables, text=True, **outlets | options))
        return started[-1]

    yield start
    for run in started:
        for process in [*psutil.Process(run.pid).children(recursive=True), run] if run.poll() is None else []:
            process.kill()
        run.wait()


def when_steps(run: Run, folder: Path, steps: int) -> None:
    """Returns as soon as the log has so many records."""
    log, began = folder / "out" / "n0m3.run" / "log.jsonl", time.monotonic()
    while not (log.is_file() and log.read_bytes().count(b"\n") >= steps):
        assert run.poll() is None, run.communicate()[0]
        assert time.monotonic() - began < PATIENCE
        time.sleep(0.02)


def trainer_of(run: Run) -> psutil.Process:
    """The trainer's own process, below `accelerate launch`."""
    return psutil.Process(run.pid).children(recursive=True)[-1]


def starts(folder: Path) -> list[tuple[str, int]]:
    record = json.loads((folder / "out" / "n0m3.run" / "run.json").read_text(encoding="utf-8"))
    return [(start["mode"], start["exit"]) for start in record["starts"]]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_one_signal_saves_and_the_next_command_goes_on(
    number: int, kohyakit: Callable[..., Run], tmp_path: Path
) -> None:
    run = kohyakit("launch", "run.toml")
    when_steps(run, tmp_path, 2)
    run.send_signal(number)
    said = run.communicate(timeout=PATIENCE)[0]
    assert run.returncode == 130, said
    assert "Traceback" not in said
    state = newest_state(tmp_path / "out" / "n0m3.run")
    assert state is not None
    step = int(state.name[6:])
    assert load_file(tmp_path / "out" / f"n0m3-step{step:08d}.safetensors")
    assert said.count(f"kohyakit resume {tmp_path / 'out' / 'n0m3.run'}") == 1
    again = kohyakit("resume", "out/n0m3.run", "--set", f"max_train_steps={step + 2}")
    said = again.communicate(timeout=PATIENCE)[0]
    assert (again.returncode, starts(tmp_path)) == (0, [("launch", 130), ("resume", 0)]), said
    assert f"resumed at step {step} of {step + 2}" in said


@pytest.mark.slow
def test_two_signals_stop_now_and_what_is_there_is_whole(kohyakit: Callable[..., Run], tmp_path: Path) -> None:
    run = kohyakit("launch", "run.toml", "--set", "save_every_n_steps=2")
    when_steps(run, tmp_path, 3)
    run.send_signal(signal.SIGINT)
    time.sleep(ONE_WISH + 0.1)
    run.send_signal(signal.SIGINT)
    said = run.communicate(timeout=PATIENCE)[0]
    assert run.returncode == 130, said
    assert "Traceback" not in said
    folder = tmp_path / "out" / "n0m3.run"
    assert all(is_whole(state) for state in folder.glob("state-*"))
    assert states_in(folder)
    for file in (tmp_path / "out").glob("*.safetensors"):
        load_file(file)


@pytest.mark.slow
def test_a_killed_trainer_is_explained_and_gone_on_from(kohyakit: Callable[..., Run], tmp_path: Path) -> None:
    run = kohyakit("launch", "run.toml", "--set", "save_every_n_steps=2")
    when_steps(run, tmp_path, 3)
    trainer_of(run).send_signal(signal.SIGKILL)
    said = run.communicate(timeout=PATIENCE)[0]
    assert run.returncode == 3, said
    assert "the trainer was killed from outside" in said
    assert f"go on with: kohyakit resume {tmp_path / 'out' / 'n0m3.run'}" in said
    again = kohyakit("resume", "out", "--set", "max_train_steps=6")
    said = again.communicate(timeout=PATIENCE)[0]
    assert again.returncode == 0, said
    assert "verdict: equivalent" in said  # the length was changed


@pytest.mark.slow
def test_the_launcher_itself_may_be_killed(kohyakit: Callable[..., Run], tmp_path: Path) -> None:
    """A closed terminal, a power cut: nobody writes an end into run.json."""
    run = kohyakit("launch", "run.toml", "--set", "save_every_n_steps=2")
    when_steps(run, tmp_path, 3)
    for process in [run, *reversed(psutil.Process(run.pid).children(recursive=True))]:
        process.send_signal(signal.SIGKILL)
    run.communicate(timeout=PATIENCE)
    again = kohyakit("resume", "out", "--set", "max_train_steps=6")
    said = again.communicate(timeout=PATIENCE)[0]
    assert (again.returncode, starts(tmp_path)) == (0, [("launch", None), ("resume", 0)]), said


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_signal_to_every_process_of_a_run_saves(
    processes: str, number: int, kohyakit: Callable[..., Run], tmp_path: Path
) -> None:
    """As service managers and batch systems send it: launcher, starter, trainers and their workers, all at once."""
    options = ("cache_latents=false", "max_data_loader_n_workers=1", "persistent_data_loader_workers=true")
    sets = [word for option in options for word in ("--set", option)]
    run = kohyakit("launch", "run.toml", "--processes", processes, *sets)
    when_steps(run, tmp_path, 2)
    for process in [psutil.Process(run.pid), *psutil.Process(run.pid).children(recursive=True)]:
        process.send_signal(number)
    said = run.communicate(timeout=PATIENCE)[0]
    assert run.returncode == 130, said
    assert "Traceback" not in said
    assert said.count("stopped at step") == 1
    assert newest_state(tmp_path / "out" / "n0m3.run") is not None
    assert starts(tmp_path) == [("launch", 130)]


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["1", "2"])
def test_the_death_of_the_launcher_alone_stops_the_run_in_order(
    processes: str, kohyakit: Callable[..., Run], tmp_path: Path
) -> None:
    run = kohyakit("launch", "run.toml", "--processes", processes)
    when_steps(run, tmp_path, 2)
    below = psutil.Process(run.pid).children(recursive=True)
    run.kill()
    _, alive = psutil.wait_procs(below, timeout=30)
    assert alive == []
    state = newest_state(tmp_path / "out" / "n0m3.run")
    assert state is not None
    assert int(state.name[6:]) >= 2
    assert load_file(tmp_path / "out" / f"n0m3-step{int(state.name[6:]):08d}.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("moment", [0.3, 1.2, 2.5, 4.0])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_first_step_is_no_traceback(
    number: int, moment: float, kohyakit: Callable[..., Run], tmp_path: Path
) -> None:
    """While the plan is made, torch is imported, models are loaded; `accelerate launch` imports torch, too."""
    run = kohyakit("launch", "run.toml")
    time.sleep(moment)
    run.send_signal(number)
    said = run.communicate(timeout=PATIENCE)[0]
    assert run.returncode == 130, said
    assert "Traceback" not in said
    assert "KeyboardInterrupt" not in said


@pytest.mark.slow
@pytest.mark.parametrize("moment", [0.3, 1.0, 2.0, 3.5])
def test_the_trainer_alone_is_interrupted_without_a_traceback(
    moment: float, kohyakit: Callable[..., Run], tmp_path: Path
) -> None:
    run = kohyakit("--config_file", "run.toml", module="trainer")
    time.sleep(moment)
    run.send_signal(signal.SIGINT)
    said = run.communicate(timeout=PATIENCE)[0]
    assert run.returncode == 130, said
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_closed_terminal_stops_the_run_in_order(kohyakit: Callable[..., Run], tmp_path: Path) -> None:
    """The kernel sends SIGHUP to launcher and starter, and every write to the terminal fails from then on."""
    master, slave = pty.openpty()
    run = kohyakit("launch", "run.toml", stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
                   preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))  # fmt: skip
    os.close(slave)
    when_steps(run, tmp_path, 2)
    below = psutil.Process(run.pid).children(recursive=True)
    os.close(master)
    assert run.wait(PATIENCE) == 130
    _, alive = psutil.wait_procs(below, timeout=20)
    assert alive == []
    assert starts(tmp_path) == [("launch", 130)]
    assert newest_state(tmp_path / "out" / "n0m3.run") is not None


@pytest.mark.slow
def test_a_reader_that_leaves_does_not_stop_the_run(kohyakit: Callable[..., Run], tmp_path: Path) -> None:
    run = kohyakit("launch", "run.toml", "--set", "max_train_steps=4")
    when_steps(run, tmp_path, 1)
    assert run.stdout is not None
    run.stdout.close()
    assert run.wait(PATIENCE) == 0
    assert starts(tmp_path) == [("launch", 0)]


@pytest.mark.slow
def test_two_processes_stop_on_one_signal(kohyakit: Callable[..., Run], tmp_path: Path) -> None:
    run = kohyakit("launch", "run.toml", "--processes", "2")
    when_steps(run, tmp_path, 2)
    run.send_signal(signal.SIGINT)
    said = run.communicate(timeout=PATIENCE)[0]
    assert run.returncode == 130, said
    assert newest_state(tmp_path / "out" / "n0m3.run") is not None
    assert said.count("stopped at step") == 1


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_takes_the_whole_run_down(victim: int, kohyakit: Callable[..., Run], tmp_path: Path) -> None:
    run = kohyakit("launch", "run.toml", "--processes", "2")
    when_steps(run, tmp_path, 2)
    below = psutil.Process(run.pid).children(recursive=True)
    ranks = {int(process.environ()["RANK"]): process for process in below if "RANK" in process.environ()}
    ranks[victim].kill()
    said = run.communicate(timeout=30)[0]  # torchrun itself would wait half a minute before it kills
    assert run.returncode == 3, said
    assert "the trainer was killed from outside" in said
    assert "kohyakit resume" in said
