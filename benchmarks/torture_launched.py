"""Runs of `kohyakit launch` that lose one of their processes, or all, and are gone on with by `kohyakit resume`.

Killed are the launcher alone (the trainer then stops by itself), the starter, one rank, everything at once, and any of
them inside an fsync, a rename, an unlink or a mkdir. After a launcher's death the run is resumed at once, while its
trainer may still be at work: it must be refused or be right, never both runs be wrong.
"""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import safetensors.torch
import torch

from benchmarks.results import NAME, losses, unsound
from benchmarks.torture import COMMON, PATIENCE, ROOT, Count
from schemas import TrainConfig, write
from trainer.output.states import newest_state

STRIKE = ROOT / "benchmarks" / "strike"
MOST_BLOWS = 4  # of one run
VICTIMS = ("launcher", "starter", "rank", "all", "call")
CALLS = {"fsync": 60, "rename": 40, "unlink": 25, "mkdir": 12}  # about how many a run of this kind makes
OPTIONS: Mapping[str, Any] = {
    **COMMON, "max_train_steps": 24, "save_every_n_steps": 3, "cache_latents_to_disk": True, "save_state": True,
    "save_last_n_steps": 6, "sample_every_n_steps": 8,
}  # fmt: skip


@dataclasses.dataclass
class Hit:
    """What a start suffers: `victim` (see VICTIMS) at so many `steps`, or inside the `number`-th `call`."""

    victim: str = ""
    steps: int = 0
    call: str = ""
    number: int = 0
    who: str = "trainer"


def random_hit() -> Hit:
    victim = random.choice(VICTIMS)
    if victim != "call":
        return Hit(victim, steps=random.choice([0, 0, *range(1, 20)]))
    call = random.choice(list(CALLS))
    who = random.choice(["trainer", "trainer", "trainer", "launcher"])
    return Hit("call", call=call, number=random.randint(1, 8 if who == "launcher" else CALLS[call]), who=who)


@dataclasses.dataclass
class Place:
    """The folder of one run, its process and what that has said so far."""

    folder: Path
    processes: int
    running: subprocess.Popen[bytes] | None = None

    @property
    def run(self) -> Path:
        return self.folder / "out" / f"{NAME}.run"

    @property
    def weights(self) -> Path:
        return self.folder / "out" / f"{NAME}.safetensors"

    def steps(self) -> int:
        log = self.run / "log.jsonl"
        return log.read_bytes().count(b"\n") if log.is_file() else 0

    def start(self, hit: Hit) -> subprocess.Popen[bytes]:
        """`resume` where there is something to go on from, else `launch`."""
        words = ["resume", str(self.run)] if newest_state(self.run) else ["launch", "run.toml", "--overwrite"]
        variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), str(STRIKE)])}
        if hit.call:
            rank = random.randrange(self.processes) if hit.who == "trainer" else 0
            variables["STRIKE"] = f"{hit.who}:{hit.call}:{hit.number}:{rank}"
        words += ["--processes", str(self.processes)]
        with (self.folder / "said.txt").open("ab") as said:
            self.running = subprocess.Popen(
                [sys.executable, "-m", "launcher", *words], cwd=self.folder, env=variables, stdout=said, stderr=said
            )
        return self.running

    def said(self) -> str:
        return (self.folder / "said.txt").read_text(encoding="utf-8", errors="replace")


def new_place(inputs: Path, folder: Path, processes: int) -> Place:
    shutil.copytree(inputs / "data", folder / "data")
    options = {**OPTIONS, "pretrained_model_name_or_path": str(inputs / "base.safetensors"), "output_dir": "out",
               "train_data_dir": "data", "sample_prompts": str(inputs / "prompts.txt")}  # fmt: skip
    (folder / "run.toml").write_text(write(TrainConfig(**options)), encoding="utf-8")
    return Place(folder, processes)


def below(launcher: int) -> list[psutil.Process]:
    """Starter, ranks and their workers."""
    try:
        return psutil.Process(launcher).children(recursive=True)
    except psutil.Error:
        return []


def strike(hit: Hit, launcher: subprocess.Popen[bytes], processes: list[psutil.Process]) -> None:
    """Kills what `hit` names of a run under way."""
    own = psutil.Process(launcher.pid)
    ranks = [
        one for one in processes if "trainer" in words_of(one) and "accelerate.commands.launch" not in words_of(one)
    ]
    victims = {
        "launcher": [own],
        "starter": processes[:1],
        "rank": [random.choice(ranks)] if ranks else [own],
        "all": [own, *processes],
    }[hit.victim]
    for process in victims:
        try:
            process.kill()
        except psutil.Error:
            pass


def words_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def until(done: Callable[[], bool], seconds: float = PATIENCE) -> bool:
    """Waits until `done`; False when the time is up."""
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def suffer(place: Place, hit: Hit) -> tuple[str, list[psutil.Process]]:
    """One start and its blow: "hit", "ended" by itself or "hung", and the processes that it has left behind."""
    launcher = place.start(hit)
    delay = time.monotonic() + random.uniform(0.2, 9)
    known: list[psutil.Process] = []

    def due() -> bool:
        known[:] = below(launcher.pid) or known
        if launcher.poll() is not None:
            return True
        early = hit.steps == 0 and time.monotonic() > delay
        return bool(hit.victim and hit.victim != "call") and (early or 0 < hit.steps <= place.steps())

    if not until(due):
        strike(Hit("all"), launcher, known)
        return "hung", known
    if launcher.poll() is not None:
        return "hit" if launcher.returncode else "ended", known
    strike(hit, launcher, known)
    if hit.victim == "launcher":
        launcher.wait()
        return "hit", known
    if not until(lambda: launcher.poll() is not None):
        strike(Hit("all"), launcher, known)
        return "hung", known
    return "hit" if launcher.returncode else "ended", known


def settle(processes: list[psutil.Process]) -> bool:
    """Waits for what is left of a run to end by itself; False, and ends it, when it does not."""
    _, alive = psutil.wait_procs(processes, timeout=PATIENCE)
    for process in alive:
        process.kill()
    return not alive


def torment(
    inputs: Path, folder: Path, whole: Path, processes: int, count: Count, blows: list[Hit] | None = None
) -> None:
    """One run, struck and gone on with until it is through; what went wrong is added to `count`."""
    place, label = new_place(inputs, folder, processes), f"launched on {processes}, {folder.name}"
    waiting = list(blows) if blows is not None else [random_hit() for _ in range(random.randint(1, MOST_BLOWS))]
    count.runs += 1
    before = 0
    for _ in range(len(waiting) + 8):
        hit = waiting.pop(0) if waiting else Hit()
        how, left = suffer(place, hit)
        count.starts += 1
        count.kills += how == "hit" and bool(hit.victim)
        if how == "hung":
            count.hangs.append(f"{label}: hung after {hit}\n{place.said()[-2000:]}")
            return
        if how == "ended" and place.weights.exists():
            break
        if hit.victim == "launcher" and random.random() < 0.5:  # at once, while the trainer may still be saving
            again, more = suffer(place, Hit())
            count.starts += 1
            left += more
            if again == "ended" and place.weights.exists():
                break
        if not settle(left):
            count.hangs.append(f"{label}: processes live on after {hit}")
            return
        state = newest_state(place.run)
        step = int(state.name.rpartition("-")[2]) if state else 0
        if step < before and not place.weights.exists():
            count.lost.append(f"{label}: the newest state went from step {before} to {step} after {hit}")
        before = step
        count.corrupt += [f"{label}: {bad}" for bad in unsound(folder)]
        if place.weights.exists():  # struck after its last save
            break
    count.lost += [f"{label}: {fault}" for fault in ended(place, whole)]
    if "Traceback" in place.said():
        count.lost.append(f"{label}: a traceback\n{place.said()[-3000:]}")
    if not count.faults:
        shutil.rmtree(folder)


def ended(place: Place, whole: Path) -> list[str]:
    """What is not as in the undisturbed run."""
    if not place.weights.exists():
        return [f"no final weights\n{place.said()[-3000:]}"]
    one, other = (
        safetensors.torch.load_file(folder / "out" / f"{NAME}.safetensors") for folder in (whole, place.folder)
    )
    found = []
    if one.keys() != other.keys() or not all(torch.equal(one[key], other[key]) for key in one):
        found.append("other tensors")
    if losses(whole) != losses(place.folder):
        found.append("other losses")
    return found + [f"{name}: left behind" for name in left_over(place.folder)]


def undisturbed(inputs: Path, folder: Path, processes: int) -> Path:
    """A run that nobody strikes."""
    place = new_place(inputs, folder, processes)
    if suffer(place, Hit())[0] != "ended" or not place.weights.exists():
        raise RuntimeError(place.said()[-3000:])
    return folder


def left_over(folder: Path) -> list[str]:
    """Temporary files that are still there."""
    return [str(path.relative_to(folder)) for path in folder.rglob("*.tmp")]
