"""What a queue's runs run on: one slot a GPU, or a single one for a CPU; asked anew each time, for GPUs vanish."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from launcher.check import machine
from launcher.run.command import ROOT
from schemas.problems import error

CPU = "cpu"


@dataclass(frozen=True)
class Slot:
    """A place for one run; `device` is the number of a GPU as the driver counts, or "cpu"."""

    device: str
    name: str = ""

    def __str__(self) -> str:
        return "the CPU" if self.device == CPU else f"GPU {self.device}{f' ({self.name})' if self.name else ''}"


def slots(wanted: str | None = None, *, cpu: bool = False) -> list[Slot]:
    """The slots of this machine, or of the GPUs `wanted` ("0,2"). ConfigError `no-such-gpu`."""
    there = {} if cpu else present()
    if wanted is None:
        return list(there.values()) or [Slot(CPU)]
    numbers = [word.strip() for word in wanted.split(",") if word.strip()]
    for number in numbers or [wanted]:
        if number not in there:
            said = f"is no GPU of this machine, which has: {', '.join(there) or 'none'}"
            raise error("no-such-gpu", said, key="--gpus", got=number, fix="leave --gpus out for all of them")
    return [there[number] for number in dict.fromkeys(numbers)]


def present() -> dict[str, Slot]:
    """The GPUs that answer now, by the number that the driver gives them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    numbers = [part.strip() for part in (visible or "").split(",") if part.strip().isdigit()]
    gpus = machine.gpus_now()
    named = numbers[: len(gpus)] if numbers else [str(index) for index in range(len(gpus))]
    return {number: Slot(number, gpu.name) for number, gpu in zip(named, gpus, strict=False)}


def environment(devices: Sequence[str], base: Mapping[str, str]) -> dict[str, str]:
    """`base` for a run on these devices alone, started from this very installation."""
    found = dict(base)
    rest = [part for part in found.get("PYTHONPATH", "").split(os.pathsep) if part and part != str(ROOT)]
    found["PYTHONPATH"] = os.pathsep.join([str(ROOT), *rest])
    if list(devices) == [CPU]:
        found["CUDA_VISIBLE_DEVICES"] = ""
    else:
        found["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
        found["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # the driver's numbers, which nvidia-smi shows
    return found
