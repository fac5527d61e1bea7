"""GPUs by name: memory and speed, one row a card; and how long a run takes on one."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """`memory` in GiB; `half` and `whole` are dense TFLOP/s of 16-bit (32-bit accumulation) and 32-bit numbers.

    Written down as the makers state them, not measured; sparsity is not counted. GeForce cards accumulate in 32 bit at
    half of their 16-bit rate, which is what is given here.
    """

    name: str
    memory: int
    half: float
    whole: float
    bf16: bool = True


CARDS = (
    Card("GTX 1080 Ti", 11, 11.3, 11.3, bf16=False),
    Card("RTX 2060", 6, 26.0, 6.5, bf16=False),
    Card("RTX 2070", 8, 30.0, 7.5, bf16=False),
    Card("RTX 2080 Ti", 11, 54.0, 13.4, bf16=False),
    Card("RTX 3050", 8, 18.2, 9.1),
    Card("RTX 3060", 12, 25.5, 12.7),
    Card("RTX 3060 Ti", 8, 32.4, 16.2),
    Card("RTX 3070", 8, 40.6, 20.3),
    Card("RTX 3080", 10, 59.5, 29.8),
    Card("RTX 3090", 24, 71.0, 35.6),
    Card("RTX 3090 Ti", 24, 80.0, 40.0),
    Card("RTX 4060", 8, 30.2, 15.1),
    Card("RTX 4060 Ti", 8, 44.0, 22.1),
    Card("RTX 4060 Ti 16GB", 16, 44.0, 22.1),
    Card("RTX 4070", 12, 58.3, 29.1),
    Card("RTX 4070 Ti", 12, 80.2, 40.1),
    Card("RTX 4080", 16, 97.5, 48.7),
    Card("RTX 4090", 24, 165.2, 82.6),
    Card("RTX 5060 Ti", 16, 47.4, 23.7),
    Card("RTX 5070", 12, 61.7, 30.9),
    Card("RTX 5070 Ti", 16, 87.9, 43.9),
    Card("RTX 5080", 16, 112.6, 56.3),
    Card("RTX 5090", 32, 209.5, 104.8),
    Card("T4", 16, 65.0, 8.1, bf16=False),
    Card("P100", 16, 18.7, 9.3, bf16=False),
    Card("V100", 16, 125.0, 15.7, bf16=False),
    Card("A10G", 24, 70.0, 31.5),
    Card("A10", 24, 125.0, 31.2),
    Card("L4", 24, 121.0, 30.3),
    Card("L40S", 48, 362.0, 91.6),
    Card("RTX A4000", 16, 76.7, 19.2),
    Card("RTX A5000", 24, 111.1, 27.8),
    Card("RTX A6000", 48, 154.8, 38.7),
    Card("A100", 40, 312.0, 19.5),
    Card("A100 80GB", 80, 312.0, 19.5),
    Card("H100", 80, 989.0, 67.0),
    Card("H200", 141, 989.0, 67.0),
)
SHARE = {"half": 0.15, "whole": 0.45}  # of the peak that LoRA training reaches; published SDXL figures: 7 to 22 %
NOISE = re.compile(r"\b(nvidia|geforce|tesla|quadro|laptop|gpu|pcie|sxm\d*|hbm\d*|generation|ada)\b|[^a-z0-9]")


def find(name: str, memory: int | None = None) -> Card | None:
    """The card that a name means, as people or drivers write it; of equal names the one of that memory (bytes)."""
    wanted = _plain(name)
    if not any(letter.isdigit() for letter in wanted):
        return None
    exact = [card for card in CARDS if _plain(card.name) == wanted]
    inside = [
        card for card in CARDS if _plain(card.name) in wanted or (len(wanted) > 3 and wanted in _plain(card.name))
    ]
    longest = max((len(_plain(card.name)) for card in inside), default=0)
    found = exact or [card for card in inside if len(_plain(card.name)) == longest or wanted in _plain(card.name)]
    if memory is not None:
        found = sorted(found + inside, key=lambda card: abs(card.memory - memory / 2**30)) if found else []
    return found[0] if found else None


def _plain(name: str) -> str:
    return NOISE.sub("", name.lower().replace("nvl", "").replace(" gb", "gb"))


def peak(card: Card, mixed_precision: str) -> float:
    """FLOP/s at most, in the number format of a run."""
    if mixed_precision == "no" or (mixed_precision == "bf16" and not card.bf16):
        return card.whole * 1e12
    return card.half * 1e12
