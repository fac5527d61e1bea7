"""The blocks of a U-Net that can be checkpointed or streamed one by one, and the order in which they are chosen.

Plan and trainer ask here, so that "24 blocks" means the same ones to both. A block is a resnet or one transformer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

SIDES = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}
NAME = re.compile(
    r"(down_blocks|mid_block|up_blocks)(?:\.(\d+))?\.(resnets|attentions)\.(\d+)(?:\.transformer_blocks\.(\d+))?"
)
FIRST_OF_MIDDLE = "mid_block.resnets.0"  # the one that diffusers never checkpoints


def is_block(name: str) -> bool:
    """Whether a module of this path is a block: a resnet, or a transformer's block."""
    match = NAME.fullmatch(name)
    return match is not None and name != FIRST_OF_MIDDLE and (match[3] == "resnets") == (match[5] is None)


def in_forward_order(names: Iterable[str]) -> list[str]:
    """Blocks as the forward pass comes to them."""
    return sorted(names, key=_place)


def _place(name: str) -> tuple[int, ...]:
    match = NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{name} is no block of a U-Net")
    side, resnet = SIDES[match[1]], match[3] == "resnets"
    first = resnet != (side == 1)  # in the middle an attention comes before the resnet of the same number's place
    number = int(match[4]) - (1 if side == 1 and resnet else 0)
    return side, int(match[2] or 0), number, 0 if first else 1, int(match[5] or 0)


def checkpoint_order(widths: Mapping[str, int]) -> list[str]:
    """Blocks by name -> channels, in the order in which they are checkpointed.

    The narrow ones work on the most pixels: they keep the most bytes for the least work of computing them again.
    """
    return sorted(widths, key=lambda name: (widths[name], _place(name)))


def stream_order(numbers: Mapping[str, int]) -> list[str]:
    """Blocks by name -> weights, in the order in which they are streamed: the largest first.

    Of equal ones every second comes first, so that blocks that stay give the next one time to arrive.
    """
    places = {name: index for index, name in enumerate(in_forward_order(numbers))}
    return sorted(numbers, key=lambda name: (-numbers[name], places[name] % 2, places[name]))
