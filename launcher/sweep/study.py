"""The storage of a sweep: an Optuna study in one SQLite file, which knows whose it is."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.sweep.setup import Setup
from launcher.sweep.space import Vary
from schemas.files.textfile import open_regular
from schemas.problems import error

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from optuna.trial import Trial

NAME = "kohyakit"
MAGIC = b"SQLite format 3\0"
STARTUP = 3  # trials that are never stopped early: the first ones are what the others are compared with
FIRST_EPOCH = 2  # before it nothing is stopped early


@dataclass(frozen=True)
class Row:
    """One trial as the page and the document show it. `loss` is its lowest held-out loss, at `epoch`."""

    number: int
    values: Mapping[str, str]
    state: str
    loss: float | None = None
    epoch: int | None = None
    losses: Mapping[int, float] = field(default_factory=dict)
    run_folder: str | None = None
    reason: str | None = None

    def as_json(self) -> dict[str, Any]:
        found = {"trial": self.number, "values": dict(self.values), "state": self.state, "held_out": self.loss}
        more = {"epoch": self.epoch, "losses": {str(epoch): loss for epoch, loss in self.losses.items()}}
        return {**found, **more, "run_folder": self.run_folder, "reason": self.reason}


def need_optuna() -> None:
    """ConfigError `missing-package` with the line that installs it, before anything else is done."""
    import importlib.util

    if importlib.util.find_spec("optuna") is None:
        said, fix = "needs Optuna, which is not installed", 'pip install "kohyakit[sweep]", or pip install optuna'
        raise error("missing-package", said, key="sweep", fix=fix)


def open_study(setup: Setup, *, prune: bool = True) -> Study:
    """The study of this very sweep, made or found again. ConfigError `not-a-study`, `another-sweep`."""
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    _refuse_strangers(setup.storage)
    setup.storage.parent.mkdir(parents=True, exist_ok=True)
    pruner: optuna.pruners.BasePruner = optuna.pruners.NopPruner()
    if prune:
        pruner = optuna.pruners.MedianPruner(n_startup_trials=STARTUP, n_warmup_steps=FIRST_EPOCH)
    try:
        study = optuna.create_study(
            storage=f"sqlite:///{setup.storage}",
            study_name=NAME,
            load_if_exists=True,
            direction="minimize",
            sampler=optuna.samplers.TPESampler(seed=0),
            pruner=pruner,
        )
        _refuse_another(setup, study)
    except (OSError, RuntimeError, SQLAlchemyError) as fault:
        raise _not_a_study(setup.storage, str(fault).splitlines()[0]) from None
    if "sweep" not in study.user_attrs:
        study.set_user_attr("sweep", setup.identity)
        study.set_user_attr("sets", dict(setup.sets))
    for values in setup.grid or ():
        study.enqueue_trial(dict(values), skip_if_exists=True)
    return study


def _refuse_strangers(path: Path) -> None:
    """A file that is no SQLite database, before SQLite is asked to open it."""
    if not path.exists():
        return
    with open_regular(path, what="storage of a sweep") as stream:
        start = stream.read(len(MAGIC))
    if start not in (MAGIC, b""):
        raise _not_a_study(path, "is no SQLite database")


def _not_a_study(path: Path, why: str) -> Exception:
    return error("not-a-study", f"cannot be the storage of a sweep: {why}", file=str(path), fix="--storage NEW.db")


def _refuse_another(setup: Setup, study: Study) -> None:
    """The words of the sweep that the storage belongs to, where they are not the ones typed now."""
    kept = study.user_attrs.get("sweep")
    if kept is None:
        if study.trials:
            raise _not_a_study(setup.storage, "holds trials of another program")
        return
    now = setup.identity  # of texts, lists and objects alone, as JSON gives them back
    differs = [
        f"{name} was {_short(kept.get(name))}, is {_short(now[name])}" for name in now if kept.get(name) != now[name]
    ]
    if not differs:
        return
    if differs[0].startswith("fingerprint") and len(differs) == 1:
        differs = [f"{now['file']} was edited since"]
    differs = [one for one in differs if not one.startswith("fingerprint")] or differs
    said = f"belongs to another sweep: {'; '.join(differs)}; nothing was changed"
    fix = "--storage NEW.db for this one, or the words of that one to go on with it"
    raise error("another-sweep", said, file=str(setup.storage), fix=fix)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:79] + "…"


def kept_sets(study: Study) -> dict[str, str]:
    """The --set words that the sweep was begun with: a seed that was drawn once holds for all runs."""
    found = study.user_attrs.get("sets")
    return {str(name): str(value) for name, value in found.items()} if isinstance(found, dict) else {}


def distributions(setup: Setup) -> dict[str, BaseDistribution]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    def one(vary: Vary) -> BaseDistribution:
        if not vary.is_range:
            return CategoricalDistribution(list(vary.choices))
        if vary.whole:
            return IntDistribution(int(vary.low), int(vary.high), log=vary.logarithmic)
        return FloatDistribution(vary.low, vary.high, log=vary.logarithmic)

    return {vary.name: one(vary) for vary in setup.space}


def texts(setup: Setup, params: Mapping[str, Any]) -> dict[str, str]:
    """A trial's values as --set words have them."""
    by_name = {vary.name: vary for vary in setup.space}
    return {
        name: value if isinstance(value, str) else by_name[name].text(value)
        for name, value in params.items()
        if name in by_name
    }


def open_trials(study: Study) -> list[Trial]:
    """Trials that were begun and not told, also by an earlier process of this sweep."""
    from optuna.trial import Trial, TrialState

    frozen = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    return [Trial(study, trial._trial_id) for trial in frozen]


def rows(setup: Setup, study: Study) -> list[Row]:
    """Every trial that was begun, in their order."""
    found = []
    for trial in study.get_trials(deepcopy=False):
        if trial.state.name == "WAITING":
            continue
        losses = {step: loss for step, loss in trial.intermediate_values.items() if math.isfinite(loss)}
        best = min(losses, key=lambda step: losses[step]) if losses else None
        state = {"COMPLETE": "done", "PRUNED": "stopped early", "FAIL": "failed", "RUNNING": "open"}[trial.state.name]
        attrs = trial.user_attrs
        row = Row(trial.number, texts(setup, trial.params), state, losses=dict(sorted(losses.items())))
        row = replace(row, run_folder=attrs.get("run_folder"), reason=attrs.get("reason"))
        found.append(row if best is None else replace(row, loss=losses[best], epoch=best))
    return found
