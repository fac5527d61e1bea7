"""`dataset check`: what is wrong, or could be better, in a folder of training pictures. Changes nothing."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.pictures.likeness import Look, duplicates, look
from launcher.pictures.picture import CAPTIONS, FAULTS, READABLE, TRAINABLE, is_transparent, open_picture
from launcher.pictures.source import natural
from schemas.config import from_flat
from schemas.problems import ConfigError, Problem, Severity, error, errors
from trainer.dataset.files import scan
from trainer.dataset.order import assign

SMALLEST, LARGEST = 256, 2048  # pixels of a side
NUMBERED = re.compile(r"(\d+)_(.*)")
WORDS = {
    "exact": "is the same picture as",
    "near": "is nearly the same picture as",
    "mirrored": "is the mirror image of",
}


@dataclass(frozen=True)
class Folder:
    """One folder of pictures; `repeats` is None where its name has no number."""

    path: Path
    repeats: int | None
    name: str


@dataclass(frozen=True)
class Shot:
    """One readable picture: (width, height) upright, caption or None."""

    path: Path
    size: tuple[int, int]
    caption: str | None


@dataclass
class Checkup:
    """Everything `check` found. Problem keys are paths relative to `directory`."""

    directory: Path
    folders: list[Folder] = field(default_factory=list)
    shots: list[Shot] = field(default_factory=list)
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
        return path.relative_to(self.directory).as_posix()

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


def check(
    directory: Path,
    *,
    caption_extension: str = ".txt",
    resolution: str = "512,512",
    progress: Callable[[list[Any]], Iterable[Any]] = iter,
) -> Checkup:
    """Look at every file under `directory`. ConfigError only where there is no folder, or no picture at all."""
    if not directory.is_dir():
        raise error("no-folder", f"{directory}: there is no such folder", fix="check the path")
    found = Checkup(directory)
    found.folders = _folders(found)
    looks: list[Look] = []
    paths = [path for folder in found.folders for path in _pictures(folder.path)]
    for path in progress(paths):
        shot = _inspect(found, path, caption_extension, looks)
        if shot:
            found.shots.append(shot)
    for folder in found.folders:
        _names(found, folder)
    _captions(found, caption_extension)
    _likeness(found, looks)
    _count(found)
    _buckets(found, caption_extension, resolution)
    return found


def _pictures(folder: Path) -> list[Path]:
    files = (path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return sorted((path for path in files if path.suffix.lower() in READABLE), key=lambda path: natural(path.name))


def _folders(found: Checkup) -> list[Folder]:
    """The folders of pictures, and what is wrong with where they lie."""
    top = found.directory
    here = [folder for folder in _walk(top) if _pictures(folder)]
    if not here:
        seen = ", ".join(sorted(path.name for path in top.iterdir())[:8]) or "nothing"
        raise error(
            "no-images",
            f"{top}: holds no pictures (found: {seen})",
            fix="give the folder that `kohyakit dataset prepare` made, or its training_images",
        )
    folders = []
    for path in here:
        match = NUMBERED.fullmatch(path.name)
        folders.append(Folder(path, int(match[1]), match[2]) if match else Folder(path, None, path.name))
    numbered = [folder for folder in folders if folder.repeats is not None]
    parents = sorted({folder.path.parent for folder in numbered})
    if top in [folder.path for folder in numbered]:
        found.add(
            "warning", "numbered-folder", None, f"{top.name} holds the pictures itself",
            f"give the folder above it as train_data_dir: {top.resolve().parent}",
        )  # fmt: skip
    elif not numbered:
        found.add(
            "error", "no-numbered-folder", None, "no folder is named REPEATS_NAME, so nothing would be trained",
            "use `kohyakit dataset prepare`, or rename the folder to something like 20_ohwx",
        )  # fmt: skip
    elif top not in parents and parents != [top / "training_images"]:
        found.add(
            "error", "wrong-level", None, "the REPEATS_NAME folders lie deeper",
            f"give {' or '.join(str(parent) for parent in parents)} as train_data_dir",
        )  # fmt: skip
    for folder in folders:
        if numbered and folder.repeats is None and _beside(folder.path, parents):
            found.add(
                "warning", "folder-without-repeats", folder.path, "has pictures but no number, so it is not trained on",
                f"rename it to 10_{folder.name}, or move it away",
            )  # fmt: skip
        elif folder.repeats == 0:
            found.add("error", "no-repeats", folder.path, "0 repeats train nothing", "use a number of at least 1")
    kept = numbered or folders
    return sorted(kept, key=lambda folder: natural(str(folder.path)))


def _beside(path: Path, parents: list[Path]) -> bool:
    return any(path == parent or path.is_relative_to(parent) for parent in parents)


def _walk(top: Path) -> list[Path]:
    """`top` and its folders, three levels deep, hidden ones left out."""
    folders = []
    for name, inner, _ in os.walk(top):
        folder = Path(name)
        depth = len(folder.relative_to(top).parts)
        inner[:] = sorted(one for one in inner if not one.startswith(".")) if depth < 3 else []
        folders.append(folder)
    return folders


def _inspect(found: Checkup, path: Path, caption_extension: str, looks: list[Look]) -> Shot | None:
    """Decode one picture and read its caption; None where the picture is broken."""
    try:
        picture = open_picture(path.read_bytes())
    except FAULTS as fault:
        found.add(
            "error", "unreadable-image", path, f"cannot be read whole: {str(fault) or type(fault).__name__}",
            "replace or remove the file",
        )  # fmt: skip
        return None
    width, height = size = picture.image.size
    if min(size) < SMALLEST:
        fix = "use a larger original: enlarging blurs"
        found.add("warning", "small-image", path, f"has a side below {SMALLEST} pixels", fix, f"{width}x{height}")
    if max(size) > LARGEST:
        fix = "nothing is wrong, but smaller files load faster"
        found.add("note", "large-image", path, f"has a side above {LARGEST} pixels", fix, f"{width}x{height}")
    if picture.orientation not in (0, 1):
        found.add(
            "note", "exif-rotation", path, "is turned by its EXIF data: kohyakit turns it too, other trainers do not",
            "run it through `kohyakit dataset prepare`",
        )  # fmt: skip
    if is_transparent(picture.image):
        found.add(
            "warning", "transparency", path, "has transparent parts, which become white unless alpha_mask is set",
            "put a background behind it, or set alpha_mask",
        )  # fmt: skip
    if path.suffix.lower() not in TRAINABLE:
        fix = "run it through `kohyakit dataset prepare`"
        found.add("warning", "image-format", path, "is a kind of file that Kohya's trainer may not take", fix)
    looks.append(look(picture.image))
    return Shot(path, size, _caption(found, path, caption_extension))


def _caption(found: Checkup, path: Path, extension: str) -> str | None:
    file = path.with_suffix(extension)
    if not file.is_file():
        return None
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        must = f"is not UTF-8 text (byte {fault.start + 1})"
        found.add("error", "caption-encoding", file, must, "save it again as UTF-8")
        return None
    if not text.strip():
        found.add("warning", "caption-empty", file, "is empty", "write a caption, or remove the file")
    elif not text.splitlines()[0].strip():
        fix = "move the caption to the first line"
        found.add("warning", "caption-empty", file, "has an empty first line, which is what is trained", fix)
    return text


def _names(found: Checkup, folder: Folder) -> None:
    """Pictures that share a stem, captions without a picture."""
    pictures = _pictures(folder.path)
    stems = Counter(path.stem for path in pictures)
    for stem, count in stems.items():
        if count > 1:
            names = " and ".join(path.name for path in pictures if path.stem == stem)
            fix = "rename one of them, caption included"
            found.add("warning", "same-stem", folder.path / stem, f"{names} share one caption and one cache", fix)
    for file in sorted(folder.path.iterdir()):
        if file.suffix in CAPTIONS and file.stem not in stems and file.is_file():
            fix = "remove it, or give it its picture's name"
            found.add("note", "caption-orphan", file, "is a caption without a picture", fix)


def _captions(found: Checkup, extension: str) -> None:
    missing = [shot for shot in found.shots if shot.caption is None and not shot.path.with_suffix(extension).exists()]
    if not missing:
        return
    others = Counter(
        other for shot in missing for other in CAPTIONS if other != extension and shot.path.with_suffix(other).is_file()
    )
    for other, count in others.most_common(1):
        found.add(
            "warning", "caption-extension", None, f"{count} captions end in {other}, not in {extension}",
            f"set caption_extension to {other}, or rename them",
        )  # fmt: skip
        return
    if len(missing) == len(found.shots):
        found.add(
            "warning", "caption-missing", None, "no picture has a caption: all are trained on their folder's name",
            f"write NAME{extension} files, or run `kohyakit dataset caption`",
        )  # fmt: skip
        return
    for shot in missing:
        found.add(
            "warning", "caption-missing", shot.path, "has no caption: it is trained on its folder's name",
            f"write {shot.path.with_suffix(extension).name}",
        )  # fmt: skip


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
        (4, "warning", "very few pictures", "add some: 21 to 50 work best"),
        (10, "warning", "few pictures", "add some: 21 to 50 work best"),
        (20, "note", "a good number of pictures", "21 to 50 work best"),
        (50, "note", "the best number of pictures", "keep them as they are"),
        (100, "note", "many pictures", "50 well-chosen ones often do as well"),
    )
    for most, severity, must, fix in advice:
        if images <= most:
            found.add(severity, "image-count", None, must, fix, images)
            return
    fix = "choose the best 50, unless this is a style or a finetune"
    found.add("warning", "image-count", None, "more pictures than a character or a style needs", fix, images)


def _buckets(found: Checkup, extension: str, resolution: str) -> None:
    """The bucket table, by the trainer's own arithmetic, and what else the trainer would refuse."""
    parents = {folder.path.parent for folder in found.folders if folder.repeats}
    if len(parents) != 1 or not found.ok:
        return
    values = {
        "resolution": resolution,
        "enable_bucket": True,
        "caption_extension": extension,
        "bucket_no_upscale": True,
    }
    try:
        config, _ = from_flat({**values, "train_data_dir": str(parents.pop())})
        seen = scan(config)
        found.problems += errors(seen.problems)
        assignment = assign(seen, config)
    except ConfigError as fault:
        found.problems += fault.problems
        return
    counts: Counter[tuple[int, int]] = Counter(choice.bucket for choice in assignment.choices)
    found.buckets = sorted(counts.items())
