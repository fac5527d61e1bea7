"""Factors on the learning rate by block of the U-Net: lists and shapes (reference section 7.5)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from schemas.families import unet_of
from schemas.problems import Problem

SIDES = ("down_lr_weight", "mid_lr_weight", "up_lr_weight")

# The curve over i of n blocks; with an offset behind a "+".
SHAPES: Mapping[str, Callable[[int, int], float]] = {
    "cosine": lambda i, n: math.sin(math.pi / 2 * (n - 1 - i) / (n - 1)),
    "sine": lambda i, n: math.sin(math.pi / 2 * i / (n - 1)),
    "linear": lambda i, n: i / (n - 1),
    "reverse_linear": lambda i, n: (n - 1 - i) / (n - 1),
    "zeros": lambda i, n: 0.0,
}


def lr_weights(
    given: Mapping[str, str], threshold: float, family: str | None
) -> tuple[tuple[float, ...] | None, list[Problem], dict[str, str]]:
    """(factor on the U-Net's rate by block index, 0 where a block is left out; None when no weight is given, findings,
    what is wrong with those that are neither a list nor a shape, by name).

    Lists that are too long are cut, with a warning.
    """
    texts = {name: given[name] for name in SIDES if given.get(name)}
    weights: list[float] = []
    problems: list[Problem] = []
    wrong: dict[str, str] = {}
    unet = unet_of(family)
    for name, count in zip(SIDES, unet.weighted, strict=True):
        try:
            values = _weights(texts[name], count, shapes=name != "mid_lr_weight") if name in texts else []
        except ValueError as fault:
            wrong[name] = f"{name} {fault}"
            continue
        if len(values) > count:
            must = f"{name} has more numbers than there are blocks ({count}); what follows does nothing"
            problems.append(Problem(code="list-cut", severity="warning", key="network_args",
                                    got=f"{name}={texts[name]}", must=must, fix=f"leave {count} numbers"))  # fmt: skip
        weights += (values + [1.0] * count)[:count]
    if not texts or wrong:
        return None, problems, wrong
    kept = [0.0 if weight <= threshold else weight for weight in weights]
    ends = (1.0,) * unet.starts[0]
    return (*ends, *kept, *ends), problems, {}


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
