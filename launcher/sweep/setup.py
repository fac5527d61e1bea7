"""From the words of a sweep to what all its runs have in common: where they go, what is held out, what is varied."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from launcher.check import machine, paths
from launcher.check.plan import Plan, make_plan
from launcher.check.resolve import resolve, split_sets
from launcher.queue.add import Wish, fingerprint, job_of, located
from launcher.sweep import space as spaces
from launcher.sweep.space import Vary
from schemas.problems import ConfigError, error, errors

ENOUGH = 20  # images, from which on a tenth is held out; of fewer a quarter, so that there are some
LEAST_TRIALS = 2


@dataclass(frozen=True)
class Setup:
    """A sweep before its first run. `sets` are --set words of every run beside its own values."""

    file: str
    name: str
    folder: Path
    storage: Path
    space: Sequence[Vary]
    trials: int
    grid: Sequence[Mapping[str, str]] | None
    wish: Wish
    sets: Mapping[str, str] = field(default_factory=dict)
    said: Sequence[str] = ()

    @property
    def identity(self) -> dict[str, Any]:
        """What makes it this sweep and no other one: kept in its storage."""
        return {
            "file": located(self.file),
            "fingerprint": fingerprint(self.file),
            "sets": sorted(self.wish.sets),
            "vary": dict(spaces.as_json(self.space)),
        }

    def wish_of(self, number: int, values: Mapping[str, str]) -> Wish:
        """The run of one trial, as it is queued."""
        own = {**self.sets, "output_dir": str(self.folder), "output_name": f"{self.name}-t{number:03d}", **values}
        words = (*self.wish.sets, *(f"{name}={value}" for name, value in own.items()))
        return replace(self.wish, sets=words, owner={"sweep": str(self.storage), "trial": number})


def set_up(wish: Wish, vary: Sequence[str], trials: int | None, storage: Path | None) -> Setup:
    """Reads, checks and plans; writes nothing. ConfigError with everything that is wrong with any single value."""
    space = spaces.read_space(vary)
    given = split_sets(wish.sets)
    twice = [one.name for one in space if one.name in given]
    if twice:
        raise error("bad-value", "is varied and set", key=f"--set {twice[0]}", fix=f"leave out --set {twice[0]}")
    grid, count = _length(space, trials)
    resolved = resolve(wish.file, given, format=wish.format)
    name = paths.run_name(resolved)
    folder = (storage.with_suffix("") if storage else paths.output_dir(resolved) / f"{name}.sweep").absolute()
    place = (storage or folder / "sweep.db").absolute()
    setup = Setup(wish.file, name, folder, place, space, count, grid, wish, said=spaces.remarks(space))
    setup = _with_held_out(setup, given)
    _check_values(setup)
    return setup


def _length(space: Sequence[Vary], trials: int | None) -> tuple[Sequence[Mapping[str, str]] | None, int]:
    """(the combinations if all are tried, the number of trials)."""
    every = spaces.combinations(space)
    if trials is None and every is None:
        said = "is needed where a range is varied" if any(one.is_range for one in space) else "is needed for so many"
        raise error("bad-value", said, key="--trials", fix="--trials 20")
    if every is not None and (trials is None or trials >= len(every)):
        return every, len(every)
    assert trials is not None
    if trials < LEAST_TRIALS:
        raise error("bad-value", "must be 2 or more", key="--trials", got=trials, fix="--trials 20")
    return None, trials


def _with_held_out(setup: Setup, given: Mapping[str, str]) -> Setup:
    """With what makes the runs comparable: the same images held out in each, measured after each epoch."""
    plan = _plan(setup, {})
    config = plan.config
    seed = config.seed if config.seed is not None else random.SystemRandom().randrange(2**32)
    sets = {"validate_every_n_epochs": "1"}
    if config.validate_every_n_steps:
        sets["validate_every_n_steps"] = ""
    if config.seed is None:
        sets["seed"] = str(seed)
    if config.validation_seed is None:
        sets["validation_seed"] = str(seed)
    said = list(setup.said)
    scan = plan.checked.scan
    if not config.validation_split and "validation_split" not in given:
        images = sum(not sample.is_reg for sample in scan.samples) if scan else 0
        share = 0.1 if images >= ENOUGH else 0.25
        sets["validation_split"] = str(share)
        said.append(f"{share:.0%} of the {images} images are held out, to measure the runs by; none trains on them")
    plan = _plan(setup, sets)
    if plan.checked.scan is not None and not plan.checked.scan.validation:
        must = "holds no image out, so the runs cannot be measured"
        fix = "--set validation_split=0.3, or validation_split in the [[datasets]] of your dataset_config"
        raise error("no-held-out", must, key="validation_split", got=plan.config.validation_split, fix=fix)
    return replace(setup, sets=sets, said=said)


def _plan(setup: Setup, sets: Mapping[str, str]) -> Plan:
    """The plan of the sweep's own file; ConfigError with its errors, but for what the runs have places of their own."""
    own = {**split_sets(setup.wish.sets), **sets, "output_dir": str(setup.folder), "output_name": setup.name}
    made = make_plan(resolve(setup.file, own, format=setup.wish.format), machine.this_machine(), vram=setup.wish.vram)
    wrong = [one for one in errors(made.problems) if one.code != "results-exist"]
    if wrong:
        raise ConfigError(wrong)
    return made


def _check_values(setup: Setup) -> None:
    """Each value alone, the other options as the file has them; ConfigError with all findings."""
    found = []
    for vary in setup.space:
        for value in vary.ends:
            wish = replace(setup.wish_of(0, {vary.name: value}), overwrite=True)
            try:
                job_of(wish)
            except ConfigError as fault:
                found += [replace(one, fix=one.fix or f"leave {value} out") for one in fault.problems]
    if found:
        raise ConfigError(dict.fromkeys(found))
