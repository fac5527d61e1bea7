"""Rank and learning rate by U-Net block: the lists and presets of reference section 7.5."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeVar

from schemas.problems import ConfigError, Problem, error

Number = TypeVar("Number", int, float)

# (down, middle, up) blocks that have a weight; SDXL lists count the unused ends too.
COUNTS = {"sdxl": (9, 3, 9)}
SD_COUNTS = (12, 1, 12)

# The curve over i of n blocks; with an offset behind a "+".
PRESETS: Mapping[str, Callable[[int, int], float]] = {
    "cosine": lambda i, n: math.sin(math.pi / 2 * (n - 1 - i) / (n - 1)),
    "sine": lambda i, n: math.sin(math.pi / 2 * i / (n - 1)),
    "linear": lambda i, n: i / (n - 1),
    "reverse_linear": lambda i, n: (n - 1 - i) / (n - 1),
    "zeros": lambda i, n: 0.0,
}


def block_count(family: str) -> int:
    """Entries of a block list: 25 for SD, 23 for SDXL."""
    return 23 if family == "sdxl" else 25


def block_values(
    given: Mapping[str, str], name: str, kind: Callable[[str], Number], family: str
) -> tuple[Number, ...] | None:
    """The list under `name`, one entry a block; ConfigError when its length or an entry is wrong."""
    if name not in given:
        return None
    try:
        values = tuple(kind(item) for item in given[name].split(","))
    except ValueError:
        values = ()
    if len(values) != block_count(family) or any(not 0 <= value < math.inf for value in values):
        must = f"{name} must be {block_count(family)} numbers, none below 0, separated by commas"
        raise error("bad-network-arg", must, key="network_args", got=f"{name}={given[name]}",
                    fix="give one number for each block")  # fmt: skip
    return values


def lr_weights(given: Mapping[str, str], family: str, notes: list[Problem]) -> tuple[float, ...] | None:
    """Factor on the U-Net's rate by block index, 0 where a block is left out; None when no weight is given.

    Lists that are cut are told in `notes`. ConfigError for a text that is neither a list nor a preset.
    """
    names = ("down_lr_weight", "mid_lr_weight", "up_lr_weight")
    if not any(given.get(name) for name in names):
        return None
    weights: list[float] = []
    problems: list[Problem] = []
    for name, count in zip(names, COUNTS.get(family, SD_COUNTS), strict=True):
        text = given.get(name, "")
        try:
            values = _weights(text, count, presets=name != "mid_lr_weight") if text else []
        except ValueError as fault:
            problems.append(Problem(code="bad-network-arg", key="network_args", got=f"{name}={text}",
                                    must=f"{name} {fault}", fix=f"write {count} numbers or a preset"))  # fmt: skip
            continue
        if len(values) > count:
            notes.append(Problem(code="list-cut", severity="warning", key="network_args", got=f"{name}={text}",
                                 must=f"has {count} blocks; what follows does nothing", fix="remove it"))  # fmt: skip
        weights += (values + [1.0] * count)[:count]
    if problems:
        raise ConfigError(problems)
    threshold = float(given.get("block_lr_zero_threshold") or 0)
    kept = [0.0 if weight <= threshold else weight for weight in weights]
    return (1.0, *kept, 1.0) if family == "sdxl" else tuple(kept)


def _weights(text: str, count: int, *, presets: bool) -> list[float]:
    if presets and "," not in text:
        name, _, offset = text.partition("+")
        if name not in PRESETS:
            raise ValueError(f"must be a list with commas, or one of {', '.join(PRESETS)} with an optional +offset")
        base = _weight(offset or "0")
        return [PRESETS[name](i, count) + base for i in range(count)]
    return [_weight(item) for item in text.split(",")]


def _weight(text: str) -> float:
    try:
        value = float(text.strip() or "0")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"has {text!r}, which is not a number")
    return value
