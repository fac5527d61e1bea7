"""The sweep itself: trials become runs of the queue, their held-out losses go to the study, the worse ones stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.queue.add import job_of
from launcher.queue.folder import Queue
from launcher.queue.jobs import Job, recorded_start
from launcher.queue.runner import POLL, Runner
from launcher.queue.wishes import pause_one
from launcher.sweep import study as studies
from launcher.sweep.setup import Setup
from schemas.files.run_folder import VALIDATION, read_log
from schemas.problems import ConfigError
from schemas.signals import INTERRUPTED

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import Trial


@dataclass
class Sweep:
    """Looks again and again: `step` is False when every trial is told, or nothing can go on without a person."""

    setup: Setup
    study: Study
    queue: Queue
    say: Callable[[str], Any]
    parallel: int = 1
    page: Callable[[], Any] = lambda: None
    stuck: dict[int, str] = field(default_factory=dict)

    def step(self, *, more: bool = True) -> bool:
        """One look. With `more` new trials are begun."""
        jobs = {
            job.owner.get("trial"): job
            for job in self.queue.jobs()
            if job.owner.get("sweep") == str(self.setup.storage)
        }
        going = 0
        for trial in studies.open_trials(self.study):
            going += self._look_at(trial, jobs.get(trial.number))
        while more and going < self.parallel and self._begun() < self.setup.trials:
            trial = self.study.ask(studies.distributions(self.setup))
            going += self._begin(trial)
        return going > 0 or (more and self._begun() < self.setup.trials)

    def _begun(self) -> int:
        return sum(trial.state.name != "WAITING" for trial in self.study.get_trials(deepcopy=False))

    def _begin(self, trial: Trial) -> bool:
        """Queues the run of a trial; False where its combination of values is refused."""
        values = studies.texts(self.setup, trial.params)
        shown = ", ".join(f"{name}={value}" for name, value in values.items())
        try:
            job, _ = job_of(self.setup.wish_of(trial.number, values))
            job = self.queue.add(job)
        except ConfigError as fault:
            self._fail(trial, str(fault.problems[0].lines()[0]))
            return False
        trial.set_user_attr("run_folder", job.run_folder)
        self.say(f"trial {trial.number}: {shown} -> queued as {job.id}")
        return True

    def _look_at(self, trial: Trial, job: Job | None) -> bool:
        """Reports what was measured; whether the trial is still under way."""
        if job is None:
            return self._without_job(trial)
        if "run_folder" not in trial.user_attrs:  # killed between the two
            trial.set_user_attr("run_folder", job.run_folder)
        losses = measured(job) if recorded_start(job) is not None else {}
        known = self._known(trial)
        for epoch, loss in losses.items():
            if epoch not in known:
                trial.report(loss, epoch)
        if job.state == "done":
            self._tell(trial, losses)
            return False
        stopped = trial.user_attrs.get("stopped_at") is not None
        if job.state == "paused" and stopped:
            self._stopped(trial, job)
            return False
        if job.state == "failed":
            self._fail(trial, job.reason or "failed")
            return False
        if job.state == "running" and not stopped and losses and trial.should_prune():
            epoch = max(losses)
            trial.set_user_attr("stopped_at", epoch)
            pause_one(self.queue, job.id)
            self.say(f"trial {trial.number}: stopped early after epoch {epoch}, held-out loss {losses[epoch]:.4f}")
        if job.state in ("held", "paused"):
            if trial.number not in self.stuck:
                self.stuck[trial.number] = f"{job.id} is {job.state}: {job.reason or 'paused by hand'}"
                self.say(f"trial {trial.number}: queued run {self.stuck[trial.number]}")
            return False
        self.stuck.pop(trial.number, None)
        return True

    def _known(self, trial: Trial) -> set[int]:
        frozen = next(one for one in self.study.get_trials(deepcopy=False) if one.number == trial.number)
        return set(frozen.intermediate_values)

    def _without_job(self, trial: Trial) -> bool:
        """A trial whose run was never queued, because the sweep was killed just then, or was taken out of the queue."""
        folder = trial.user_attrs.get("run_folder")
        if folder is None:
            return self._begin(trial)
        self._fail(trial, "its run was removed from the queue")
        return False

    def _tell(self, trial: Trial, losses: dict[int, float]) -> None:
        if not losses:
            self._fail(trial, "its run measured no held-out loss")
            return
        epoch = min(losses, key=lambda one: losses[one])
        self.study.tell(trial.number, losses[epoch])
        self.say(f"trial {trial.number}: held-out loss {losses[epoch]:.4f} at epoch {epoch}")
        self.page()

    def _stopped(self, trial: Trial, job: Job) -> None:
        from optuna.trial import TrialState

        self.study.tell(trial.number, state=TrialState.PRUNED)
        self.queue.remove(job.id)
        self.page()

    def _fail(self, trial: Trial, reason: str) -> None:
        from optuna.trial import TrialState

        trial.set_user_attr("reason", reason)
        self.study.tell(trial.number, state=TrialState.FAIL)
        self.say(f"trial {trial.number}: failed: {reason}")
        self.page()


def measured(job: Job) -> dict[int, float]:
    """Epoch -> held-out loss, of a run's validation.jsonl; what is not finite is no measurement."""
    found: dict[int, float] = {}
    for entry in read_log(job.run, VALIDATION):
        epoch, loss = entry.get("epoch"), entry.get("loss")
        if type(epoch) is int and isinstance(loss, (int, float)) and math.isfinite(loss):
            found[epoch] = float(loss)
    return found


def resumed(setup: Setup, study: Study) -> Setup:
    """The setup with the words that an earlier process of this sweep has drawn."""
    return replace(setup, sets=studies.kept_sets(study) or setup.sets)


def work(sweep: Sweep, runner: Runner | None, hear: Callable[[], int]) -> int:
    """Until every trial is told. `runner` works on the queue; None where another process does."""
    heard = 0
    while True:
        if hear() > heard:
            heard = hear()
            sweep.say("the runs under way save their state; the same command goes on with the sweep")
            if runner is None:
                return INTERRUPTED
            runner.stop()
        running = runner.step() if runner is not None else False
        more = sweep.step(more=not heard and not (runner and runner.stopping))
        if heard and not running:
            return INTERRUPTED
        if runner is not None and runner.trouble:
            return 3
        if not more and not any(_owned(sweep)):
            return 3 if sweep.stuck else 0
        time.sleep(POLL)


def _owned(sweep: Sweep) -> Iterator[Path]:
    """Runs of the sweep that are still to come or under way; other jobs of the queue are not waited for."""
    for job in sweep.queue.jobs():
        if job.owner.get("sweep") == str(sweep.setup.storage) and job.state in ("waiting", "running"):
            yield job.run
