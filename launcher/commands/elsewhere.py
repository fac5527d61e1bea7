"""`launch` and `resume` with --on: the same words, on a cluster or a rented machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from launcher.commands import print_json
from schemas.terminal import say, say_file

if TYPE_CHECKING:
    from launcher.queue.add import Wish

# The words of each place, and what they are where they are not given.
SLURM: dict[str, Any] = {
    "nodes": 1, "gpus_per_node": 1, "time": "8:00:00", "partition": None, "account": None, "qos": None,
    "cpus_per_task": None, "mem": None, "constraint": None,
}  # fmt: skip
SKY: dict[str, Any] = {"gpu": "RTX4090", "spot": False, "cloud": None, "disk": None, "bucket": None, "wheel": None}
HERE = ("gpu_ids", "machines", "machine_rank", "main_ip", "main_port", "accelerate_config")


def on_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """--on and what belongs to it."""
    for option in (
        click.option("--wheel", metavar="FILE.whl", help="sky: the wheel to install; made of this checkout if unset."),
        click.option("--bucket", metavar="URL", help="sky: where the run folder is kept, such as s3://my-runs."),
        click.option("--disk", type=click.IntRange(min=1), metavar="GB", help="sky: size of the machine's disk."),
        click.option("--cloud", metavar="NAME", help="sky: the cloud; the cheapest one if not given."),
        click.option("--spot", is_flag=True, default=None, help="sky: a spot machine; taken away, it goes on exactly."),
        click.option("--gpu", metavar="NAME[:N]", help="sky: the GPU, and how many.  [default: RTX4090]"),
        click.option("--constraint", metavar="C", help="slurm: as sbatch takes it."),
        click.option("--mem", metavar="SIZE", help="slurm: as sbatch takes it."),
        click.option("--cpus-per-task", type=click.IntRange(min=1), metavar="N", help="slurm: cores a node."),
        click.option("--qos", metavar="Q", help="slurm: as sbatch takes it."),
        click.option("--account", metavar="A", help="slurm: as sbatch takes it."),
        click.option("--partition", metavar="P", help="slurm: as sbatch takes it."),
        click.option("--time", metavar="LIMIT", help="slurm: the time limit; goes on after it.  [default: 8:00:00]"),
        click.option("--gpus-per-node", type=click.IntRange(min=0), metavar="G", help="slurm: GPUs a node."),
        click.option("--nodes", type=click.IntRange(min=1), metavar="N", help="slurm: nodes."),
        click.option("--on", type=click.Choice(["slurm", "sky"]), help="Train on a cluster, or on a rented machine."),
    ):
        function = option(function)
    return function


def elsewhere(wish: Wish, words: dict[str, Any], as_json: bool) -> int:
    """Submits or launches it, or shows what would be; the exit code."""
    _refuse_others(words)
    if words["on"] == "slurm":
        return _slurm(wish, words, as_json)
    from launcher.cluster.sky import run

    return run(wish, {**SKY, **_given(words, SKY)}, only_print=words["print_command"], as_json=as_json)


def refuse_without_on(words: dict[str, Any]) -> None:
    """UsageError for words of --on without it."""
    from launcher.check.resolve import UsageError

    for name in (*SLURM, *SKY):
        if words.get(name) is not None:
            raise UsageError(f"{_flag(name)} belongs to --on {'slurm' if name in SLURM else 'sky'}")


def _given(words: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    return {name: words[name] for name in known if words.get(name) is not None}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _refuse_others(words: dict[str, Any]) -> None:
    from launcher.check.resolve import UsageError

    other = SKY if words["on"] == "slurm" else SLURM
    wrong = [name for name in (*other, *HERE) if words.get(name) is not None]
    if wrong:
        raise UsageError(f"{_flag(wrong[0])} has no effect with --on {words['on']}")
    if words.get("backend") == "sd-scripts":
        raise UsageError("--backend sd-scripts has no --on: its runs cannot be gone on with exactly")


def _slurm(wish: Wish, words: dict[str, Any], as_json: bool) -> int:
    from launcher.cluster import slurm

    given = {**SLURM, **_given(words, SLURM)}
    request = slurm.Request(
        nodes=given["nodes"],
        gpus_per_node=given["gpus_per_node"],
        minutes=slurm.minutes_of(given["time"]),
        partition=given["partition"],
        account=given["account"],
        qos=given["qos"],
        cpus=given["cpus_per_task"],
        memory=given["mem"],
        constraint=given["constraint"],
    )
    if words["print_command"]:
        made = slurm.prepare(wish, request)
    else:
        made = slurm.submit(wish, request)
    if as_json:
        print_json({"ok": True, **made.as_json()})
    elif words["print_command"]:
        say_file(made.script if made.script.endswith("\n") else f"{made.script}\n")
    else:
        say(f"submitted as job {made.job_id}: {made.job.name} -> {made.job.run_folder}")
        say(f"    log:  {made.log}")
        say(
            f"    look: squeue -j {made.job_id}; stop: scancel {made.job_id}",
            err=True,
        )
    return 0
