"""Captions for a folder of pictures: `python -m trainer.captioning FOLDER --model MODEL`, for `dataset caption`.

A captioning model of transformers (BLIP and its like) writes a sentence, a WD14 tagger (onnxruntime) writes tags. Each
caption is written as soon as it is made, so that a run that was cut off goes on where it stopped.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from schemas.problems import ConfigError, Problem, error, nearest
from schemas.terminal import say, say_document, shell_word
from trainer.dataset.captions import caption_path, read_text_of
from trainer.dataset.images import Unreadable
from trainer.dataset.names import names_in
from trainer.dataset.pictures import pictures_in
from trainer.input import pixels
from trainer.output.run_folder import write_text

HUB = {
    "blip": "Salesforce/blip-image-captioning-base",
    "blip-large": "Salesforce/blip-image-captioning-large",
    "wd14": "SmilingWolf/wd-vit-tagger-v3",
}
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
HUB_SECONDS = 10  # to answer whether it has a model
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


@dataclass
class Captioned:
    """What became of a folder: pictures, captions written now, captions that were there, and what got none and why."""

    images: int
    kept: int
    written: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """The document of `dataset caption --json`."""
        skipped = [{"file": name, "why": why} for name, why in self.skipped]
        return {"ok": True, **asdict(self), "skipped": skipped, "problems": []}


def caption_folder(
    folder: Path, settings: CaptionSettings, describe: Describe, *, say: Callable[[str], Any]
) -> Captioned:
    """Captions every picture under `folder` that still needs one."""
    paths = [path for top in _folders(folder) for path in pictures_in(top)]
    if not paths:
        raise error("no-images", f"{folder}: holds no pictures", fix="check the path")
    journal = Journal(folder / JOURNAL, settings)
    files = _files(paths, settings)
    waiting = [path for path in paths if _wants(path, files[path], settings, journal, folder)]
    say(f"{len(paths)} images, {len(paths) - len(waiting)} of them captioned already")
    began = time.monotonic()
    made = Captioned(len(paths), len(paths) - len(waiting))
    skipped: list[tuple[Path, str]] = []
    for start in range(0, len(waiting), settings.batch_size):
        batch = list(_readable(waiting[start : start + settings.batch_size], skipped))
        texts = describe([image for _, image in batch]) if batch else []
        for (path, _), text in zip(batch, texts, strict=True):
            try:
                _write(files[path], text, settings)
            except ValueError as fault:
                skipped.append((path, f"its caption {fault}"))
                continue
            journal.add(path.relative_to(folder).as_posix())
            made.written += 1
        if made.written and batch:
            left = (time.monotonic() - began) / made.written * (len(waiting) - made.written - len(skipped))
            say(f"{made.written}/{len(waiting)}  {left:.0f} s left  {batch[-1][0].name}: {texts[-1]}")
    journal.close()
    made.skipped = [(path.relative_to(folder).as_posix(), why) for path, why in skipped]
    for name, why in made.skipped:
        say(f"without a caption: {name}: {why}")
    if skipped and len(skipped) == len(paths):
        fix = "replace or remove the files"
        raise error("unreadable-image", f"{folder}: none of its {len(paths)} images can be captioned", fix=fix)
    return made


def _readable(paths: Sequence[Path], skipped: list[tuple[Path, str]]) -> Iterator[tuple[Path, Image.Image]]:
    """The pictures upright, RGB, transparent parts white; those that cannot be read are added to `skipped`."""
    for path in paths:
        try:
            yield path, Image.fromarray(pixels.read(path)[0])
        except Unreadable as fault:
            skipped.append((path, str(fault)))


def _folders(folder: Path) -> Iterator[Path]:
    yield folder
    yield from sorted(path for path in folder.rglob("*") if path.is_dir() and not path.name.startswith("."))


def _wants(path: Path, file: Path, settings: CaptionSettings, journal: Journal, folder: Path) -> bool:
    if not _words(file):
        return True
    return settings.mode != "keep" and path.relative_to(folder).as_posix() not in journal.done


def _files(paths: Sequence[Path], settings: CaptionSettings) -> dict[Path, Path]:
    """The caption file of each image, which may be there in another spelling."""
    dotted = settings.extension if settings.extension.startswith(".") else f".{settings.extension}"
    names = {folder: names_in(folder) for folder in {path.parent for path in paths}}
    return {path: caption_path(path, dotted, names[path.parent]) or path.with_suffix(dotted) for path in paths}


def _words(file: Path) -> str:
    """What a caption file says; a file that is no text says something too, and is not written over."""
    if not os.path.lexists(file):
        return ""
    try:
        return read_text_of(file).strip()
    except ValueError as fault:
        return f"({fault})"


def _write(file: Path, text: str, settings: CaptionSettings) -> None:
    text = text.strip()
    if settings.mode == "append" and _words(file):
        text = f"{read_text_of(file).strip()}, {text}"
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


class ModelFailed(RuntimeError):
    """A model that was loaded and then failed on images; what was captioned before stays."""


def describer(settings: CaptionSettings) -> Describe:
    """The model that `settings` name: a tagger where the folder holds one, else a captioning model.

    ConfigError `unknown-model`, `no-model` before anything is loaded; faults of the model itself are ModelFailed.
    """
    name = model_named(settings.model)
    tags_images = settings.model == "wd14" or (Path(name) / "selected_tags.csv").is_file()
    describe = (tagger if tags_images else captioner)(name, settings)

    def guarded(images: Sequence[Image.Image]) -> list[str]:
        try:
            return describe(images)
        except Exception as fault:  # of a library, and of any kind
            said = str(fault).strip().splitlines()
            raise ModelFailed(
                f"{settings.model}: {type(fault).__name__}: {said[0] if said else 'no reason given'}"
            ) from fault

    return guarded


PLACES = ("/", "\\", "./", "../", "~", ".\\", "..\\")  # what paths begin with, and no hub id


def model_named(model: str) -> str:
    """The local folder or hub id that a --model means; ConfigError, in about a second, for one that cannot be had."""
    known = f"must be one of {', '.join(HUB)}, a folder with a model, or a hub id such as {HUB['blip']}"
    if Path(model).exists():
        files = ("config.json", "model.onnx")
        if not any((Path(model) / file).is_file() for file in files):
            must = f"holds no model: there is no {' and no '.join(files)} in it"
            raise error("no-model", must, key="--model", got=model, fix="name the folder of a downloaded model")
        return model
    if model.startswith(PLACES):
        raise error("no-model", "is no folder that exists", key="--model", got=model, fix="check the path")
    name = HUB.get(model, model)
    if not HUB_ID.fullmatch(name):
        guess = nearest(model, HUB)
        raise error("unknown-model", known, key="--model", got=model, fix=f"--model {guess or 'blip'}")
    from huggingface_hub import HfApi, try_to_load_from_cache

    if not any(isinstance(try_to_load_from_cache(name, file), str) for file in ("config.json", "model.onnx")):
        try:
            HfApi().model_info(name, timeout=HUB_SECONDS)
        except Exception as fault:  # of the network or of the hub, in many classes
            said = str(fault).strip().splitlines()
            must = f"is not on this machine, and the hub does not give it: {said[0] if said else type(fault).__name__}"
            fix = f"hf download {shell_word(name)} where the hub can be reached, or --model FOLDER"
            raise error("no-model", must, key="--model", got=model, fix=fix) from None
    return name


def captioner(name: str, settings: CaptionSettings) -> Describe:
    """A captioning model of transformers, from a local folder or the hub."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        processor = AutoProcessor.from_pretrained(name)
        model = AutoModelForImageTextToText.from_pretrained(name).to(device).eval()
    except Exception as fault:  # a folder may hold anything
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
    try:
        session = onnxruntime.InferenceSession(str(files[0]), providers=onnxruntime.get_available_providers())
        with files[1].open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
    except Exception as fault:  # a folder may hold anything
        raise _no_model(name, fault) from None
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


def read_words(words: Sequence[str]) -> tuple[Path, CaptionSettings, bool]:
    """(folder, settings, whether one JSON document is wanted) of a command line."""
    parser = argparse.ArgumentParser(prog="python -m trainer.captioning", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    for name, default in asdict(CaptionSettings(model="")).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    parser.add_argument("--json", action="store_true")
    given = vars(parser.parse_args(words))
    folder, as_json = given.pop("folder"), given.pop("json")
    return folder, CaptionSettings(**given), as_json


def main(words: Sequence[str] | None = None) -> int:
    folder, settings, as_json = read_words(sys.argv[1:] if words is None else words)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

    def tell(line: str) -> None:
        say(line, err=as_json)

    try:
        made = caption_folder(folder, settings, describer(settings), say=tell)
    except (ConfigError, ModelFailed) as fault:
        return _refused(fault, as_json)
    except KeyboardInterrupt:
        say("stopped; the same command goes on from here", err=True)
        return 130
    tell(f"{made.written} captions written")
    if as_json:
        say_document(made.as_json())
    return 0


def _refused(fault: ConfigError | ModelFailed, as_json: bool) -> int:
    """Says what is wrong; 1 for the input, 3 for a model that failed on the way."""
    fix = "smaller --batch-size, or another --model; captions written so far stay, the same command goes on from here"
    failed = Problem(code="model-failed", key="--model", must=f"failed on images: {fault}", fix=fix)
    problems = fault.problems if isinstance(fault, ConfigError) else [failed]
    for problem in problems:
        first, *rest = problem.lines()
        for line in (f"{problem.severity}: {first}", *rest):
            say(line, err=True)
    if as_json:
        say_document({"ok": False, "problems": [problem.as_json() for problem in problems]})
    return 1 if isinstance(fault, ConfigError) else 3
