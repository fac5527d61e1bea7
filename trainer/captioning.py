"""Captions for a folder of pictures: `python -m trainer.captioning FOLDER --model MODEL`, for `dataset caption`.

A captioning model of transformers (BLIP and its like) writes a sentence, a WD14 tagger (onnxruntime) writes tags. Each
caption is written as soon as it is made, so that a run that was cut off goes on where it stopped.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from schemas.problems import ConfigError, Problem, error
from trainer import pixels
from trainer.dataset.pictures import pictures_in
from trainer.run_folder import write_text

HUB = {
    "blip": "Salesforce/blip-image-captioning-base",
    "blip-large": "Salesforce/blip-image-captioning-large",
    "wd14": "SmilingWolf/wd-vit-tagger-v3",
}
JOURNAL = ".captioning.json"  # which captions an --overwrite or --append run has made so far
GENERAL, CHARACTER = "0", "4"  # categories in selected_tags.csv
FACES = 3  # tags up to this length, such as ^_^, keep their underscores

Describe = Callable[[Sequence[Image.Image]], list[str]]


@dataclass(frozen=True)
class CaptionSettings:
    """How captions are made. `mode` says what happens to a caption that is there: "keep", "append" or "overwrite"."""

    model: str
    prefix: str = ""
    extension: str = ".txt"
    mode: str = "keep"
    batch_size: int = 4
    beams: int = 9
    min_length: int = 15
    max_length: int = 75
    threshold: float = 0.35
    character_threshold: float = 0.85


def caption_folder(folder: Path, settings: CaptionSettings, describe: Describe, *, say: Callable[[str], Any]) -> int:
    """Captions every picture under `folder` that still needs one; how many were written."""
    paths = [path for top in _folders(folder) for path in pictures_in(top)]
    if not paths:
        raise error("no-images", f"{folder}: holds no pictures", fix="check the path")
    journal = Journal(folder / JOURNAL, settings)
    waiting = [path for path in paths if _wants(path, settings, journal, folder)]
    say(f"{len(paths)} pictures, {len(paths) - len(waiting)} of them captioned already")
    began = time.monotonic()
    written = 0
    for start in range(0, len(waiting), settings.batch_size):
        batch = waiting[start : start + settings.batch_size]
        texts = describe([_open(path) for path in batch])
        for path, text in zip(batch, texts, strict=True):
            _write(path, text, settings)
            journal.add(path.relative_to(folder).as_posix())
            written += 1
        left = (time.monotonic() - began) / written * (len(waiting) - written)
        say(f"{written}/{len(waiting)}  {left:.0f} s left  {batch[-1].name}: {texts[-1]}")
    journal.close()
    return written


def _folders(folder: Path) -> Iterator[Path]:
    yield folder
    yield from sorted(path for path in folder.rglob("*") if path.is_dir() and not path.name.startswith("."))


def _wants(path: Path, settings: CaptionSettings, journal: Journal, folder: Path) -> bool:
    file = path.with_suffix(settings.extension)
    if not file.is_file() or not file.read_bytes().strip():
        return True
    return settings.mode != "keep" and path.relative_to(folder).as_posix() not in journal.done


def _open(path: Path) -> Image.Image:
    """The picture upright, RGB, transparent parts white."""
    try:
        return Image.fromarray(pixels.read(path)[0])
    except (OSError, ValueError, SyntaxError) as fault:
        fix = "replace or remove the file"
        raise error("unreadable-image", f"cannot be read whole: {fault}", file=str(path), fix=fix) from None


def _write(path: Path, text: str, settings: CaptionSettings) -> None:
    file = path.with_suffix(settings.extension)
    text = text.strip()
    if settings.mode == "append" and file.is_file() and file.read_bytes().strip():
        text = f"{file.read_text(encoding='utf-8-sig').strip()}, {text}"
    write_text(file, text if text.startswith(settings.prefix) else settings.prefix + text)


class Journal:
    """Where an --overwrite or --append run is, kept in the folder until all is done; other settings begin anew."""

    def __init__(self, file: Path, settings: CaptionSettings) -> None:
        self._file, self._settings = file, asdict(settings)
        self.done: set[str] = set()
        if settings.mode != "keep" and file.is_file():
            kept = json.loads(file.read_text(encoding="utf-8"))
            self.done = set(kept["done"]) if kept["settings"] == self._settings else set()

    def add(self, name: str) -> None:
        if self._settings["mode"] != "keep":
            self.done.add(name)
            write_text(self._file, json.dumps({"settings": self._settings, "done": sorted(self.done)}))

    def close(self) -> None:
        self._file.unlink(missing_ok=True)


def describer(settings: CaptionSettings) -> Describe:
    """The model that `settings` name: a tagger where the folder holds one, else a captioning model."""
    name = HUB.get(settings.model, settings.model)
    if settings.model == "wd14" or (Path(name) / "selected_tags.csv").is_file():
        return tagger(name, settings)
    return captioner(name, settings)


def captioner(name: str, settings: CaptionSettings) -> Describe:
    """A captioning model of transformers, from a local folder or the hub."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        processor = AutoProcessor.from_pretrained(name)
        model = AutoModelForImageTextToText.from_pretrained(name).to(device).eval()
    except (OSError, ValueError) as fault:
        raise _no_model(name, fault) from None

    def describe(images: Sequence[Image.Image]) -> list[str]:
        inputs = processor(images=list(images), return_tensors="pt").to(device)
        with torch.inference_mode():
            tokens = model.generate(
                **inputs,
                num_beams=settings.beams,
                min_length=settings.min_length,
                max_length=max(settings.max_length, settings.min_length),
            )
        return [text.strip() for text in processor.batch_decode(tokens, skip_special_tokens=True)]

    return describe


def tagger(name: str, settings: CaptionSettings) -> Describe:
    """A WD14 tagger: model.onnx and selected_tags.csv in a local folder, or on the hub."""
    try:
        import onnxruntime
    except ImportError:
        fix = "pip install onnxruntime"
        raise error("missing-package", "needs onnxruntime", key="--model", got=settings.model, fix=fix) from None
    files = [_found(name, file) for file in ("model.onnx", "selected_tags.csv")]
    session = onnxruntime.InferenceSession(str(files[0]), providers=onnxruntime.get_available_providers())
    with files[1].open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    given = session.get_inputs()[0]

    def describe(images: Sequence[Image.Image]) -> list[str]:
        side = given.shape[1] if isinstance(given.shape[1], int) else 448
        squares = [squared(image, side)[None] for image in images]
        # Some taggers are exported for one picture at a time.
        parts = squares if isinstance(given.shape[0], int) else [np.concatenate(squares)]
        scores = np.concatenate([session.run(None, {given.name: part})[0] for part in parts])
        return [", ".join(tags(row, rows, settings)) for row in scores]

    return describe


def squared(image: Image.Image, side: int) -> np.ndarray:
    """[side, side, 3] float32, BGR, 0 to 255: on a white square, then scaled, as the taggers were trained."""
    padded = ImageOps.pad(image, (max(image.size),) * 2, color=(255, 255, 255))
    scaled = padded.resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(scaled, dtype=np.float32)[:, :, ::-1]


def tags(scores: Sequence[float], rows: Sequence[Mapping[str, str]], settings: CaptionSettings) -> list[str]:
    """The tags above their threshold: characters first, then general ones, each group by falling score."""
    limits = {CHARACTER: settings.character_threshold, GENERAL: settings.threshold}
    found = []
    for category, limit in limits.items():
        group = [(score, row["name"]) for score, row in zip(scores, rows, strict=True) if row["category"] == category]
        found += [name for score, name in sorted(group, key=lambda pair: -pair[0]) if score > limit]
    return [name if len(name) <= FACES else name.replace("_", " ") for name in found]


def _found(name: str, file: str) -> Path:
    if Path(name).is_dir():
        return Path(name, file)
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, file))
    except (OSError, ValueError) as fault:
        raise _no_model(name, fault) from None


def _no_model(name: str, fault: Exception) -> ConfigError:
    said = str(fault).strip().splitlines()
    return ConfigError([Problem(
        code="no-model", key="--model", got=name, must=f"cannot be loaded: {said[0] if said else fault}",
        fix="give the folder of a downloaded model, or connect to the hub",
    )])  # fmt: skip


def read_words(words: Sequence[str]) -> tuple[Path, CaptionSettings]:
    """(folder, settings) of a command line."""
    parser = argparse.ArgumentParser(prog="python -m trainer.captioning", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    for name, default in asdict(CaptionSettings(model="")).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    given = vars(parser.parse_args(words))
    return given.pop("folder"), CaptionSettings(**given)


def main(words: Sequence[str] | None = None) -> int:
    folder, settings = read_words(sys.argv[1:] if words is None else words)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        written = caption_folder(folder, settings, describer(settings), say=lambda line: print(line, flush=True))
    except ConfigError as fault:
        print(fault, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    print(f"{written} captions written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
