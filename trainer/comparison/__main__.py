"""`python -m trainer.comparison WISH.json`: measures LoRA files for `kohyakit compare`, and goes on where it stopped.

What is measured stands in a journal beside the wish, one entry a file and strength, under a key of all that it depends
on; images lie beside it.
"""

from __future__ import annotations

if __name__ == "__main__":
    from trainer.watch.early import hush_libraries, leave_on_signals

    leave_on_signals()
    hush_libraries()

import functools
import hashlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from schemas.config import TrainConfig, from_flat
from schemas.files.documents import parse_json
from schemas.files.textfile import CONFIG, read_text
from schemas.files.writing import write_atomically
from schemas.problems import ConfigError, error
from schemas.signals import interruptible, outlast_terminal
from schemas.terminal import say
from trainer.comparison import measures
from trainer.comparison.measures import Bench, HeldOut
from trainer.dataset.files import Scan, held_out, scan
from trainer.dataset.prompts import Prompt
from trainer.families import get
from trainer.input import pixels
from trainer.output.run_folder import write_text

JOURNAL, DONE = "measured.json", "compared.json"
DRIFT_IMAGES = 8  # of prompts without the trigger word, seeds included
MOST_LIKE = 64  # training images that likeness is measured to


@dataclass(frozen=True)
class Wish:
    """What is to be measured; see `launcher.about.compare`. `files` are [place, path] in the order of the run."""

    config: dict[str, Any]
    family: str
    files: list[list[str]]
    weights: list[float]
    prompts: list[dict[str, Any]]
    neutral: list[int]  # places of prompts without the trigger word
    held_out: str | None
    embedder: str | None
    images: bool


class Journal:
    """What has been measured so far, kept after every entry."""

    def __init__(self, file: Path) -> None:
        self.file = file
        text = read_text(file, limit=CONFIG * 16, what="journal") if file.is_file() else "{}"
        try:
            self.entries: dict[str, Any] = parse_json(text)
        except ValueError:
            self.entries = {}

    def get(self, key: str, make: Any) -> Any:
        """The entry, measured now where it is not there."""
        if key not in self.entries:
            self.entries[key] = make()
            write_text(self.file, json.dumps(self.entries))
        return self.entries[key]


def main(words: Sequence[str] | None = None) -> int:
    place = Path((sys.argv[1:] if words is None else words)[0])
    try:
        measured = measure(Wish(**parse_json(read_text(place, limit=CONFIG, what="wish"))), place.parent)
    except ConfigError as fault:
        write_text(place.parent / DONE, json.dumps({"problems": [problem.as_json() for problem in fault.problems]}))
        return 1
    except KeyboardInterrupt:
        say("interrupted; the same command goes on from here", err=True)
        return 130
    except (torch.OutOfMemoryError, MemoryError, OSError) as fault:
        say(f"error: {str(fault).splitlines()[0]}; what was measured is kept", err=True)
        return 3
    write_text(place.parent / DONE, json.dumps(measured))
    return 0


def measure(wish: Wish, folder: Path) -> dict[str, Any]:
    """All measurements, each from the journal where it is there already."""
    config, _ = from_flat(wish.config)
    held = held_scan(wish, config)
    journal, settings = Journal(folder / JOURNAL), _settings(wish, held)
    bench = Bench.of(config, get(wish.family))
    say(f"measuring on {bench.device.type}", err=True)
    images = measures.held_images(bench, held) if held else []
    work = Work(bench, wish, images, folder)
    base = journal.get(f"base/{settings}", lambda: work.one(None, 1.0, whole=True))
    work.remember_base()
    rounds = [(place, Path(path), weight) for place, path in wish.files for weight in wish.weights]
    found, began, done = [], time.monotonic(), 0
    for number, (place, path, weight) in enumerate(rounds):
        key, fresh = f"{_mark(path)}/{weight:g}/{settings}", False
        if key not in journal.entries:
            fresh = True
        numbers = journal.get(key, functools.partial(work.one, path, weight, whole=weight == work.usual))
        done += fresh
        if fresh:
            left = (time.monotonic() - began) / done * (len(rounds) - number - 1)
            say(f"{number + 1}/{len(rounds)}  {place} at {weight:g}  {left:.0f} s left", err=True)
        found.append({"place": place, "file": str(path), "weight": weight, **numbers})
    return {
        "base": base, "measured": found, "timesteps": list(measures.TIMESTEPS), "bands": measures.BANDS,
        "held_out": [image.name for image in images], "own_nearest": work.own_nearest(), "problems": [],
    }  # fmt: skip


class Work:
    """One bench and what is measured on it."""

    def __init__(self, bench: Bench, wish: Wish, images: list[HeldOut], folder: Path) -> None:
        self.bench, self.wish, self.images, self.folder = bench, wish, images, folder
        self.prompts = {number: Prompt(**prompt) for number, prompt in enumerate(wish.prompts)}
        self.neutral = {number: self.prompts[number] for number in wish.neutral}
        self.seeds = range(max(1, -(-DRIFT_IMAGES // max(1, len(self.neutral)))))
        self.usual = min(wish.weights, key=lambda weight: abs(weight - 1.0))  # the strength that is judged
        self.base: dict[tuple[int, int], Tensor] = {}
        self.base_said: list[Tensor] = []
        self.embedder: Any = None
        if wish.embedder:
            from trainer.comparison.embedding import Embedder

            self.embedder = Embedder(wish.embedder)
            self.trained = self.embedder(_training_images(bench.config))

    def remember_base(self) -> None:
        """What the base model draws and says of prompts without the trigger word."""
        if self.neutral:
            self.base = measures.draw(self.bench, self.neutral, self.seeds)
            first = [self.base[index, 0] for index in self.neutral]
            self.base_said = measures.sway(self.bench, [one.prompt for one in self.neutral.values()], first)

    def own_nearest(self) -> float | None:
        if self.embedder is None:
            return None
        from trainer.comparison.embedding import own_nearest

        return own_nearest(self.trained)

    def one(self, file: Path | None, weight: float, *, whole: bool) -> dict[str, Any]:
        """The numbers of one file at one strength; of other strengths than the usual only the images."""
        found: dict[str, Any] = {}
        with self.bench.wearing(file, weight):
            if whole:
                found["losses"] = measures.losses(self.bench, self.images)
                if file is not None and self.neutral:
                    found |= self._against_base()
            if self.wish.images:
                found["images"] = self._images(file, weight, found)
        return found

    def _against_base(self) -> dict[str, Any]:
        now = measures.draw(self.bench, self.neutral, self.seeds)
        first = [self.base[index, 0] for index in self.neutral]
        said = measures.sway(self.bench, [one.prompt for one in self.neutral.values()], first)
        moved = [
            float((one - other).square().mean() / other.square().mean())
            for one, other in zip(said, self.base_said, strict=True)
        ]
        return {"drift": measures.drift(self.base, now), "sway": moved}

    def _images(self, file: Path | None, weight: float, found: dict[str, Any]) -> list[str]:
        """Writes the images of every prompt from its own seed; names by prompt."""
        mark = "base" if file is None else f"{file.stem}_{_mark(file)[:8]}_{weight:g}"
        names, taught = [], []
        for (index, _), latents in measures.draw(self.bench, self.prompts, [0]).items():
            name, image = f"{mark}_{index:02}.png", measures.images_of(self.bench, latents)
            write_atomically(self.folder / name, functools.partial(image.save, format="PNG"))
            names.append(name)
            if index not in self.neutral:
                taught.append(image)
        if self.embedder is not None and taught:
            from trainer.comparison.embedding import likeness

            found["likeness"] = likeness(self.embedder(taught), self.trained)
        return names


def held_scan(wish: Wish, config: TrainConfig) -> Scan | None:
    """The held-out images: of the folder that was named, or those that the run kept aside; None where there are none.

    ConfigError `held-out-trained` where an image of the folder is a training image.
    """
    own = scan(config)
    if wish.held_out is None:
        return held_out(own) if own.validation else None
    subset = {"image_dir": wish.held_out, "num_repeats": 1, "caption_extension": config.caption_extension}
    bare = replace(config, train_data_dir=None, reg_data_dir=None, in_json=None, dataset_config=None,
                   validation_split=0.0, train_batch_size=1)  # fmt: skip
    found = scan(bare, document={"datasets": [{"subsets": [subset]}]})
    if not found.samples:
        raise error("no-images", "holds no images that can be read", key="--held-out", got=wish.held_out,
                    fix="name a folder of captioned images")  # fmt: skip
    trained = {_digest(sample.path): sample.path for sample in own.samples}
    both = [(sample.path, trained[digest]) for sample in found.samples if (digest := _digest(sample.path)) in trained]
    if both:
        first, same = both[0]
        must = f"holds {len(both)} training images, such as {first.name}, which is {same}"
        raise error("held-out-trained", must, key="--held-out", got=wish.held_out, fix="take them out of the folder")
    return held_out(replace(found, validation=found.samples))


def _digest(path: Path) -> str:
    from schemas.files.textfile import open_regular

    with open_regular(path, what="image") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _mark(path: Path) -> str:
    facts = path.stat()
    return hashlib.blake2b(f"{path.resolve()}/{facts.st_size}/{facts.st_mtime_ns}".encode(), digest_size=8).hexdigest()


def _settings(wish: Wish, held: Scan | None) -> str:
    """A key of everything but the file and its strength."""
    names = sorted(str(sample.path) for sample in held.samples) if held else []
    told: Mapping[str, Any] = {name: value for name, value in asdict(wish).items() if name not in ("files", "weights")}
    return hashlib.blake2b(json.dumps([told, names, measures.TIMESTEPS]).encode(), digest_size=8).hexdigest()


def _training_images(config: TrainConfig) -> list[Any]:
    from PIL import Image

    own = [sample for sample in scan(config).samples if not sample.is_reg]
    if not own:
        raise error("no-images", "are not there, so nothing can be compared with them", key="train_data_dir",
                    got=config.train_data_dir, fix="leave --embedder out")  # fmt: skip
    chosen = own[:: max(1, -(-len(own) // MOST_LIKE))]
    return [Image.fromarray(pixels.read(sample.path)[0]) for sample in chosen]


if __name__ == "__main__":
    outlast_terminal()
    with interruptible():
        sys.exit(main())
