"""The one process that works on a queue: starts what is next, hears wishes, and writes down how each run ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from launcher.queue import devices
from launcher.queue.add import fingerprint
from launcher.queue.devices import CPU, Slot
from launcher.queue.folder import LOG, RESULT, Queue
from launcher.queue.jobs import Job, next_words, recorded_start
from launcher.run import record
from launcher.run.failures import KINDS
from schemas.files.run_folder import last_step, read_object
from schemas.files.run_lock import in_use
from schemas.files.writing import (
    disk_advice,
    disk_fault,
    disk_words,
    this_host,
)
from schemas.signals import INTERRUPTED

POLL = 0.3  # seconds between two looks
REPORT = 60.0  # seconds between two lines about a run that goes on
IN_VAIN = 3  # starts that were cut off without a step forward, after which a job is left alone
DISK = next(kind.cause for kind in KINDS if kind.name == "disk-full")
DISK_CODES = ("disk-full",)
POSIX = os.name == "posix"


@dataclass
class Under:
    """A run that goes on: our own child, or one that an earlier runner has left behind."""

    number: int
    devices: tuple[str, ...]
    pid: int
    born: float
    child: subprocess.Popen[bytes] | None = None
    asked: int = 0  # times it was asked to stop
    told: float = field(default_factory=time.monotonic)

    def lives(self) -> bool:
        if self.child is not None:
            return self.child.poll() is None
        return _born(self.pid) == self.born

    def ask_to_stop(self) -> None:
        """As a Ctrl-C in its terminal would: it finishes its step and saves."""
        self.asked += 1
        with contextlib.suppress(OSError):
            os.kill(self.pid, signal.SIGTERM if POSIX else getattr(signal, "CTRL_BREAK_EVENT", signal.SIGTERM))


def _born(pid: int) -> float | None:
    """When a process began; None where it has ended. Numbers are given out again, times are not."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except (psutil.Error, ValueError, OverflowError):
        return None


class Runner:
    """Works on a queue whose runner lock is held. `step` is called again and again."""

    def __init__(self, queue: Queue, slots: list[Slot], say: Callable[[str], Any], *, cpu: bool = False) -> None:
        self.queue, self.slots, self.say = queue, slots, say
        self.cpu = cpu  # whether runs that were queued for a GPU may run on the CPU
        self.under: list[Under] = []
        self.stopping = False  # nothing is started any more
        self.trouble: str | None = None  # why the queue has stopped by itself
        self.failed: list[int] = []
        self._busy: set[int] = set()
        with queue.changing():
            queue.set_head(stop_asked=False, stopped=None)
        self._take_over()

    def step(self) -> bool:
        """One look: runs that have ended, wishes, the next start. False when there is nothing left to do."""
        head = self.queue.head()
        if head["stop_asked"] and not self.stopping:
            self.say("asked to stop: the runs under way save their state")
            self.stop()
        jobs = {job.id: job for job in self.queue.jobs()}
        for one in list(self.under):
            self._look_at(one, jobs.get(one.number))
        if not self.stopping and not head["paused"]:
            while self._start_next():
                pass
        waiting = [job for job in self.queue.jobs() if job.state == "waiting"]
        return bool(self.under) or bool(waiting and not self.stopping and not head["paused"])

    def stop(self) -> None:
        """Nothing new, and every run under way saves its state and ends; each call asks once."""
        self.stopping = True
        for one in self.under:
            one.ask_to_stop()

    # What was there before

    def _take_over(self) -> None:
        """Jobs that an earlier runner has left as running: still alive, cut off, or finished meanwhile."""
        for job in self.queue.jobs():
            if job.state != "running":
                continue
            start = job.starts[-1] if job.starts else {}
            pid, born = start.get("pid"), start.get("born")
            here = start.get("host") == this_host()
            if here and type(pid) is int and isinstance(born, float) and _born(pid) == born:
                self.under.append(Under(job.id, tuple(start.get("devices") or (CPU,)), pid, born))
                self.say(f"{job.id}: {job.name} is still running; it is watched from here on")
            elif not here and in_use(job.run) is not None:
                self.say(f"{job.id}: {job.name} is running on another machine, which has its own runner")
            else:
                self._ended(job, None)

    # One run

    def _look_at(self, one: Under, job: Job | None) -> None:
        if not one.lives():
            self.under.remove(one)
            code = one.child.returncode if one.child is not None else None
            if job is not None:
                self._ended(job, code)
            return
        if job is not None and job.pause_asked and not one.asked:
            self.say(f"{job.id}: pausing {job.name}; it saves its state")
            one.ask_to_stop()
        if job is not None and time.monotonic() - one.told > REPORT:
            one.told = time.monotonic()
            done = last_step(job.run) if recorded_start(job) is not None else None
            self.say(f"{job.id}: {job.name} is at step {done or 0}{f' of {job.total}' if job.total else ''}")

    def _ended(self, job: Job, code: int | None) -> None:
        """Writes down how a run ended; `code` is None where nobody was there to see it."""
        result = read_object(self.queue.folder(job.id) / RESULT)
        start = recorded_start(job)
        if code is None or code < 0:
            code = (start or {}).get("exit") if type((start or {}).get("exit")) is int else result.get("exit")
        step = last_step(job.run) if start is not None else None
        begun = {**(job.starts[-1] if job.starts else {"begin": job.added})}
        now = {**begun, "end": record.now(), "exit": code, "last_step": step}
        with self.queue.changing():
            job = next((other for other in self.queue.jobs() if other.id == job.id), job)
            job = replace(job, starts=(*job.starts[:-1], now))
            self._stand(self._judged(job, code, result, step))

    def _judged(self, job: Job, code: int | None, result: Mapping[str, Any], step: int | None) -> Job:
        """The job as it stands after its run has ended."""
        log = self.queue.folder(job.id) / LOG
        if code == 0:
            return job.stands("done")
        if code == INTERRUPTED:
            if job.pause_asked:
                return job.stands(
                    "paused", f"paused at step {step or 0}; its state is kept", f"kohyakit queue resume {job.id}"
                )
            if self.stopping:
                return job.stands("waiting", f"interrupted at step {step or 0} with the queue; goes on from its state")
            return job.stands(
                "paused", f"was interrupted from outside at step {step or 0}", f"kohyakit queue resume {job.id}"
            )
        cause = _cause(result)
        if cause == DISK or any(code in DISK_CODES for code in _codes(result)):
            self._stop_for(f"the disk of {job.run.parent} is full; make room, then start `kohyakit queue run` again")
            return job.stands("waiting", f"the disk is full: {cause or 'no room for the run'}; goes on from its state")
        if "run-in-use" in _codes(result):
            return job.stands("waiting", "another process was at work on it")
        if code is None and _in_vain(job):
            said = f"was cut off {IN_VAIN} times without a step forward; see {log}"
            return job.stands("failed", said, f"kohyakit queue retry {job.id}")
        if code is None:
            where = f"cut off at step {step}" if step else "cut off before its first step"
            return job.stands("waiting", f"{where}; goes on from its newest state")
        gone = self._gone(job)
        if gone:
            return job.stands("waiting", f"{gone} vanished at step {step or 0}; goes on from its state on another one")
        said = cause or ("its input is wrong" if code == 1 else f"ended with exit code {code}")
        return job.stands("failed", f"{said}; see {log}", f"kohyakit queue retry {job.id}")

    def _gone(self, job: Job) -> str | None:
        """The GPU of the last start that is no longer there."""
        used = [device for device in (job.starts[-1].get("devices") or ()) if device != CPU]
        missing = [device for device in used if device not in devices.present()] if used else []
        return f"GPU {missing[0]}" if missing else None

    def _stand(self, job: Job) -> None:
        """Keeps and tells where a job stands now."""
        self.queue.save(job)
        if job.state == "failed":
            self.failed.append(job.id)
        self.say(f"{job.id}: {job.name} {job.state}{f': {job.reason}' if job.reason else ''}")

    def _stop_for(self, why: str) -> None:
        self.stopping, self.trouble = True, why
        self.queue.set_head(stopped=why)
        self.say(f"the queue stops: {why}")

    # The next start

    def _start_next(self) -> bool:
        """Starts the first waiting job if it has room; whether another look makes sense at once."""
        waiting = (job for job in self.queue.jobs() if job.state == "waiting")
        job = next((job for job in waiting if not self._at_work(job)), None)
        if job is None:
            return False
        held = self._in_the_way(job)
        if held is not None:
            with self.queue.changing():
                self._stand(held)
            return True
        if self.slots != [Slot(CPU)] and not self._look_at_gpus():
            return False
        busy = {device for one in self.under for device in one.devices}
        free = [slot for slot in self.slots if slot.device not in busy]
        cpu = [slot.device for slot in self.slots] == [CPU]
        needed = 1 if cpu else job.processes
        if needed > len(self.slots):
            said = f"wants {needed} GPUs, this queue has {len(self.slots)}"
            with self.queue.changing():
                self._stand(
                    job.stands("held", said, f"kohyakit queue retry {job.id}, and kohyakit queue run with more --gpus")
                )
            return True
        if len(free) < needed:  # strictly in order: a large one is not passed by small ones for ever
            return False
        return self._start(job, [slot.device for slot in free[:needed]])

    def _at_work(self, job: Job) -> bool:
        """Whether somebody trains there: the trainer of a killed launcher saves its state, or a person started it."""
        busy = in_use(job.run) is not None
        if busy and job.id not in self._busy:
            self.say(f"{job.id}: {job.name} is being trained by another process; it is waited for")
        (self._busy.add if busy else self._busy.discard)(job.id)
        return busy

    def _look_at_gpus(self) -> bool:
        """Takes out the GPUs that no longer answer; False where none is left."""
        there = devices.present()
        for slot in [slot for slot in self.slots if slot.device not in there]:
            self.slots.remove(slot)
            self.say(f"{slot} no longer answers; nothing more is started on it")
        if not self.slots:
            self._stop_for("no GPU answers any more; see nvidia-smi, or `kohyakit queue run --cpu`")
        return bool(self.slots)

    def _in_the_way(self, job: Job) -> Job | None:
        """The job as held, where what was queued is not what would be started now."""
        if job.device == "gpu" and self.slots == [Slot(CPU)] and not self.cpu:
            return job.stands(
                "held",
                "was queued for a GPU, and none answers here",
                f"kohyakit queue retry {job.id}, and kohyakit queue run --cpu",
            )
        if not Path(job.cwd).is_dir():
            return job.stands("held", f"{job.cwd}, where it was queued, is gone", f"kohyakit queue retry {job.id}")
        if next_words(job) != list(job.words) or job.fingerprint is None:
            return None  # goes on with a run folder, which keeps its own
        if not Path(job.file).exists():
            said = f"{job.file} was removed since it was queued"
            return job.stands("held", said, f"put it back, then kohyakit queue retry {job.id}")
        if fingerprint(job.file) != job.fingerprint:
            said = f"{job.file} was edited since it was queued"
            return job.stands("held", said, f"kohyakit queue retry {job.id} trains it as it is now")
        return None

    def _start(self, job: Job, used: list[str]) -> bool:
        words = next_words(job)
        if words is None:
            with self.queue.changing():
                self._stand(job.stands("done", "was finished already"))
            return True
        folder = self.queue.folder(job.id)
        command = [sys.executable, "-m", "launcher", *words, "--json"]
        start: dict[str, Any] = {"begin": record.now(), "devices": used, "words": words, "host": this_host()}
        with self.queue.changing():
            if not any(other.id == job.id and other.state == "waiting" for other in self.queue.jobs()):
                return True  # paused or removed between two looks
            (folder / RESULT).unlink(missing_ok=True)
            self.queue.save(replace(job.stands("running"), starts=(*job.starts, start)))
            child = _child(command, folder, job.cwd, devices.environment(used, os.environ))
            one = Under(job.id, tuple(used), child.pid, _born(child.pid) or 0.0, child)
            self.under.append(one)
            start = {**start, "pid": one.pid, "born": one.born}
            self.queue.save(replace(job.stands("running"), starts=(*job.starts, start)))
        place = self.slots[0] if used == [CPU] else f"GPU {','.join(used)}"
        self.say(f"{job.id}: {job.name} {words[0]} on {place}; log: {folder / LOG}")
        return True


def _child(command: list[str], folder: Path, cwd: str, variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """A session of its own: a Ctrl-C at the queue's terminal reaches it once, through the queue; a kill does not."""
    options: dict[str, Any] = (
        {"start_new_session": True} if POSIX else {"creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)}
    )
    with open(folder / LOG, "ab") as log, open(folder / RESULT, "wb") as result:
        return subprocess.Popen(
            command, cwd=cwd, env=dict(variables), stdin=subprocess.DEVNULL, stdout=result, stderr=log, **options
        )


def _cause(result: Mapping[str, Any]) -> str | None:
    """Why a run failed, as its own document says: the trainer's fault, or the first error of its input."""
    if isinstance(result.get("cause"), str):
        return str(result["cause"])
    problems = result.get("problems")
    for problem in problems if isinstance(problems, list) else []:
        if isinstance(problem, dict) and problem.get("severity") == "error":
            words = [f"{problem['key']}:" if problem.get("key") else "", str(problem.get("must"))]
            return " ".join(word for word in words if word)
    return None


def _codes(result: Mapping[str, Any]) -> list[str]:
    problems = result.get("problems")
    return [
        str(one.get("code"))
        for one in (problems if isinstance(problems, list) else [])
        if isinstance(one, dict) and one.get("severity") == "error"
    ]


def _in_vain(job: Job) -> bool:
    """Whether the last starts were all cut off at the same step."""
    last = job.starts[-IN_VAIN:]
    return len(last) == IN_VAIN and len({start.get("last_step") for start in last}) == 1


def work(runner: Runner, *, stay: bool, hear: Callable[[], int]) -> int:
    """Runs until nothing is left (or for ever with `stay`); `hear` counts wishes to stop. The command's exit code."""
    heard = 0
    while True:
        try:
            more = runner.step()
        except OSError as fault:
            if disk_fault(fault) is None:
                raise
            runner.say(
                f"the queue stops: {disk_words(fault)}; {disk_advice(fault)}. Runs under way go on by themselves"
            )
            return 3
        wishes = hear()
        if wishes > heard:
            heard = wishes
            runner.say("the runs under way save their state; once more ends them at once")
            runner.stop()
        if not more and (runner.stopping or not stay):
            break
        time.sleep(POLL)
    if heard:
        return INTERRUPTED
    return 3 if runner.trouble or runner.failed else 0
