"""What `kohyakit compare` is to measure: the saved files of a run, its prompts, its held-out images."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.check.resolve import UsageError, resolve
from launcher.run.files import write_text
from launcher.run.resume import find
from schemas.argument import whole_of
from schemas.config import TrainConfig, to_flat
from schemas.families import FAMILIES, first
from schemas.files.saved_names import SAVED, saved_as
from schemas.files.weights import checkpoint_family, lora_facts, read_header
from schemas.problems import ConfigError, error

if TYPE_CHECKING:
    from trainer.dataset.prompts import Prompt

FOLDER = "compare"
WISH = "wish.json"
OFTEN = 0.9  # of the captions, that hold a trigger word
LITTLE = frozenset(
    ["a", "an", "the", "of", "on", "in", "at", "with", "and", "to", "by", "is", "photo", "image", "picture", "drawing"]
)
OTHERS = ("a dog in a park", "a house by the sea", "a bowl of fruit on a table", "a street in a city at night")


@dataclass(frozen=True)
class Saved:
    """A saved LoRA file and the moment that it is of."""

    file: Path
    place: str
    epoch: int | None
    step: int | None


@dataclass(frozen=True)
class Comparison:
    """Everything that is to be compared, and where it is kept."""

    name: str
    folder: Path  # of journal and images
    run: Path | None
    config: TrainConfig
    family: str
    saved: tuple[Saved, ...]
    weights: tuple[float, ...]
    prompts: tuple[Any, ...]
    neutral: tuple[int, ...]
    held_out: Path | None
    has_split: bool
    embedder: Path | None
    images: bool

    def write_wish(self) -> Path:
        """The wish of the measuring process."""
        wish = {
            "config": to_flat(self.config), "family": self.family,
            "files": [[one.place, str(one.file.absolute())] for one in self.saved], "weights": list(self.weights),
            "prompts": [asdict(prompt) for prompt in self.prompts], "neutral": list(self.neutral),
            "held_out": str(self.held_out.absolute()) if self.held_out else None,
            "embedder": str(self.embedder.absolute()) if self.embedder else None, "images": self.images,
        }  # fmt: skip
        self.folder.mkdir(exist_ok=True)
        file = self.folder / WISH
        write_text(file, json.dumps(wish, indent=1))
        return file


@dataclass(frozen=True)
class Asked:
    """The words of the command line."""

    run: str
    epochs: str = "all"
    prompts: Path | None = None
    weights: str = "1"
    held_out: Path | None = None
    embedder: Path | None = None
    images: bool = True
    sets: Mapping[str, str] | None = None


def comparison(asked: Asked) -> Comparison:
    """What is to be compared, checked without torch; ConfigError and UsageError where it cannot be."""
    weights = read_weights(asked.weights)
    found = find(asked.run)
    saved = _chosen(_saved(found.output, found.name), asked.epochs)
    source = str(found.run / "config.toml") if found.run else str(saved[-1].file)
    config = resolve(source, dict(asked.sets or {})).config
    family = _base_model(config, saved, of_run=found.run is not None)
    scanned = _training(config)
    for place, what in ((asked.held_out, "--held-out"), (asked.embedder, "--embedder")):
        if place is not None and not place.is_dir():
            raise error("no-folder", "is no folder that exists", key=what, got=str(place), fix="check the path")
    prompts = _prompts(asked, config, found.run, scanned.captions)
    triggers = trigger_words(scanned.captions, scanned.tokens)
    neutral = [index for index, one in enumerate(prompts) if not triggers & words_of(one.prompt)]
    if len(neutral) < 2:  # two images tell nothing of what others lose
        neutral += range(len(prompts), len(prompts) + len(OTHERS))
        prompts += [_sized(text, config, prompts) for text in OTHERS]
    inside = found.run or found.output / f"{found.name}.{FOLDER}"
    return Comparison(
        found.name, inside / FOLDER if found.run else inside, found.run, config, family, tuple(saved),
        weights, tuple(prompts), tuple(neutral), asked.held_out, scanned.has_split,
        asked.embedder, asked.images,
    )  # fmt: skip


def read_weights(text: str) -> tuple[float, ...]:
    """The strengths, the nearest to 1 of which is judged."""
    try:
        found = tuple(dict.fromkeys(float(word) for word in text.split(",")))
    except ValueError:
        raise UsageError(f"--weights must be numbers with commas between, such as 0.6,0.8,1.0 (got {text!r})") from None
    if not all(0 < weight <= 4 for weight in found):
        raise UsageError(f"--weights must lie above 0 and up to 4 (got {text!r})")
    return found


def _saved(folder: Path, name: str) -> list[Saved]:
    """The files of that name in the order in which they were saved."""
    found: list[Saved] = []
    for file in sorted(folder.iterdir()):
        match = saved_as(name).fullmatch(file.name)
        if match is None or match["beside"] or file.suffix != ".safetensors" or not file.is_file():
            continue
        lora_facts(file)
        mark, header = match["copy"] or "", read_header(file).metadata
        stated = whole_of(header.get("ss_epoch", "")), whole_of(header.get("ss_steps", ""))
        if mark.startswith("-step"):
            found.append(Saved(file, f"step {int(mark[5:])}", None, int(mark[5:])))
        elif mark:
            found.append(Saved(file, f"epoch {int(mark[1:])}", int(mark[1:]), stated[1]))
        else:
            place = f"epoch {stated[0]}" if stated[0] else "the end"
            found.append(Saved(file, place, stated[0] or None, stated[1]))
    places = Counter(one.place for one in found)
    twice = {place for place, count in places.items() if count > 1}  # an epoch's file, and the end's
    found = [replace(one, place="the end", epoch=None) if one.place in twice and _is_last(one.file) else one
             for one in found]  # fmt: skip
    if not found:
        fix = "name a run folder, or a folder of LoRA files of one run"
        raise error("no-lora", "holds no saved LoRA file of this name", file=str(folder), got=name, fix=fix)
    return sorted(found, key=lambda one: (one.step is None, one.step or 0, one.epoch or 10**9, one.file.name))


def _is_last(file: Path) -> bool:
    match = SAVED.fullmatch(file.name)
    return match is not None and match["copy"] is None


def _chosen(saved: Sequence[Saved], asked: str) -> list[Saved]:
    if asked == "all":
        return list(saved)
    numbers = [whole_of(word.strip()) for word in asked.split(",")]
    if not all(number is not None and number > 0 for number in numbers):
        raise UsageError(f"--epochs must be all, or whole numbers with commas between (got {asked!r})")
    known = {one.epoch: one for one in saved if one.epoch is not None}
    missing = [str(number) for number in numbers if number not in known]
    if missing:
        there = ", ".join(str(epoch) for epoch in sorted(known)) or "none"
        raise error("no-epoch", f"there is no file of epoch {', '.join(missing)}; of epochs there are: {there}",
                    key="--epochs", got=asked, fix="choose among them, or --epochs all")  # fmt: skip
    return [one for one in saved if one.epoch in numbers]


def _base_model(config: TrainConfig, saved: Sequence[Saved], *, of_run: bool) -> str:
    place: dict[str, Any] = {"key": "pretrained_model_name_or_path", "got": config.pretrained_model_name_or_path}
    model = config.pretrained_model_name_or_path
    if not model or not Path(model).exists():
        must = "is not on this machine" if of_run else "is all that the LoRA says of its base model"
        raise error("no-file", must, fix="--set pretrained_model_name_or_path=MODEL.safetensors", **place)
    family = checkpoint_family(model)
    if family == "unknown":
        family = next((facts.name for facts in FAMILIES.values() if facts.v2 == config.v2), first())
    for one in saved:
        theirs = lora_facts(one.file).family
        if theirs not in (family, "unknown"):
            raise error("wrong-family", f"is {family}, {one.file.name} is a LoRA for {theirs}",
                        fix="--set pretrained_model_name_or_path=MODEL.safetensors", **place)  # fmt: skip
    return family


@dataclass(frozen=True)
class Training:
    """What the captions of the training images tell; empty where the images are not here."""

    captions: list[str]
    tokens: list[str]
    has_split: bool


def _training(config: TrainConfig) -> Training:
    from trainer.dataset.files import scan

    try:
        found = scan(config)
    except (ConfigError, OSError):
        return Training([], [], False)
    tokens = [subset.class_tokens or "" for spec in found.specs for subset in spec.subsets if not subset.is_reg]
    own = [sample.caption for sample in found.samples if not sample.is_reg]
    return Training(own, tokens, bool(found.validation))


def words_of(text: str) -> set[str]:
    return set(re.findall(r"[^\W_]+", text.lower()))


def trigger_words(captions: Sequence[str], tokens: Sequence[str]) -> set[str]:
    """Words of nearly all captions and of the folders' names, little ones left out."""
    counts = Counter(word for caption in captions for word in words_of(caption))
    usual = {word for word, count in counts.items() if count >= OFTEN * len(captions)}
    return (usual | {word for token in tokens for word in words_of(token)}) - LITTLE


def _prompts(asked: Asked, config: TrainConfig, run: Path | None, captions: Sequence[str]) -> list[Prompt]:
    from trainer.dataset.prompts import read_prompts

    places = [asked.prompts, run / "prompt.txt" if run else None,
              Path(config.sample_prompts) if config.sample_prompts else None]  # fmt: skip
    place = next((place for place in places if place is not None and (place.is_file() or place is asked.prompts)), None)
    if place is not None:
        found = read_prompts(place)
        return [_sized(one.prompt, config, [one], like=one) for one in found]
    chosen = list(dict.fromkeys(captions))[:2]
    return [_sized(text, config, []) for text in chosen]


def _sized(text: str, config: TrainConfig, others: Sequence[Prompt], like: Prompt | None = None) -> Prompt:
    """The prompt in the size of the others, else of the training; never without one."""
    from schemas.datasets import parse_resolution
    from trainer.dataset.prompts import Prompt

    side = parse_resolution(config.resolution)[0] or (None, None)
    first = others[0] if others else None
    known = like or Prompt(prompt=text)
    settings: dict[str, Any] = {}
    if first is not None and like is None:
        settings = {"sample_steps": first.sample_steps, "scale": first.scale}
    width = known.width or (first.width if first else None) or side[0]
    height = known.height or (first.height if first else None) or side[1]
    return replace(known, prompt=text, width=width, height=height, **settings)
