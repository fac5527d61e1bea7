"""What would be submitted, what runs on a node, and what a time limit does, without a cluster."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from launcher.cluster import slurm, task
from launcher.cluster.slurm import Request, minutes_of
from launcher.cluster.task import JOB, ClusterRun, Node, RunFailed, read_job
from launcher.queue.add import Wish
from schemas.problems import ConfigError
from tests.launcher.conftest import add_state


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("90", 90),
        ("8:00:00", 480),
        ("30:00", 30),
        ("1-0", 1440),
        ("2-03:30", 3090),
        ("1-00:00:01", 1441),
        ("0:00:59", 1),
    ],
)
def test_time_limits_are_read_as_slurm_reads_them(text: str, minutes: int) -> None:
    assert minutes_of(text) == minutes


@pytest.mark.parametrize("text", ["eight hours", "8h", "", "-3", "1:2:3:4"])
def test_what_is_no_time_limit_is_told(text: str) -> None:
    with pytest.raises(ConfigError, match="is no time limit"):
        minutes_of(text)


@pytest.fixture
def printed(kohyakit, preset):
    """`printed(*words)`: the script that would be submitted."""

    def one(*words: Any) -> str:
        found = kohyakit("launch", preset(), "--on", "slurm", *words, "--print-command")
        assert found.exit_code == 0, found.stderr
        return str(found.stdout)

    return one


def test_the_script_says_what_was_asked_for(printed, tmp_path: Path) -> None:
    script = printed("--nodes", 2, "--gpus-per-node", 4, "--time", "8:00:00", "--partition", "gpu", "--mem", "64G")
    asked = {"nodes=2", "ntasks-per-node=1", "gpus-per-node=4", "time=480", "partition=gpu", "mem=64G", "requeue",
             "signal=USR2@120", "open-mode=append"}  # fmt: skip
    assert asked <= {line.removeprefix("#SBATCH --") for line in script.splitlines()}
    assert f"#SBATCH --output={tmp_path / 'out' / 'frog.slurm' / '%j_0_log.out'}" in script
    assert "submitit.core._submit" in script
    assert not (tmp_path / "out").exists()


def test_the_plan_is_made_for_the_cluster_not_for_this_machine(kohyakit, preset) -> None:
    """fp16 would be changed on the CPU of a login node; 8 processes are no fault of its missing GPUs."""
    words = ("launch", preset(mixed_precision="fp16"), "--on", "slurm", "--print-command", "--strict", "--json")
    found = kohyakit(*words, "--nodes", 2, "--gpus-per-node", 4)
    assert found.exit_code == 0, found.stderr
    assert json.loads(found.stdout)["words"][2:4] == ["--processes", "8"]
    assert kohyakit(*words, "--gpus-per-node", 0).exit_code == 1


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--nodes", 2), 2, "--nodes belongs to --on slurm"),
        (("--spot",), 2, "--spot belongs to --on sky"),
        (("--on", "slurm", "--gpu", "RTX4090"), 2, "--gpu has no effect with --on slurm"),
        (("--on", "slurm", "--machines", 2), 2, "--machines has no effect with --on slurm"),
        (("--on", "slurm", "--backend", "sd-scripts"), 2, "has no --on"),
        (("--on", "slurm", "--time", "2"), 1, "leaves no time to train"),
        (("--on", "slurm", "--set", "train_data_dir=/content/x"), 1, "train_data_dir"),
    ],
)
def test_what_does_not_go_together_is_refused(kohyakit, preset, tmp_path: Path, words, code, said) -> None:
    found = kohyakit("launch", preset(), *words)
    assert (found.exit_code, said in found.stderr) == (code, True), found.stderr
    assert not (tmp_path / "out").exists()


def test_without_submitit_and_without_a_cluster_the_way_is_told(kohyakit, preset, monkeypatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert "needs sbatch" in kohyakit("launch", preset(), "--on", "slurm").stderr
    real = slurm.importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *more: None if name == "submitit" else real(name, *more)
    )
    assert 'pip install "kohyakit[slurm]"' in kohyakit("launch", preset(), "--on", "slurm").stderr


class Executor:
    """Stands in for submitit's: takes the callable, or refuses it as sbatch would."""

    def __init__(self, refusal: str = "") -> None:
        self.refusal = refusal
        self.taken: list[ClusterRun] = []

    def submit(self, run: ClusterRun) -> Any:
        if self.refusal:
            raise subprocess.CalledProcessError(1, self.refusal)
        self.taken.append(run)
        return type("Job", (), {"job_id": 77})


def test_a_job_is_kept_with_its_number_and_its_log(preset, tmp_path: Path) -> None:
    request = Request(gpus_per_node=0)
    executor = Executor()
    made = slurm.sent(executor, slurm.prepare(Wish(str(preset())), request), request)
    assert (made.job_id, made.log) == ("77", tmp_path / "out" / "frog.slurm" / "77_0_log.out")
    assert read_job(made.folder).words[0] == "launch"
    assert pickle.loads(pickle.dumps(executor.taken[0])).folder == str(made.folder)


def test_what_slurm_refuses_is_told_and_leaves_nothing(preset, tmp_path: Path) -> None:
    request = Request(gpus_per_node=0)
    with pytest.raises(ConfigError, match="invalid partition"):
        slurm.sent(Executor("invalid partition specified"), slurm.prepare(Wish(str(preset())), request), request)
    assert not (tmp_path / "out" / "frog.slurm").exists()


def test_a_run_is_not_submitted_twice(preset, monkeypatch, tmp_path: Path) -> None:
    request = Request(gpus_per_node=0)
    slurm.sent(Executor(), slurm.prepare(Wish(str(preset())), request), request)
    monkeypatch.setattr(slurm, "state_of", lambda job: "PENDING")
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    with pytest.raises(ConfigError, match="is job 77 of this cluster, PENDING"):
        slurm.submit(Wish(str(preset())), request)


# On a node


@pytest.fixture
def submitted(preset) -> Path:
    """The folder of a submitted job."""
    request = Request(gpus_per_node=0)
    return slurm.sent(Executor(), slurm.prepare(Wish(str(preset())), request), request).folder


class Launcher:
    """The command that a node starts: keeps its words, ends with the code given."""

    code = 0

    def __init__(self, words: list[str], **options: Any) -> None:
        type(self).words, type(self).options = words, options

    def wait(self, timeout: float | None = None) -> int:
        return self.code


@pytest.fixture
def node(monkeypatch):
    """`node(rank, count)` is where the next run finds itself."""
    monkeypatch.setattr(task.subprocess, "Popen", Launcher)
    monkeypatch.setattr(Launcher, "code", 0)

    def here(rank: int = 0, count: int = 1, restart: str = "0") -> None:
        monkeypatch.setattr(Node, "here", classmethod(lambda cls: Node(rank, count, "gpu-07", "4711_2", restart)))

    here()
    return here


def begun(folder: Path) -> Path:
    """The run folder after a start of this job that got as far as step 4."""
    run = read_job(folder).run
    run.mkdir(parents=True)
    (run / "config.toml").write_text("seed = 1\n")
    (run / "log.jsonl").write_text('{"step": 4}\n')
    (run / "run.json").write_text(
        json.dumps({"starts": [{"begin": read_job(folder).starts[-1]["begin"], "exit": None}]})
    )
    add_state(run, 4)
    return run


def test_the_first_start_launches_and_every_later_one_resumes(submitted: Path, node) -> None:
    assert ClusterRun(str(submitted), 120)() == 0
    job = read_job(submitted)
    assert Launcher.words[3:] == list(job.words)
    assert Launcher.options["cwd"] == job.cwd
    run = begun(submitted)
    ClusterRun(str(submitted), 120)()
    assert Launcher.words[3:] == ["resume", str(run), "--to-end"]
    record = json.loads((run / "run.json").read_text())
    record["starts"][-1]["exit"] = 0
    (run / "run.json").write_text(json.dumps(record))
    Launcher.words = []
    assert ClusterRun(str(submitted), 120)() == 0
    assert Launcher.words == []


def test_a_failed_run_fails_the_job(submitted: Path, node, monkeypatch) -> None:
    monkeypatch.setattr(Launcher, "code", 3)
    with pytest.raises(RunFailed, match="exit code 3"):
        ClusterRun(str(submitted), 120)()


def test_several_nodes_do_what_the_first_one_has_decided(submitted: Path, node) -> None:
    """The first one has written its record by the time that the second one looks: it must not resume."""
    node(0, 2)
    ClusterRun(str(submitted), 120)()
    first = Launcher.words
    assert first[-8:] == ["--machines", "2", "--machine-rank", "0", "--main-ip", "gpu-07", "--main-port", "27112"]
    begun(submitted)
    node(1, 2)
    ClusterRun(str(submitted), 120)()
    assert Launcher.words == [*first[:-5], "1", *first[-4:]]
    node(0, 2, restart="1")
    ClusterRun(str(submitted), 120)()
    assert Launcher.words[3] == "resume"


def test_a_first_node_that_never_begins_is_told(submitted: Path, node, monkeypatch) -> None:
    monkeypatch.setattr(task, "PATIENCE", 0)
    node(1, 2)
    with pytest.raises(RunFailed, match="the first node has not begun"):
        ClusterRun(str(submitted), 120)()


def test_a_damaged_job_file_is_named(submitted: Path, node) -> None:
    (submitted / JOB).write_text("{")
    with pytest.raises(ConfigError, match=r"job\.json"):
        ClusterRun(str(submitted), 120)()


def a_child(code: str) -> subprocess.Popen[bytes]:
    """A process that does so when it is asked to stop, and nothing else."""
    code = f"import signal, sys, time; {code}; print('ready', flush=True); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    return child


def test_a_warning_lets_the_run_save_and_queues_it_again(submitted: Path) -> None:
    child = a_child("signal.signal(signal.SIGTERM, lambda *w: sys.exit(130))")
    again = ClusterRun(str(submitted), 120, child).checkpoint()
    assert child.wait(0) == 130
    assert (again.function.folder, again.function.child) == (str(submitted), None)


def test_a_time_limit_in_the_middle_of_a_save_goes_on_from_the_state_before(submitted: Path, node, monkeypatch) -> None:
    """The save takes longer than the grace: it is not waited for, and what it leaves half written does not count."""
    ClusterRun(str(submitted), 120)()
    run = begun(submitted)
    half = run / "state-00000008"
    half.mkdir()
    (half / "optimizer.pt").write_bytes(b"half")
    monkeypatch.undo()  # a real process
    child = a_child("signal.signal(signal.SIGTERM, signal.SIG_IGN)")
    began = time.monotonic()
    again = ClusterRun(str(submitted), task.MARGIN + 1, child).checkpoint()
    assert time.monotonic() - began < 5
    child.kill()
    child.wait()
    words, _ = again.function.begin()
    assert words == ["resume", str(run), "--to-end"]
    from launcher.run.resume import find

    state = find(str(run)).state
    assert state is not None
    assert state.name == "state-00000004"


@pytest.mark.slow
def test_submitits_own_executor_preempts_a_real_run_that_ends_bit_for_bit(tmp_path: Path, monkeypatch) -> None:
    import submitit

    from benchmarks.torture import COMMON, make_inputs
    from schemas import TrainConfig, write

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(slurm.__file__).parents[2]))
    monkeypatch.chdir(tmp_path)
    make_inputs(tmp_path)
    options = {**COMMON, "pretrained_model_name_or_path": "base.safetensors", "train_data_dir": "data",
               "output_dir": "out", "save_every_n_steps": None, "max_train_steps": 60}  # fmt: skip
    for name in ("whole", "cut"):
        (tmp_path / f"{name}.toml").write_text(write(TrainConfig(**{**options, "output_name": name})))
    subprocess.run([sys.executable, "-m", "launcher", "launch", "whole.toml"], check=True, stdout=subprocess.DEVNULL)
    request = Request(gpus_per_node=0, minutes=10)
    made = slurm.prepare(Wish("cut.toml"), request)
    executor = submitit.LocalExecutor(folder=made.folder)
    executor.update_parameters(timeout_min=10, signal_delay_s=120)
    made = slurm.sent(executor, made, request)
    log = made.job.run / "log.jsonl"
    until = time.monotonic() + 120
    while not (log.is_file() and log.read_bytes().count(b"\n") > 5):
        assert time.monotonic() < until
        time.sleep(0.05)
    (job,) = [submitit.LocalJob(made.folder, made.job_id)]
    pid = next(int(line) for line in subprocess.check_output(["pgrep", "-P", str(made.job_id)], text=True).split())
    os.kill(pid, signal.SIGUSR2)
    assert job.result() == 0
    record = json.loads((made.job.run / "run.json").read_text())
    assert [(start["mode"], start["exit"]) for start in record["starts"]] == [("launch", 130), ("resume", 0)]
    from safetensors.torch import load_file

    whole, cut = (load_file(tmp_path / "out" / f"{name}.safetensors") for name in ("whole", "cut"))
    assert all((whole[key] == cut[key]).all() for key in whole)
