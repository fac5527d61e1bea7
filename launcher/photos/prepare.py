"""`dataset prepare`: a folder or zip of photos becomes a training folder. The source is only read."""

from __future__ import annotations

import io
import os
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from launcher.photos.image import (
    CAPTIONS,
    READABLE,
    TRAINABLE,
    UNREADABLE,
    open_picture,
)
from launcher.photos.source import Entry, Source, read_source
from schemas.files.textfile import CONFIG, read_bytes
from schemas.files.writing import scratch_of, sweep
from schemas.problems import ConfigError, Problem, error
from trainer.dataset.captions import LONGEST_FILE as LONGEST_CAPTION
from trainer.dataset.images import FORMATS, LARGEST_FILE, Unreadable, kind_of
from trainer.dataset.names import Names, fold
from trainer.dataset.pictures import PASSED_OVER
from trainer.dataset.spec import TRAINING_IMAGES

LOOKS = 400  # pictures x repeats of one epoch that auto repeats aim at
NAMES_HEAD = "# photo\timage"  # begins the list of names
SIBLINGS = ("result_current", "txt2img-images")


@dataclass(frozen=True)
class Written:
    """One picture of the training folder. `size` is (width, height) in pixels."""

    source: str
    file: str
    size: tuple[int, int]
    caption: str | None
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        names = {"from": self.source, "to": self.file, "width": self.size[0], "height": self.size[1]}
        return {**names, "caption": self.caption, "notes": list(self.notes)}


@dataclass
class Prepared:
    """What `prepare` made, and every file of the source that it did not take."""

    directory: Path
    folder: Path
    token: str
    repeats: int
    written: list[Written] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)

    @property
    def train_data_dir(self) -> Path:
        return self.folder.parent

    @property
    def names_file(self) -> Path:
        """Where the photos' old and new names are told."""
        return names_file(self.directory, self.token)


def names_file(directory: Path, token: str) -> Path:
    return directory / f"names_{token}.txt"


def auto_repeats(images: int) -> int:
    """How often each picture is shown in an epoch so that an epoch has about 400 looks; at least once."""
    return max(1, round(LOOKS / images))


def prepare(
    source: Path,
    token: str,
    directory: Path,
    *,
    repeats: int | None = None,
    keep_format: bool = False,
    progress: Callable[[list[Any]], Iterable[Any]] = iter,
) -> Prepared:
    """Write `directory`/training_images/<repeats>_<token>/ and its siblings; repeats None counts them itself.

    What cannot be read is left out and named. Raises ConfigError before anything stays on the disk: `bad-name`,
    `target-exists`, `target-in-source`, `no-images`, `not-writable`, and those of `read_source`.
    """
    _check_token(token)
    if Path(os.path.realpath(directory)).is_relative_to(os.path.realpath(source)):  # resolve() fails at circles
        raise error("target-in-source", f"{directory}: lies inside {source}, which stays as it is", fix="use --to")
    _check_target(directory, token)
    found = read_source(source)
    pictures, captions, left_out = sort_entries(found)
    if not pictures:
        looked = f"{len(found.entries)} files, none an image" if found.entries else "nothing"
        raise error("no-images", f"{source}: no images found ({looked})", fix=f"accepted: {' '.join(READABLE)}")
    parent = directory / TRAINING_IMAGES
    made = Prepared(directory, parent / f"{repeats}_{token}", token, repeats or 0, left_out=left_out)
    created = _make_folders(parent)
    sweep([parent])  # what a prepare that was killed has left
    staging = scratch_of(parent / token)
    try:
        staging.mkdir()
        created.append(staging)
        _write_all(made, staging, pictures, captions, keep_format, progress)
        if repeats is None:
            made.repeats = auto_repeats(len(made.written))
            made.folder = parent / f"{made.repeats}_{token}"
        os.replace(staging, made.folder)
        made.names_file.write_text(_names(made), encoding="utf-8", errors="backslashreplace")
    except OSError as fault:
        _undo(staging, created)
        raise error("not-writable", f"{parent}: cannot be written: {fault.strerror}", fix="use --to") from None
    except BaseException:
        _undo(staging, created)
        raise
    for name in SIBLINGS:
        (directory / name).mkdir(exist_ok=True)
    return made


def _undo(staging: Path, created: list[Path]) -> None:
    """Nothing of a prepare that failed stays."""
    shutil.rmtree(staging, ignore_errors=True)
    for folder in reversed(created):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _names(made: Prepared) -> str:
    """Which photo became which image, a line each."""
    rows = [f"{_printable(one.source)}\t{one.file}" for one in made.written]
    return "\n".join([f"{NAMES_HEAD} in {TRAINING_IMAGES}/{made.folder.name}", *rows, ""])


def _printable(name: str) -> str:
    """A name that keeps to its line."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in name)


def _check_token(token: str) -> None:
    if not token.strip() or re.search(r'[\x00-\x1f/\\:*?"<>|]', token) or token.startswith(".") or len(token) > 80:
        raise error(
            "bad-name",
            "must be a word that can stand in a file name",
            key="--name",
            got=token,
            fix="use letters, digits, - and _, such as ohwx or N0m3",
        )
    if token != token.strip() or token.endswith("."):
        raise error("bad-name", "must not begin or end with a blank or a dot", key="--name", got=token, fix="trim it")


def _is_list_of_names(file: Path) -> bool:
    try:
        return read_bytes(file, limit=CONFIG, what="list of names").startswith(NAMES_HEAD.encode())
    except ConfigError:
        return False


def _check_target(directory: Path, token: str) -> None:
    if directory.exists() and not directory.is_dir():
        raise error("target-exists", f"{directory}: is a file", fix="choose another folder with --to")
    names = names_file(directory, token)
    if names.exists() and not _is_list_of_names(names):
        raise error("target-exists", f"{names}: is there already and is not overwritten", fix="move it, or use --to")
    parent = directory / TRAINING_IMAGES
    for folder in sorted(parent.iterdir()) if parent.is_dir() else []:
        if folder.name.partition("_")[2] == token:
            raise error(
                "target-exists",
                f"{folder}: is there already and is not overwritten",
                fix="remove it, or choose another folder with --to, or another --name",
            )


def sort_entries(found: Source) -> tuple[list[Entry], dict[str, Entry], list[tuple[str, str]]]:
    """(pictures, caption by picture name, what is left out and why)."""
    left_out = list(found.left_out)
    pictures = [entry for entry in found.entries if _is_image(entry)]
    taken = {entry.name for entry in pictures}
    texts = {entry.name: entry for entry in found.entries if entry.suffix in CAPTIONS}
    names = Names(texts)
    captions: dict[str, Entry] = {}
    for picture in pictures:
        wanted = [base + extension for extension in CAPTIONS for base in (picture.stem, picture.name)]
        hit = next((name for name in map(names.find, wanted) if name is not None), None)
        if hit:
            captions[picture.name] = texts[hit]
    used = {entry.name for entry in captions.values()}
    stems = {fold(picture.stem) for picture in pictures}
    for entry in found.entries:
        if entry.name in used or entry.name in taken:
            continue
        if entry.suffix in CAPTIONS:
            twice = fold(entry.stem) in stems
            reason = "another caption of this image was taken" if twice else "no image of this name"
        elif entry.suffix in UNREADABLE:
            reason = f"{UNREADABLE[entry.suffix]} cannot be read here; export it as JPEG or PNG"
        else:
            reason = "not an image"
        left_out.append((entry.name, reason))
    return pictures, captions, left_out


def _is_image(entry: Entry) -> bool:
    """By its extension, or else by its content; what then cannot be read is named."""
    return entry.suffix in READABLE or (entry.suffix not in PASSED_OVER and kind_of(entry.head()) in FORMATS)


def _make_folders(parent: Path) -> list[Path]:
    """Make `parent` with its missing ancestors; those made, outermost first."""
    missing = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise error("not-writable", f"{parent}: cannot be made: {fault.strerror}", fix="use --to") from None
    return missing[::-1]


def _write_all(
    made: Prepared,
    staging: Path,
    pictures: list[Entry],
    captions: dict[str, Entry],
    keep_format: bool,
    progress: Callable[[list[Any]], Iterable[Any]],
) -> None:
    digits = max(3, len(str(len(pictures))))
    reasons: list[Problem] = []
    for entry in progress(pictures):
        stem = f"{made.token}_{len(made.written) + 1:0{digits}d}"
        try:
            content = _content(entry)
            file, size, notes = _write_picture(entry, content, staging / stem, keep_format)
        except Unreadable as fault:
            made.left_out.append((entry.name, str(fault)))
            reasons.append(Problem(code="unreadable-image", key=entry.name, must=str(fault)))
            continue
        text = _caption(made, captions.get(entry.name))
        if text is not None:
            (staging / f"{stem}.txt").write_text(text, encoding="utf-8", newline="")
        made.written.append(Written(entry.name, file.name, size, text, notes))
    if not made.written:
        none = error("no-images", "none of the images can be read", fix="look at the files that were left out")
        raise ConfigError([*reasons, *none.problems])


def _content(entry: Entry) -> bytes:
    try:
        return entry.read(LARGEST_FILE)
    except OSError as fault:
        raise Unreadable(f"cannot be read whole: {fault}") from None


def _caption(made: Prepared, entry: Entry | None) -> str | None:
    """The caption's text without a byte-order mark; one that cannot be read is left out and named."""
    if entry is None:
        return None
    try:
        return entry.read(LONGEST_CAPTION).decode("utf-8-sig")
    except UnicodeDecodeError:
        reason = "is not UTF-8 text; save it again as UTF-8"
    except OSError as fault:
        reason = str(fault)
    made.left_out.append((entry.name, f"{reason}. Its image was taken without a caption"))
    return None


def _write_picture(
    entry: Entry, content: bytes, target: Path, keep_format: bool
) -> tuple[Path, tuple[int, int], tuple[str, ...]]:
    """Write one picture as `target` plus its extension."""
    picture = open_picture(content)
    keeps = keep_format and entry.suffix in TRAINABLE and picture.frames == 1
    if keeps and picture.orientation in (0, 1):
        file = Path(f"{target}{entry.suffix}")
        file.write_bytes(content)
        return file, picture.image.size, ()
    file = Path(f"{target}{entry.suffix if keeps else '.png'}")
    stream = io.BytesIO()
    if file.suffix in (".jpg", ".jpeg"):
        picture.image.convert("RGB").save(stream, "JPEG", quality=97, subsampling=0)
    elif file.suffix == ".webp":
        picture.image.save(stream, "WEBP", lossless=True)
    else:
        picture.image.save(stream, "BMP" if file.suffix == ".bmp" else "PNG")
    file.write_bytes(stream.getvalue())
    return file, picture.image.size, picture.notes


def default_directory(source: Path, token: str) -> Path:
    """`<SOURCE>_<TOKEN>` beside the source; a zip's extension is dropped."""
    source = Path(os.path.realpath(source))
    name = PurePosixPath(source.name).stem if source.suffix.lower() == ".zip" and source.is_file() else source.name
    return source.parent / f"{name}_{token}"
