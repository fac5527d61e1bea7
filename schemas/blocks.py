"""Blocks of the U-Net: how many a family has, which hold attention, rank and rate by block (reference section 7.5)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from schemas.problems import Problem

# entries of a block list
BLOCKS = {"sd15": 25, "sd2": 25, "sdxl": 23}
# blocks that hold attention, so that networks.lora adapts them without conv_dim
ATTENTION = {
    "sd": frozenset((1, 2, 4, 5, 7, 8, 12, *range(16, 25))),
    "sdxl": frozenset((5, 6, 8, 9, 11, *range(13, 19))),
}
# (down, middle, up) blocks that have a weight; SDXL lists count the unused ends too
COUNTS = {"sdxl": (9, 3, 9)}
SD_COUNTS = (12, 1, 12)
SIDES = ("down_lr_weight", "mid_lr_weight", "up_lr_weight")

# The curve over i of n blocks; with an offset behind a "+".
SHAPES: Mapping[str, Callable[[int, int], float]] = {
    "cosine": lambda i, n: math.sin(math.pi / 2 * (n - 1 - i) / (n - 1)),
    "sine": lambda i, n: math.sin(math.pi / 2 * i / (n - 1)),
    "linear": lambda i, n: i / (n - 1),
    "reverse_linear": lambda i, n: (n - 1 - i) / (n - 1),
    "zeros": lambda i, n: 0.0,
}


def adapted(family: str | None, *, conv: bool) -> frozenset[int]:
    """The blocks in which networks.lora finds something to adapt: those with attention, with `conv` all."""
    if not conv:
        return ATTENTION["sdxl" if family == "sdxl" else "sd"]
    return frozenset(range(1, 22) if family == "sdxl" else range(1, 25))


def lr_weights(
    given: Mapping[str, str], threshold: float, family: str | None
) -> tuple[tuple[float, ...] | None, list[Problem]]:
    """(factor on the U-Net's rate by block index, 0 where a block is left out; None when no weight is given, findings).

    Lists that are too long are cut, with a warning; an error for a text that is neither a list nor a shape.
    """
    texts = {name: given[name] for name in SIDES if given.get(name)}
    weights: list[float] = []
    problems: list[Problem] = []
    for name, count in zip(SIDES, COUNTS.get(family or "", SD_COUNTS), strict=True):
        try:
            values = _weights(texts[name], count, shapes=name != "mid_lr_weight") if name in texts else []
        except ValueError as fault:
            problems.append(Problem(code="bad-network-arg", key="network_args", got=f"{name}={texts[name]}",
                                    must=f"{name} {fault}", fix=f"write {count} numbers or a shape"))  # fmt: skip
            continue
        if len(values) > count:
            must = f"{name} has more numbers than there are blocks ({count}); what follows does nothing"
            problems.append(Problem(code="list-cut", severity="warning", key="network_args",
                                    got=f"{name}={texts[name]}", must=must, fix=f"leave {count} numbers"))  # fmt: skip
        weights += (values + [1.0] * count)[:count]
    if not texts or any(problem.severity == "error" for problem in problems):
        return None, problems
    kept = [0.0 if weight <= threshold else weight for weight in weights]
    return ((1.0, *kept, 1.0) if family == "sdxl" else tuple(kept)), problems


def _weights(text: str, count: int, *, shapes: bool) -> list[float]:
    if shapes and "," not in text:
        name, _, offset = text.partition("+")
        if name not in SHAPES:
            raise ValueError(
                f"must be up to {count} numbers separated by commas, or one of {', '.join(SHAPES)} (+number)"
            )
        base = _weight(offset or "0")
        return [SHAPES[name](i, count) + base for i in range(count)]
    return [_weight(item) for item in text.split(",")]


def _weight(text: str) -> float:
    try:
        value = float(text.strip() or "0")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"has {text!r}, which is not a number")
    return value
