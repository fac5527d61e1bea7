"""Phrases that are taken out of captions: models invent remote controls and microphones where they see a hand."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from schemas.files.textfile import CONFIG, read_text
from schemas.problems import error

SHIPPED = Path(__file__).with_name("phrases.txt")
NAME = "blip"  # the shipped list's name
# What may be left hanging at the end when a phrase is gone.
HANGING = re.compile(r"[\s,]+(?:and|with|holding|has|of|in|on|a|an|the)$", re.IGNORECASE)


def read_phrases(name: str) -> list[str]:
    """The phrases of a file, one a line, # for remarks; or of the shipped list. ConfigError `no-file`, `no-phrases`."""
    file = SHIPPED if name == NAME else Path(name)
    lines = [line.strip() for line in read_text(file, limit=CONFIG, what="a list of phrases").splitlines()]
    phrases = [line for line in lines if line and not line.startswith("#")]
    if not phrases:
        raise error("no-phrases", "holds no phrases", file=name, fix="write one phrase a line")
    return phrases


def dropper(phrases: Sequence[str]) -> Callable[[str], str]:
    """What takes the phrases out of a caption: whole words, whatever their case; * stands for one word."""
    shapes = [r"\s+".join(re.escape(word).replace(r"\*", r"[\w'-]+") for word in phrase.split()) for phrase in phrases]
    longest = sorted(shapes, key=len, reverse=True)
    pattern = re.compile(rf"(?<![\w'-])(?:{'|'.join(longest)})(?![\w'-])", re.IGNORECASE)

    def drop(text: str) -> str:
        short = pattern.sub("", text)
        if short == text:
            return text
        parts = [re.sub(r"\s+", " ", part).strip() for part in short.split(",")]
        short = ", ".join(part for part in parts if part)
        while HANGING.search(short):
            short = HANGING.sub("", short)
        return re.sub(r"\s+([.;])", r"\1", short)

    return drop
