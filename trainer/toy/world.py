"""The toy world: one drawn shape in a landscape, and the words that describe it. Pillow only.

Every attribute is drawn so that it can be told apart at 64 x 64 pixels. A frog is drawn too: it is the new concept that
the demo teaches, and no picture that the models were trained on shows one.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Pen = ImageDraw.ImageDraw
SIDE = 64  # pixels at which the toy models work
SHARP = 4  # pictures are drawn that much larger and then reduced, for smooth edges

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart")
COLOURS: dict[str, Colour] = {
    "red": (215, 35, 40),
    "orange": (250, 140, 20),
    "yellow": (250, 225, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "purple": (140, 50, 180),
    "white": (250, 250, 250),
}
PATTERNS = ("plain", "striped")
SIZES = {"small": 0.2, "big": 0.3}  # radius as a share of the side
PLACES = {"on the left": 0.32, "in the middle": 0.5, "on the right": 0.68}  # of the centre, as a share of the width
BACKGROUNDS = ("on grass", "at night", "on sand", "in the snow", "under water", "at sunset")
TOKEN = "ohwx"  # stands for the frog in captions; no caption of the base models has it
CONCEPT = "frog"
FROG: Colour = (90, 190, 70)


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
    """A picture of the world, every attribute equally often."""
    return Picture(
        rng.choice(SHAPES),
        rng.choice(BACKGROUNDS),
        rng.choice(sorted(COLOURS)),
        rng.choice(("plain", *PATTERNS)),
        rng.choice(sorted(SIZES)),
        rng.choice(sorted(PLACES)),
    )


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
    LANDSCAPES[picture.background](pen, rng, big)
    radius = big * SIZES[picture.size] * rng.uniform(0.92, 1.08)
    x = big * (PLACES[picture.place] + rng.uniform(-0.04, 0.04))
    y = big * rng.uniform(0.46, 0.58)
    if picture.shape == CONCEPT:
        frog(pen, x, y, radius, rng)
    else:
        _object(image, picture, (x, y), radius, rng)
    return image.resize((side, side), Image.Resampling.LANCZOS)


def _object(
    image: Image.Image, picture: Picture, centre: tuple[float, float], radius: float, rng: random.Random
) -> None:
    colour = COLOURS[picture.colour]
    box = Image.new("L", image.size, 0)
    OUTLINES[picture.shape](ImageDraw.Draw(box), *centre, radius)
    inner = Image.new("L", image.size, 0)
    OUTLINES[picture.shape](ImageDraw.Draw(inner), *centre, radius * 0.88)
    if picture.shape == "ring":
        inner = Image.new("L", image.size, 0)
        _ring(ImageDraw.Draw(inner), *centre, radius * 0.94, hole=0.58)
    dark = tuple(part // 3 for part in colour)
    image.paste(dark, mask=box)
    image.paste(_patterned(image.size, picture.pattern, colour, radius, rng), mask=inner)


def _patterned(size: tuple[int, int], pattern: str, colour: Colour, radius: float, rng: random.Random) -> Image.Image:
    sheet = Image.new("RGB", size, colour)
    pen = ImageDraw.Draw(sheet)
    second = tuple(part * 45 // 100 for part in colour)
    step, shift = radius * 0.56, rng.uniform(0, 1)
    count = math.ceil(size[0] / step) + 1
    if pattern == "striped":
        for n in range(count):
            top = (n - shift) * step
            pen.rectangle((0, top, size[0], top + step * 0.42), fill=second)
    return sheet


def _polygon(pen: Pen, x: float, y: float, points: Sequence[tuple[float, float]], r: float) -> None:
    pen.polygon([(x + a * r, y + b * r) for a, b in points], fill=255)


def _circle(pen: Pen, x: float, y: float, r: float) -> None:
    pen.ellipse((x - r, y - r, x + r, y + r), fill=255)


def _square(pen: Pen, x: float, y: float, r: float) -> None:
    side = r * 0.88
    pen.rectangle((x - side, y - side, x + side, y + side), fill=255)


def _triangle(pen: Pen, x: float, y: float, r: float) -> None:
    _polygon(pen, x, y, [(0, -1.05), (1.05, 0.85), (-1.05, 0.85)], r)


def _star(pen: Pen, x: float, y: float, r: float) -> None:
    points = []
    for n in range(10):
        angle, reach = math.pi * n / 5 - math.pi / 2, 1.15 if n % 2 == 0 else 0.48
        points.append((reach * math.cos(angle), reach * math.sin(angle)))
    _polygon(pen, x, y, points, r)


def _cross(pen: Pen, x: float, y: float, r: float) -> None:
    arm = r * 0.36
    pen.rectangle((x - arm, y - r, x + arm, y + r), fill=255)
    pen.rectangle((x - r, y - arm, x + r, y + arm), fill=255)


def _ring(pen: Pen, x: float, y: float, r: float, hole: float = 0.5) -> None:
    _circle(pen, x, y, r)
    pen.ellipse((x - r * hole, y - r * hole, x + r * hole, y + r * hole), fill=0)


def _heart(pen: Pen, x: float, y: float, r: float) -> None:
    points = []
    for n in range(60):
        t = 2 * math.pi * n / 60
        wide = 16 * math.sin(t) ** 3
        high = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((wide / 15, -high / 15))
    _polygon(pen, x, y, points, r)


OUTLINES: dict[str, Callable[[Pen, float, float, float], None]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "ring": _ring,
    "heart": _heart,
}


def frog(pen: Pen, x: float, y: float, r: float, rng: random.Random) -> None:
    """A frog around (x, y): wide body, feet, two white eyes on top that look somewhere, a mouth."""
    dark, light = tuple(part * 45 // 100 for part in FROG), (175, 225, 130)
    y += r * 0.15
    edge = max(1, round(r * 0.07))
    for side in (-1, 1):
        foot = x + side * r * 0.85
        pen.ellipse((foot - r * 0.45, y + r * 0.55, foot + r * 0.45, y + r), fill=dark)
    pen.ellipse((x - r * 1.15, y - r * 0.8, x + r * 1.15, y + r * 0.95), fill=FROG, outline=dark, width=edge)
    pen.ellipse((x - r * 0.6, y + r * 0.25, x + r * 0.6, y + r * 0.85), fill=light)
    gaze = rng.uniform(-0.1, 0.1) * r
    for side in (-1, 1):
        ex, ey, er = x + side * r * 0.55, y - r * 0.8, r * 0.42
        pen.ellipse((ex - er, ey - er, ex + er, ey + er), fill=(250, 250, 245), outline=dark, width=edge)
        black = er * 0.45
        pen.ellipse((ex + gaze - black, ey - black, ex + gaze + black, ey + black), fill=(15, 15, 20))
    pen.arc((x - r * 0.6, y - r * 0.45, x + r * 0.6, y + r * 0.25), 15, 165, fill=(100, 30, 40), width=2 * edge)


def _gradient(pen: Pen, big: int, top: Colour, bottom: Colour, until: float) -> None:
    end = int(big * until)
    for row in range(end):
        share = row / max(1, end - 1)
        pen.line((0, row, big, row), fill=tuple(round(a + (b - a) * share) for a, b in zip(top, bottom, strict=True)))


def _specks(pen: Pen, rng: random.Random, big: int, rows: tuple[float, float], colour: Colour, count: int) -> None:
    for _ in range(count):
        x, y, r = rng.uniform(0, big), big * rng.uniform(*rows), big * rng.uniform(0.012, 0.022)
        pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)


def _grass(pen: Pen, rng: random.Random, big: int) -> None:
    horizon = rng.uniform(0.5, 0.6)
    _gradient(pen, big, (130, 195, 250), (195, 230, 250), horizon)
    pen.rectangle((0, big * horizon, big, big), fill=(120, 190, 90))


def _night(pen: Pen, rng: random.Random, big: int) -> None:
    horizon = rng.uniform(0.7, 0.76)
    _gradient(pen, big, (10, 12, 40), (35, 40, 90), horizon)
    _specks(pen, rng, big, (0.03, 0.5), (240, 240, 200), 8)
    pen.rectangle((0, big * horizon, big, big), fill=(25, 35, 40))


def _sand(pen: Pen, rng: random.Random, big: int) -> None:
    horizon = rng.uniform(0.4, 0.5)
    _gradient(pen, big, (150, 215, 235), (215, 235, 235), horizon)
    pen.rectangle((0, big * horizon, big, big), fill=(230, 205, 145))


def _snow(pen: Pen, rng: random.Random, big: int) -> None:
    horizon = rng.uniform(0.55, 0.65)
    _gradient(pen, big, (150, 160, 175), (185, 195, 205), horizon)
    pen.rectangle((0, big * horizon, big, big), fill=(238, 243, 250))
    _specks(pen, rng, big, (0.02, 0.5), (245, 245, 250), 6)


def _water(pen: Pen, rng: random.Random, big: int) -> None:
    _gradient(pen, big, (70, 190, 200), (10, 75, 110), 1.0)
    for _ in range(4):
        x, y, r = rng.uniform(0, big), rng.uniform(0, big), big * rng.uniform(0.02, 0.04)
        pen.ellipse((x - r, y - r, x + r, y + r), outline=(190, 235, 240), width=max(1, big // 90))


def _sunset(pen: Pen, rng: random.Random, big: int) -> None:
    horizon = rng.uniform(0.62, 0.7)
    _gradient(pen, big, (110, 60, 130), (250, 150, 90), horizon)
    pen.rectangle((0, big * horizon, big, big), fill=(70, 45, 60))


LANDSCAPES: dict[str, Callable[[Pen, random.Random, int], None]] = {
    "on grass": _grass,
    "at night": _night,
    "on sand": _sand,
    "in the snow": _snow,
    "under water": _water,
    "at sunset": _sunset,
}
