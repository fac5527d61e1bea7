"""`--on slurm`: the run as an sbatch job through submitit, requeued at its time limit and gone on with exactly."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launcher.check.machine import Gpu, Machine
from launcher.cluster.task import JOB, ClusterRun
from launcher.queue.add import Wish, job_of
from launcher.queue.jobs import Job
from launcher.run.command import ROOT
from schemas.files.run_folder import read_object
from schemas.problems import error
from schemas.terminal import shell_word

GRACE = 120  # seconds between the warning and the end: a step, a save and the requeue
TIMEOUTS = 10_000  # requeues: each one goes on where the last one ended, so their number is no sign of trouble
SUBMITTED = "submitted.json"
LIMIT = re.compile(r"(?:(?P<days>\d+)-)?(?P<first>\d+)(?::(?P<second>\d+))?(?::(?P<third>\d+))?")


@dataclass(frozen=True)
class Request:
    """What is asked of the cluster. `minutes` is its time limit, `grace` in seconds; None leaves it to the cluster."""

    nodes: int = 1
    gpus_per_node: int = 1
    minutes: int = 480
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    cpus: int | None = None
    memory: str | None = None
    constraint: str | None = None
    grace: int = GRACE

    @property
    def processes(self) -> int:
        """Of all nodes together; one a node where there is no GPU."""
        return self.nodes * max(1, self.gpus_per_node)

    @property
    def machine(self) -> Machine:
        """The node as the plan sees it: as many GPUs, of which nothing more is known here."""
        known = ("xformers", "bitsandbytes", "torch", "accelerate")
        packages = [name for name in known if importlib.util.find_spec(name)]
        cards = tuple(Gpu("a GPU of the cluster") for _ in range(self.gpus_per_node))
        return Machine(gpus=cards, cores=self.cpus or 1, fast_bf16=bool(cards), packages=frozenset(packages))

    def parameters(self, name: str) -> dict[str, Any]:
        """Words of sbatch, as submitit names them."""
        found: dict[str, Any] = {
            "job_name": name, "nodes": self.nodes, "ntasks_per_node": 1, "time": self.minutes,
            "gpus_per_node": self.gpus_per_node or None, "partition": self.partition, "account": self.account,
            "qos": self.qos, "cpus_per_task": self.cpus, "mem": self.memory, "constraint": self.constraint,
            "signal_delay_s": self.grace, "stderr_to_stdout": True, "additional_parameters": {"requeue": True},
            "setup": [f"export PYTHONPATH={shell_word(ROOT)}${{PYTHONPATH:+:$PYTHONPATH}}"],
        }  # fmt: skip
        return {key: value for key, value in found.items() if value is not None}


@dataclass(frozen=True)
class Submission:
    """A job as it was, or would be, submitted."""

    job: Job
    folder: Path
    script: str
    job_id: str | None = None

    @property
    def log(self) -> Path:
        return self.folder / f"{self.job_id or '%j'}_0_log.out"

    def as_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {"on": "slurm", "job_id": self.job_id, "log": str(self.log), "script": self.script}
        return {**found, "words": list(self.job.words), "run_folder": self.job.run_folder, "folder": str(self.folder)}


def minutes_of(text: str) -> int:
    """A time limit as Slurm writes it: minutes, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS. ConfigError otherwise."""
    match = LIMIT.fullmatch(text.strip())
    if match is None:
        raise error("bad-value", "is no time limit", key="--time", got=text, fix="--time 8:00:00 for eight hours")
    first, second, third = (int(match[name] or 0) for name in ("first", "second", "third"))
    if match["days"]:
        seconds = int(match["days"]) * 86400 + first * 3600 + second * 60 + third
    elif match["third"]:
        seconds = first * 3600 + second * 60 + third
    else:
        seconds = first * 60 + second
    return -(-seconds // 60)


def need_submitit() -> None:
    """ConfigError `missing-package` with the line that installs it."""
    if importlib.util.find_spec("submitit") is None:
        said, fix = "needs submitit, which is not installed", 'pip install "kohyakit[slurm]", or pip install submitit'
        raise error("missing-package", said, key="--on slurm", fix=fix)


def prepare(wish: Wish, request: Request) -> Submission:
    """Checks and plans for the cluster; writes nothing. ConfigError with everything that is wrong."""
    need_submitit()
    if request.minutes * 60 <= request.grace * 2:
        said = f"leaves no time to train: the run is told to save {request.grace} seconds before the end"
        raise error("bad-value", said, key="--time", got=f"{request.minutes} min", fix="--time 1:00:00")
    wish = replace(wish, processes=wish.processes or request.processes)
    job, _ = job_of(wish, on=request.machine, machines=request.nodes)
    folder = job.run.with_suffix(".slurm")
    from submitit.slurm.slurm import _make_sbatch_string

    command = f"{shell_word(sys.executable)} -u -m submitit.core._submit {shell_word(folder)}"
    script = _make_sbatch_string(command=command, folder=folder, **request.parameters(job.name))
    return Submission(job, folder, script)


def submit(wish: Wish, request: Request) -> Submission:
    """Submits it. ConfigError `no-slurm`, `already-submitted`, `refused-by-slurm`."""
    made = prepare(wish, request)
    if shutil.which("sbatch") is None:
        fix = "log in to the cluster first; --print-command shows what would be submitted"
        raise error("no-slurm", "needs sbatch, which is not on this machine", key="--on slurm", fix=fix)
    _refuse_twice(made)
    import submitit

    executor = submitit.SlurmExecutor(folder=made.folder, max_num_timeout=TIMEOUTS)
    executor.update_parameters(**request.parameters(made.job.name))
    return sent(executor, made, request)


def sent(executor: Any, made: Submission, request: Request) -> Submission:
    """Hands the job to an executor of submitit and keeps its number beside its logs."""
    from submitit.core.utils import FailedJobError

    from launcher.run.files import write_json

    fresh = not made.folder.exists()
    made.folder.mkdir(parents=True, exist_ok=True)
    write_json(made.folder / JOB, made.job.as_file())
    try:
        job = executor.submit(ClusterRun(str(made.folder), request.grace))
    except (FailedJobError, subprocess.CalledProcessError) as fault:
        if fresh:
            shutil.rmtree(made.folder)
        why = " ".join(str(fault).split())[-300:]
        fix = "mend what it names, such as --partition, --account or --time"
        raise error("refused-by-slurm", f"was refused: {why}", key="--on slurm", fix=fix) from None
    made = replace(made, job_id=str(job.job_id))
    write_json(made.folder / SUBMITTED, {"job_id": made.job_id, "log": str(made.log)})
    return made


def _refuse_twice(made: Submission) -> None:
    """Two jobs on one run folder: the second one would wait for days and then be refused."""
    before = read_object(made.folder / SUBMITTED).get("job_id")
    state = state_of(str(before)) if before else None
    if state is not None:
        fix = f"see {made.folder / f'{before}_0_log.out'}, or scancel {before} first"
        raise error("already-submitted", f"is job {before} of this cluster, {state}", got=made.job.run_folder, fix=fix)


def state_of(job_id: str) -> str | None:
    """PENDING, RUNNING and the like; None for a job that is over, or that nobody knows."""
    try:
        words = ["squeue", "-h", "-j", job_id, "-o", "%T"]
        answer = subprocess.run(words, capture_output=True, text=True, timeout=30, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return None
    return answer[0] if answer and answer[0] not in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT") else None
