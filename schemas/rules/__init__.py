"""Relations between options: what the reference refuses, warns of or silently rewrites (section 17, traps part A).

One small function a rule, its docstring the documentation. Standard library only; no file is opened.
"""

from __future__ import annotations

from schemas.config import TrainConfig
from schemas.problems import Problem
from schemas.rules import data, hub, interop, model, names, network, optimizers, schedule, unsupported
from schemas.rules.registry import RULES, Rule, rule
from schemas.rules.rewrites import Rewrite, effective
from schemas.rules.unsupported import UNSUPPORTED, WITHOUT_EFFECT

__all__ = [
    "RULES",
    "UNSUPPORTED",
    "WITHOUT_EFFECT",
    "Rewrite",
    "Rule",
    "check",
    "data",
    "effective",
    "hub",
    "interop",
    "model",
    "names",
    "network",
    "optimizers",
    "rule",
    "schedule",
    "unsupported",
]


def check(config: TrainConfig, family: str | None = None) -> list[Problem]:
    """Everything that a config alone shows to be wrong or different from what it seems.

    `family` is the checkpoint's, None while unknown. The code `missing-package` depends on
    the machine; all others only on the arguments.
    """
    after, changes = effective(config)
    found = [
        Problem(
            code="rewritten",
            severity="note",
            key=change.argument,
            got=change.before,
            must=f"trains as {change.after!r}: {change.why}",
        )
        for change in changes
    ]
    for look in RULES:
        found.extend(look(after, family))
    return found
