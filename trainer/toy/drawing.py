"""How the things of the toy world are drawn: outlines, animals made of parts, landscapes. Pillow only.

A thing's lengths are given in its radius, from its centre, y pointing down; a landscape's in the picture's side.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Point = tuple[float, float]
Pen = ImageDraw.ImageDraw
Outline = Callable[[Pen, float, float, float, float], None]  # fills a thing: centre x, y, radius, rim left out; pixels
EYE, PUPIL, BEAK, MOUTH = (250, 250, 245), (15, 15, 20), (245, 170, 40), (100, 30, 40)


def shade(colour: Colour, share: float) -> Colour:
    """A darker tone; a share above 1 mixes with white: 1.5 is half way there."""
    if share > 1:
        return tuple(round(part + (255 - part) * (share - 1)) for part in colour)  # type: ignore[return-value]
    return tuple(round(part * share) for part in colour)  # type: ignore[return-value]


# Outlines.


def ellipse(pen: Pen, x: float, y: float, rx: float, ry: float, fill: Colour | int, edge: Colour | None = None) -> None:
    width = max(1, round(min(rx, ry) * 0.2)) if edge else 0
    pen.ellipse((x - rx, y - ry, x + rx, y + ry), fill=fill, outline=edge, width=width)


def polygon(points: Sequence[Point]) -> Outline:
    """The outline through those points."""

    def fill(pen: Pen, x: float, y: float, r: float, rim: float) -> None:
        pen.polygon([(x + a * (r - rim), y + b * (r - rim)) for a, b in points], fill=255)

    return fill


def oval(wide: float, high: float) -> Outline:
    """An upright ellipse with those half axes."""

    def fill(pen: Pen, x: float, y: float, r: float, rim: float) -> None:
        ellipse(pen, x, y, wide * r - rim, high * r - rim, 255)

    return fill


def _star_points() -> list[Point]:
    reach = (1.15, 0.48)
    angles = [math.pi * n / 5 - math.pi / 2 for n in range(10)]
    return [(reach[n % 2] * math.cos(angle), reach[n % 2] * math.sin(angle)) for n, angle in enumerate(angles)]


def _heart_points() -> list[Point]:
    points = []
    for n in range(60):
        t = 2 * math.pi * n / 60
        high = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((16 * math.sin(t) ** 3 / 15, -high / 15))
    return points


def _cross(pen: Pen, x: float, y: float, r: float, rim: float) -> None:
    arm, r = r * 0.36 - rim / 2, r - rim
    pen.rectangle((x - arm, y - r, x + arm, y + r), fill=255)
    pen.rectangle((x - r, y - arm, x + r, y + arm), fill=255)


def _ring(pen: Pen, x: float, y: float, r: float, rim: float) -> None:
    outer, hole = r - rim / 2, r * 0.5 + rim / 2
    ellipse(pen, x, y, outer, outer, 255)
    ellipse(pen, x, y, hole, hole, 0)


OUTLINES: dict[str, Outline] = {
    "circle": oval(1, 1),
    "square": polygon([(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)]),
    "triangle": polygon([(0, -1.05), (1.05, 0.85), (-1.05, 0.85)]),
    "star": polygon(_star_points()),
    "cross": _cross,
    "ring": _ring,
    "heart": polygon(_heart_points()),
}
RIM = 0.13  # width of the dark line around a thing, as a share of its radius


# Animals.


@dataclass(frozen=True)
class Part:
    """One or a mirrored pair of ellipses: centre (x to either side), half axes."""

    x: float
    y: float
    wide: float
    high: float


@dataclass(frozen=True)
class Animal:
    """An oval body and its parts."""

    body: Point
    eyes: Part
    ears: Part | None = None  # behind the body, of its colour; a crab's are its claws
    pointed: bool = False  # such ears
    feet: Part | None = None
    belly: Part | None = None
    stalks: bool = False  # from the body to the eyes
    mouth: Literal["", "wide", "small", "beak"] = "small"


ANIMALS: dict[str, Animal] = {
    "cat": Animal((1.0, 0.85), Part(0.44, -0.15, 0.34, 0.36), ears=Part(0.62, -0.8, 0.42, 0.5), pointed=True),
    "bear": Animal(
        (0.95, 0.95),
        Part(0.36, -0.28, 0.3, 0.3),
        ears=Part(0.72, -0.78, 0.4, 0.4),
        belly=Part(0, 0.35, 0.5, 0.42),
        mouth="",
    ),
    "rabbit": Animal(
        (0.75, 0.75),
        Part(0.34, -0.15, 0.3, 0.34),
        ears=Part(0.36, -1.0, 0.22, 0.62),
        feet=Part(0.5, 0.75, 0.38, 0.22),
    ),
    "owl": Animal(
        (0.85, 1.1),
        Part(0.42, -0.42, 0.42, 0.42),
        feet=Part(0.4, 1.05, 0.28, 0.16),
        belly=Part(0, 0.5, 0.5, 0.42),
        mouth="beak",
    ),
    "crab": Animal(
        (0.98, 0.62),
        Part(0.46, -0.98, 0.32, 0.32),
        ears=Part(1.08, -0.4, 0.34, 0.32),
        feet=Part(0.75, 0.6, 0.4, 0.2),
        stalks=True,
        mouth="wide",
    ),
    "frog": Animal(
        (1.15, 0.8),
        Part(0.56, -0.72, 0.42, 0.42),
        feet=Part(0.85, 0.72, 0.45, 0.22),
        belly=Part(0, 0.42, 0.6, 0.3),
        mouth="wide",
    ),
}


def behind(pen: Pen, animal: Animal, centre: Point, r: float, colour: Colour) -> None:
    """What a body hides a part of: ears, feet, stalks."""
    x, y = centre
    dark = shade(colour, 1 / 3)
    for side in (-1, 1):
        if animal.ears and animal.pointed:
            ear = animal.ears
            left, top = x + (side * ear.x - ear.wide) * r, y + (ear.y - ear.high) * r
            right, bottom = left + 2 * ear.wide * r, top + 2 * ear.high * r
            tip = x + side * (ear.x + ear.wide * 0.6) * r
            pen.polygon([(left, bottom), (tip, top), (right, bottom)], fill=colour, outline=dark, width=round(r * 0.1))
        elif animal.ears:
            _ellipse(pen, animal.ears, side, centre, r, colour, dark)
        if animal.feet:
            _ellipse(pen, animal.feet, side, centre, r, shade(colour, 0.45), None)
        if animal.stalks:
            foot, eye = (x + side * animal.eyes.x * 0.8 * r, y), (x + side * animal.eyes.x * r, y + animal.eyes.y * r)
            pen.line((foot, eye), fill=dark, width=round(r * 0.2))


def in_front(pen: Pen, animal: Animal, centre: Point, r: float, colour: Colour, gaze: float) -> None:
    """Belly, mouth and eyes; `gaze`: how far the pupils are from the eyes' middle, -1 to 1."""
    x, y = centre
    dark = shade(colour, 1 / 3)
    if animal.belly:
        _ellipse(pen, animal.belly, 0, centre, r, shade(colour, 1.55), None)
    if animal.mouth == "beak":
        points = [(x - 0.16 * r, y - 0.1 * r), (x + 0.16 * r, y - 0.1 * r), (x, y + 0.22 * r)]
        pen.polygon(points, fill=BEAK, outline=dark, width=round(r * 0.05))
    elif animal.mouth:
        wide, top = (0.6, -0.45) if animal.mouth == "wide" else (0.3, 0.08)
        box = (x - wide * r, y + top * r, x + wide * r, y + (top + 1.1 * wide) * r)
        pen.arc(box, 15, 165, fill=MOUTH, width=round(r * 0.16))
    eye = animal.eyes
    for side in (-1, 1):
        _ellipse(pen, eye, side, centre, r, EYE, dark)
        pupil = Part(0, eye.y, eye.wide * 0.45, eye.high * 0.45)
        _ellipse(pen, pupil, 0, (x + (side * eye.x + 0.3 * gaze * eye.wide) * r, y), r, PUPIL, None)


def _ellipse(pen: Pen, part: Part, side: int, centre: Point, r: float, fill: Colour, edge: Colour | None) -> None:
    ellipse(pen, centre[0] + side * part.x * r, centre[1] + part.y * r, part.wide * r, part.high * r, fill, edge)


# Landscapes.


@dataclass(frozen=True)
class Specks:
    """Dots or, where they are hollow, bubbles: how many, in which rows, how large."""

    count: int
    rows: tuple[float, float]
    radius: tuple[float, float]
    colour: Colour
    hollow: bool = False


@dataclass(frozen=True)
class Landscape:
    """A sky that runs from one colour to another, and below the horizon the ground, if there is any."""

    top: Colour
    bottom: Colour
    horizon: tuple[float, float] = (1.0, 1.0)
    ground: Colour | None = None
    specks: Specks | None = None


LANDSCAPES: dict[str, Landscape] = {
    "on grass": Landscape((130, 195, 250), (195, 230, 250), (0.5, 0.6), (120, 190, 90)),
    "at night": Landscape(
        (10, 12, 40),
        (35, 40, 90),
        (0.7, 0.76),
        (25, 35, 40),
        Specks(8, (0.03, 0.5), (0.012, 0.022), (240, 240, 200)),
    ),
    "on sand": Landscape((150, 215, 235), (215, 235, 235), (0.4, 0.5), (230, 205, 145)),
    "in the snow": Landscape(
        (150, 160, 175),
        (185, 195, 205),
        (0.55, 0.65),
        (238, 243, 250),
        Specks(6, (0.02, 0.5), (0.012, 0.022), (245, 245, 250)),
    ),
    "under water": Landscape(
        (70, 190, 200),
        (10, 75, 110),
        specks=Specks(4, (0.0, 1.0), (0.02, 0.04), (190, 235, 240), hollow=True),
    ),
    "at sunset": Landscape((110, 60, 130), (250, 150, 90), (0.62, 0.7), (70, 45, 60)),
}


def landscape(pen: Pen, seen: Landscape, rng: random.Random, big: int) -> None:
    """Fills a square of `big` pixels."""
    horizon = round(big * rng.uniform(*seen.horizon))
    for row in range(horizon):
        share = row / max(1, horizon - 1)
        colour = tuple(round(a + (b - a) * share) for a, b in zip(seen.top, seen.bottom, strict=True))
        pen.line((0, row, big, row), fill=colour)
    if seen.ground:
        pen.rectangle((0, horizon, big, big), fill=seen.ground)
    specks = seen.specks
    for _ in range(specks.count if specks else 0):
        assert specks
        x, y, r = rng.uniform(0, big), big * rng.uniform(*specks.rows), big * rng.uniform(*specks.radius)
        box = (x - r, y - r, x + r, y + r)
        if specks.hollow:
            pen.ellipse(box, outline=specks.colour, width=max(1, big // 90))
        else:
            pen.ellipse(box, fill=specks.colour)


def stripes(size: tuple[int, int], colour: Colour, radius: float, rng: random.Random) -> Image.Image:
    """A sheet of that colour with darker rows."""
    sheet = Image.new("RGB", size, colour)
    pen = ImageDraw.Draw(sheet)
    step, shift = radius * 0.56, rng.uniform(0, 1)
    for n in range(math.ceil(size[0] / step) + 1):
        top = (n - shift) * step
        pen.rectangle((0, top, size[0], top + step * 0.42), fill=shade(colour, 0.45))
    return sheet
