"""What a shipped preset leaves open for the data to fill in: a held-out share, and previews with prompts of their own.

Only for shipped presets, and only what neither the preset nor the command line says: a file from elsewhere trains and
previews as in Kohya's GUI.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.check.resolve import Resolved
from schemas.problems import ConfigError, Problem

if TYPE_CHECKING:
    from trainer.dataset.files import Sample, Scan

ENOUGH = 20  # images; of fewer each one is missed in training
SHARE = 0.1
CAPTIONS = 2  # of the data, beside the trigger word alone and a prompt without it
LONGEST = 300  # characters of a prompt, about 75 tokens
WITHOUT = "a photo"  # where a caption is nothing but the trigger word
FOLDER = re.compile(r"\d+_.")
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
PREVIEWS = ("sample_prompts", "sample_every_n_epochs", "sample_every_n_steps")
VALIDATION = ("validation_split", "validate_every_n_epochs", "validate_every_n_steps")


def is_preset(resolved: Resolved) -> bool:
    """Whether a shipped preset is what is being planned."""
    return any(setting.origin == "preset" for setting in resolved.settings.values())


def _open(resolved: Resolved, names: tuple[str, ...]) -> bool:
    return is_preset(resolved) and not any(name in resolved.settings for name in names)


def with_validation(resolved: Resolved) -> tuple[Resolved, list[Problem]]:
    """A tenth of the images is held out, where there are enough of them."""
    folder = resolved.config.train_data_dir
    if not folder or resolved.config.dataset_config or not _open(resolved, VALIDATION):
        return resolved, []
    count = _images(Path(folder))
    if count < ENOUGH:
        return resolved, []
    resolved = resolved.change("validation_split", SHARE, "computed")
    resolved = resolved.change("validate_every_n_epochs", 1, "computed")
    message = f"{SHARE:.0%} of the {count} images are held out, to measure over-training; they are not trained on"
    return resolved, [_note("held-out", "validation_split", message, "--set validation_split=0 to train on all")]


def _images(folder: Path) -> int:
    """Images in the REPEATS_NAME folders, by name alone; the scan reads them."""
    count = 0
    try:
        for place in os.scandir(folder):
            if place.is_dir() and FOLDER.match(place.name):
                count += sum(name.lower().endswith(IMAGES) for name in os.listdir(place.path))
    except OSError:
        return 0  # said by the scan
    return count


def with_previews(resolved: Resolved, scan: Scan) -> tuple[Resolved, list[Problem]]:
    """Previews with every saved epoch, of prompts made from the captions."""
    if resolved.draft.prompts or not _open(resolved, PREVIEWS[:1]) or not scan.samples or _declined(resolved):
        return resolved, []
    prompts = list(made_prompts(scan, _size(resolved)))
    if not prompts:
        return resolved, []
    from launcher.check.data import unpack

    resolved = replace(resolved, draft=replace(resolved.draft, prompts="\n".join(prompts)))
    resolved = unpack(resolved)
    config = resolved.config
    if not (config.sample_every_n_epochs or config.sample_every_n_steps):
        steps = config.save_every_n_steps  # by which previews are made where both are set: they are what a user adds
        name, every = ("steps", steps) if steps else ("epochs", config.save_every_n_epochs or 1)
        resolved = resolved.change(f"sample_every_n_{name}", every, "computed")
    message = f"are made from the captions: {len(prompts)} previews with every saved LoRA ({'; '.join(prompts)})"
    fix = "--set sample_prompts=FILE for your own, --set sample_every_n_epochs=0 for none"
    return resolved, [_note("made-prompts", "sample_prompts", message, fix)]


def _declined(resolved: Resolved) -> bool:
    """Whether the command line says how often, and that is never."""
    config = resolved.config
    return any(name in resolved.sets for name in PREVIEWS[1:]) and not (
        config.sample_every_n_epochs or config.sample_every_n_steps
    )


def _note(code: str, key: str, message: str, fix: str) -> Problem:
    return Problem(code=code, key=key, severity="note", must=message, fix=fix)


def _size(resolved: Resolved) -> str:
    """Options of a prompt line: previews of the size that is trained on; of none, the family's own."""
    from trainer.dataset.spec import parse_resolution

    try:
        size = parse_resolution(resolved.config.resolution)
    except ConfigError:
        return ""  # said by the rules
    return f" --w {size[0]} --h {size[1]}" if size else ""


def made_prompts(scan: Scan, size: str = "") -> Iterator[str]:
    """Prompt lines: the trigger word alone, a few captions of the data, and one caption without the word."""
    own = sorted((sample for sample in scan.samples if not sample.is_reg), key=lambda sample: sample.path)
    word = trigger_word(scan, own)
    captions = list(dict.fromkeys(text for sample in own if (text := _line(sample.caption))))
    chosen = [word] if word else []
    chosen += [text for text in _spread(captions, CAPTIONS) if text.lower() != word.lower()]
    if not chosen:
        return
    if word:
        longest = max(captions, key=len, default="")
        rest = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", " ", longest, flags=re.IGNORECASE)
        rest = re.sub(r"\s*,(\s*,)*", ",", " ".join(rest.split())).strip(" ,.")
        chosen.append(rest or WITHOUT)
    yield from (f"{text} --d {number}{size}" for number, text in enumerate(dict.fromkeys(chosen), start=1))


def trigger_word(scan: Scan, own: list[Sample]) -> str:
    """What the images are called by: what all captions begin with, else the name of their folder."""
    heads = {_line(sample.caption).partition(",")[0].strip().lower() for sample in own if sample.has_caption}
    if len(heads) == 1 and len(own) > 1 and (head := heads.pop()):
        first = next(sample for sample in own if sample.has_caption)
        return _line(first.caption).partition(",")[0].strip() or head
    names = {scan.subset(sample).class_tokens or "" for sample in own}
    return _line(names.pop()) if len(names) == 1 else ""


def _line(text: str) -> str:
    """A caption as a prompt line: its first line, without what prompt files read as options or remarks."""
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return " ".join(re.sub(r"\s-{2,}", " ", first).lstrip("#- ").split())[:LONGEST].strip()


def _spread(items: list[str], count: int) -> list[str]:
    """`count` of them, evenly over the list."""
    if len(items) <= count:
        return items
    return [items[len(items) * number // count] for number in range(count)]
