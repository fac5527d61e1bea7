"""`dataset check`: what is wrong, or could be better, in a folder of training pictures. Changes nothing."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from launcher.photos.image import (
    CAPTIONS,
    as_trained,
    is_transparent,
    open_picture,
)
from launcher.photos.likeness import Look, duplicates, look
from launcher.photos.quality import DARK, Quality, measure
from launcher.photos.source import natural
from schemas.config import TrainConfig, from_flat
from schemas.problems import ConfigError, Problem, Severity, error, errors
from trainer.dataset.captions import captions_like, read_text_of
from trainer.dataset.files import Scan, scan
from trainer.dataset.images import Unreadable
from trainer.dataset.names import fold
from trainer.dataset.order import assign
from trainer.dataset.pictures import Listing, ahead, decoders, deeper, list_folder
from trainer.dataset.spec import TRAINING_IMAGES, folder_repeats, left_out, nothing_found, numbered_in

SMALLEST, LARGEST = 256, 2048  # pixels of a side
SHOWN = 5  # names given as examples
# What the scan of a run says of files, which the same scan says here.
SCANNED = (
    "unsupported-pictures", "unusual-extension", "two-captions", "caption-case", "too-deep", "caption-tokens",
    "tiny-image",
)  # fmt: skip
WORDS = {
    "exact": "is the same image as",
    "near": "is nearly the same image as",
    "mirrored": "is the mirror image of",
}


@dataclass(frozen=True)
class Folder:
    """One folder of pictures; `repeats` is None where its name has no number."""

    path: Path
    repeats: int | None
    name: str
    listing: Listing


@dataclass(frozen=True)
class Shot:
    """One readable picture: (width, height) upright, caption or None, its file or None."""

    path: Path
    size: tuple[int, int]
    caption: str | None
    caption_file: Path | None = None


@dataclass
class Checkup:
    """Everything `check` found. Problem keys are paths relative to `directory`."""

    directory: Path
    folders: list[Folder] = field(default_factory=list)
    shots: list[Shot] = field(default_factory=list)
    broken: list[Path] = field(default_factory=list)
    duplicates: list[tuple[str, str, str]] = field(default_factory=list)
    buckets: list[tuple[tuple[int, int], int]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not errors(self.problems)

    @property
    def tags(self) -> Counter[str]:
        """How many captions hold each tag."""
        texts = (shot.caption.splitlines()[0] for shot in self.shots if shot.caption and shot.caption.strip())
        return Counter(tag for text in texts for tag in {part.strip() for part in text.split(",")} if tag)

    def relative(self, path: Path) -> str:
        return path.relative_to(self.directory).as_posix() if path.is_relative_to(self.directory) else str(path)

    def add(self, severity: Severity, code: str, path: Path | None, must: str, fix: str, got: Any = None) -> None:
        key = self.relative(path) if path else None
        self.problems.append(Problem(severity=severity, code=code, key=key, must=must, fix=fix, got=got))

    def as_json(self) -> dict[str, Any]:
        """The document of `dataset check --json`."""
        return {
            "directory": str(self.directory),
            "ok": self.ok,
            "images": len(self.shots),
            "folders": [
                {
                    "path": self.relative(folder.path),
                    "repeats": folder.repeats,
                    "name": folder.name,
                    "images": sum(shot.path.parent == folder.path for shot in self.shots),
                }
                for folder in self.folders
            ],
            "without_caption": [self.relative(shot.path) for shot in self.shots if not shot.caption],
            "duplicates": [{"kind": kind, "files": [first, second]} for kind, first, second in self.duplicates],
            "buckets": [{"resolution": list(size), "images": count} for size, count in self.buckets],
            "tags": dict(self.tags.most_common()),
            "problems": [problem.as_json() for problem in self.problems],
        }


@dataclass(frozen=True)
class _Seen:
    """What one decoded picture shows."""

    size: tuple[int, int]
    orientation: int
    transparent: bool
    look: Look
    quality: Quality


def check(
    directory: Path,
    *,
    caption_extension: str = ".txt",
    resolution: str = "512,512",
    max_token_length: int | None = None,
    progress: Callable[[list[Any]], Iterable[Any]] = iter,
) -> Checkup:
    """Look at every file under `directory`. ConfigError only where there is no folder, or no picture at all."""
    if not directory.is_dir():
        raise error("no-folder", f"{directory}: there is no such folder", fix="check the path")
    found = Checkup(directory)
    place = _folders(found)
    looks: list[Look] = []
    paths = [(folder, path) for folder in found.folders for path in _ordered(folder.listing)]
    seen = ahead(_look_at, [path for _, path in paths], decoders())
    for (folder, path), one in zip(progress(paths), seen, strict=True):
        if isinstance(one, _Seen):
            file = _caption_file(folder, path, caption_extension)
            found.shots.append(Shot(path, one.size, _caption(found, file), file))
            looks.append(one.look)
            _remarks(found, path, one)
        else:
            found.broken.append(path)
            found.add("error", "unreadable-image", path, one, "replace or remove the file")
    for folder in found.folders:
        _names(found, folder, caption_extension)
    _captions(found, caption_extension)
    _triggers(found)
    _likeness(found, looks)
    _count(found)
    if place is not None:
        values = {
            "resolution": resolution,
            "enable_bucket": True,
            "caption_extension": caption_extension,
            "bucket_no_upscale": True,
            "max_token_length": max_token_length,
            "train_data_dir": str(place),
        }
        _as_scanned(found, from_flat({name: value for name, value in values.items() if value is not None})[0])
    return found


def _ordered(listing: Listing) -> list[Path]:
    return sorted(listing.images, key=lambda path: natural(path.name))


def _folders(found: Checkup) -> Path | None:
    """Fills in the folders of pictures and what is wrong with where they lie; what train_data_dir would be."""
    top = found.directory
    below = [path for path, _ in deeper(top)]
    here = list_folder(top)
    if not below and not here.images:
        seen = ", ".join(sorted(here.names.exact)[:8]) or "nothing"
        raise error(
            "no-images",
            f"{top}: holds no images (found: {seen})",
            fix="give the folder that `kohyakit dataset prepare` made, or its training_images",
        )
    place = next((place for place in (top, top / TRAINING_IMAGES) if place.is_dir() and any(numbered_in(place))), None)
    if place is not None:
        paths = [place / name for name, _ in numbered_in(place)]
        for problem in left_out(str(place), "train_data_dir"):
            found.problems.append(_moved(found, problem))
    else:
        paths = _elsewhere(found, [*([top] if here.images else []), *below])
    found.folders = [_folder(path) for path in sorted(paths, key=lambda path: natural(str(path)))]
    for path in below:
        if path.name.partition("_")[0] == "0":
            found.add("error", "no-repeats", path, "0 repeats train nothing", "use a number of at least 1")
    return place


def _folder(path: Path) -> Folder:
    number = folder_repeats(path.name)
    return Folder(path, number, path.name.partition("_")[2] if number else path.name, list_folder(path))


def _elsewhere(found: Checkup, holding: list[Path]) -> list[Path]:
    """The folders to look at where `directory` is no train_data_dir, and the way to one that is."""
    top = found.directory
    numbered = [path for path in holding if folder_repeats(path.resolve().name) is not None]
    problem = nothing_found(str(top), "train_data_dir")
    if problem.code == "numbered-folder":
        fix = f"give the folder above it as train_data_dir: {top.resolve().parent}"
        found.add("warning", "numbered-folder", None, f"{top.name} holds the images itself", fix)
    elif numbered:
        parents = sorted({str(path.parent) for path in numbered})
        fix = f"give {' or '.join(parents)} as train_data_dir"
        found.add("error", "wrong-level", None, "the REPEATS_NAME folders lie deeper", fix)
    else:
        must = "no folder is named REPEATS_NAME, so nothing would be trained"
        found.add("error", "no-numbered-folder", None, must, str(problem.fix))
    return numbered or holding


def _moved(found: Checkup, problem: Problem) -> Problem:
    """A finding of the scan, its key the file or folder that it is about."""
    place = problem.file or (problem.got if isinstance(problem.got, str) else None)
    got = None if place == problem.got else problem.got
    key = found.relative(Path(place)) if place and os.path.lexists(place) else problem.key
    return replace(problem, key=key, got=got, file=None)


def _look_at(path: Path) -> _Seen | str:
    """Decode one picture; why it cannot be."""
    try:
        picture = open_picture(path)
    except Unreadable as fault:
        return str(fault)
    image = picture.image
    rgb = as_trained(image)
    return _Seen(image.size, picture.orientation, is_transparent(image), look(image), measure(rgb))


def _remarks(found: Checkup, path: Path, seen: _Seen) -> None:
    width, height = size = seen.size
    if min(size) < SMALLEST:
        fix = "use a larger original: enlarging blurs"
        found.add("warning", "small-image", path, f"has a side below {SMALLEST} pixels", fix, f"{width}x{height}")
    if max(size) > LARGEST:
        fix = "nothing is wrong, but smaller files load faster"
        found.add("note", "large-image", path, f"has a side above {LARGEST} pixels", fix, f"{width}x{height}")
    if seen.orientation != 1:
        found.add(
            "note", "exif-rotation", path, "is turned by its EXIF data: kohyakit turns it too, other trainers do not",
            "run it through `kohyakit dataset prepare`",
        )  # fmt: skip
    if seen.transparent:
        found.add(
            "warning", "transparency", path, "has transparent parts, which become white unless alpha_mask is set",
            "put a background behind it, or set alpha_mask",
        )  # fmt: skip
    quality = seen.quality
    if quality.blurred:
        must = "may be blurred: its fine detail (variance of the Laplacian) is below what sharp photos have"
        found.add(
            "note", "blurred-image", path, must, "look at it; a sharper one teaches more", round(quality.sharpness, 1)
        )
    if quality.dark:
        must = f"is dark: its mean brightness, of 255, is below {DARK:g}"
        found.add(
            "note", "dark-image", path, must, "look at it; brighten it or leave it out", round(quality.brightness, 1)
        )
    if quality.burnt and not seen.transparent:
        must = "may be burnt out, or have a plain white background: so many of its pixels are white"
        found.add("note", "burnt-out-image", path, must, "look at it; white teaches nothing", f"{quality.white:.0%}")


def _caption_file(folder: Folder, path: Path, extension: str) -> Path | None:
    name = next(iter(captions_like(path.name, extension, folder.listing.names)), None)
    return path.with_name(name) if name else None


def _caption(found: Checkup, file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        text = read_text_of(file)
    except ValueError as fault:
        encoding = "UTF-8" in str(fault)
        fix = "save it again as UTF-8" if encoding else "replace it by a plain text file"
        found.add("error", "caption-encoding" if encoding else "unreadable-caption", file, str(fault), fix)
        return None
    if not text.strip():
        found.add("warning", "caption-empty", file, "is empty", "write a caption, or remove the file")
    elif not text.splitlines()[0].strip():
        fix = "move the caption to the first line"
        found.add("warning", "caption-empty", file, "has an empty first line, which is what is trained", fix)
    return text


def _names(found: Checkup, folder: Folder, extension: str) -> None:
    """Pictures that share a stem, captions without a picture."""
    sharing: dict[str, list[str]] = {}
    for path in _ordered(folder.listing):
        sharing.setdefault(fold(path.stem), []).append(path.name)
    for stem, alike in sharing.items():
        files = {_caption_file(folder, folder.path / name, extension) for name in alike}
        if len(alike) > 1 and (len(files) == 1 or len({Path(name).stem for name in alike}) < len(alike)):
            must = f"{' and '.join(alike)} share one caption and one cache"
            found.add("warning", "same-stem", folder.path / stem, must, "rename one of them, caption included")
    used = {name for path in folder.listing.images for one in {*CAPTIONS, extension}
            for name in captions_like(path.name, one, folder.listing.names)}  # fmt: skip
    for name in sorted(folder.listing.names.exact - used):
        file = folder.path / name
        if file.suffix.lower() in CAPTIONS and not file.is_dir():
            fix = "remove it, or give it its image's name"
            found.add("note", "caption-orphan", file, "is a caption without an image", fix)


def _captions(found: Checkup, extension: str) -> None:
    folders = {folder.path: folder for folder in found.folders}
    missing = [shot for shot in found.shots if shot.caption_file is None]
    if not missing:
        return
    others = Counter(
        other
        for shot in missing
        for other in CAPTIONS
        if other != extension and _caption_file(folders[shot.path.parent], shot.path, other)
    )
    for other, count in others.most_common(1):
        found.add(
            "warning", "caption-extension", None, f"{count} captions end in {other}, not in {extension}",
            f"set caption_extension to {other}, or rename them",
        )  # fmt: skip
        return
    if len(missing) == len(found.shots):
        found.add(
            "warning", "caption-missing", None, "no image has a caption: all are trained on their folder's name",
            f"write NAME{extension} files, or run `kohyakit dataset caption`",
        )  # fmt: skip
        return
    for shot in missing:
        found.add(
            "warning", "caption-missing", shot.path, "has no caption: it is trained on its folder's name",
            f"write {shot.path.with_suffix(extension).name}",
        )  # fmt: skip


def _triggers(found: Checkup) -> None:
    """Captions that do not begin with the word of their folder."""
    for folder in found.folders:
        word = next(iter(folder.name.split()), "").strip(",")
        if not folder.repeats or not word:
            continue
        captions = [shot for shot in found.shots if shot.path.parent == folder.path and (shot.caption or "").strip()]
        others = [shot for shot in captions if not _begins(shot.caption or "", word)]
        if not others:
            continue
        examples = [f"{shot.path.name}: {(shot.caption or '').strip().splitlines()[0][:60]}" for shot in others]
        must = (
            f"{len(others)} of {len(captions)} captions do not begin with its word, {word}: what they show is learned "
        )
        must += "without it"
        fix = f"begin them with {word}, or leave it so for a style without a word"
        found.add("note", "caption-trigger", folder.path, must, fix, examples[:SHOWN])


def _begins(caption: str, word: str) -> bool:
    text, wanted = fold(caption.strip()), fold(word)
    return text.startswith(wanted) and not text[len(wanted) : len(wanted) + 1].isalnum()


def _likeness(found: Checkup, looks: list[Look]) -> None:
    for kind, i, j in duplicates(looks):
        first, second = found.shots[i].path, found.shots[j].path
        found.duplicates.append((kind, found.relative(first), found.relative(second)))
        fix = "keep one side: a face that is trained both ways round loses its asymmetry" if kind == "mirrored" else (
            "remove one of them: what is shown twice is learned twice as hard"
        )  # fmt: skip
        found.add("warning", f"{kind}-duplicate", second, f"{WORDS[kind]} {found.relative(first)}", fix)


def _count(found: Checkup) -> None:
    """The usual advice on how many pictures a character or style wants."""
    images = len(found.shots)
    advice: tuple[tuple[int, Severity, str, str], ...] = (
        (4, "warning", "very few images", "add some: 21 to 50 work best"),
        (10, "warning", "few images", "add some: 21 to 50 work best"),
        (20, "note", "a good number of images", "21 to 50 work best"),
        (50, "note", "the best number of images", "keep them as they are"),
        (100, "note", "many images", "50 well-chosen ones often do as well"),
    )
    for most, severity, must, fix in advice:
        if images <= most:
            found.add(severity, "image-count", None, must, fix, images)
            return
    fix = "choose the best 50, unless this is a style or a finetune"
    found.add("warning", "image-count", None, "more images than a character or a style needs", fix, images)


def _as_scanned(found: Checkup, config: TrainConfig) -> None:
    """What the trainer's own scan says of the same files, and the bucket table by its arithmetic."""
    try:
        seen = scan(config)
        found.problems += [_moved(found, problem) for problem in _unsaid(found, seen)]
        if not found.ok:
            return
        assignment = assign(seen, config)
    except ConfigError as fault:
        found.problems += [_moved(found, problem) for problem in fault.problems]
        return
    counts: Counter[tuple[int, int]] = Counter(choice.bucket for choice in assignment.choices)
    found.buckets = sorted(counts.items())


def _unsaid(found: Checkup, seen: Scan) -> Iterator[Problem]:
    """Those of its findings that are not made here, and every error where there is none so far."""
    ok = found.ok
    for problem in seen.problems:
        if problem.code in SCANNED or (ok and problem.severity == "error"):
            yield problem
