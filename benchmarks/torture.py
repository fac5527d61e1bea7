"""`python -m benchmarks.torture --minutes M`: many small runs killed at random moments, resumed, compared.

A start is killed at a random time, or just before or shortly after a random one of its writes (open, fsync, rename,
remove, mkdir), which hits saves, caches and previews half done. It is then started again with the same command, and so
on until it comes to its end. The result must equal that of a run which nobody disturbed.

Starts are forked from this process, which has imported everything: that is the trainer without its seconds of imports.
Every few ones are `python -m trainer` itself (--cold says how many), and every few runs are `kohyakit launch` with all
its processes (--launched; see torture_launched).
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image, ImageDraw

from benchmarks.results import NAME, differences, unsound
from launcher.run.command import free_port
from trainer.families import random_checkpoint
from trainer.output.states import newest_state

ROOT = Path(__file__).resolve().parent.parent
MOST_KILLS = 10  # of one run
PATIENCE = 180.0  # seconds after which a start counts as hanging
GRACE = 10.0  # seconds in which the other processes of a run notice by themselves that one has died
WRITES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"}

COMMON: dict[str, Any] = {
    "output_name": NAME, "resolution": "64,64", "enable_bucket": True, "min_bucket_reso": 64, "max_bucket_reso": 128,
    "caption_extension": ".txt", "network_module": "networks.lora", "network_dim": 4, "learning_rate": 1e-3,
    "max_train_steps": 7, "save_every_n_steps": 2, "seed": 7, "max_data_loader_n_workers": 0, "cache_latents": True,
}  # fmt: skip
CHANCE = {"shuffle_caption": True, "caption_dropout_rate": 0.3, "flip_aug": True}


@dataclass(frozen=True)
class Case:
    """One kind of run: options over the common ones, and on how many processes."""

    name: str
    options: Mapping[str, Any]
    processes: int = 1


CASES = (
    Case("LoKr, accumulation 4, chance in the data",
         {**CHANCE, "gradient_accumulation_steps": 4, "max_train_steps": 4, "network_module": "lycoris.kohya",
          "network_args": ["algo=lokr", "factor=4"]}),
    Case("uncached, 2 workers, chance in the data",
         {**CHANCE, "cache_latents": False, "max_data_loader_n_workers": 2, "persistent_data_loader_workers": True}),
    Case("cache on disk, previews, states, rotation",
         {"cache_latents_to_disk": True, "sample_every_n_steps": 3, "sample_prompts": "prompts.txt", "save_state": True,
          "save_last_n_steps": 2, "save_last_n_steps_state": 4}),
    Case("schedule-free, saves by epoch, previews",
         {"optimizer_type": "AdamWScheduleFree", "save_every_n_steps": None, "save_every_n_epochs": 1,
          "max_train_epochs": 3, "train_batch_size": 4, "sample_every_n_epochs": 1, "sample_prompts": "prompts.txt"}),
    Case("8-bit AdamW, dropout, cosine",  # of a rank from which its states really have 8 bits
         {"optimizer_type": "AdamW8bit", "network_dim": 64, "network_dropout": 0.2, "text_encoder_lr": 1e-3,
          "lr_scheduler": "cosine"}),
    Case("no copies, state at the end", {"save_every_n_steps": None, "save_state_on_train_end": True}),
    Case("2 processes, cache on disk, chance in the data", {**CHANCE, "cache_latents_to_disk": True}, processes=2),
)  # fmt: skip


@dataclass
class Count:
    """What happened to the runs of one case."""

    runs: int = 0
    starts: int = 0
    kills: int = 0
    lost: list[str] = field(default_factory=list)
    corrupt: list[str] = field(default_factory=list)
    differ: list[str] = field(default_factory=list)
    hangs: list[str] = field(default_factory=list)

    @property
    def faults(self) -> list[str]:
        return [*self.lost, *self.corrupt, *self.differ, *self.hangs]


@dataclass
class Blow:
    """When process `victim` of a start is killed: after `seconds`, or at its `write`-th write and `late` seconds, or
    when that many `steps` are logged. With none of them the start is left alone.
    """

    victim: int = 0
    seconds: float | None = None
    steps: int | None = None
    write: int | None = None
    late: float = 0.0


# -- starting and killing ----------------------------------------------------------------------------------------------


def make_inputs(folder: Path) -> None:
    """A tiny base model, five pictures of two shapes with captions, a prompt file."""
    folder.mkdir(parents=True, exist_ok=True)
    random_checkpoint.write(folder / "base.safetensors", "sd15", tiny=True, dtype="fp32")
    pictures = folder / "data" / "2_n0m3"
    pictures.mkdir(parents=True)
    for number in range(5):
        image = Image.new("RGB", (64, 64) if number % 2 else (96, 64), (40 * number, 90, 200 - 40 * number))
        ImageDraw.Draw(image).ellipse((8, 8, 40, 50), fill=(250, 30 * number, 0))
        image.save(pictures / f"{number}.png")
        (pictures / f"{number}.txt").write_text(f"n0m3, an ellipse, number {number}", encoding="utf-8")
    (folder / "prompts.txt").write_text("n0m3 --w 64 --h 64 --s 2 --d 1\nn0m3 --w 64 --h 64 --s 1 --d 2\n")


def new_place(inputs: Path, place: Path) -> Path:
    """A folder of its own for one run: caches lie beside the pictures."""
    shutil.copytree(inputs / "data", place / "data")
    return place


def words_of(case: Case, inputs: Path, place: Path) -> list[str]:
    """The trainer's command line; the same one starts a run and goes on with it."""
    options = {**COMMON, **case.options, "pretrained_model_name_or_path": inputs / "base.safetensors",
               "train_data_dir": place / "data", "output_dir": place / "out",
               "resume": place / "out" / f"{NAME}.run"}  # fmt: skip
    if "sample_prompts" in options:
        options["sample_prompts"] = inputs / "prompts.txt"
    words: list[str] = []
    for name, value in options.items():
        if value is not None and value is not False:
            given = [] if value is True else value if isinstance(value, list) else [value]
            words += [f"--{name}", *(str(one) for one in given)]
    return words


def start(case: Case, words: list[str], place: Path, blow: Blow, *, cold: bool) -> list[int]:
    """Runs one start; exit codes by process (negative: the signal)."""
    port = str(free_port())
    pids = []
    for rank in range(case.processes):
        environment = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        if case.processes > 1:
            environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(case.processes),
                            "LOCAL_WORLD_SIZE": str(case.processes), "MASTER_ADDR": "127.0.0.1",
                            "MASTER_PORT": port}  # fmt: skip
        log = place / f"output-{rank}.txt"
        if cold:
            with log.open("ab") as stream:
                command = [sys.executable, "-m", "trainer", *words]
                variables = {**os.environ, **environment}
                pids.append(subprocess.Popen(command, cwd=ROOT, env=variables, stdout=stream, stderr=stream).pid)
        else:
            pids.append(_fork(words, environment, log, place, blow if rank == blow.victim else Blow()))
    return _wait(pids, blow, place / "out" / f"{NAME}.run" / "log.jsonl")


def _fork(words: list[str], environment: Mapping[str, str], log: Path, place: Path, blow: Blow) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
        os.environ.update(environment)
        torch.set_num_threads(1)
        for state in (AcceleratorState, GradientState, PartialState):
            state._shared_state.clear()  # whoever called may have trained already
        writes = _count_writes(str(place), blow)
        from trainer.__main__ import main

        code = main(words)
        (place / f"writes-{os.environ.get('RANK', 0)}").write_text(str(writes[0]))
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _count_writes(place: str, blow: Blow) -> list[int]:
    """Counts this process's writes below `place` in a list of one, and ends it at the chosen one."""
    count, flush = [0], os.fsync

    def written() -> None:
        count[0] += 1
        if count[0] == blow.write:
            if blow.late:
                signal.setitimer(signal.ITIMER_REAL, blow.late)  # SIGALRM ends a process as abruptly as SIGKILL
            else:
                os.kill(os.getpid(), signal.SIGKILL)

    def hear(event: str, args: tuple[Any, ...]) -> None:
        writing = event in WRITES or (event == "open" and bool((args[2] or 0) & (os.O_WRONLY | os.O_RDWR)))
        if writing and str(args[0]).startswith(place):
            written()

    def fsync(fd: Any) -> None:  # no audit event tells of it
        written()
        flush(fd)

    os.fsync = fsync
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    sys.addaudithook(hear)
    return count


def _wait(pids: Sequence[int], blow: Blow, log: Path) -> list[int]:
    """Exit codes; processes that have not ended when their time is up are ended, with code -99.

    Where one has died the others get SIGTERM a while later, which torchrun would send at once.
    """
    began, struck, asked = time.monotonic(), False, False
    codes: dict[int, int] = {}
    victim = pids[blow.victim]
    died = began
    while len(codes) < len(pids):
        for pid in pids:
            if pid not in codes:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    codes[pid] = os.waitstatus_to_exitcode(status)
                    died = time.monotonic()
        passed = time.monotonic() - began
        due = blow.seconds is not None and passed > blow.seconds
        due = due or (blow.steps is not None and log.is_file() and log.read_bytes().count(b"\n") >= blow.steps)
        if due and not struck and victim not in codes:
            os.kill(victim, signal.SIGKILL)
            struck = True
        if any(codes.values()) and not asked and time.monotonic() - died > GRACE:
            for pid in set(pids) - codes.keys():
                os.kill(pid, signal.SIGTERM)
            asked = True
        if passed > PATIENCE:
            for pid in set(pids) - codes.keys():
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                codes[pid] = -99
        time.sleep(0.005)
    return [codes[pid] for pid in pids]


# -- one run, many runs ------------------------------------------------------------------------------------------------


@dataclass
class Undisturbed:
    """The run that the others must equal, how long it took, and how often each of its processes wrote."""

    place: Path
    seconds: float
    writes: list[int]


def undisturbed(case: Case, inputs: Path, place: Path) -> Undisturbed:
    """Runs a case to its end without a blow; RuntimeError with its output when it fails."""
    new_place(inputs, place)
    began = time.monotonic()
    codes = start(case, words_of(case, inputs, place), place, Blow(), cold=False)
    if any(codes):
        raise RuntimeError(f"{case.name}: exit {codes}\n{(place / 'output-0.txt').read_text()[-3000:]}")
    return Undisturbed(
        place, time.monotonic() - began, [int(file.read_text()) for file in sorted(place.glob("writes-*"))]
    )


def random_blow(whole: Undisturbed, *, cold: bool) -> Blow:
    victim = random.randrange(len(whole.writes))
    if cold:
        return Blow(victim, seconds=random.uniform(4, 12 + whole.seconds))
    if random.random() < 0.4:
        return Blow(victim, seconds=random.uniform(0, whole.seconds))
    late = 0.0 if random.random() < 0.5 else random.uniform(1e-5, 4e-3)
    return Blow(victim, write=random.randint(1, whole.writes[victim]), late=late)


def torment(case: Case, inputs: Path, place: Path, whole: Undisturbed, count: Count, *, cold: bool = False) -> None:
    """One run, killed and started again until it is through; what went wrong is added to `count`."""
    new_place(inputs, place)
    words, label = words_of(case, inputs, place), f"{case.name}, {place.name}"
    before, count.runs = 0, count.runs + 1
    for kills in itertools.count():
        blow = random_blow(whole, cold=cold) if kills < MOST_KILLS else Blow()
        codes = start(case, words, place, blow, cold=cold)
        count.starts += 1
        if not any(codes):
            break
        if -99 in codes:
            count.hangs.append(f"{label}: hung after {blow}")
            return
        struck = any(code in (-signal.SIGKILL, -signal.SIGALRM) for code in codes)
        count.kills += struck
        count.corrupt += [f"{label}: {bad}" for bad in unsound(place)]
        state = newest_state(place / "out" / f"{NAME}.run")
        step = int(state.name.rpartition("-")[2]) if state else 0
        finished = (place / "out" / f"{NAME}.safetensors").exists()
        if step < before and not finished:
            count.lost.append(f"{label}: the newest state went from step {before} to {step}")
        before = step
        if finished and state is None:  # killed while it tidied up after its end: there is nothing left but to sweep
            codes = start(case, words, place, Blow(), cold=cold)
            count.starts += 1
            if not all(codes) or "already has results" not in (place / "output-0.txt").read_text():
                count.lost.append(f"{label}: a complete run was begun again")
            break
        if finished and not struck and "there is nothing left to train" in (place / "output-0.txt").read_text():
            break  # killed after its last state, which stays
        if not struck:
            tail = (place / "output-0.txt").read_text()[-2000:]
            count.lost.append(f"{label}: a start failed by itself with {codes}, {kills} kills before\n{tail}")
            return
    if not (place / "out" / f"{NAME}.safetensors").exists():
        count.lost.append(f"{label}: no final weights")
        return
    found = differences(whole.place, place)
    count.differ += [f"{label}: {one}" for one in found]
    if not found:
        shutil.rmtree(place)


def launched(base: Path, number: int, counts: dict[str, Count]) -> None:
    """A run of the launcher, on one process or two."""
    from benchmarks import torture_launched

    processes = 1 + (number // 8) % 2
    name, whole = f"kohyakit launch, {processes} processes", base / f"whole-launched-{processes}"
    if not whole.exists():
        torture_launched.undisturbed(base / "inputs", whole, processes)
    count = counts.setdefault(name, Count())
    torture_launched.torment(base / "inputs", base / f"run-{number}", whole, processes, count)


def table(counts: Mapping[str, Count]) -> str:
    """The figures as a Markdown table."""
    lines = ["| runs of the kind | runs | starts | kills | lost | corrupt | differ | hang |", "|---|" + "---:|" * 7]
    total = Count()
    for name, one in counts.items():
        lines.append(_row(name, one))
        for key in vars(total):
            setattr(total, key, getattr(total, key) + getattr(one, key))
    return "\n".join([*lines, _row("all", total)])


def _row(name: str, one: Count) -> str:
    faults = " | ".join(str(len(found)) for found in (one.lost, one.corrupt, one.differ, one.hangs))
    return f"| {name} | {one.runs} | {one.starts} | {one.kills} | {faults} |"


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table and every fault; 1 when there is one."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.torture", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0, help="of the blows; what they hit still depends on the clock")
    parser.add_argument("--cold", type=int, default=10, help="every how many runs are `python -m trainer`; 0 for none")
    parser.add_argument("--launched", type=int, default=8, help="every how many runs are `kohyakit launch`; 0 for none")
    parser.add_argument("--kills", type=int, default=0, help="go on until there were so many, whatever time it takes")
    parser.add_argument("--cases", type=int, nargs="*", help="numbers of the kinds of runs, from 0")
    parser.add_argument("--folder", type=Path, help="where to work; runs with faults stay there")
    given = parser.parse_args(argv)
    random.seed(given.seed)
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    import trainer.loop  # noqa: F401  # once, for all the forks

    base = Path(tempfile.mkdtemp(prefix="torture-", dir=given.folder))
    make_inputs(base / "inputs")
    cases = [CASES[number] for number in given.cases] if given.cases else list(CASES)
    counts, end = {case.name: Count() for case in cases}, time.monotonic() + 60 * given.minutes
    references: dict[str, Undisturbed] = {}
    for number in itertools.count(1):
        case = cases[number % len(cases)]
        if time.monotonic() > end and sum(one.kills for one in counts.values()) >= given.kills:
            break
        if given.launched and number % given.launched == 0:
            launched(base, number, counts)
            continue
        if case.name not in references:
            references[case.name] = undisturbed(case, base / "inputs", base / f"whole-{len(references)}")
        cold = bool(given.cold) and number % given.cold == 0
        torment(case, base / "inputs", base / f"run-{number}", references[case.name], counts[case.name], cold=cold)
    faults = [fault for one in counts.values() for fault in one.faults]
    print(table(counts), *faults, sep="\n")
    if not faults:
        shutil.rmtree(base)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
