"""What this machine can do, found without importing torch, and what a config must give up for it."""

from __future__ import annotations

import functools
import glob
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from schemas.config import TrainConfig
from trainer.plan.adapt import Adapted, adapt_to
from trainer.plan.cards import CARDS, find


@dataclass(frozen=True)
class Gpu:
    """One graphics card; `memory` in bytes, None when the driver does not say."""

    name: str
    memory: int | None = None


@dataclass(frozen=True)
class Machine:
    """`memory` is free main memory in bytes, `packages` the optional Python packages that are installed."""

    gpus: tuple[Gpu, ...] = ()
    cores: int = 1
    memory: int | None = None
    fast_bf16: bool = False
    packages: frozenset[str] = field(default_factory=frozenset)


@functools.cache
def this_machine() -> Machine:
    """What is found here, now."""
    packages = ("xformers", "bitsandbytes", "torch", "accelerate")
    return Machine(
        gpus=tuple(_gpus()),
        cores=_cores(),
        memory=_free_memory(),
        fast_bf16=_cpu_has("avx512_bf16", "amx_bf16"),
        packages=frozenset(name for name in packages if importlib.util.find_spec(name)),
    )


def gpus_now() -> tuple[Gpu, ...]:
    """The cards that answer at this moment: one may vanish while others are at work."""
    return tuple(_gpus())


def with_card(machine: Machine, name: str | None, gigabytes: float | None) -> Machine:
    """`machine` as if one card of that name or memory were in it; itself where neither is given. UsageError."""
    if name is None and (gigabytes is None or machine.gpus):
        return machine
    card = find(name) if name else None
    if name and card is None:
        from launcher.check.resolve import UsageError

        names = ", ".join(one.name for one in CARDS)
        raise UsageError(f"--gpu {name}: must be one of {names}; or give --vram GB alone")
    memory = gigabytes if gigabytes is not None or card is None else float(card.memory)
    gpu = Gpu(card.name if card else f"a card of {gigabytes:g} GB", int((memory or 0) * 2**30))
    return replace(machine, gpus=(gpu,), packages=machine.packages | {"bitsandbytes"})


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _gpus() -> Iterator[Gpu]:
    """Cards that the installed torch can use; none for a CPU build of it."""
    build = _torch_build()
    if build == "cpu" or (build == "rocm" and not os.path.exists("/dev/kfd")):
        return
    if build == "rocm":
        yield Gpu("ROCm device")
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return
    drivers = glob.glob("/dev/nvidia[0-9]*") or os.path.exists("/dev/dxg") or sys.platform == "win32"
    if not drivers:
        return
    found = _ask_driver()
    wanted = [int(part) for part in (visible or "").split(",") if part.strip().isdigit()]
    yield from ([found[index] for index in wanted if index < len(found)] if wanted else found)


def _torch_build() -> str:
    """ "cuda", "rocm" or "cpu", read from torch's version file instead of importing it."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return "cpu"
    try:
        with open(os.path.join(os.path.dirname(spec.origin), "version.py"), encoding="utf-8") as stream:
            text = stream.read()
    except OSError:
        return "cuda"
    for word, build in (("hip", "rocm"), ("cuda", "cuda")):
        if re.search(rf"^{word}\b[^=]*=\s*['\"]", text, re.MULTILINE):
            return build
    return "cpu"


def _ask_driver() -> list[Gpu]:
    program = shutil.which("nvidia-smi") or shutil.which("nvidia-smi", path="/usr/lib/wsl/lib:/usr/bin")
    if program is None:
        return [Gpu("NVIDIA device") for _ in glob.glob("/dev/nvidia[0-9]*")]
    words = [program, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(words, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    gpus = []
    for line in answer.splitlines():
        name, _, mebibytes = line.rpartition(",")
        memory = int(mebibytes) * 2**20 if mebibytes.strip().isdigit() else None
        gpus.append(Gpu(name.strip(), memory))
    return gpus


def _free_memory() -> int | None:
    try:
        with open("/proc/meminfo", encoding="ascii") as stream:
            for line in stream:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def _cpu_has(*flags: str) -> bool:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as stream:
            found = next((line for line in stream if line.startswith("flags")), "")
    except OSError:
        return False
    return not set(flags).isdisjoint(found.split())


def adapt(config: TrainConfig, machine: Machine) -> tuple[TrainConfig, list[Adapted]]:
    """The config as `machine` can run it, and every change with its reason."""
    return adapt_to(config, gpu=bool(machine.gpus), packages=machine.packages)
