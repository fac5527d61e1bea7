"""The previews of a run on one sheet, prompt by moment, made again after each of them: `previews.jpg` in its folder."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from schemas.config import TrainConfig
from schemas.files.writing import write_atomically
from trainer.dataset.images import opened
from trainer.plan.marks import read_preview_name

log = logging.getLogger("trainer")

NAME = "previews.jpg"
SIDE, GAP, HEAD = 192, 6, 20  # pixels: longest side of an image, between images, above them for the moment
MOST = 12  # moments, evenly chosen with the first and the newest
INK, GROUND = "#444444", "#ffffff"

Moment = tuple[bool, int]  # (whether it is an epoch, its number)


def refresh(samples: Path, folder: Path, config: TrainConfig) -> None:
    """Draws the sheet from the previews that are there; a fault of the disk is told and stops nothing."""
    try:
        found = previews(samples, config.output_name)
        if found:
            sheet = draw(found)
            write_atomically(folder / NAME, functools.partial(sheet.save, format="JPEG", quality=88))
    except (OSError, ValueError) as fault:
        log.warning("the sheet of previews was not written: %s", fault)


def previews(samples: Path, name: str | None) -> dict[Moment, dict[int, Path]]:
    """Moment -> prompt -> its newest preview, in the order of the run."""
    newest: dict[tuple[Moment, int], tuple[str, Path]] = {}
    for path in samples.glob("*.png"):
        said = read_preview_name(name, path.name)
        if said is not None:
            place = (said.at_epoch, said.number), said.index
            newest[place] = max(newest.get(place, ("", path)), (said.time, path))
    found: dict[Moment, dict[int, Path]] = {}
    for (moment, index), (_, path) in newest.items():
        found.setdefault(moment, {})[index] = path
    times = {moment: min(newest[moment, index][0] for index in rows) for moment, rows in found.items()}
    return {moment: found[moment] for moment in sorted(found, key=lambda one: (times[one], one[1]))}


def chosen(found: Mapping[Moment, Mapping[int, Path]], most: int = MOST) -> list[Moment]:
    """So many moments, evenly chosen, the first and the newest among them."""
    every = list(found)
    if len(every) <= most:
        return every
    places = sorted({round(number * (len(every) - 1) / (most - 1)) for number in range(most)})
    return [every[place] for place in places]


def draw(found: Mapping[Moment, Mapping[int, Path]]) -> Image.Image:
    """One column a moment, one row a prompt."""
    columns = chosen(found)
    indices = sorted({index for moment in columns for index in found[moment]})
    step = SIDE + GAP
    page = Image.new("RGB", (GAP + step * len(columns), HEAD + GAP + step * len(indices)), GROUND)
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    for column, moment in enumerate(columns):
        left = GAP + column * step
        at_epoch, number = moment
        pen.text((left, 4), f"{'epoch' if at_epoch else 'step'} {number}", fill=INK, font=font)
        for row, index in enumerate(indices):
            if index in found[moment]:
                with opened(found[moment][index]) as image:
                    small = image.convert("RGB")
                    small.thumbnail((SIDE, SIDE))
                    page.paste(small, (left, HEAD + GAP + row * step))
    return page
