from __future__ import annotations

import os
import shlex
import sys
from dataclasses import replace

import pytest

from launcher.check.machine import Gpu, Machine
from launcher.run.command import (
    ROOT,
    LaunchOptions,
    decide,
    environment,
    free_port,
    launch_command,
    launch_words,
    quoted,
)
from schemas.problems import ConfigError

CPU = Machine(cores=8)
GPUS = Machine(gpus=(Gpu("a"), Gpu("b")), cores=8)


def words(options: LaunchOptions = LaunchOptions(), machine: Machine = GPUS, **given) -> list[str]:  # noqa: B008
    return launch_words(decide(options, given, "bf16", machine))


def test_one_gpu() -> None:
    found = words()
    assert "--multi_gpu" not in found
    assert "--cpu" not in found
    assert found[found.index("--mixed_precision") + 1] == "bf16"


def test_two_gpus() -> None:
    found = words(LaunchOptions(processes=2))
    assert "--multi_gpu" in found
    assert found[found.index("--num_processes") + 1] == "2"


def test_no_gpu_takes_all_cores() -> None:
    found = words(machine=CPU)
    assert "--cpu" in found
    assert found[found.index("--num_cpu_threads_per_process") + 1] == "8"


def test_threads_set_in_the_environment_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    found = decide(LaunchOptions(), {}, "no", Machine(cores=8))
    assert found.threads == 3


def test_several_cpu_processes_need_the_distributed_starter() -> None:
    launch = decide(LaunchOptions(processes=2), {}, "no", CPU)
    assert "--multi_gpu" in launch_words(launch)
    assert environment(launch, {})["ACCELERATE_USE_CPU"] == "true"
    assert (launch.threads, launch.as_json()["multi_gpu"]) == (4, False)


def test_the_command_line_beats_the_file() -> None:
    assert decide(LaunchOptions(processes=3), {"num_processes": 2}, "no", GPUS).num_processes == 3
    assert decide(LaunchOptions(), {"num_processes": "2"}, "no", GPUS).num_processes == 2


def test_several_machines() -> None:
    options = LaunchOptions(processes=8, machines=2, machine_rank=1, main_ip="10.0.0.1", main_port=29501)
    found = words(options)
    for name, value in (("machine_rank", "1"), ("main_process_ip", "10.0.0.1"), ("main_process_port", "29501")):
        assert found[found.index(f"--{name}") + 1] == value


def test_the_trainer_gets_one_argument() -> None:
    found = launch_command(decide(LaunchOptions(), {}, "no", CPU), "out/a b.run/config.toml")
    assert found[:3] == [sys.executable, "-m", "accelerate.commands.launch"]
    assert found[-4:] == ["-m", "trainer", "--config_file", "out/a b.run/config.toml"]
    assert shlex.split(quoted(found)) == found


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("machine", [CPU, GPUS])
def test_the_users_default_of_accelerate_config_changes_nothing(processes, machine, tmp_path, monkeypatch) -> None:
    from accelerate.commands import launch

    (tmp_path / "default_config.yaml").write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_GPU\nnum_processes: 4\ngpu_ids: '3'\n"
        "num_machines: 3\nmachine_rank: 2\nmain_process_port: 77\ndebug: true\n"
    )
    monkeypatch.setattr(launch, "default_config_file", str(tmp_path / "default_config.yaml"))
    words = launch_words(decide(LaunchOptions(processes), {}, "no", machine))
    given, _, _ = launch._validate_launch_command(launch.launch_command_parser().parse_args([*words, "train.py"]))
    assert (given.num_processes, given.num_machines, given.machine_rank) == (processes, 1, 0)
    assert (given.gpu_ids, given.main_process_port, given.debug) == ("all", None, False)
    assert given.multi_gpu == (processes > 1)


def test_the_plan_says_that_the_users_default_is_not_used(kohyakit, preset, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    assert "is not used" not in kohyakit("plan", preset()).stdout
    default = tmp_path / "hf" / "accelerate" / "default_config.yaml"
    default.parent.mkdir(parents=True)
    default.write_text("distributed_type: MULTI_GPU\n")
    assert f"{default} is not used; --accelerate-config FILE would use it" in kohyakit("plan", preset()).stdout


def test_our_own_trainer_starts_whatever_else_there_is() -> None:
    found = environment(decide(LaunchOptions(), {}, "no", CPU), {"PYTHONPATH": "/elsewhere"})
    assert found["PYTHONPATH"].split(os.pathsep)[:2] == [str(ROOT), "/elsewhere"]
    assert found["PYTHONSAFEPATH"] == "1"


def test_threads_that_the_user_chose_stay() -> None:
    assert environment(decide(LaunchOptions(), {}, "no", CPU), {"OMP_NUM_THREADS": "3"})["OMP_NUM_THREADS"] == "3"


def test_ports_are_free_ones() -> None:
    assert 1024 < free_port() < 65536


def test_gpu_ids_are_passed_on() -> None:
    launch = replace(decide(LaunchOptions(gpu_ids="1"), {}, "no", GPUS))
    assert launch_words(launch)[-2:] == ["--gpu_ids", "1"]


YAML = """compute_environment: LOCAL_MACHINE
distributed_type: {kind}
main_process_port: 29511  # free
gpu_ids: '0,1'
num_processes: 4
mixed_precision: bf16
fsdp_config:
  fsdp_offload_params: true
"""


@pytest.mark.parametrize("kind", ["MULTI_GPU", "FSDP"])
def test_accelerates_own_file_is_read_and_passed_on(tmp_path, kind) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(YAML.format(kind=kind))
    launch = decide(LaunchOptions(config_file=str(file)), {"num_processes": 1}, "bf16", GPUS)
    assert (launch.num_processes, launch.main_process_port, launch.gpu_ids) == (4, 29511, "0,1")
    found = launch_words(launch)
    assert found[:2] == ["--config_file", str(file)]
    assert ("--multi_gpu" in found) is (kind == "MULTI_GPU")
    assert decide(LaunchOptions(2, config_file=str(file)), {}, "bf16", GPUS).num_processes == 2


def test_accelerates_file_that_cannot_be_read(tmp_path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        decide(LaunchOptions(config_file=str(tmp_path / "no.yaml")), {}, "no", GPUS)
    (tmp_path / "a.json").write_text("{half")
    with pytest.raises(ConfigError, match="not JSON"):
        decide(LaunchOptions(config_file=str(tmp_path / "a.json")), {}, "no", GPUS)


def test_windows_gets_no_libuv(monkeypatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    assert environment(decide(LaunchOptions(2), {}, "no", CPU), {})["USE_LIBUV"] == "0"
