"""What a step keeps from forward to backward, block by block, from a measured table.

`python -m benchmarks.activations` follows whole steps at full size and writes the table. A unit is a block of the
U-Net with what is computed before it; of each the table says, plain and checkpointed, the bytes that its forward leaves
and the most that its backward holds beyond those: linear in latent pixels (8x8 image pixels) and in the rank.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.config import TrainConfig
from schemas.files.documents import object_in
from schemas.network_args import network_values
from trainer.plan.blocks import checkpoint_order, is_block, stream_order

TABLE = Path(__file__).parent / "data" / "activations.json"
RANK, CONV = 16, 8  # ranks that the table was measured at
TOKENS = 77


@dataclass(frozen=True)
class Sizes:
    """What a step's activations depend on besides the kind of network."""

    batch: int
    pixels: int  # latent pixels of one image
    tokens: int  # of one caption
    rank: float
    conv: float | None  # rank of 3x3 convolutions, None where they are not adapted


@dataclass(frozen=True)
class Unit:
    """Bytes of one unit in this run, plain and checkpointed."""

    name: str
    kept: tuple[float, float]
    over: tuple[float, float]
    share: float  # of the trained numbers


@functools.cache
def table(family: str) -> dict[str, Any]:
    """The measurements of a family."""
    found = _document()[family]
    if isinstance(found, str):  # another's, from which it differs by the width of the text and the heads alone
        found = _document()[found]
    made: dict[str, Any] = found
    return made


def measured(family: str) -> bool:
    """Whether the table has the family; of others the sizes in their row are counted with."""
    return family in _document()


@functools.cache
def _document() -> dict[str, Any]:
    return object_in(TABLE, what="table of activations")


def blocks(family: str) -> tuple[str, ...]:
    """The blocks that can be checkpointed and streamed, in forward order."""
    return tuple(name for name in table(family)["names"]["units"] if is_block(name)) if measured(family) else ()


def streamed_numbers(family: str, count: int) -> tuple[int, int]:
    """(weights of the `count` blocks that are streamed first, weights of the two buffers they pass through)."""
    if not count or not measured(family):
        return 0, 0
    numbers: Mapping[str, int] = table(family)["weights"]
    chosen = stream_order(numbers)[:count]
    return sum(numbers[name] for name in chosen), 2 * max((numbers[name] for name in chosen), default=0)


def recomputed(config: TrainConfig, family: str) -> set[str]:
    """The blocks that backward computes again."""
    names = blocks(family)
    streamed = set(stream_order(table(family)["weights"])[: config.streamed_blocks])
    if not config.gradient_checkpointing:
        return streamed
    if not config.checkpointed_blocks:
        return set(names)
    return streamed | set(checkpoint_order(table(family)["widths"])[: config.checkpointed_blocks])


def kind_of(config: TrainConfig, family: str) -> str:
    """The table's name of the kind of network: how its layers compute."""
    module = config.network_module or "networks.lora"
    given, _ = network_values(config, family)
    if module == "lycoris.kohya":
        algo = str(given.get("algo", "lora"))
        return "dora" if given.get("dora_wd") else algo if algo in ("loha", "lokr") else "locon"
    return module.removeprefix("networks.") if module in ("networks.loha", "networks.lokr") else "lora"


def peak(config: TrainConfig, family: str, latent_pixels: int, gradients: int) -> int:
    """Most bytes that forward and backward hold at once beyond weights, gradients of `gradients` bytes included.

    Gradients arrive block by block, the last block's first; those of accumulated steps are all there from the start.
    """
    units, again = units_of(config, family, latent_pixels), recomputed(config, family)
    accumulated = config.gradient_accumulation_steps > 1 and not config.fused_backward_pass
    held, most, still = 0.0, 0.0, 1.0
    for unit in units:
        mode = unit.name in again or (unit.name == "end" and len(again) == len(units) - 2)
        held += unit.kept[mode]
        most = max(most, held + unit.over[mode] + gradients * (1.0 if accumulated else still))
        still -= unit.share
    return int(max(most, gradients))


def units_of(config: TrainConfig, family: str, latent_pixels: int) -> list[Unit]:
    """Every unit of a step of `config`, in forward order."""
    found, precision = table(family), precision_of(config)
    given, _ = network_values(config, family)
    lora = (config.network_module or "networks.lora") != "lycoris.kohya"
    conv = given.get("conv_dim") if lora else None
    sizes = Sizes(
        config.train_batch_size, latent_pixels, TOKENS * max(1, (config.max_token_length or 75) // 75),
        config.rank, float(conv) if conv else None,
    )  # fmt: skip
    kind = kind_of(config, family)
    units = []
    for index, name in enumerate(found["names"]["units"]):
        kept, over = (
            tuple(_bytes(found, (precision, kind), (mode, what, index), sizes) for mode in ("plain", "checkpointed"))
            for what in ("kept", "over")
        )
        units.append(Unit(name, (kept[0], kept[1]), (over[0], over[1]), found["names"]["share"][index]))
    return units


def precision_of(config: TrainConfig) -> str:
    """The table's name of the number formats."""
    if config.mixed_precision == "no":
        return "whole"
    return "fp8" if config.fp8_base or config.fp8_base_unet or config.quantize_base else "half"


def _bytes(found: Mapping[str, Any], kind: tuple[str, str], place: tuple[str, str, int], sizes: Sizes) -> float:
    """One number of one unit: the LoRA's, with what its ranks, its convolutions and its kind add."""
    precision, network = kind
    mode, what, index = place
    resnet = ".resnets." in found["names"]["units"][index]
    wide = 2.0 if precision == "whole" else 1.0

    def line(name: str, part: str) -> tuple[float, float]:
        slope, fixed = found[name][part][mode][what][index]
        return slope * sizes.pixels * sizes.batch, fixed

    above, fixed = line(f"{precision}.lora", "at")
    if network != "lora" and f"half.{network}" in found and (sizes.conv is not None or not resnet):
        # such layers build a weight, whatever the pixels
        (one, extra), (other, plain) = line(f"half.{network}", "at"), line("half.lora", "at")
        return above + wide * (one - other) + fixed * sizes.batch * sizes.tokens / TOKENS + wide * (extra - plain)
    slope, by_rank = line("half.lora", "rank")
    text = (fixed - wide * RANK * by_rank) * sizes.batch * sizes.tokens / TOKENS
    total = above + text + wide * ((sizes.rank - RANK) * slope + sizes.rank * by_rank)
    if sizes.conv is not None:
        few, few_fixed = line("half.conv", "at")
        more, more_fixed = line("half.conv", "rank")
        total += wide * (few + few_fixed + (sizes.conv - CONV) * (more + more_fixed))
    return total


def text_bytes(config: TrainConfig, family: str) -> int:
    """What trained text encoders keep for their backward."""
    found, mode = table(family)["text"], "checkpointed" if config.gradient_checkpointing else "plain"
    by_rank, captions = found[f"{mode}_rank"], config.train_batch_size * max(1, (config.max_token_length or 75) // 75)
    wide = 2 if config.mixed_precision == "no" else 1
    return int(wide * (captions * (found[mode] - RANK * by_rank) + (config.rank) * by_rank))
