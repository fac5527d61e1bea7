"""`python -m benchmarks.activations [FAMILY ...]`: measures the table from which `plan` knows a step's activations.

For each unit of a U-Net that can be checkpointed: the bytes that its forward leaves for backward, and the most that
its backward holds beyond those, plain and checkpointed, as linear functions of latent pixels and rank. The numbers come
from `benchmarks.memory`, at two sizes and two ranks; they go to trainer/plan/data/activations.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.memory import Followed, follow
from schemas import TrainConfig
from schemas.files.documents import parse_json
from schemas.files.writing import write_atomically
from schemas.terminal import say
from trainer.families.ldm_keys import Stored
from trainer.families.random_checkpoint import configs
from trainer.families.single_file import Part
from trainer.learning.checkpointing import blocks_of, width_of

TABLE = Path(__file__).parent.parent / "trainer" / "plan" / "data" / "activations.json"
SIDES = {"sd15": (512, 768), "sdxl": (768, 1024)}  # pixels
RANK, MORE_RANK, CONV = 16, 64, 8
PRECISIONS: dict[str, dict[str, Any]] = {
    "half": {"mixed_precision": "bf16"},
    "whole": {"mixed_precision": "no"},
    "fp8": {"mixed_precision": "bf16", "fp8_base_unet": True},
}
LYCORIS = {
    "locon": ("algo=lora",),
    "loha": ("algo=loha",),
    "lokr": ("algo=lokr",),
    "dora": ("algo=lora", "dora_wd=True"),
}
Values = list[list[float]]  # a row a unit


def base(**values: Any) -> TrainConfig:
    plain: dict[str, Any] = {
        "network_module": "networks.lora", "network_dim": RANK, "network_alpha": 1.0, "learning_rate": 1e-4,
        "network_train_unet_only": True, "cache_latents": True, "optimizer_type": "AdamW",
    }  # fmt: skip
    return TrainConfig(**(plain | values))


def units(found: Followed) -> tuple[list[str], list[int], list[int]]:
    """Names, kept bytes and bytes over them, what lies before a unit counted to it."""
    names, kept, over = [], [], []
    before, above = 0, None
    for name, left, most in found.segments:
        if name.startswith("before "):
            before, above = left, most
            continue
        names.append(name)
        kept.append(before + left)
        over.append(most if above is None else max(most, above - left))
        before, above = 0, None
    return names, kept, over


class Enough(Exception):
    """As many measurements as asked for were made; the next call goes on."""


class Table:
    """Measures one family; every figure is a function of latent pixels n and rank r: a n + b + r (c n + d)."""

    def __init__(self, family: str, log: Callable[[str], None], keep: Path | None = None, most: int = 1 << 30) -> None:
        """`keep` is a folder for single measurements, of which `most` new ones are made before Enough is raised."""
        self.family, self.log, self.keep, self.most = family, log, keep, most
        self._known: dict[str, Followed] = {}

    def run(self, side: int, **values: Any) -> Followed:
        began, key = time.monotonic(), str((side, sorted(values.items())))
        file = self.keep / f"{self.family}-{zlib.crc32(key.encode()):08x}.json" if self.keep else None
        if file and file.is_file() and key not in self._known:
            self._known[key] = Followed(**json.loads(file.read_text(encoding="utf-8")))
        if key not in self._known:
            if not self.most:
                raise Enough
            self.most -= 1
            found = self._known[key] = follow(base(**values), self.family, (side, side))
            if file:
                file.write_text(json.dumps(asdict(found)), encoding="utf-8")
            self.log(f"{self.family} {side} {values}: {found.peak / 1e9:.3f} GB, {time.monotonic() - began:.0f} s")
        return self._known[key]

    def lines(self, **values: Any) -> dict[str, Values]:
        """[a, b] of each unit."""
        small, large = SIDES[self.family]
        one, other = units(self.run(small, **values)), units(self.run(large, **values))
        n, m = small**2 / 64, large**2 / 64
        found: dict[str, Values] = {}
        for name, left, right in (("kept", one[1], other[1]), ("over", one[2], other[2])):
            slopes = [(y - x) / (m - n) for x, y in zip(left, right, strict=True)]
            found[name] = [[slope, x - slope * n] for slope, x in zip(slopes, left, strict=True)]
        return found

    def modes(self, **values: Any) -> dict[str, dict[str, Values]]:
        return {
            "plain": self.lines(**values),
            "checkpointed": self.lines(**values, gradient_checkpointing=True),
        }

    def lora(self, precision: dict[str, Any]) -> dict[str, Any]:
        """The LoRA at RANK, and, in half precision, what each rank more adds."""
        few = self.modes(**precision)
        if precision != PRECISIONS["half"]:
            return {"at": few}
        return {"at": few, "rank": difference(self.modes(**precision, network_dim=MORE_RANK), few, MORE_RANK - RANK)}

    def conv(self, precision: dict[str, Any]) -> dict[str, Any]:
        """A LoCon of networks.lora: what convolutions of rank CONV add, and each rank more."""
        without = self.modes(**precision)
        few = self.modes(**precision, network_args=(f"conv_dim={CONV}",))
        many = self.modes(**precision, network_args=(f"conv_dim={MORE_RANK}",))
        return {"at": difference(few, without, 1), "rank": difference(many, few, MORE_RANK - CONV)}

    def text(self) -> dict[str, float]:
        """Bytes that the text encoders keep for one caption of 77 tokens: plain, checkpointed; per rank."""
        found: dict[str, float] = {}
        for mode, checkpointing in (("plain", False), ("checkpointed", True)):
            more = {**PRECISIONS["half"], "network_train_unet_only": False, "gradient_checkpointing": checkpointing}
            few, many = (self.run(256, **more, network_dim=rank).segments[0][1] for rank in (RANK, MORE_RANK))
            found[mode], found[f"{mode}_rank"] = few, (many - few) / (MORE_RANK - RANK)
        return found

    def names(self) -> dict[str, Any]:
        found = self.run(256, **PRECISIONS["half"])
        names, _, _ = units(found)
        shares = dict(zip((name for name, _, _ in found.segments), found.shares, strict=True))
        return {"units": names, "share": [shares[n] + shares.get(f"before {n}", 0.0) for n in names]}


def weights(family: str) -> tuple[dict[str, int], dict[str, int]]:
    """(frozen weights, channels) of each block."""
    unet = Part("unet", configs(family)["unet"], lambda name: Stored(name)).build()
    blocks = blocks_of(unet)
    numbers = {name: sum(weight.numel() for weight in block.parameters()) for name, block in blocks.items()}
    return numbers, {name: width_of(block) for name, block in blocks.items()}


def difference(one: Any, other: Any, by: float) -> Any:
    """(one - other) / by, number by number."""
    if isinstance(one, dict):
        return {key: difference(one[key], other[key], by) for key in one}
    if isinstance(one, list):
        return [difference(x, y, by) for x, y in zip(one, other, strict=True)]
    return (one - other) / by


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.activations", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("families", nargs="*", default=list(SIDES), metavar="FAMILY")
    parser.add_argument("--only", nargs="*", default=[], help="kinds, such as half.lora half.conv text half.lokr")
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="keep single measurements there, and go on from them"
    )
    parser.add_argument("--most", type=int, default=1 << 30, metavar="N", help="new measurements of this call")
    asked = parser.parse_args(argv)
    for family in asked.families:
        for name, job in jobs(family, Table(family, say, asked.keep, asked.most)).items():
            if not asked.only or name in asked.only:
                try:
                    keep(family, name, rounded(job()))
                except Enough:
                    return 3
    return 0


def jobs(family: str, table: Table) -> dict[str, Callable[[], Any]]:
    """What is measured of a family, by its name in the file."""
    half = PRECISIONS["half"]
    found: dict[str, Callable[[], Any]] = {"names": table.names, "text": table.text}
    found |= {"weights": lambda: weights(family)[0], "widths": lambda: weights(family)[1]}
    found |= {f"{name}.lora": partial(table.lora, values) for name, values in PRECISIONS.items()}
    found["half.conv"] = partial(table.conv, half)
    for name, args in LYCORIS.items():
        values = {**half, "network_module": "lycoris.kohya", "network_args": args}
        found[f"half.{name}"] = lambda values=values: {"at": table.modes(**values)}  # type: ignore[misc]
    return found


def keep(family: str, name: str, measured: Any) -> None:
    """Puts one measurement into the table's file."""
    document = parse_json(TABLE.read_text(encoding="utf-8")) if TABLE.is_file() else {}
    document.setdefault(family, {})[name] = measured
    text = json.dumps(document, separators=(",", ":")).replace("},", "},\n") + "\n"
    write_atomically(TABLE, lambda stream: stream.write(text.encode("utf-8")))


if __name__ == "__main__":
    sys.exit(main())
