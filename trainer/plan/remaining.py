"""What is left of a run that goes on from a state: the plan and the trainer ask here whether that is anything."""

from __future__ import annotations

import math
from pathlib import Path

from schemas.config import TrainConfig
from schemas.files.run_folder import State
from schemas.problems import Problem
from trainer.plan.marks import end_save
from trainer.plan.steps import Steps


def steps_done(state: State, steps: Steps) -> int | None:
    """Updates of this run that a state has behind it; None where they are counted anew, for other processes or data."""
    processes = state.progress.get("processes", steps.processes)
    batches = state.progress.get("batches", steps.batches_per_epoch * processes)
    same = processes == steps.processes and math.ceil(batches / processes) == steps.batches_per_epoch
    return state.step if same else None


def nothing_left(config: TrainConfig, steps: Steps, state: State, *, own: bool) -> Problem | None:
    """The refusal of a start that would train no step and save nothing new; `own` is a state of this very run.

    A run that was killed after its last step, before all was saved, has that to do.
    """
    done = steps_done(state, steps)
    if done is None or done < steps.total:
        return None
    if done == steps.total and own:
        end, names = end_save(config, steps), state.progress.get("saves", [])
        saved = (Path(str(config.output_dir)) / end.file).is_file()
        if not saved or not names or (end.state and end.state_name not in names):
            return None
    must = f"is of step {done}, and the run is {steps.total} steps long: there is nothing left to train"
    further = f"kohyakit resume {state.path.parent} --epochs N starts a new run from its weights"
    fix = f"a longer max_train_steps or max_train_epochs goes on from there; {further}"
    return Problem(code="nothing-left", key="resume", got=str(state.path), must=must, fix=fix)
