"""What kind of adapter a module's tensors are, and what can be done to it without, or with, the base model."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """`additive`: ΔW is the same whatever the base weight; `low`: ΔW is up @ down."""

    name: str
    mark: str
    additive: bool
    low: bool = False


# In the order in which they are looked for.
KINDS = (
    Kind("LoRA", "lora_up.weight", additive=True, low=True),
    Kind("LoHa", "hada_w1_a", additive=True),
    Kind("LoKr", "lokr_w1", additive=True),
    Kind("LoKr", "lokr_w1_a", additive=True),
    Kind("GLoRA", "a1.weight", additive=False),
    Kind("OFT", "oft_blocks", additive=False),
    Kind("OFT", "oft_diag", additive=False),
    Kind("full", "diff", additive=True),
    Kind("norm", "w_norm", additive=True),
    Kind("(IA)3", "on_input", additive=False),
    Kind("bias", "diff_b", additive=True),
)
DORA = Kind("DoRA", "dora_scale", additive=False, low=True)
PLAIN_SUMS = ("w_norm", "b_norm", "diff_b")  # differences of small tensors: added and kept as they are


def kind_of(endings: Collection[str]) -> Kind:
    """The kind of a module with tensors of these endings."""
    kind = next((one for one in KINDS if one.mark in endings), Kind("unknown", "", additive=False))
    if "dora_scale" in endings:
        return DORA if kind.low else Kind(f"{kind.name} with DoRA", "dora_scale", additive=False)
    return kind


def not_linear(kind: Kind) -> str:
    """Why a kind has no ΔW of its own."""
    if "DoRA" in kind.name:
        return "its magnitudes belong to the base model's weights"
    if kind.name == "unknown":
        return "its tensors are of no kind known here"
    return "it multiplies the base model's weights"
