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

from launcher.pictures.picture import CAPTIONS, FAULTS, READABLE, TRAINABLE, UNREADABLE, open_picture
from launcher.pictures.source import Entry, Source, read_source
from schemas.problems import ConfigError, Problem, error
from schemas.writing import disk_fault, scratch_of, sweep

LOOKS = 400  # pictures x repeats of one epoch that auto repeats aim at
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
    skip_unreadable: bool = False,
    progress: Callable[[list[Any]], Iterable[Any]] = iter,
) -> Prepared:
    """Write `directory`/training_images/<repeats>_<token>/ and its siblings; repeats None counts them itself.

    Raises ConfigError before anything stays on the disk: `bad-name`, `target-exists`, `target-in-source`,
    `no-images`, `unreadable-image`, `caption-encoding`, and those of `read_source`.
    """
    _check_token(token)
    if directory.resolve().is_relative_to(source.resolve()):
        raise error("target-in-source", f"{directory}: lies inside {source}, which stays as it is", fix="use --to")
    _check_target(directory, token)
    found = read_source(source)
    pictures, captions, left_out = sort_entries(found)
    if not pictures:
        looked = f"{len(found.entries)} files, none a picture" if found.entries else "nothing"
        raise error("no-images", f"{source}: no pictures found ({looked})", fix=f"accepted: {' '.join(READABLE)}")
    repeats = repeats or auto_repeats(len(pictures))
    parent = directory / "training_images"
    made = Prepared(directory, parent / f"{repeats}_{token}", token, repeats, left_out=left_out)
    created = _make_folders(parent)
    sweep([parent])  # what a prepare that was killed has left
    staging = scratch_of(made.folder)
    try:
        staging.mkdir()
        created.append(staging)
        _write_all(made, staging, pictures, captions, keep_format, skip_unreadable, progress)
        os.replace(staging, made.folder)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        for folder in reversed(created):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        raise
    for name in SIBLINGS:
        (directory / name).mkdir(exist_ok=True)
    return made


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


def _check_target(directory: Path, token: str) -> None:
    if directory.exists() and not directory.is_dir():
        raise error("target-exists", f"{directory}: is a file", fix="choose another folder with --to")
    parent = directory / "training_images"
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
    pictures = [entry for entry in found.entries if entry.suffix in READABLE]
    texts = {entry.name: entry for entry in found.entries if entry.suffix in CAPTIONS}
    captions: dict[str, Entry] = {}
    for picture in pictures:
        names = [base + extension for extension in CAPTIONS for base in (picture.stem, picture.name)]
        hit = next((texts[name] for name in names if name in texts), None)
        if hit:
            captions[picture.name] = hit
    used = {entry.name for entry in captions.values()}
    for entry in found.entries:
        if entry.name in used or entry.suffix in READABLE:
            continue
        if entry.suffix in CAPTIONS:
            stems = {picture.stem for picture in pictures}
            reason = "another caption of this picture was taken" if entry.stem in stems else "no picture of this name"
        elif entry.suffix in UNREADABLE:
            reason = f"{UNREADABLE[entry.suffix]} cannot be read here; export it as JPEG or PNG"
        else:
            reason = "not a picture"
        left_out.append((entry.name, reason))
    return pictures, captions, left_out


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
    skip_unreadable: bool,
    progress: Callable[[list[Any]], Iterable[Any]],
) -> None:
    digits = max(3, len(str(len(pictures))))
    problems: list[Problem] = []
    for entry in progress(pictures):
        stem = f"{made.token}_{len(made.written) + 1:0{digits}d}"
        try:
            text = _caption(captions.get(entry.name))
        except UnicodeDecodeError:
            problems.append(_bad_caption(captions[entry.name]))
            continue
        try:
            file, size, notes = _write_picture(entry, staging / stem, keep_format)
        except FAULTS as fault:
            if disk_fault(fault):  # the folder that is written, not the image
                raise
            if skip_unreadable:
                made.left_out.append((entry.name, f"cannot be read: {fault}"))
            else:
                problems.append(_bad_picture(entry, fault))
            continue
        if text is not None:
            (staging / f"{stem}.txt").write_text(text, encoding="utf-8", newline="")
        made.written.append(Written(entry.name, file.name, size, text, notes))
    if problems:
        raise ConfigError(problems)
    if not made.written:
        raise error("no-images", "none of the pictures can be read", fix="look at the files that were left out")


def _caption(entry: Entry | None) -> str | None:
    """The caption's text without a byte-order mark."""
    return None if entry is None else entry.read().decode("utf-8-sig")


def _write_picture(entry: Entry, target: Path, keep_format: bool) -> tuple[Path, tuple[int, int], tuple[str, ...]]:
    """Write one picture as `target` plus its extension."""
    content = entry.read()
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


def _bad_caption(entry: Entry) -> Problem:
    return Problem(
        code="caption-encoding", key=entry.name, must="is not UTF-8 text", fix="save the caption again as UTF-8"
    )


def _bad_picture(entry: Entry, fault: BaseException) -> Problem:
    return Problem(
        code="unreadable-image",
        key=entry.name,
        must=f"cannot be read whole: {str(fault) or type(fault).__name__}",
        fix="replace or remove the file, or pass --skip-unreadable to leave it out",
    )


def default_directory(source: Path, token: str) -> Path:
    """`<SOURCE>_<TOKEN>` beside the source; a zip's extension is dropped."""
    source = source.resolve()
    name = PurePosixPath(source.name).stem if source.suffix.lower() == ".zip" and source.is_file() else source.name
    return source.parent / f"{name}_{token}"
