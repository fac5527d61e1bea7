"""WD14 taggers: model.onnx and selected_tags.csv, run by onnxruntime."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from schemas.problems import error
from trainer.captioning.models import no_model
from trainer.captioning.settings import CaptionSettings, Describe

GENERAL, CHARACTER, RATING = "0", "4", "9"  # categories in selected_tags.csv
FACES = 3  # tags up to this length, such as ^_^, keep their underscores


def tagger(name: str, settings: CaptionSettings) -> Describe:
    """A WD14 tagger: model.onnx and selected_tags.csv in a local folder, or on the hub."""
    try:
        import onnxruntime
    except ImportError:
        fix = 'pip install onnxruntime (or pip install "kohyakit[caption]")'
        raise error("missing-package", "needs onnxruntime", key="--model", got=settings.model, fix=fix) from None
    files = [_found(name, file) for file in ("model.onnx", "selected_tags.csv")]
    try:
        session = onnxruntime.InferenceSession(str(files[0]), providers=onnxruntime.get_available_providers())
        with files[1].open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
    except Exception as fault:  # a folder may hold anything
        raise no_model(name, fault) from None
    given = session.get_inputs()[0]

    def describe(images: Sequence[Image.Image]) -> list[str]:
        side = given.shape[1] if isinstance(given.shape[1], int) else 448
        squares = [squared(image, side)[None] for image in images]
        # Some taggers are exported for one image at a time.
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
    """The tags above their threshold in the order that `settings` ask for: ratings, characters, general ones."""
    limits = {CHARACTER: settings.character_threshold, GENERAL: settings.threshold}
    groups = {"first": [CHARACTER, GENERAL], "last": [GENERAL, CHARACTER], "off": [GENERAL]}[settings.characters]
    found = []
    pairs = [(float(score), row) for score, row in zip(scores, rows, strict=True)]
    if settings.ratings:
        rated = [(score, row["name"]) for score, row in pairs if row["category"] == RATING]
        found += [max(rated)[1]] if rated else []
    for category in groups:
        group = [
            (score, row["name"]) for score, row in pairs if row["category"] == category and score > limits[category]
        ]
        if settings.order != "model":
            group.sort(key=lambda pair: pair[1] if settings.order == "name" else -pair[0])
        found += [name for _, name in group]
    unwanted = {_spaced(tag.strip()) for tag in settings.exclude.split(",") if tag.strip()}
    kept = [name for name in found if _spaced(name) not in unwanted]
    return kept if settings.keep_underscores else [_spaced(name) for name in kept]


def _spaced(name: str) -> str:
    return name if len(name) <= FACES else name.replace("_", " ")


def _found(name: str, file: str) -> Path:
    if Path(name).is_dir():
        return Path(name, file)
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, file))
    except (OSError, ValueError) as fault:
        raise no_model(name, fault) from None
