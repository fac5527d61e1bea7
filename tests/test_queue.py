"""A real queue with real runs: everything is killed in the middle, as by a power cut, and goes on bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from benchmarks.torture import COMMON, make_inputs
from schemas import TrainConfig, write

PATIENCE = 90.0


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    make_inputs(folder)
    return folder


@pytest.fixture
def kohyakit(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """`kohyakit(*words)` starts the command in tmp_path; whatever is left of it at the end is killed."""
    started: list[subprocess.Popen[str]] = []
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent),
                 "XDG_STATE_HOME": str(tmp_path / "state")}  # fmt: skip

    def start(*words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "launcher", *words]
        started.append(
            subprocess.Popen(
                command, cwd=tmp_path, env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
        )
        return started[-1]

    yield start
    for run in started:
        kill(run)


def kill(run: subprocess.Popen[str]) -> None:
    """The process and everything below it, at once."""
    if run.poll() is None:
        for process in [*psutil.Process(run.pid).children(recursive=True), psutil.Process(run.pid)]:
            try:
                process.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                pass
    run.wait()


def when_steps(run: subprocess.Popen[str], log: Path, steps: int) -> None:
    began = time.monotonic()
    while not (log.is_file() and log.read_bytes().count(b"\n") >= steps):
        assert run.poll() is None, run.communicate()[0]
        assert time.monotonic() - began < PATIENCE
        time.sleep(0.02)


@pytest.mark.slow
def test_a_queue_survives_a_power_cut_bit_for_bit(kohyakit, inputs: Path, tmp_path: Path) -> None:
    options = {**COMMON, "pretrained_model_name_or_path": str(inputs / "base.safetensors"), "output_dir": "out",
               "train_data_dir": str(inputs / "data"), "save_state": True, "save_every_n_steps": 5}  # fmt: skip
    for name in ("whole", "cut", "next"):
        steps = 5 if name == "next" else 20
        config = TrainConfig(**{**options, "output_name": name, "max_train_steps": steps})
        (tmp_path / f"{name}.toml").write_text(write(config), encoding="utf-8")
    assert kohyakit("launch", "whole.toml").wait() == 0
    for name in ("cut", "next"):
        assert kohyakit("queue", "add", f"{name}.toml").wait() == 0
    run = kohyakit("queue", "run")
    when_steps(run, tmp_path / "out" / "cut.run" / "log.jsonl", 12)
    kill(run)
    again = kohyakit("queue", "run")
    said = again.communicate(timeout=PATIENCE)[0]
    assert again.returncode == 0, said
    assert "cut waiting: cut off at step" in said
    listed = kohyakit("queue", "list", "--json")
    jobs = json.loads(listed.communicate()[0])["jobs"]
    assert [(job["name"], job["state"], job["step"]) for job in jobs] == [("cut", "done", 20), ("next", "done", 5)]
    assert [start["words"][0] for start in jobs[0]["starts"]] == ["launch", "resume"]
    from safetensors.torch import load_file

    whole, cut = (load_file(tmp_path / "out" / f"{name}.safetensors") for name in ("whole", "cut"))
    assert all((whole[key] == cut[key]).all() for key in whole)
