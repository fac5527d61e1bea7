"""`dataset mask`: a folder of masks for each folder of images, and the dataset_config that names both."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.photos.folders import training_folders
from launcher.run.files import write_text
from schemas.files.documents import parse_json
from schemas.problems import ConfigError, Problem, error
from trainer.dataset.names import fold
from trainer.dataset.pictures import pictures_in

MASKS = "masks"  # beside training_images
CONFIG = "masked.toml"


@dataclass
class Masked:
    """What became of a folder. `whole`: images of which no mask could be made; all of them is trained."""

    folder: Path
    config: Path
    images: int
    kept: int
    written: int = 0
    whole: list[dict[str, str]] = field(default_factory=list)
    left_out: list[dict[str, str]] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """The document of `dataset mask --json`."""
        return {
            "ok": not self.left_out,
            "masks": str(self.folder),
            "dataset_config": str(self.config),
            "images": self.images,
            "written": self.written,
            "kept": self.kept,
            "whole": self.whole,
            "left_out": self.left_out,
        }


def mask(directory: Path, words: list[str], *, overwrite: bool, resolution: str) -> Masked:
    """Make the masks that are missing (all, with `overwrite`); `words` are those of `python -m trainer.masking`.

    ConfigError `no-images`, `no-place`, and what the source of the masks needs.
    """
    found = training_folders(directory)
    if found.place is None:
        must = "has no folders named REPEATS_NAME, for which masks would be made"
        raise error("no-place", must, key=str(directory), fix="give what `kohyakit dataset prepare` made")
    base = found.place.parent if found.place.name == "training_images" else found.place
    target = base / MASKS if base != found.place else found.place.with_name(f"{found.place.name}_{MASKS}")
    jobs: list[tuple[Path, Path]] = []
    kept = 0
    for folder in found.folders:
        there = target / folder.path.name
        masks = {fold(path.stem) for path in pictures_in(there)} if there.is_dir() else set()
        for image in folder.images():
            if fold(image.stem) in masks and not overwrite:
                kept += 1
            else:
                jobs.append((image, there / f"{image.stem}.png"))
    made = Masked(target, target / CONFIG, len(jobs) + kept, kept)
    document = _run(jobs, words) if jobs else {}
    made.written = int(document.get("written", 0))
    made.whole, made.left_out = list(document.get("whole", [])), list(document.get("left_out", []))
    write_text(
        made.config,
        _dataset_config(made, [(one.path, one.repeats or 1) for one in found.folders], resolution),
    )
    return made


def _run(jobs: list[tuple[Path, Path]], words: list[str]) -> dict[str, Any]:
    from launcher.commands.demo import environment

    names = b"".join(os.fsencode(str(path)) + b"\0" for job in jobs for path in job)
    command = [sys.executable, "-P", "-m", "trainer.masking", *words]
    done = subprocess.run(command, input=names, stdout=subprocess.PIPE, env=environment())
    if done.returncode == 130:
        raise KeyboardInterrupt
    try:
        document: dict[str, Any] = parse_json(done.stdout)
    except ValueError:
        must = f"the making of masks ended with {done.returncode}"
        raise error("masks-failed", must, fix="what it said stands above; masks made so far stay") from None
    if not document["ok"]:
        names_of = ("severity", "code", "key", "got", "must", "fix")
        raise ConfigError(Problem(**{name: one[name] for name in names_of}) for one in document["problems"])
    return document


def _dataset_config(made: Masked, folders: list[tuple[Path, int]], resolution: str) -> str:
    """A dataset_config that names every folder with its masks; the reference knows no class_tokens beside masks."""
    import toml

    subsets = [
        {
            "image_dir": str(path.absolute()),
            "conditioning_data_dir": str((made.folder / path.name).absolute()),
            "num_repeats": repeats,
            "caption_extension": ".txt",
        }
        for path, repeats in folders
    ]
    sides = [int(side) for side in resolution.split(",")]
    dataset = {"resolution": sides if len(sides) > 1 else sides[0], "enable_bucket": True, "subsets": subsets}
    return toml.dumps({"datasets": [dataset]})
