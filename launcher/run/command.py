"""From launch options to the words of `accelerate launch` and the environment the trainer starts in. Pure."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.check.machine import Machine
from launcher.check.resolve import ACCELERATE
from schemas.files.documents import parse_json
from schemas.files.textfile import CONFIG, read_text
from schemas.problems import error
from schemas.terminal import shell_words

PLUGINS = ("DEEPSPEED", "FSDP", "MEGATRON_LM")
ROOT = Path(__file__).resolve().parent.parent.parent
NEUTRAL = Path(__file__).with_name("accelerate.json")  # says nothing that the command line does not say


@dataclass(frozen=True)
class LaunchOptions:
    """What the command line says about processes; None leaves it to the file, then to the machine."""

    processes: int | None = None
    gpu_ids: str | None = None
    machines: int | None = None
    machine_rank: int | None = None
    main_ip: str | None = None
    main_port: int | None = None
    keep_samples: bool = False
    config_file: str | None = None  # accelerate's own


@dataclass(frozen=True)
class Accelerate:
    """The launch as decided: `num_processes` counts all machines together, `threads` is per process."""

    num_processes: int
    num_machines: int
    machine_rank: int
    mixed_precision: str
    cpu: bool
    threads: int
    gpu_ids: str | None = None
    main_process_ip: str | None = None
    main_process_port: int | None = None
    config_file: str | None = None
    plugin: bool = False  # the config file names DeepSpeed, FSDP or the like

    @property
    def config_name(self) -> str:
        """The trainer's input in the run folder, which machines may share: what the first one writes counts later."""
        return f"config-{self.machine_rank}.toml" if self.machine_rank else "config.toml"

    @property
    def distributed(self) -> bool:
        return self.num_processes > 1 or self.num_machines > 1

    def as_json(self) -> dict[str, Any]:
        """The `accelerate` object of `plan --json`."""
        return {
            "num_processes": self.num_processes,
            "num_machines": self.num_machines,
            "machine_rank": self.machine_rank,
            "mixed_precision": self.mixed_precision,
            "cpu": self.cpu,
            "multi_gpu": self.distributed and not self.cpu,
            "num_cpu_threads_per_process": self.threads,
            "gpu_ids": self.gpu_ids,
            "main_process_ip": self.main_process_ip,
            "main_process_port": self.main_process_port,
            **({"config_file": self.config_file} if self.config_file else {}),
        }


def decide(options: LaunchOptions, words: Mapping[str, Any], mixed_precision: str, machine: Machine) -> Accelerate:
    """Command line over accelerate's config file over the file's launch words over what the machine suggests."""
    words = {**words, **(read_accelerate_config(options.config_file) if options.config_file else {})}

    def first(given: Any, name: str, default: Any) -> Any:
        found = given if given is not None else words.get(name)
        return default if found in (None, "", 0) else found

    cpu = not machine.gpus
    port = first(options.main_port, "main_process_port", None)
    processes = int(first(options.processes, "num_processes", 1))
    machines = int(first(options.machines, "num_machines", 1))
    local = max(1, processes // machines)
    wanted = os.environ.get("OMP_NUM_THREADS", "")  # accelerate would replace what the user has set there
    own = int(wanted) if wanted.isdecimal() and int(wanted) else max(1, machine.cores // local)
    threads = own if cpu else int(first(None, "num_cpu_threads_per_process", 2))
    return Accelerate(
        num_processes=processes,
        num_machines=machines,
        machine_rank=int(first(options.machine_rank, "machine_rank", 0)),
        mixed_precision=mixed_precision,
        cpu=cpu,
        threads=threads,
        gpu_ids=first(options.gpu_ids, "gpu_ids", None),
        main_process_ip=first(options.main_ip, "main_process_ip", None),
        main_process_port=None if port is None else int(port),
        config_file=os.path.abspath(options.config_file) if options.config_file else None,
        plugin=str(words.get("distributed_type", "NO")).upper() in PLUGINS,
    )


def read_accelerate_config(file: str) -> dict[str, Any]:
    """The launch words of a file that `accelerate config` has written: its plain top-level entries."""
    text = read_text(file, limit=CONFIG, what="accelerate config")
    found: dict[str, Any] = {}
    if text.lstrip().startswith("{"):
        try:
            document = parse_json(text)
        except ValueError as fault:
            raise error("not-json", f"is not JSON: {fault}", file=file, fix="mend that line") from None
        found = {name: value for name, value in document.items() if not isinstance(value, (dict, list))}
    else:
        for line in text.splitlines():
            entry = re.match(r"(\w+):\s*(.*?)\s*(?:#.*)?$", line)
            if entry and entry[2] not in ("", "null", "~"):
                found[entry[1]] = entry[2].strip("'\"")
    found = {name: value for name, value in found.items() if name in (*ACCELERATE, "distributed_type")}
    for name, value in found.items():
        if name.startswith("num_") and not str(value).isdigit():
            raise error("bad-value", "must be a whole number", file=file, key=name, got=value, fix=f"write {name}: 1")
    return found


def default_config() -> Path | None:
    """The user's default of `accelerate config`, which is not used unless --accelerate-config names it."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    home = Path(os.path.expanduser(os.environ.get("HF_HOME") or os.path.join(cache, "huggingface")))
    found = [home / "accelerate" / f"default_config.{kind}" for kind in ("yaml", "json")]
    return next((file for file in found if file.is_file()), None)


def launch_command(
    launch: Accelerate, config_file: str | os.PathLike[str], trust: Sequence[str] = (), python: str = sys.executable
) -> list[str]:
    """The whole command: `config_file` is the trainer's only argument, beside the consent that no file can give."""
    words = [python, "-m", "accelerate.commands.launch", *launch_words(launch)]
    words += ["-m", "trainer", "--config_file", os.fspath(config_file)]
    return [*words, "--trust", *trust] if trust else words


def launch_words(launch: Accelerate) -> list[str]:
    """Options of `accelerate launch`. Several CPU processes need its distributed starter too, hence --multi_gpu.

    It always gets a file: without one it reads the user's default of `accelerate config`, and a run would be another
    than the one planned.
    """
    words = ["--config_file", launch.config_file or str(NEUTRAL)]
    words += ["--dynamo_backend", "no", "--mixed_precision", launch.mixed_precision]
    words += ["--num_processes", str(launch.num_processes), "--num_machines", str(launch.num_machines)]
    words += ["--num_cpu_threads_per_process", str(launch.threads)]
    if launch.distributed:
        words += [] if launch.plugin else ["--multi_gpu"]
    elif launch.cpu:
        words.append("--cpu")
    if launch.gpu_ids:
        words += ["--gpu_ids", launch.gpu_ids]
    if launch.num_machines > 1:
        words += ["--machine_rank", str(launch.machine_rank)]
    if launch.main_process_ip:
        words += ["--main_process_ip", launch.main_process_ip]
    if launch.main_process_port:
        words += ["--main_process_port", str(launch.main_process_port)]
    return words


def environment(launch: Accelerate, base: Mapping[str, str]) -> dict[str, str]:
    """`base` with what makes our own trainer start, whatever else is installed under that name."""
    found = dict(base)
    rest = [part for part in found.get("PYTHONPATH", "").split(os.pathsep) if part and Path(part) != ROOT]
    # The folder the user stands in comes last instead of first: it may hold a `trainer` too.
    found["PYTHONPATH"] = os.pathsep.join([str(ROOT), *rest, os.getcwd()])
    found["PYTHONSAFEPATH"] = "1"
    found.setdefault("OMP_NUM_THREADS", str(launch.threads))
    found.setdefault("TOKENIZERS_PARALLELISM", "false")
    if launch.cpu:
        # Threads that spin while they wait stall each other for seconds on a machine that does anything else.
        found.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    found["PYTHONUNBUFFERED"] = "1"
    if launch.cpu:
        found["ACCELERATE_USE_CPU"] = "true"
    if sys.platform == "win32":
        found["USE_LIBUV"] = "0"
    return found


def free_port() -> int:
    """A TCP port that nobody listens on, so that two runs on one machine do not meet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def quoted(words: list[str]) -> str:
    """The command as a shell of this system takes it."""
    return subprocess.list2cmdline(words) if sys.platform == "win32" else shell_words(words)
