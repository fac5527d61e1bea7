"""Which folders below a directory are trained on, and which caption belongs to which image in them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from launcher.photos.source import natural
from schemas.problems import Problem, error
from trainer.dataset.captions import captions_like
from trainer.dataset.pictures import Listing, deeper, list_folder
from trainer.dataset.spec import TRAINING_IMAGES, folder_repeats, left_out, nothing_found, numbered_in

DEEPEST = 3  # levels below a directory at which its training_images is looked for


@dataclass(frozen=True)
class Folder:
    """One folder of images; `repeats` is None where its name has no number."""

    path: Path
    repeats: int | None
    name: str
    listing: Listing

    def images(self) -> list[Path]:
        """Its images, photo2 before photo10."""
        return sorted(self.listing.images, key=lambda path: natural(path.name))

    def caption_file(self, image: Path, extension: str) -> Path | None:
        """The caption of `image`, whatever the case of its name; None where there is none."""
        name = next(iter(captions_like(image.name, extension, self.listing.names)), None)
        return image.with_name(name) if name else None


@dataclass(frozen=True)
class Folders:
    """What was found: `place` is what train_data_dir would be, None where there is no such folder."""

    directory: Path
    place: Path | None
    folders: tuple[Folder, ...]
    problems: tuple[Problem, ...]


def relative(path: Path, directory: Path) -> str:
    """`path` as it is shown: below `directory`, with forward slashes."""
    return path.relative_to(directory).as_posix() if path.is_relative_to(directory) else str(path)


def training_folders(directory: Path) -> Folders:
    """The folders of images that `directory` stands for. ConfigError `no-folder`, `no-images`.

    A train_data_dir itself, the folder that `dataset prepare` made, one above it, or any folder of images.
    """
    if not directory.is_dir():
        raise error("no-folder", f"{directory}: there is no such folder", fix="check the path")
    below = [path for path, _ in deeper(directory)]
    here = list_folder(directory)
    place = _place(directory)
    if not below and not here.images and place is None:
        seen = ", ".join(sorted(here.names.exact)[:8]) or "nothing"
        raise error(
            "no-images",
            f"{directory}: holds no images (found: {seen})",
            fix="give the folder that `kohyakit dataset prepare` made, or its training_images",
        )
    problems: list[Problem] = []
    if place is not None:
        paths = [place / name for name, _ in numbered_in(place)]
        problems += [moved(problem, directory) for problem in left_out(str(place), "train_data_dir")]
        if place not in (directory, directory / TRAINING_IMAGES):
            must, fix = f"the training images lie in {place}", f"set train_data_dir to {place}"
            problems.append(Problem(code="found-deeper", severity="note", must=must, fix=fix))
    else:
        paths, problem = _elsewhere(directory, [*([directory] if here.images else []), *below])
        problems.append(problem)
    for path in below:
        if path.name.partition("_")[0] == "0":
            must, fix = "0 repeats train nothing", "use a number of at least 1"
            problems.append(Problem(code="no-repeats", key=relative(path, directory), must=must, fix=fix))
    folders = tuple(_folder(path) for path in sorted(paths, key=lambda path: natural(str(path))))
    return Folders(directory, place, folders, tuple(problems))


def captions_of(found: Folders, extension: str) -> Iterator[tuple[Path, Path | None]]:
    """(image, its caption file or None) of every image."""
    for folder in found.folders:
        for image in folder.images():
            yield image, folder.caption_file(image, extension)


def _place(directory: Path) -> Path | None:
    """The one folder of REPEATS_NAME folders that is meant."""
    for place in (directory, directory / TRAINING_IMAGES):
        if place.is_dir() and any(numbered_in(place)):
            return place
    found = []
    for name, inner, _ in os.walk(directory):
        here = Path(name)
        depth = len(here.relative_to(directory).parts)
        if here.name == TRAINING_IMAGES and any(numbered_in(here)):
            found.append(here)
        inner[:] = [one for one in inner if not one.startswith(".")] if depth < DEEPEST else []
    return found[0] if len(found) == 1 else None


def _folder(path: Path) -> Folder:
    number = folder_repeats(path.name)
    return Folder(path, number, path.name.partition("_")[2] if number else path.name, list_folder(path))


def _elsewhere(top: Path, holding: list[Path]) -> tuple[list[Path], Problem]:
    """The folders to look at where `top` is no train_data_dir, and the way to one that is."""
    numbered = [path for path in holding if folder_repeats(path.resolve().name) is not None]
    problem = nothing_found(str(top), "train_data_dir")
    if problem.code == "numbered-folder":
        must, fix = (
            f"{top.name} holds the images itself",
            f"give the folder above it as train_data_dir: {top.resolve().parent}",
        )
        found = Problem(severity="warning", code="numbered-folder", must=must, fix=fix)
    elif numbered:
        parents = sorted({str(path.parent) for path in numbered})
        fix = f"give {' or '.join(parents)} as train_data_dir"
        found = Problem(code="wrong-level", must="the REPEATS_NAME folders lie deeper", fix=fix)
    else:
        must = "no folder is named REPEATS_NAME, so nothing would be trained"
        found = Problem(code="no-numbered-folder", must=must, fix=problem.fix)
    return numbered or holding, found


def moved(problem: Problem, directory: Path) -> Problem:
    """A finding of the scan, its key the file or folder that it is about."""
    place = problem.file or (problem.got if isinstance(problem.got, str) else None)
    got = None if place == problem.got else problem.got
    key = relative(Path(place), directory) if place and os.path.lexists(place) else problem.key
    return replace(problem, key=key, got=got, file=None)
