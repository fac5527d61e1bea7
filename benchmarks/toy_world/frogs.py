"""Draws the shipped training set of the demo: twenty frogs, which the base models have never seen."""

from __future__ import annotations

import random
from pathlib import Path

from trainer.toy import world

COUNT, SIDE, SEED = 20, 128, 2026


def pictures(count: int = COUNT, seed: int = SEED) -> list[world.Picture]:
    """What they show: every background about equally often, sizes and places mixed."""
    rng = random.Random(f"frogs/{seed}")
    return [
        world.Picture(
            world.CONCEPT,
            world.BACKGROUNDS[n % len(world.BACKGROUNDS)],
            size="small" if rng.random() < 0.3 else "big",
            place=rng.choice(sorted(world.PLACES)),
        )
        for n in range(count)
    ]


def write(folder: Path) -> None:
    """frog_01.png with frog_01.txt, and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, shown in enumerate(pictures(), 1):
        file = folder / f"frog_{number:02}.png"
        world.draw(shown, random.Random(f"frog/{SEED}/{number}"), SIDE).save(file, optimize=True)
        file.with_suffix(".txt").write_text(world.concept_caption(shown) + "\n", encoding="utf-8")
