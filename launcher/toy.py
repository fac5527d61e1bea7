"""Drawn toy pictures with captions, so that the demo has something to learn without a download."""

from __future__ import annotations

import random
from pathlib import Path

from PIL import Image, ImageDraw

TOKEN = "t0yfr0g"
PLACES = {
    "on a meadow": ((150, 205, 245), (110, 180, 90)),
    "at night": ((25, 30, 75), (45, 60, 70)),
    "on sand": ((190, 225, 240), (225, 205, 150)),
    "in the snow": ((200, 215, 230), (245, 248, 250)),
}
COLOURS = {"green": (70, 160, 70), "blue": (70, 110, 200), "orange": (230, 140, 50), "pink": (230, 130, 170)}
MOODS = ("smiling", "surprised", "asleep")


def draw(seed: int, side: int = 128) -> Image.Image:
    """Toy picture number `seed`, side x side pixels, RGB: always the same for the same number."""
    return _draw(seed, side)[0]


def caption(seed: int) -> str:
    """What `draw(seed)` shows."""
    return _draw(seed, 8)[1]


def write_photos(folder: Path, count: int = 12, side: int = 128) -> list[Path]:
    """`count` captioned pictures in a new folder, as JPEGs from a camera would lie there."""
    folder.mkdir(parents=True)
    files = []
    for number in range(count):
        file = folder / f"IMG_{number + 1:04d}.png"
        draw(number, side).save(file)
        file.with_suffix(".txt").write_text(caption(number), encoding="utf-8")
        files.append(file)
    return files


def _draw(seed: int, side: int) -> tuple[Image.Image, str]:
    """A frog: one round body, two eyes on top, a mouth. Drawn four times as large, then reduced, for smooth edges."""
    rng = random.Random(f"toy/{seed}")
    place = rng.choice(sorted(PLACES))
    colour = rng.choice(sorted(COLOURS))
    mood = rng.choice(MOODS)
    big = 4 * side
    sky, ground = PLACES[place]
    image = Image.new("RGB", (big, big), sky)
    pen = ImageDraw.Draw(image)
    horizon = big * rng.uniform(0.5, 0.7)
    pen.rectangle((0, horizon, big, big), fill=ground)
    for _ in range(14):  # stars, stones, flowers
        x, y, r = rng.uniform(0, big), rng.uniform(0, big), rng.uniform(0.01, 0.04) * big
        base = sky if y < horizon else ground
        pen.ellipse((x - r, y - r, x + r, y + r), fill=tuple(min(255, c + rng.randint(10, 70)) for c in base))
    _frog(pen, rng, big, COLOURS[colour], mood)
    return image.resize((side, side), Image.Resampling.LANCZOS), f"{TOKEN}, {colour} frog, {mood}, {place}"


def _frog(pen: ImageDraw.ImageDraw, rng: random.Random, big: int, colour: tuple[int, int, int], mood: str) -> None:
    x, y, r = big * rng.uniform(0.35, 0.65), big * rng.uniform(0.5, 0.65), big * rng.uniform(0.2, 0.28)
    dark = tuple(part * 2 // 3 for part in colour)
    for side in (-1, 1):
        foot = x + side * r * 0.9
        pen.ellipse((foot - r * 0.45, y + r * 0.6, foot + r * 0.45, y + r), fill=dark)
    pen.ellipse((x - r * 1.15, y - r * 0.85, x + r * 1.15, y + r * 0.95), fill=colour, outline=dark, width=big // 128)
    gaze = rng.uniform(-0.12, 0.12) * r
    for side in (-1, 1):
        ex, ey, er = x + side * r * 0.6, y - r * 0.85, r * 0.36
        pen.ellipse((ex - er, ey - er, ex + er, ey + er), fill=colour, outline=dark, width=big // 128)
        if mood == "asleep":
            pen.arc((ex - er * 0.6, ey - er * 0.4, ex + er * 0.6, ey + er * 0.5), 10, 170, fill=dark, width=big // 64)
            continue
        white, black = er * 0.72, er * 0.34
        pen.ellipse((ex - white, ey - white, ex + white, ey + white), fill=(250, 250, 245))
        pen.ellipse((ex + gaze - black, ey - black, ex + gaze + black, ey + black), fill=(20, 20, 25))
    if mood == "surprised":
        pen.ellipse((x - r * 0.2, y + r * 0.1, x + r * 0.2, y + r * 0.5), fill=(110, 40, 50))
    else:
        pen.arc((x - r * 0.6, y - r * 0.3, x + r * 0.6, y + r * 0.45), 15, 165, fill=(110, 40, 50), width=big // 48)
