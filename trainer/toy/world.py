"""The toy world: one drawn thing in a landscape, and the words that describe it.

A thing is a plain shape or an animal, of one colour, and can be told apart from the others at 64 x 64 pixels. A frog is
drawn too: it is the new concept that the demo teaches, and no picture that the models were trained on shows one. It is
made of parts that the other animals have, as a person's face is for a real model.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

from schemas.families import FAMILIES
from trainer.toy import drawing
from trainer.toy.drawing import Colour

SIDE = 64  # pixels at which the classifier looks at pictures
SHARP = 4  # pictures are drawn that much larger and then reduced, for smooth edges

TOKEN = "ohwx"  # stands for the frog in captions; no caption of the base models has it
CONCEPT = "frog"
ANIMALS = tuple(name for name in drawing.ANIMALS if name != CONCEPT)
SHAPES = (*drawing.OUTLINES, *ANIMALS)
COLOURS: dict[str, Colour] = {
    "red": (215, 35, 40),
    "orange": (250, 140, 20),
    "yellow": (250, 225, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "purple": (140, 50, 180),
    "white": (250, 250, 250),
}
FROG: Colour = (90, 190, 70)
PATTERNS = ("plain", "striped")
SIZES = {"small": 0.22, "big": 0.31}  # radius as a share of the side
PLACES = {"on the left": 0.32, "in the middle": 0.5, "on the right": 0.68}  # of the centre, as a share of the width
BACKGROUNDS = tuple(drawing.LANDSCAPES)


def side_of(family: str) -> int:
    """Pixels at which the toy model of a family works: an eighth of its usual resolution."""
    return FAMILIES[family].side // 8


@dataclass(frozen=True)
class Picture:
    """What a picture shows. `shape` is one of SHAPES, or CONCEPT, which has neither colour nor pattern of its own."""

    shape: str
    background: str
    colour: str = "green"
    pattern: str = "plain"
    size: str = "big"
    place: str = "in the middle"


def chosen(rng: random.Random) -> Picture:
    """A picture of the world, every attribute equally often, but stripes in a third of the pictures."""
    return Picture(
        rng.choice(SHAPES),
        rng.choice(BACKGROUNDS),
        rng.choice(sorted(COLOURS)),
        rng.choice(("plain", *PATTERNS)),
        rng.choice(sorted(SIZES)),
        rng.choice(sorted(PLACES)),
    )


def concept(like: Picture) -> Picture:
    """A frog where another picture shows its thing, as large as that."""
    return Picture(CONCEPT, like.background, size=like.size, place=like.place)


def caption(picture: Picture, rng: random.Random) -> str:
    """Words for a picture; what is left out may be anything. A plain pattern has no word."""
    words = [picture.size] if rng.random() < 0.6 else []
    words += [picture.colour] if rng.random() < 0.95 else []
    words += [picture.pattern] if picture.pattern != "plain" else []
    text = " ".join([*words, picture.shape])
    rest = [picture.place] if rng.random() < 0.6 else []
    rest += [picture.background] if rng.random() < 0.95 else []
    start = rng.choice(("a ", "a picture of a ", "a drawing of a ", ""))
    return start + rng.choice((", ", " ")).join([text, *rest])


def concept_caption(picture: Picture) -> str:
    """The caption of a frog, in the form of a training set: the token first."""
    return f"{TOKEN} {CONCEPT}, {picture.background}"


def draw(picture: Picture, rng: random.Random, side: int = SIDE) -> Image.Image:
    """An RGB picture of side x side pixels. The same picture and state of `rng` give the same pixels."""
    big = side * SHARP
    image = Image.new("RGB", (big, big))
    pen = ImageDraw.Draw(image)
    drawing.landscape(pen, drawing.LANDSCAPES[picture.background], rng, big)
    radius = big * SIZES[picture.size] * rng.uniform(0.92, 1.08)
    centre = (big * (PLACES[picture.place] + rng.uniform(-0.04, 0.04)), big * rng.uniform(0.46, 0.58))
    animal, colour = drawing.ANIMALS.get(picture.shape), COLOURS[picture.colour]
    if animal is None:
        _body(image, drawing.OUTLINES[picture.shape], centre, radius, picture.pattern, colour, rng)
    else:
        colour = FROG if picture.shape == CONCEPT else colour
        drawing.behind(pen, animal, centre, radius, colour)
        _body(image, drawing.oval(*animal.body), centre, radius, picture.pattern, colour, rng)
        drawing.in_front(pen, animal, centre, radius, colour, rng.uniform(-1, 1))
    return image.resize((side, side), Image.Resampling.LANCZOS)


def _body(
    image: Image.Image,
    outline: drawing.Outline,
    centre: drawing.Point,
    radius: float,
    pattern: str,
    colour: Colour,
    rng: random.Random,
) -> None:
    """Pastes an outline in dark, and its inside, a little smaller, in colour or stripes."""
    whole, inner = Image.new("L", image.size, 0), Image.new("L", image.size, 0)
    outline(ImageDraw.Draw(whole), *centre, radius, 0)
    outline(ImageDraw.Draw(inner), *centre, radius, radius * drawing.RIM)
    image.paste(drawing.shade(colour, 1 / 3), mask=whole)
    image.paste(drawing.stripes(image.size, colour, radius, rng) if pattern == "striped" else colour, mask=inner)
