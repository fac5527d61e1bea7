"""What runs on each node of a cluster job: launch the first time, resume after every requeue, save when time is up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from launcher.queue.jobs import Job, job_in, next_words
from launcher.run import record
from launcher.run.command import ROOT
from launcher.run.files import write_json
from schemas.files.run_folder import read_object
from schemas.problems import error
from schemas.signals import INTERRUPTED
from schemas.terminal import say

JOB = "job.json"
MARGIN = 20.0  # seconds of the grace that are left for the requeue itself
PATIENCE = 300.0  # seconds that the other nodes wait for the first one's word; a file system of a cluster is slow
FIRST_PORT, PORTS = 20000, 20000


class RunFailed(Exception):
    """The run ended with an exit code that is no success; the log above it says why."""


@dataclass(frozen=True)
class Node:
    """This node of the job: `rank` from 0, the first one's name, the job's number, and how often it was requeued."""

    rank: int
    count: int
    first: str
    job_id: str
    restart: str

    @classmethod
    def here(cls) -> Node:
        """As submitit's environment says it."""
        import submitit

        found = submitit.JobEnvironment()
        restart = os.environ.get("SLURM_RESTART_COUNT") or "0"
        return cls(found.node, found.num_nodes, found.hostnames[0], str(found.job_id), restart)

    @property
    def words(self) -> list[str]:
        """The machine flags of `launch` and `resume`; none where there is one machine."""
        if self.count < 2:
            return []
        digits = "".join(letter for letter in self.job_id if letter.isdigit()) or "0"
        port = FIRST_PORT + int(digits) % PORTS
        return ["--machines", str(self.count), "--machine-rank", str(self.rank), "--main-ip", self.first,
                "--main-port", str(port)]  # fmt: skip


@dataclass
class ClusterRun:
    """The callable that submitit keeps, calls on each node, and asks for a `checkpoint` before the time is up.

    `folder` holds the job's file, which says whether it was begun; `grace` is the time in seconds between the warning
    and the end. Nothing of the run itself is kept in here: the run folder knows it.
    """

    folder: str
    grace: float
    child: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "grace": self.grace, "child": None}

    def __call__(self) -> int:
        """Trains until the run is finished or asked to stop. RunFailed where it failed."""
        node = Node.here()
        words, cwd = self.begin() if node.rank == 0 else (None, "")
        words, cwd = self.agreed(node, words, cwd)
        if words is None:
            say("the run is finished already")
            return 0
        command = [sys.executable, "-m", "launcher", *words, *node.words]
        self.child = subprocess.Popen(
            command, cwd=cwd, env=_variables(), stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_deaf
        )
        code = self.child.wait()
        if code not in (0, INTERRUPTED):
            raise RunFailed(f"{' '.join(words[:2])} ended with exit code {code}")
        return code

    def begin(self) -> tuple[list[str] | None, str]:
        """(words after `kohyakit`, or None where nothing is left to do; the folder to start in). Kept as a start."""
        job = read_job(Path(self.folder))
        words = next_words(job)
        start = {"begin": record.now(), "words": words}
        write_json(Path(self.folder) / JOB, replace(job, starts=(*job.starts, start)).as_file())
        return words, job.cwd

    def agreed(self, node: Node, words: list[str] | None, cwd: str) -> tuple[list[str] | None, str]:
        """What the first node has decided: the others would see what it has written since, and decide otherwise."""
        if node.count < 2:
            return words, cwd
        path = Path(self.folder) / f"start-{node.job_id}-{node.restart}.json"
        if node.rank == 0:
            write_json(path, {"words": words, "cwd": cwd})
            return words, cwd
        until = time.monotonic() + PATIENCE
        while not path.is_file():
            if time.monotonic() > until:
                raise RunFailed(f"node {node.rank}: the first node has not begun; {path} did not appear")
            time.sleep(0.5)
        said = read_object(path)
        return said.get("words"), str(said.get("cwd"))

    def checkpoint(self) -> Any:
        """The time is nearly up, or another job needs the node: the run saves its state, the job is queued again.

        A save that takes longer than the grace is not waited for: states are whole or not there, and the run goes on
        from the one before.
        """
        import submitit

        child = self.child
        if child is not None and child.returncode is None:
            child.send_signal(signal.SIGTERM)
            if not _ended(child.pid, max(1.0, self.grace - MARGIN)):
                say("the state is not saved yet; the run goes on from the one before it")
        return submitit.helpers.DelayedSubmission(ClusterRun(self.folder, self.grace))


def _ended(pid: int, seconds: float) -> bool:
    """Whether a child ends in that time. It is not reaped: this is a signal handler, and the code that it has
    interrupted waits for the same child, with a lock of its own."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                return True
        except ChildProcessError:
            return True
        time.sleep(0.1)
    return False


def _deaf() -> None:
    """Slurm's warning goes to every process of the step; only submitit's own knows what to do with it."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def _variables() -> Mapping[str, str]:
    rest = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part and part != str(ROOT)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *rest])}


def read_job(folder: Path) -> Job:
    """The job of a cluster folder. ConfigError `job-damaged`."""
    found = job_in(read_object(folder / JOB))
    if isinstance(found, str):
        raise error("job-damaged", found, file=str(folder / JOB), fix="submit the run again")
    return found
