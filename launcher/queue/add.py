"""From a file or a run to a queued job: checked as `launch` and `resume` check it, so that nothing fails at 3 am."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from launcher.check import machine, paths
from launcher.check.machine import Machine
from launcher.check.plan import Plan, make_plan
from launcher.check.resolve import PRESETS, resolve, split_sets
from launcher.queue.jobs import Job
from launcher.run import record
from launcher.run.command import LaunchOptions
from launcher.run.launch import SECRET_VARIABLES
from schemas.blanking import without_secrets
from schemas.config import table
from schemas.files.run_folder import checksum
from schemas.files.textfile import is_regular
from schemas.problems import ConfigError, Problem, error, errors

WHOLE = 64 * 2**20  # bytes: a larger file is recognised by its size, its beginning and its end


@dataclass(frozen=True)
class Wish:
    """What is to be queued, as it was typed. `epochs` and `steps` are for a run that is gone on with."""

    file: str
    sets: tuple[str, ...] = ()
    format: str | None = None
    trust: tuple[str, ...] = ()
    processes: int | None = None
    keep_samples: bool = False
    vram: float | None = None
    overwrite: bool = False
    strict: bool = False
    epochs: int | None = None
    steps: int | None = None
    owner: Mapping[str, Any] = field(default_factory=dict)

    @property
    def goes_on(self) -> bool:
        """Whether it names a run to go on with, instead of a file to start one from."""
        return Path(self.file).is_dir() or self.epochs is not None or self.steps is not None

    @property
    def words(self) -> list[str]:
        """The command's words, which hold wherever it is started in the folder where it was typed."""
        found = ["resume" if self.goes_on else "launch", located(self.file)]
        flags: dict[str, Any] = {"--processes": self.processes, "--epochs": self.epochs, "--steps": self.steps}
        if not self.goes_on:
            flags |= {"--from": self.format, "--vram": self.vram}
        found += [word for name, value in flags.items() if value is not None for word in (name, str(value))]
        found += [word for one in self.sets for word in ("--set", one)]
        found += [word for one in self.trust for word in ("--trust", one)]
        switches = {"--strict": self.strict}
        if not self.goes_on:
            switches |= {"--overwrite": self.overwrite, "--keep-samples": self.keep_samples}
        return found + [name for name, on in switches.items() if on]


def located(file: str) -> str:
    """An absolute path; the name of a shipped preset stays what it is."""
    return os.path.abspath(file) if os.path.exists(file) else file


def fingerprint(file: str) -> str | None:
    """What tells an edited file from the one that was queued; None for presets, runs and what is not there."""
    path = Path(file)
    if not is_regular(path) or path.parent == PRESETS:
        return None
    if path.stat().st_size > WHOLE:
        return str(record.model_fingerprint(file).get("fingerprint"))
    return checksum(path)


def job_of(wish: Wish, *, on: Machine | None = None, machines: int = 1) -> tuple[Job, Plan]:
    """The job, not yet in a queue, and its plan. ConfigError with every error of that plan.

    `on` is the machine that it is planned for, where that is not this one; `machines` is how many of them.
    """
    sets = split_sets(wish.sets)
    _refuse_secrets(sets)
    if wish.trust:
        sets["trust"] = f"{sets.get('trust', '')} {' '.join(wish.trust)}".strip()
    options = LaunchOptions(processes=wish.processes, keep_samples=wish.keep_samples)
    if machines > 1:  # their address is known when they have been given
        options = replace(options, machines=machines, main_ip="127.0.0.1", main_port=1)
    place = on or machine.this_machine()
    plan = _of_run(wish, sets, options, place) if wish.goes_on else _of_file(wish, sets, options, place)
    problems = [*_strict(plan, wish), *plan.problems]
    if errors(problems):
        raise ConfigError(problems)
    job = Job(
        id=0,
        file=located(wish.file),
        words=tuple(wish.words),
        cwd=os.getcwd(),
        run_folder=str(paths.run_folder(plan.checked.resolved).absolute()),
        place=0,
        added=record.now(),
        fingerprint=None if wish.goes_on else fingerprint(wish.file),
        processes=plan.launch.num_processes,
        device="cpu" if plan.launch.cpu else "gpu",
        total=plan.steps.total if plan.steps else None,
        owner=dict(wish.owner),
    )
    return job, plan


def _of_file(wish: Wish, sets: dict[str, str], options: LaunchOptions, place: Machine) -> Plan:
    from launcher.run import resume as going_on

    if wish.overwrite:
        sets = {**sets, "overwrite": "true"}
    resolved = resolve(wish.file, sets, format=wish.format)
    way = going_on.in_file(resolved)
    if way is not None and wish.processes is None and "num_processes" not in resolved.draft.accelerate:
        options = replace(options, processes=way.processes)
    made = make_plan(
        way.resolved if way else resolved,
        place,
        options,
        resuming=way is not None and way.own,
        vram=wish.vram,
    )
    return going_on.counted(made, way) if way is not None else made


def _of_run(wish: Wish, sets: dict[str, str], options: LaunchOptions, place: Machine) -> Plan:
    from launcher.run import resume as going_on

    only = {"--from": wish.format, "--vram": wish.vram, "--overwrite": wish.overwrite or None}
    for name, value in only.items():
        if value is not None:
            said = "is for a file to start from; this goes on with a run"
            raise error("no-effect-here", said, key=name, got=wish.file, fix=f"leave {name} out")
    way = going_on.go_on(wish.file, sets, epochs=wish.epochs, steps=wish.steps)
    if options.processes is None:
        options = replace(options, processes=way.processes)
    return going_on.counted(make_plan(way.resolved, place, options, resuming=True), way)


def _strict(plan: Plan, wish: Wish) -> list[Problem]:
    if not wish.strict:
        return []
    return [
        Problem(code="not-on-this-machine", key=change.argument, got=change.before, must=change.why)
        for change in plan.checked.adapted
    ]


def _refuse_secrets(sets: Mapping[str, str]) -> None:
    """The queue's files are plain text, and a night long."""
    for name, value in sets.items():
        if (name in table() and table()[name].secret and value) or without_secrets(value) != value:
            variable = SECRET_VARIABLES.get(name, name.upper())
            fix = f"leave it out, and set {variable} where `kohyakit queue run` is started"
            raise error("secret-in-queue", "is a secret, which the queue does not keep", key=f"--set {name}", fix=fix)
