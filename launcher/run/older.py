"""Results of an earlier run that stand in the way of a new one: they are kept under a numbered name, said before."""

from __future__ import annotations

import glob
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.check import paths
from launcher.check.data import unpack
from launcher.check.plan import Plan
from schemas.problems import error

if TYPE_CHECKING:
    from launcher.run.resume import Continuation


def moves(plan: Plan) -> list[tuple[Path, Path]]:
    """(result that stands in the way of a new run, the numbered name that it gets)."""
    resolved = plan.checked.resolved
    folder, name = paths.output_dir(resolved), paths.run_name(resolved)
    there = paths.existing_results(resolved)
    run = paths.run_folder(resolved)
    if run.is_dir() and run not in there:
        there.append(run)
    free = _free_name(folder, name)
    return [(path, folder / f"{free}{path.name.removeprefix(name)}") for path in there]


def _free_name(folder: Path, name: str) -> str:
    """NAME-v1, or the next number under which nothing is there."""
    number = 1
    while any(folder.glob(f"{glob.escape(name)}-v{number}[.-]*")):
        number += 1
    return f"{name}-v{number}"


def unmoved(plan: Plan, way: Continuation) -> Plan:
    """The plan where nothing is renamed: a new run takes the numbered name that older results would have got."""
    if way.mode != "continue" or not moves(plan):
        return plan
    resolved = plan.checked.resolved
    name = _free_name(paths.output_dir(resolved), paths.run_name(resolved))
    resolved = unpack(resolved.change("output_name", name, "computed"))
    return replace(plan, checked=replace(plan.checked, resolved=resolved))


def renamed(plan: Plan, way: Continuation) -> Plan:
    """The plan with `network_weights` under the name that the file will have when training starts."""
    resolved = plan.checked.resolved
    weights = resolved.config.network_weights
    if way.mode == "resume" or not weights:
        return plan
    for path, target in moves(plan):
        if path.resolve() == Path(weights).resolve():
            resolved = resolved.change("network_weights", str(target), "computed")
    return replace(plan, checked=replace(plan.checked, resolved=resolved))


def keep_older(plan: Plan) -> None:
    """Moves results that stand in the way to a numbered name; all of them, or none and a ConfigError."""
    moved: list[tuple[Path, Path]] = []
    try:
        for path, target in moves(plan):
            path.rename(target)
            moved.append((path, target))
    except OSError as fault:
        for path, target in reversed(moved):
            target.rename(path)
        must, folder = f"cannot be renamed: {fault.strerror}", paths.output_dir(plan.checked.resolved)
        raise error("not-writable", must, file=str(folder), fix="check its owner") from None
