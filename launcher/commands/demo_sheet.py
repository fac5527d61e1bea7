"""The demo's previews read by the toy classifier, and put side by side on one sheet."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from trainer.dataset.images import opened
from trainer.plan.marks import read_preview_name

ZOOM, GAP, HEAD = 2, 6, 34  # pictures are shown twice as large; pixels between them, and above them for the title
PLAIN, CHOSEN = "#555555", "#107030"  # colours of titles


@dataclass(frozen=True)
class Epoch:
    """What the previews of one epoch show: pictures by prompt, and how many of them came out as asked.

    `taught` of `taught_of` pictures asked for with the token show the concept where it should be; `kept` of `kept_of`
    others show what they should. Epoch 0 is the base model.
    """

    number: int
    pictures: Mapping[int, Path]
    taught: int
    taught_of: int
    kept: int
    kept_of: int

    @property
    def title(self) -> str:
        return "before" if self.number == 0 else f"epoch {self.number}"


def chosen(epochs: Sequence[Epoch]) -> Epoch | None:
    """The epoch to keep: the most of the concept among those that have lost least of the rest; of equal ones the first.

    None where no epoch shows the concept at all.
    """
    trained = [epoch for epoch in epochs if epoch.number and epoch.taught]
    if not trained:
        return None
    most = max(epoch.kept for epoch in trained)
    return max((epoch for epoch in trained if epoch.kept == most), key=lambda epoch: (epoch.taught, -epoch.number))


def reason(epochs: Sequence[Epoch]) -> str:
    """Which epoch is chosen and why, and how much that is worth."""
    best = chosen(epochs)
    if best is None:
        return "none of them shows the frog yet: train longer"
    return (
        f"chosen: epoch {best.number}, the first with the most frogs ({best.taught} of {best.taught_of}) among those "
        f"that kept most of the others ({best.kept} of {best.kept_of}). So few pictures are a hint: look at them"
    )


@dataclass(frozen=True)
class Asked:
    """What the picture of a prompt should show; no shape: the concept."""

    background: str
    shape: str | None = None
    colour: str | None = None

    def met(self, verdict: Mapping[str, Any]) -> bool:
        if self.shape is None:
            return bool(verdict["concept"] > 0.5) and verdict["background"] == self.background
        return [verdict[name] for name in ("shape", "colour", "background")] == [
            self.shape,
            self.colour,
            self.background,
        ]


def previews(folder: Path, name: str) -> dict[int, dict[int, Path]]:
    """Epoch -> prompt -> the newest preview that a run called `name` made at that epoch's end."""
    found: dict[int, dict[int, Path]] = {}
    for path in sorted(folder.glob(f"{name}_e*.png")):
        said = read_preview_name(name, path.name)
        if said:
            found.setdefault(said.number, {})[said.index] = path
    return dict(sorted(found.items()))


def rated(
    found: Mapping[int, Mapping[int, Path]], asked: Sequence[Asked], environment: Mapping[str, str]
) -> list[Epoch]:
    """Every epoch with its shares; the classifier runs in a process of its own, because it needs torch."""
    paths = [path for pictures in found.values() for path in pictures.values()]
    words = [sys.executable, "-P", "-m", "trainer.toy", *map(str, paths)]
    told = subprocess.run(words, env=dict(environment), capture_output=True, text=True, check=True).stdout
    verdicts = dict(zip(paths, json.loads(told), strict=True))
    return [_epoch(number, pictures, asked, verdicts) for number, pictures in found.items()]


def _epoch(number: int, pictures: Mapping[int, Path], asked: Sequence[Asked], verdicts: Mapping[Path, Any]) -> Epoch:
    taught: list[bool] = []
    kept: list[bool] = []
    for index, path in pictures.items():
        wanted = asked[index]
        (taught if wanted.shape is None else kept).append(wanted.met(verdicts[path]))
    return Epoch(number, pictures, sum(taught), len(taught), sum(kept), len(kept))


def draw(epochs: Sequence[Epoch], target: Path) -> None:
    """One column an epoch with its counts above, one row a prompt; the chosen one's title is green."""
    best = chosen(epochs)
    first = next(iter(epochs[0].pictures.values()))
    with opened(first) as image:
        wide, high = (side * ZOOM for side in image.size)
    rows = max(len(epoch.pictures) for epoch in epochs)
    size = (GAP + len(epochs) * (wide + GAP), HEAD + GAP + rows * (high + GAP))
    page = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(page)
    font = ImageFont.load_default(13)
    for column, epoch in enumerate(epochs):
        left = GAP + column * (wide + GAP)
        title = f"{epoch.title}{', chosen' if epoch is best else ''}\n{epoch.taught} frogs, {epoch.kept} others"
        pen.multiline_text((left, 4), title, fill=CHOSEN if epoch is best else PLAIN, font=font, spacing=1)
        for row, path in enumerate(path for _, path in sorted(epoch.pictures.items())):
            with opened(path) as image:
                page.paste(
                    image.resize((wide, high), Image.Resampling.LANCZOS), (left, HEAD + GAP + row * (high + GAP))
                )
    page.save(target)
