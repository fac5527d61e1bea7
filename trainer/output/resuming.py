"""Where in the data a run goes on from a state: exactly there, or at the same batch cut differently."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

from schemas import TrainConfig
from trainer.dataset.files import Scan
from trainer.plan.steps import Steps


def data_mark(found: Scan) -> str:
    """A name for the pictures, sizes, captions and repeats of a run: another order or content gives another one."""
    digest = hashlib.sha256()
    for sample in found.samples:
        facts = (sample.path.name, sample.width, sample.height, sample.caption, sample.repeats, sample.is_reg)
        digest.update(repr(facts).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:32]


def going_on(
    progress: Mapping[str, Any], now: Mapping[str, Any], steps: Steps, config: TrainConfig
) -> tuple[dict[str, int], list[str]]:
    """(position, what the user should hear). `now` holds processes, batches (an epoch's, of all processes), data, seed.

    On another number of processes, or with other data, the run goes on behind the batches of the epoch that were used.
    """
    place = {name: int(progress.get(name, 0)) for name in ("step", "epoch", "batch", "shift")}
    notes = []
    if progress.get("data", now["data"]) != now["data"]:
        notes.append("warning: pictures or captions have changed since this state: the run goes on, but not exactly")
    if progress.get("seed", now["seed"]) != now["seed"]:
        notes.append(f"warning: the seed was {progress.get('seed')}, now it is {now['seed']}: not an exact resume")
    before = int(progress.get("processes", now["processes"])), int(progress.get("batches", now["batches"]))
    if before == (now["processes"], now["batches"]):
        return place, notes
    used = min(place["batch"] * before[0] + place["shift"], before[1])
    rest = 0 if used == before[1] else math.ceil(max(0, now["batches"] - used) / steps.processes)
    place["batch"] = steps.batches_per_epoch - rest
    place["shift"] = used - place["batch"] * steps.processes if rest else 0
    if config.max_train_epochs is not None:  # updates are counted anew, so that the run ends with its last epoch
        updates = place["batch"] // config.gradient_accumulation_steps if rest else steps.updates_per_epoch
        place["step"] = (place["epoch"] - 1) * steps.updates_per_epoch + updates
    if before[0] != now["processes"]:
        notes.append(f"{before[0]} -> {now['processes']} processes: equivalent, not bit for bit; goes on behind batch "
                     f"{used} of {now['batches']} of epoch {place['epoch']}")  # fmt: skip
    return place, notes
