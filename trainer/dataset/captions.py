"""From caption file to the text of one training sample (reference sections 2.3 and 5.1)."""

from __future__ import annotations

import math
import os
import random
import re
from dataclasses import replace
from pathlib import Path

from schemas.files.textfile import read_text
from schemas.problems import ConfigError
from trainer.dataset.names import Names
from trainer.dataset.spec import SubsetSpec

OTHER_EXTENSIONS = (".txt", ".caption", ".cap", ".tags")
LONGEST_FILE = 1 << 20  # bytes of a caption file; a book is no caption
CHOICE = re.compile(r"\{([^}]+)\}")
# Stand for doubled braces while the single ones are chosen from; neither can occur in a caption.
OPEN, CLOSE = "\x00", "\x01"


def process(caption: str, spec: SubsetSpec, *, rng: random.Random, epoch: int, step: int, max_train_steps: int) -> str:
    """The text trained on for `caption` at 1-based `epoch` and optimizer step `step` (from 0).

    As the reference, with two differences: keep_tokens_separator never stays in the text, and tags are joined by the
    caption_separator itself instead of always a comma.
    """
    if spec.caption_prefix:
        caption = f"{spec.caption_prefix} {caption}"
    if spec.caption_suffix:
        caption = f"{caption} {spec.caption_suffix}"
    if _dropped(spec, rng, epoch):
        return ""
    caption = _wildcards(caption, rng) if spec.enable_wildcard else caption.partition("\n")[0]
    moves = spec.shuffle_caption or spec.token_warmup_step > 0 or spec.caption_tag_dropout_rate > 0
    if moves or _divided(caption, spec):
        head, tags, tail = split_tags(caption, spec)
        tags = tags[: _warmed_up(len(tags), spec, step, max_train_steps)]
        if spec.shuffle_caption:
            rng.shuffle(tags)
        if spec.caption_tag_dropout_rate > 0:
            tags = [tag for tag in tags if rng.random() >= spec.caption_tag_dropout_rate]
        caption = joint(spec).join(head + tags + tail)
    if spec.secondary_separator:
        caption = caption.replace(spec.secondary_separator, spec.caption_separator)
    return caption


def _dropped(spec: SubsetSpec, rng: random.Random, epoch: int) -> bool:
    by_chance = spec.caption_dropout_rate > 0 and rng.random() < spec.caption_dropout_rate
    every = spec.caption_dropout_every_n_epochs
    return by_chance or (every > 0 and epoch % every == 0)


def _wildcards(caption: str, rng: random.Random) -> str:
    lines = caption.split("\n")
    line = rng.choice(lines) if len(lines) > 1 else caption
    line = line.replace("{{", OPEN).replace("}}", CLOSE)
    line = CHOICE.sub(lambda found: rng.choice(found[1].split("|")), line)
    return line.replace(OPEN, "{").replace(CLOSE, "}")


def _divided(caption: str, spec: SubsetSpec) -> bool:
    return bool(spec.keep_tokens_separator) and spec.keep_tokens_separator in caption


def split_tags(caption: str, spec: SubsetSpec) -> tuple[list[str], list[str], list[str]]:
    """(fixed head, movable tags, fixed tail) of a caption."""
    if not _divided(caption, spec):
        tags = [tag.strip() for tag in caption.strip().split(spec.caption_separator)]
        return tags[: spec.keep_tokens], tags[spec.keep_tokens :], []
    parts = [*caption.split(spec.keep_tokens_separator, 2), ""][:3]
    head, tags, tail = ([tag.strip() for tag in part.split(spec.caption_separator) if tag.strip()] for part in parts)
    return head, tags, tail


def _warmed_up(tags: int, spec: SubsetSpec, step: int, max_train_steps: int) -> int:
    """How many of the movable tags are in use at `step`."""
    length = spec.token_warmup_step
    if 0 < length < 1:
        length = math.floor(length * max_train_steps)
    if step >= length:
        return tags
    return max(0, math.floor(step * (tags - spec.token_warmup_min) / length) + spec.token_warmup_min)


def joint(spec: SubsetSpec) -> str:
    """What is written between two tags: the separator and a blank."""
    return f"{spec.caption_separator.rstrip()} "


def random_settings(spec: SubsetSpec) -> list[str]:
    """The settings that make the text of a picture differ from one time to the next; such text cannot be cached."""
    names = (
        "shuffle_caption",
        "caption_dropout_rate",
        "caption_dropout_every_n_epochs",
        "caption_tag_dropout_rate",
        "token_warmup_step",
        "enable_wildcard",
    )
    return [name for name in names if getattr(spec, name)]


def fixed(caption: str, spec: SubsetSpec) -> str:
    """The text of a caption whose settings have nothing random (see `random_settings`)."""
    return process(caption, spec, rng=random.Random(0), epoch=1, step=0, max_train_steps=1)


def still_text(spec: SubsetSpec) -> SubsetSpec:
    """The settings without chance and change: what is left out by chance counts as there."""
    return replace(
        spec,
        shuffle_caption=False,
        caption_dropout_rate=0.0,
        caption_dropout_every_n_epochs=0,
        caption_tag_dropout_rate=0.0,
        token_warmup_step=0.0,
        enable_wildcard=False,
    )


def longest_lines(caption: str, spec: SubsetSpec) -> list[str]:
    """The texts that wildcards may make of a caption, the longest of each choice; else the caption itself."""
    if not spec.enable_wildcard:
        return [caption]
    return [
        CHOICE.sub(lambda found: max(found[1].split("|"), key=len), line.replace("{{", OPEN).replace("}}", CLOSE))
        for line in caption.split("\n")
    ]


def caption_stems(stem: str) -> tuple[str, ...]:
    """Names, without extension, that the caption of a picture may have; four trailing numbers tell of a face."""
    parts = stem.split("_")
    return (stem, "_".join(parts[:-4])) if len(parts) >= 5 else (stem,)


def captions_like(picture: str, extension: str, names: Names) -> list[str]:
    """Names of caption files that belong to the image called `picture`, the one to use first."""
    dotted = extension if extension.startswith(".") else f".{extension}"
    stem, _ = os.path.splitext(picture)
    return list(dict.fromkeys(name for own in caption_stems(stem) for name in names.like(f"{own}{dotted}")))


def caption_path(picture: Path, extension: str, names: Names) -> Path | None:
    """The caption file of `picture` among the `names` of its folder, without regard to case and Unicode form."""
    return next((picture.with_name(name) for name in captions_like(picture.name, extension, names)), None)


def read_text_of(path: Path) -> str:
    """The text of a caption file. Raises ValueError, saying why, when it is not a regular file of UTF-8 text."""
    try:
        return read_text(path, limit=LONGEST_FILE, what="a caption")
    except ConfigError as fault:
        raise ValueError(fault.problems[0].must.removeprefix("a caption ")) from None


def read_caption(path: Path, wildcards: bool) -> str:
    """The caption in a file: its first line, or with wildcards all lines that are not blank.

    Raises ValueError, saying why, when the file is empty, not UTF-8 or not a plain file.
    """
    text = read_text_of(path)
    lines = [line.strip() for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n")]
    if not any(lines):
        raise ValueError("is empty")
    return "\n".join(line for line in lines if line) if wildcards else lines[0]
