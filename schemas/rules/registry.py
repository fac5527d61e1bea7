"""The list of rules: functions that look at a whole config, in the order in which they are declared."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from schemas.config import TrainConfig
from schemas.problems import Problem

Rule = Callable[[TrainConfig, str | None], Iterable[Problem]]
RULES: list[Rule] = []


def rule(function: Rule) -> Rule:
    """Registers `function(config, family)`; its docstring documents it. `family` is None while unknown."""
    RULES.append(function)
    return function
