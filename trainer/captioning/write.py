"""Captions for a folder of images, written beside them.

A captioning model of transformers (BLIP and its like) writes a sentence, a WD14 tagger (onnxruntime) writes tags. Each
caption is written as soon as it is made, so that a run that was cut off goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from schemas import diagnostics
from schemas.problems import ConfigError, Problem, error
from schemas.terminal import say, say_document
from trainer.captioning.endpoint import endpoint, unload
from trainer.captioning.models import captioner, device_name, model_named
from trainer.captioning.phrases import dropper, read_phrases
from trainer.captioning.settings import TAGGERS, CaptionSettings, Describe
from trainer.captioning.tagger import tagger
from trainer.dataset.captions import caption_path, read_text_of
from trainer.dataset.images import Unreadable
from trainer.dataset.names import names_in
from trainer.dataset.pictures import pictures_in, read_all
from trainer.dataset.spec import TRAINING_IMAGES
from trainer.input import pixels
from trainer.output.run_folder import write_text

JOURNAL = ".captioning.json"  # which captions an --overwrite or --append run has made so far
TRIED = 5  # images of a dry run


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
        return {"ok": not skipped, **asdict(self), "skipped": skipped, "problems": []}


def caption_folder(
    folder: Path, settings: CaptionSettings, describe: Describe, *, say: Callable[[str], Any], dry_run: bool = False
) -> Captioned:
    """Captions every image under `folder` that still needs one; a dry run shows a few and writes nothing."""
    if (folder / TRAINING_IMAGES).is_dir():  # what lies beside it are results
        folder = folder / TRAINING_IMAGES
    paths = [path for top in _folders(folder) for path in pictures_in(top)]
    if not paths:
        raise error("no-images", f"{folder}: holds no images", fix="check the path")
    drop = dropper(read_phrases(settings.drop_phrases)) if settings.drop_phrases else str
    journal = Journal(folder / JOURNAL, settings)
    files = _files(paths, settings)
    waiting = [path for path in paths if _wants(path, files[path], settings, journal, folder)]
    say(f"{len(paths)} images, {len(paths) - len(waiting)} of them captioned already")
    made = Captioned(len(paths), len(paths) - len(waiting))
    waiting = (waiting or paths)[:TRIED] if dry_run else _by_size(waiting)
    clock = _Clock(len(waiting))
    skipped: list[tuple[Path, str]] = []
    for start in range(0, len(waiting), settings.batch_size):
        batch = list(_readable(waiting[start : start + settings.batch_size], skipped))
        texts = [drop(text.strip()) for text in describe([image for _, image in batch])] if batch else []
        for (path, _), text in zip(batch, texts, strict=True):
            if dry_run:
                say(f"{path.name}: {_with_prefix(text, settings)}")
                continue
            try:
                _write(files[path], text, settings)
            except (ValueError, OSError) as fault:
                skipped.append((path, f"its caption {fault}"))
                continue
            journal.add(path.relative_to(folder).as_posix())
            made.written += 1
        if batch and not dry_run:
            say(f"{clock.told(start + len(batch))}  {batch[-1][0].name}: {texts[-1]}")
    if not dry_run:
        journal.close()
    made.skipped = [(path.relative_to(folder).as_posix(), why) for path, why in skipped]
    for name, why in made.skipped:
        say(f"without a caption: {name}: {why}")
    if skipped and len(skipped) == len(paths):
        fix = "replace or remove the files"
        raise error("unreadable-image", f"{folder}: none of its {len(paths)} images can be captioned", fix=fix)
    return made


class _Clock:
    """How fast it goes, and how long it will take."""

    def __init__(self, total: int) -> None:
        self._total, self._began = total, time.monotonic()

    def told(self, done: int) -> str:
        rate = done / max(time.monotonic() - self._began, 1e-6)
        return f"{done}/{self._total}  {rate:.2f} images/s  {(self._total - done) / rate:.0f} s left"


def _by_size(paths: Sequence[Path]) -> list[Path]:
    """Images of one size together: some models fill a batch up to its largest image."""
    facts = read_all(paths)
    return sorted(paths, key=lambda path: (facts[path].width * facts[path].height, facts[path].width))


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


def _with_prefix(text: str, settings: CaptionSettings) -> str:
    return text if text.startswith(settings.prefix) else settings.prefix + text


def _write(file: Path, text: str, settings: CaptionSettings) -> None:
    if settings.mode == "append" and _words(file):
        text = f"{read_text_of(file).strip()}, {text}"
    write_text(file, _with_prefix(text, settings))


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
    """What `settings` name: a server, a tagger where the folder holds one, else a model of transformers.

    ConfigError `unknown-model`, `no-model`, `no-endpoint` before any image; faults on the way are ModelFailed.
    """
    if settings.endpoint:
        describe = endpoint(settings)
    else:
        name = model_named(settings.model)
        tags_images = settings.model.startswith(TAGGERS) or (Path(name) / "selected_tags.csv").is_file()
        describe = (tagger if tags_images else captioner)(name, settings)

    def guarded(images: Sequence[Image.Image]) -> list[str]:
        try:
            return describe(images)
        except Exception as fault:  # of a library, and of any kind
            if len(images) > 1 and "OutOfMemory" in type(fault).__name__:
                half = len(images) // 2
                return [*guarded(images[:half]), *guarded(images[half:])]
            said = str(fault).strip().splitlines()
            raise ModelFailed(
                f"{settings.model}: {type(fault).__name__}: {said[0] if said else 'no reason given'}"
            ) from fault

    return guarded


def where(settings: CaptionSettings) -> str:
    """What computes, as it is told."""
    return f"asking {settings.endpoint}" if settings.endpoint else f"on {device_name()}"


def read_words(words: Sequence[str]) -> tuple[Path, CaptionSettings, bool, bool]:
    """(folder, settings, whether one JSON document is wanted, whether nothing is written) of a command line."""
    parser = argparse.ArgumentParser(prog="python -m trainer.captioning", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    for name, default in asdict(CaptionSettings(model="")).items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(default, bool):
            parser.add_argument(flag, action="store_true")
        else:
            parser.add_argument(flag, type=type(default), default=default)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--dry-run", action="store_true")
    given = vars(parser.parse_args(words))
    folder, as_json, dry_run = given.pop("folder"), given.pop("json"), given.pop("dry_run")
    return folder, CaptionSettings(**given), as_json, dry_run


def main(words: Sequence[str] | None = None) -> int:
    folder, settings, as_json, dry_run = read_words(sys.argv[1:] if words is None else words)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

    def tell(line: str) -> None:
        say(line, err=as_json)

    try:
        if settings.drop_phrases:
            read_phrases(settings.drop_phrases)  # before a model is loaded
        describe = describer(settings)
        tell(f"{settings.model} {where(settings)}")
        made = caption_folder(folder, settings, describe, say=tell, dry_run=dry_run)
    except (ConfigError, ModelFailed) as fault:
        return _refused(fault, as_json)
    except KeyboardInterrupt:
        say("stopped; the same command goes on from here", err=True)
        return 130
    tell("nothing was written (--dry-run)" if dry_run else f"{made.written} captions written")
    if settings.unload_after and settings.endpoint and not unload(settings):
        tell("the server does not say how to unload a model; it stays loaded there")
    if made.skipped:
        tell(f"{len(made.skipped)} images have got none")
    if as_json:
        say_document(made.as_json())
    return 3 if made.skipped else 0


def _refused(fault: ConfigError | ModelFailed, as_json: bool) -> int:
    """Says what is wrong; 1 for the input, 3 for a model that failed on the way."""
    fix = "smaller --batch-size, or another --model; captions written so far stay, the same command goes on from here"
    failed = Problem(code="model-failed", key="--model", must=f"failed on images: {fault}", fix=fix)
    problems = fault.problems if isinstance(fault, ConfigError) else [failed]
    for line in diagnostics.report(problems):
        say(line, err=True)
    if as_json:
        say_document({"ok": False, "problems": [problem.as_json() for problem in problems]})
    return 1 if isinstance(fault, ConfigError) else 3
