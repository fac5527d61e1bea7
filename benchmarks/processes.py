"""`python -m benchmarks.processes`: what 1, 2 and 4 gloo processes cost on a CPU, and whether they do the work of one.

Time: every process has a batch of its own, so N processes see N images a step; the median of the steps in log.jsonl,
the first ones left out. Gradients: 4 images a step however many processes share them; after one step of SGD the up
halves of the LoRA, which began at zero, are the gradient times the rate, and are compared with those of one process.

With `--link 1gbit` (as root) also two machines: two network namespaces, joined by a pair of interfaces
that let through so much a second.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from benchmarks.results import NAME
from benchmarks.torture import ROOT, Blow, Case, make_inputs, new_place, start, words_of

IMAGES = 4  # a step, in the comparison of gradients
WARM_UP = 5  # steps that are not counted
PORT = 29677
PLAIN: dict[str, Any] = {"save_every_n_steps": None, "optimizer_type": "SGDNesterov", "learning_rate": 0.5}


@dataclass(frozen=True)
class Row:
    """One line of the table: seconds a step, images a second, largest difference of gradients (None: not compared)."""

    name: str
    processes: int
    seconds: float
    images: float
    difference: float | None
    megabytes: float

    def as_json(self) -> dict[str, Any]:
        return dict(vars(self))


def data_for(inputs: Path, processes: int) -> None:
    """As many repeats as make every number of processes divide an epoch: no process has a sample more."""
    for folder in (inputs / "data").iterdir():
        folder.rename(folder.with_name(f"{processes}_n0m3"))


def records(place: Path) -> list[dict[str, Any]]:
    log = place / "out" / f"{NAME}.run" / "log.jsonl"
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]


def trained(inputs: Path, place: Path, processes: int, **options: Any) -> Path:
    """A run to its end; RuntimeError with the log's last lines where one fails."""
    new_place(inputs, place)
    case = Case(place.name, {**PLAIN, **options}, processes)
    codes = start(case, words_of(case, inputs, place), place, Blow(), cold=False)
    if any(codes):
        raise RuntimeError((place / "output-0.txt").read_text(encoding="utf-8")[-2000:])
    return place


def gradients(place: Path) -> dict[str, Any]:
    """The up halves after one step: minus the rate times the gradient, and the momentum's share of it."""
    weights = load_file(place / "out" / f"{NAME}.safetensors")
    return {name: value for name, value in weights.items() if name.endswith("lora_up.weight")}


def apart(one: Path, other: Path) -> float:
    """The largest difference of two runs' gradients, over the largest gradient."""
    left, right = gradients(one), gradients(other)
    assert left.keys() == right.keys()
    largest = max(float(value.abs().max()) for value in left.values())
    return max(float((left[name] - right[name]).abs().max()) for name in left) / largest


def seconds_of(place: Path) -> float:
    return statistics.median(float(record["seconds"]) for record in records(place)[WARM_UP:])


def sent(place: Path) -> float:
    """Megabytes of gradients that each process hands over a step, in fp32."""
    weights = load_file(place / "out" / f"{NAME}.safetensors")
    return sum(value.numel() for name, value in weights.items() if "lora_" in name) * 4 / 1e6


def measure(inputs: Path, folder: Path, counts: Sequence[int], *, steps: int, rank: int) -> Iterator[Row]:
    """A row for each number of processes on this machine."""
    one = trained(inputs, folder / "gradient-1", 1, max_train_steps=1, gradient_accumulation_steps=IMAGES)
    for count in counts:
        difference: float | None = None
        if IMAGES % count == 0:
            place = folder / f"gradient-of-{count}"
            trained(inputs, place, count, max_train_steps=1, gradient_accumulation_steps=IMAGES // count)
            difference = apart(one, place)
        place = trained(inputs, folder / f"time-{count}", count, max_train_steps=steps, network_dim=rank)
        seconds = seconds_of(place)
        yield Row("this machine", count, seconds, count / seconds, difference, sent(place))


# Two machines


@contextlib.contextmanager
def link(rate: str) -> Iterator[tuple[str, str]]:
    """Two network namespaces joined by a shaped link; OSError or CalledProcessError where that may not be done here."""
    names = (f"kk-a-{os.getpid()}", f"kk-b-{os.getpid()}")
    ends = ("kk-veth-a", "kk-veth-b")

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True, text=True)

    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for number, (name, end) in enumerate(zip(names, ends, strict=True), start=1):
            ip("link", "set", end, "netns", name)
            ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", end)
            ip("-n", name, "link", "set", end, "up")
            ip("-n", name, "link", "set", "lo", "up")
            shape = ["tc", "-n", name, "qdisc", "add", "dev", end, "root"]
            words = ["tbf", "rate", rate, "burst", "256kb", "latency", "50ms"]
            subprocess.run([*shape, *words], check=True, capture_output=True, text=True)
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def on_two_machines(inputs: Path, place: Path, names: tuple[str, str], *, steps: int, rank: int) -> Path:
    """A run of one process in each namespace, started as two machines would."""
    new_place(inputs, place)
    case = Case(place.name, {**PLAIN, "max_train_steps": steps, "network_dim": rank}, 2)
    words = [sys.executable, "-m", "trainer", *words_of(case, inputs, place)]
    running = []
    for number, (name, end) in enumerate(zip(names, ("kk-veth-a", "kk-veth-b"), strict=True)):
        variables = {
            **os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "RANK": str(number), "LOCAL_RANK": "0",
            "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "10.77.0.1", "MASTER_PORT": str(PORT),
            "GLOO_SOCKET_IFNAME": end,
        }  # fmt: skip
        with (place / f"output-{number}.txt").open("wb") as log:
            command = ["ip", "netns", "exec", name, *words]
            running.append(subprocess.Popen(command, cwd=ROOT, env=variables, stdout=log, stderr=log))
    codes = [process.wait(600) for process in running]
    if any(codes):
        raise RuntimeError((place / "output-0.txt").read_text(encoding="utf-8")[-2000:])
    return place


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown."""
    lines = [
        "| where | processes | s/step | images/s | gradients handed over | gradients differ by |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        difference = "not compared" if row.difference is None else f"{row.difference:.1e} of the largest"
        size = f"{row.megabytes:.2f} MB"
        lines.append(f"| {row.name} | {row.processes} | {row.seconds:.4f} | {row.images:.1f} | {size} | {difference} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rank", type=int, default=4, help="of the LoRA: how much the processes hand each other")
    parser.add_argument("--link", nargs="*", default=[], metavar="RATE", help="two machines, such as 1gbit 100mbit")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(argv)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder) / "inputs"
        make_inputs(inputs)
        data_for(inputs, IMAGES)
        for row in measure(inputs, Path(folder), given.processes, steps=given.steps, rank=given.rank):
            rows.append(row)
        for rate in given.link:
            with link(rate) as names:
                place = on_two_machines(inputs, Path(folder) / rate, names, steps=given.steps, rank=given.rank)
                seconds = seconds_of(place)
                rows.append(Row(f"two machines, {rate}", 2, seconds, 2 / seconds, None, sent(place)))
                shutil.rmtree(place)
    text = json.dumps([row.as_json() for row in rows], indent=1) if given.json else table(rows)
    sys.stdout.write(f"{text}\n")
    return 0 if all(row.difference is None or row.difference < 1e-4 for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
