"""What `resume` means, for the command, for a file that sets it and for the trainer: which state, and which options."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from schemas.config import TrainConfig, read, table
from schemas.files.run_folder import (
    CONFIG,
    MANIFEST,
    STATE,
    State,
    is_foreign_state,
    judge,
    newest_whole,
    same_place,
    states_in,
)
from schemas.problems import ConfigError, Problem, error

# Not compared: where things are, and what is said of the start alone.
ELSEWHERE = ("resume", "output_dir", "output_name", "config_file", "output_config", "overwrite", "trust",
             "debug_dataset", "network_weights")  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """The state to go on from, None for the beginning, and what the user should hear of the choice."""

    state: State | None
    said: tuple[str, ...] = ()


def state_meant(asked: Path, run: Path, *, contents: bool = True) -> Choice:
    """The state that `resume` names in a start of the run folder `run`: itself, or the newest whole one of a run.

    Every byte of it has been read and compared; without `contents`, sizes alone. ConfigError where it is damaged, with
    the damage by file and the state to use instead; nothing is ever taken for it. A run's own folder without any state
    means from the beginning, so that one command starts a run and goes on with it after any kill.
    """
    if (asked / MANIFEST).exists() or STATE.fullmatch(asked.name):
        return _named(asked, contents)
    if is_foreign_state(asked):
        must = "is a state of sd-scripts, whose optimizer and position cannot be read here"
        fix = "start from its weights: network_weights set to the LoRA file that was saved with it, and no resume"
        raise _refused("foreign-state", must, asked, fix)
    newest, damaged = newest_whole(asked, contents=contents)
    said = tuple(f"warning: {state.path} is damaged and not used: {state.said}" for state in damaged)
    if newest is not None:
        return Choice(newest, said + _of_before(newest))
    if damaged:
        must = f"holds no state that is whole: {damaged[0].path.name}: {damaged[0].said}"
        raise _refused("damaged-state", must, asked, _anew(asked))
    if same_place(asked, run):
        return Choice(None, ("there is no state yet: training starts from the beginning",) if asked.is_dir() else ())
    if not asked.is_dir():
        must = "is no folder" if asked.exists() else "does not exist"
        fix = "name a run folder (NAME.run) or a state in one"
        if asked.suffix.lower() in (".safetensors", ".ckpt", ".pt"):
            fix = "a LoRA file is started from with network_weights, and no resume"
        raise _refused("no-file", must, asked, fix)
    if (asked / CONFIG).is_file():
        raise _refused("no-state", "holds no training state any more", asked, _anew(asked))
    runs = sorted(str(place) for place in asked.glob("*.run"))
    fix = f"name {' or '.join(runs[:3])}" if runs else "name a run folder (NAME.run) or a state in one"
    raise _refused("no-state", "holds no training state", asked, fix)


def _anew(run: Path) -> str:
    """The command for a run that cannot be gone on with as it is."""
    if any(run.parent.glob(f"{glob.escape(run.name.removesuffix('.run'))}*.safetensors")):
        return f"kohyakit resume {run} --epochs N starts a new run from its weights"
    return "leave resume out and set overwrite to begin again"


def _named(asked: Path, contents: bool) -> Choice:
    state = judge(asked, contents=contents)
    if state.whole:
        return Choice(state, _of_before(state))
    run = asked.parent
    match = STATE.fullmatch(asked.name)
    other = newest_whole(run, before=int(match[1]) if match else None)[0] or newest_whole(run)[0]
    fix = f"kohyakit resume {other.path}, which is whole" if other else _anew(run)
    if not asked.exists():
        raise _refused("no-state", "does not exist", asked, fix)
    raise _refused("damaged-state", f"is not a finished training state: {state.said}", asked, fix)


def _of_before(state: State) -> tuple[str, ...]:
    if state.checksums:
        return ()
    return (f"note: {state.path.name} was written by an earlier version, without checksums: sizes alone were compared",)


def _refused(code: str, must: str, asked: Path, fix: str) -> ConfigError:
    return error(code, f"{must}; nothing was changed", key="resume", got=str(asked), fix=fix)


def kept_config(state: Path) -> TrainConfig | None:
    """The config of the run that a state belongs to; None where none can be read: the state alone is enough."""
    try:
        return read(state.parent / CONFIG)[0]
    except ConfigError:
        return None


def kept_seed(resume: str | None) -> int | None:
    """The seed of the run that is gone on with, for a start that names none itself."""
    if not resume:
        return None
    asked = Path(resume)
    found = [judge(asked)] if (asked / MANIFEST).exists() else states_in(asked)
    seeds = [state.progress.get("seed") for state in found if state.whole]
    return seeds[-1] if seeds and type(seeds[-1]) is int else None


def not_on_resume(before: TrainConfig, now: TrainConfig, run: Path) -> Iterator[Problem]:
    """Every option that would make it another run. A seed that is not given is the run's own."""
    for name, option in table().items():
        old, new = getattr(before, name), getattr(now, name)
        if option.resumable or option.path or option.secret or name in ELSEWHERE or old == new:
            continue
        if name == "seed" and new is None:
            continue
        yield cannot_change(name, old, new, f"--set {name}={_word(old)}, or {_anew(run)}")


def cannot_change(name: str, old: object, new: object, fix: str) -> Problem:
    """The refusal of one changed option."""
    must = f"is {old!r} in this run and cannot change on an exact resume"
    return Problem(code="not-on-resume", key=name, got=new, must=must, fix=fix)


def _word(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(str(one) for one in value)
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
