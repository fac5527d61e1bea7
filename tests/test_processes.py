"""Several processes do the work of one: the same steps, other noise in each, and no hang when one of them dies."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from benchmarks import torture
from benchmarks.torture import Blow, Case, make_inputs, new_place, start, words_of
from launcher.run.command import (
    Accelerate,
    environment,
    free_port,
    launch_command,
)
from schemas import TrainConfig
from schemas import config as schema
from trainer import loop
from trainer.output.states import newest_state
from trainer.watch import connection

EVEN = {"save_every_n_steps": None, "max_train_steps": 5, "lr_scheduler": "constant_with_warmup", "lr_warmup_steps": 3}


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    make_inputs(folder)
    return folder


def train(
    inputs: Path, place: Path, processes: int, *, blow: Blow | None = None, again: bool = False, **options: Any
) -> list[int]:
    """Exit codes of a run on that many processes in `place`; `again` goes on with one that is there."""
    case = Case(place.name, {**EVEN, **options}, processes)
    if not again:
        new_place(inputs, place)
    return start(case, words_of(case, inputs, place), place, blow or Blow(), cold=False)


def records(place: Path) -> list[dict[str, Any]]:
    log = place / "out" / "n0m3.run" / "log.jsonl"
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]


def output(place: Path, rank: int = 0) -> str:
    return (place / f"output-{rank}.txt").read_text(encoding="utf-8")


def far(one: Path, other: Path) -> float:
    """The largest difference of two runs' final weights."""
    left, right = (load_file(place / "out" / "n0m3.safetensors") for place in (one, other))
    assert left.keys() == right.keys()
    return max(float((left[key] - right[key]).abs().max()) for key in left)


def check_equal(inputs: Path, tmp_path: Path, processes: int, **options: Any) -> None:
    """`processes` with a batch each equal one process that accumulates as many: same batches, noise, timesteps."""
    one, many = tmp_path / "one", tmp_path / "many"
    # SGD: Adam would turn a difference of 1e-9 in a gradient near 0 into one of a whole step.
    given = {"optimizer_type": "SGDNesterov", "learning_rate": 0.5, **options}
    assert train(inputs, one, 1, gradient_accumulation_steps=processes, **given) == [0]
    assert train(inputs, many, processes, **given) == [0] * processes
    assert far(one, many) < 1e-5
    for left, right in zip(records(one), records(many), strict=True):
        assert left["loss"] == pytest.approx(right["loss"], abs=1e-5)  # the mean over all, not the first one's
        assert left["lr"] == right["lr"]  # warmup counts updates (trap T28)


def test_two_processes_equal_one_of_the_same_global_batch(inputs: Path, tmp_path: Path) -> None:
    check_equal(inputs, tmp_path, 2, **torture.CHANCE)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("cached", ["memory", "disk", "not"])
def test_any_number_of_processes_equals_one(inputs: Path, tmp_path: Path, processes: int, cached: str) -> None:
    shutil.copytree(inputs, tmp_path / "inputs")
    data = tmp_path / "inputs" / "data"
    (data / "2_n0m3").rename(data / "4_n0m3")  # 20 batches an epoch, which both numbers divide
    cache = {"cache_latents": cached != "not", "cache_latents_to_disk": cached == "disk"}
    check_equal(tmp_path / "inputs", tmp_path, processes, **torture.CHANCE, **cache)


def drawn(rank: int, batch: int, processes: int, shift: int = 0) -> float:
    """The first random number that a process's loss would draw."""
    run = SimpleNamespace(
        at=loop.Position(0, 1, batch, shift), config=SimpleNamespace(seed=7), caches=SimpleNamespace(texts=None),
        steps=SimpleNamespace(processes=processes), accelerator=SimpleNamespace(process_index=rank),
        batch_loss=lambda *rest: torch.rand(()),
    )  # fmt: skip
    return float(loop.Run.training_loss(run, None))  # type: ignore[arg-type]


def test_every_process_draws_other_noise_and_together_they_draw_what_one_would() -> None:
    one = [drawn(0, batch, 1) for batch in range(12)]
    assert len(set(one)) == 12
    assert [drawn(rank, batch, 3) for batch in range(4) for rank in range(3)] == one
    assert [drawn(rank, batch, 2, shift=1) for batch in range(2) for rank in range(2)] == one[1:5]


def test_a_resume_on_other_processes_goes_on_at_the_same_sample_and_says_so(inputs: Path, tmp_path: Path) -> None:
    place, options = tmp_path / "run", {"max_train_steps": None, "max_train_epochs": 1, "save_every_n_steps": 3}
    assert train(inputs, place, 2, **options, save_state=True, save_state_on_train_end=True) == [0, 0]
    (place / "out" / "n0m3.run" / "state-00000005").rename(place / "the end")
    assert train(inputs, place, 1, again=True, **options, save_state=True) == [0]
    assert "2 -> 1 processes: equivalent, not bit for bit; goes on behind batch 6 of 10 of epoch 1" in output(place)
    assert [record["step"] for record in records(place)] == [1, 2, 3, 7, 8, 9, 10]


def test_a_process_that_is_killed_takes_the_others_down(inputs: Path, tmp_path: Path) -> None:
    place = tmp_path / "run"
    codes = train(inputs, place, 2, blow=Blow(1, steps=2), max_train_steps=10**6)
    assert codes == [3, -signal.SIGKILL]
    assert "process 0: another process of this run has ended" in output(place)
    assert newest_state(place / "out" / "n0m3.run") is not None


def test_a_process_that_fails_alone_tells_its_own_message(inputs: Path, tmp_path: Path) -> None:
    place = new_place(inputs, tmp_path / "run")
    case = Case("run", {**EVEN, "cache_latents_to_disk": True, "skip_image_check": True}, 2)
    (place / "data" / "2_n0m3" / "1.png").write_bytes((place / "data" / "2_n0m3" / "1.png").read_bytes()[:-40])
    codes = start(case, words_of(case, inputs, place), place, Blow(), cold=False)
    assert all(codes)
    assert "process 1: " in output(place, 1)
    assert "1.png" in output(place, 1)


def test_a_bad_cache_file_of_any_process_is_named_by_the_first(inputs: Path, tmp_path: Path) -> None:
    place, options = tmp_path / "run", {"cache_latents_to_disk": True, "max_train_epochs": 1}
    assert train(inputs, place, 1, **options) == [0]
    broken = min((place / "data" / "2_n0m3").glob("*.npz"))
    arrays = dict(np.load(broken))
    np.savez(broken, **{**arrays, "latents": arrays["latents"] * np.nan})
    assert train(inputs, place, 2, again=True, overwrite=True, skip_cache_check=True, **options) == [3, 3]
    assert f"cause: the cache file {broken} holds" in output(place)
    assert "the weights of step" in output(place)


def test_the_self_test_names_whom_it_does_not_reach() -> None:
    with socket.create_server(("127.0.0.1", 0)) as open_door, socket.create_server(("127.0.0.1", 0)) as door:
        closed = door.getsockname()[1]
        door.close()
        places = {
            "kohyakit/1": ["process 1 on b", *open_door.getsockname()],
            "kohyakit/2": ["process 2 on c", "127.0.0.1", closed],
        }
        store = SimpleNamespace(check=lambda keys: keys[0] in places, get=lambda key: json.dumps(places[key]))
        said = connection._unreached(store, 0, 4)
    assert said.startswith("process 2 on c cannot be reached at 127.0.0.1 (")
    assert said.endswith("process 3 has not come")


# -- as the launcher starts them: accelerate launch --------------------------------------------------------------------


def launched(inputs: Path, place: Path, port: int, *, rank: int | None = None, **options: Any) -> list[str]:
    """The launcher's command for two processes here, or for machine `rank` of two with one process each."""
    launch = Accelerate(
        num_processes=2, num_machines=1 if rank is None else 2, machine_rank=rank or 0, mixed_precision="no", cpu=True,
        threads=1, main_process_ip=None if rank is None else MAIN, main_process_port=port,
    )  # fmt: skip
    words = launch_command(launch, "unused")
    case = Case("launched", {**EVEN, **options}, 2)
    return [*words[: words.index("trainer") + 1], *words_of(case, inputs, place)]


def variables() -> dict[str, str]:
    launch = Accelerate(num_processes=2, num_machines=1, machine_rank=0, mixed_precision="no", cpu=True, threads=1)
    return environment(launch, os.environ)


def trainers(launcher: int) -> list[int]:
    """The trainer processes that a launcher has started, by rank."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(launcher)], capture_output=True, text=True, check=False)
    return [int(word) for word in listed.stdout.split()]


def wait_for_steps(place: Path, child: subprocess.Popen[bytes], steps: int) -> None:
    log = place / "out" / "n0m3.run" / "log.jsonl"
    while not (log.is_file() and log.read_bytes().count(b"\n") >= steps):
        assert child.poll() is None, child.stdout and child.stdout.read().decode()
        time.sleep(0.05)


@pytest.fixture
def under_way(inputs: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A run of two processes that has made a step and would go on for hours."""
    place = new_place(inputs, tmp_path / "run")
    words = launched(inputs, place, free_port(), max_train_steps=10**6, save_every_n_steps=None)
    child = subprocess.Popen(words, env=variables(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                             start_new_session=True)  # fmt: skip
    try:
        wait_for_steps(place, child, 1)
        yield child, place
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
        child.communicate()


@pytest.mark.slow
def test_a_signal_to_every_process_of_the_job_lets_the_workers_finish_the_step(inputs: Path, tmp_path: Path) -> None:
    """Batch systems send SIGTERM to data workers as well."""
    place = new_place(inputs, tmp_path / "run")
    options = {**EVEN, "max_train_steps": 10**6, "cache_latents": False, "max_data_loader_n_workers": 2}
    words = [sys.executable, "-m", "trainer", *words_of(Case("run", options), inputs, place)]
    child = subprocess.Popen(words, env=variables(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                             start_new_session=True)  # fmt: skip
    wait_for_steps(place, child, 1)
    os.killpg(child.pid, signal.SIGTERM)
    said = child.communicate(timeout=120)[0].decode()
    assert child.returncode == 130, said
    assert newest_state(place / "out" / "n0m3.run") is not None


@pytest.mark.slow
def test_an_interrupt_of_both_saves_and_ends_with_130(under_way: tuple[subprocess.Popen[bytes], Path]) -> None:
    child, place = under_way
    for pid in trainers(child.pid):
        os.kill(pid, signal.SIGINT)
    said = child.communicate(timeout=120)[0].decode()
    assert "stopped at step" in said
    assert "exitcode  : 130" in said or "exit status 130" in said or child.returncode == 130
    state = newest_state(place / "out" / "n0m3.run")
    assert state is not None
    assert len(list((place / "out").glob("n0m3-step*.safetensors"))) == 1


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_under_the_launcher_too_a_killed_process_takes_the_other_down(
    victim: int, under_way: tuple[subprocess.Popen[bytes], Path]
) -> None:
    child, _ = under_way
    os.kill(trainers(child.pid)[victim], signal.SIGKILL)
    said = child.communicate(timeout=25)[0].decode()  # torchrun itself would wait half a minute before it kills
    assert child.returncode != 0
    assert "-9" in said or "SIGKILL" in said


# -- two network namespaces as two machines ----------------------------------------------------------------------------

MAIN, SECOND, DOWN = "10.77.0.1", "10.77.0.2", "kit0"


def may_make_machines() -> bool:
    """Whether this user may make network namespaces."""
    made = (
        subprocess.run(["unshare", "-n", "ip", "link"], capture_output=True, check=False)
        if shutil.which("ip")
        else None
    )
    return made is not None and made.returncode == 0


@pytest.fixture
def machines() -> Iterator[tuple[str, str]]:
    """Two namespaces joined by a cable; names for `ip netns exec`."""
    first, second = f"kit{os.getpid()}a", f"kit{os.getpid()}b"
    commands = [
        f"ip netns add {first}", f"ip netns add {second}",
        f"ip -n {first} link add {DOWN} type veth peer name {DOWN} netns {second}",
        *(f"ip -n {name} addr add {address}/24 dev {DOWN}" for name, address in ((first, MAIN), (second, SECOND))),
        *(f"ip -n {name} link set {device} up" for name in (first, second) for device in (DOWN, "lo")),
    ]  # fmt: skip
    try:
        for command in commands:
            subprocess.run(command.split(), check=True, capture_output=True)
        yield first, second
    finally:
        for name in (first, second):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def on_machines(machines: tuple[str, str], commands: list[list[str]], env: Mapping[str, str]) -> list[str]:
    """Output of one command on each machine; the returncode stands in its last line."""
    children = [
        subprocess.Popen(["ip", "netns", "exec", machine, *words], env={**env, "GLOO_SOCKET_IFNAME": DOWN},
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for machine, words in zip(machines, commands, strict=True)
    ]  # fmt: skip
    said = [child.communicate(timeout=240)[0] for child in children]
    return [f"{text}\nreturncode {child.returncode}" for text, child in zip(said, children, strict=True)]


def launch_here(config: Path, rank: int, port: int, *more: str) -> list[str]:
    """`kohyakit launch` as it is typed on machine `rank` of two."""
    return [sys.executable, "-m", "launcher", "launch", str(config), "--processes", "2", "--machines", "2",
            "--machine-rank", str(rank), "--main-ip", MAIN, "--main-port", str(port), *more]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("rights", [True] if may_make_machines() else [], ids=["network-namespaces"])
def test_two_machines_equal_one(rights: bool, inputs: Path, tmp_path: Path, machines: tuple[str, str]) -> None:
    one, both = tmp_path / "one", new_place(inputs, tmp_path / "both")
    given = {"optimizer_type": "SGDNesterov", "learning_rate": 0.5}
    assert train(inputs, one, 1, gradient_accumulation_steps=2, **given) == [0]
    options = {**torture.COMMON, **EVEN, **given, "train_data_dir": str(both / "data"), "output_dir": str(both / "out"),
               "pretrained_model_name_or_path": str(inputs / "base.safetensors")}  # fmt: skip
    (both / "run.toml").write_text(schema.write(TrainConfig(**options)), encoding="utf-8")
    port = free_port()
    commands = [launch_here(both / "run.toml", rank, port) for rank in (0, 1)]
    said = on_machines(machines, commands, {**variables(), "PYTHONPATH": str(Path(__file__).parent.parent)})
    assert [text.rpartition("returncode ")[2] for text in said] == ["0", "0"], said
    assert far(one, both) < 1e-5
    record = json.loads((both / "out" / "n0m3.run" / "run.json").read_text(encoding="utf-8"))
    assert [start["exit"] for start in record["starts"]] == [0]  # the first machine alone keeps the record
    kept, other = (schema.read(both / "out" / "n0m3.run" / name)[0] for name in ("config.toml", "config-1.toml"))
    assert kept == other
