"""`dataset prepare`: a folder or zip of photos becomes a training folder. The source is only read."""

from __future__ import annotations

import functools
import hashlib
import io
import os
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from launcher.photos.image import CAPTIONS, READABLE, TRAINABLE, UNREADABLE, open_picture
from launcher.photos.source import Entry, Source, read_source
from schemas.files.textfile import CONFIG, UTF16, read_bytes
from schemas.files.writing import scratch_of, sweep, write_atomically
from schemas.problems import ConfigError, Problem, error
from trainer.dataset.captions import LONGEST_FILE as LONGEST_CAPTION
from trainer.dataset.images import LARGEST_FILE, PLUGINS, Unreadable, kind_of, readable_kinds
from trainer.dataset.names import Names, fold
from trainer.dataset.pictures import PASSED_OVER, ahead, decoders, list_folder
from trainer.dataset.spec import TRAINING_IMAGES, folder_repeats

LOOKS = 400  # pictures x repeats of one epoch that auto repeats aim at
COMPRESSION = 3  # of PNG: a third of the time of the usual 6, files a tenth larger
NAMES_HEAD = "# photo\timage"  # begins the list of names
REG_IMAGES = "reg_images"
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
    broken: list[str] = field(default_factory=list)  # of what was left out: images and captions that were meant
    there: int = 0  # photos that the folder held already
    added: bool = False  # to a folder that was there
    reg: Prepared | None = None

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


@dataclass(frozen=True)
class Order:
    """How a folder is made. `repeats` None: counted; `reg`: a folder of regularisation images to take over."""

    repeats: int | None = None
    keep_format: bool = False
    reg: Path | None = None


def prepare(
    source: Path,
    token: str,
    directory: Path,
    order: Order | None = None,
    *,
    progress: Callable[[list[Any]], Iterable[Any]] = iter,
) -> Prepared:
    """Write `directory`/training_images/<repeats>_<token>/ and its siblings.

    Where that folder is there already, new photos are added to it and what is there keeps its name. What cannot be
    read is left out and named. Raises ConfigError before anything stays on the disk: `bad-name`, `target-exists`,
    `target-in-source`, `no-images`, `not-writable`, and those of `read_source`.
    """
    order = order or Order()
    _check_token(token)
    for place in filter(None, (source, order.reg)):
        if Path(os.path.realpath(directory)).is_relative_to(os.path.realpath(place)):  # resolve() fails at circles
            raise error("target-in-source", f"{directory}: lies inside {place}, which stays as it is", fix="use --to")
    there = _check_target(directory, token, order.repeats)
    if order.reg is not None:
        _check_reg(directory, order.reg)
    made = _taken(source, token, directory / TRAINING_IMAGES, there, order, progress)
    if order.reg is not None:
        name = re.sub(r"[^\w-]+", "-", order.reg.resolve().name).strip("-") or "class"
        kept = Order(1, order.keep_format)
        made.reg = _taken(order.reg, name, directory / REG_IMAGES, None, kept, progress)
        made.left_out += [(f"{order.reg.name}/{file}", why) for file, why in made.reg.left_out]
        made.broken += made.reg.broken
    for name in SIBLINGS:
        (directory / name).mkdir(exist_ok=True)
    return made


def _taken(
    source: Path,
    token: str,
    parent: Path,
    there: Path | None,
    order: Order,
    progress: Callable[[list[Any]], Iterable[Any]],
) -> Prepared:
    """The photos of `source` in `parent`/<repeats>_<token>, or added to the folder `there`."""
    found = read_source(source)
    pictures, captions, left_out = sort_entries(found)
    if not pictures:
        looked = f"{len(found.entries)} files, none an image" if found.entries else "nothing"
        raise error("no-images", f"{source}: no images found ({looked})", fix=f"accepted: {' '.join(READABLE)}")
    repeats = folder_repeats(there.name) if there else order.repeats
    folder = there or parent / f"{repeats}_{token}"
    made = Prepared(parent.parent, folder, token, repeats or 0, left_out=left_out, added=there is not None)
    created = _make_folders(parent)
    sweep([parent])  # what a prepare that was killed has left
    staging = scratch_of(parent / token)
    try:
        staging.mkdir()
        created.append(staging)
        _write_all(made, staging, pictures, captions, order.keep_format, progress)
        if repeats is None:
            made.repeats = auto_repeats(len(made.written))
            made.folder = parent / f"{made.repeats}_{token}"
        if there is None:
            os.replace(staging, made.folder)
        else:
            for name in sorted(os.listdir(staging)):
                os.replace(staging / name, there / name)
            staging.rmdir()
        _write_names(made)
    except OSError as fault:
        _undo(staging, created)
        raise error("not-writable", f"{parent}: cannot be written: {fault.strerror}", fix="use --to") from None
    except BaseException:
        _undo(staging, created)
        raise
    return made


def _undo(staging: Path, created: list[Path]) -> None:
    """Nothing of a prepare that failed stays."""
    shutil.rmtree(staging, ignore_errors=True)
    for folder in reversed(created):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _write_names(made: Prepared) -> None:
    """Which photo became which image, a line each, behind those of before."""
    file = made.names_file
    before = (
        read_bytes(file, limit=CONFIG, what="list of names").decode("utf-8", "replace")
        if made.added and (os.path.lexists(file))
        else f"{NAMES_HEAD} in {made.folder.parent.name}/{made.folder.name}\n"
    )
    rows = "".join(f"{_printable(one.source)}\t{one.file}\n" for one in made.written)
    write_atomically(file, lambda stream: stream.write((before + rows).encode("utf-8", "backslashreplace")))


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


def _check_target(directory: Path, token: str, repeats: int | None) -> Path | None:
    """The folder of this token that is there already, to which photos are added."""
    if directory.exists() and not directory.is_dir():
        raise error("target-exists", f"{directory}: is a file", fix="choose another folder with --to")
    names = names_file(directory, token)
    if names.exists() and not _is_list_of_names(names):
        raise error("target-exists", f"{names}: is there already and is not overwritten", fix="move it, or use --to")
    parent = directory / TRAINING_IMAGES
    for folder in sorted(parent.iterdir()) if parent.is_dir() else []:
        if folder.name.partition("_")[2] == token and folder_repeats(folder.name) and folder.is_dir():
            if repeats not in (None, folder_repeats(folder.name)):
                fix = f"leave --repeats out to add to it; rename it to {repeats}_{token} for other repeats"
                must = f"{folder}: is there with other repeats and is not overwritten"
                raise error("target-exists", must, fix=fix)
            return folder
    return None


def _check_reg(directory: Path, reg: Path) -> None:
    parent = directory / REG_IMAGES
    if parent.exists() and any(parent.iterdir()):
        must = f"{parent}: is there already and is not overwritten"
        raise error("target-exists", must, key="--reg", got=str(reg), fix="leave --reg out, or move it away")


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
            reason = f"{UNREADABLE[entry.suffix]} cannot be read here; {_way(UNREADABLE[entry.suffix])}"
        else:
            reason = "not an image"
        left_out.append((entry.name, reason))
    return pictures, captions, left_out


def _way(kind: str) -> str:
    plugin = PLUGINS.get(kind)
    return f"pip install {plugin[2]}, or export it as JPEG or PNG" if plugin else "export it as JPEG or PNG"


def _is_image(entry: Entry) -> bool:
    """By its extension, or else by its content; what then cannot be read is named."""
    return entry.suffix in READABLE or (entry.suffix not in PASSED_OVER and kind_of(entry.head()) in readable_kinds())


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
    """Decodes and encodes on every core, a few photos ahead; writes in order, so that numbers have no gaps."""
    last, digests = _held(made.folder, made.token) if made.added else (0, set())
    digits = max(3, len(str(last + len(pictures))))
    reasons: list[Problem] = []
    work = functools.partial(_encoded, keep_format=keep_format)
    for entry, result in zip(progress(pictures), ahead(work, pictures, decoders()), strict=True):
        if isinstance(result, str):
            made.left_out.append((entry.name, result))
            made.broken.append(entry.name)
            reasons.append(Problem(code="unreadable-image", key=entry.name, must=result))
            continue
        if result.digest in digests:
            made.there += 1
            continue
        stem = f"{made.token}_{last + len(made.written) + 1:0{digits}d}"
        (staging / f"{stem}{result.suffix}").write_bytes(result.content)
        text = _caption(made, captions.get(entry.name))
        if text is not None:
            (staging / f"{stem}.txt").write_text(text, encoding="utf-8", newline="")
        made.written.append(Written(entry.name, f"{stem}{result.suffix}", result.size, text, result.notes))
    if not made.written and made.there == 0:
        none = error("no-images", "none of the images can be read", fix="look at the files that were left out")
        raise ConfigError([*reasons, *none.problems])


def _held(folder: Path, token: str) -> tuple[int, set[bytes]]:
    """(the highest number in use, what the images show) of a folder that photos are added to."""
    last = 0
    for name in os.listdir(folder):
        match = re.match(rf"{re.escape(token)}_([0-9]{{1,9}})(?![0-9])", name)
        last = max(last, int(match[1])) if match else last
    images = list(list_folder(folder).images)
    return last, {digest for digest in ahead(_digest, images, decoders()) if digest}


def _digest(path: Path) -> bytes | None:
    try:
        return shown(open_picture(path).image)
    except Unreadable:
        return None


def shown(image: Image.Image) -> bytes:
    """The same for equal pixels, whatever the file's kind."""
    rgba = image.convert("RGBA")
    return hashlib.sha256(f"{rgba.size}".encode() + rgba.tobytes()).digest()


@dataclass(frozen=True)
class _Encoded:
    """A photo as it will be written."""

    content: bytes
    suffix: str
    size: tuple[int, int]
    notes: tuple[str, ...]
    digest: bytes


def _encoded(entry: Entry, *, keep_format: bool) -> _Encoded | str:
    """One photo decoded, and encoded as it is wanted; why it cannot be."""
    try:
        content = _content(entry)
        picture = open_picture(content)
    except Unreadable as fault:
        return str(fault)
    notes = picture.notes + (("from a front camera: look whether it is mirrored",) if picture.selfie else ())
    keeps = keep_format and entry.suffix in TRAINABLE and picture.frames == 1
    digest = shown(picture.image)
    if keeps and picture.orientation in (0, 1):
        return _Encoded(content, entry.suffix, picture.image.size, (), digest)
    suffix = entry.suffix if keeps else ".png"
    stream = io.BytesIO()
    if suffix in (".jpg", ".jpeg"):
        picture.image.convert("RGB").save(stream, "JPEG", quality=97, subsampling=0)
    elif suffix == ".webp":
        picture.image.save(stream, "WEBP", lossless=True)
    elif suffix == ".bmp":
        picture.image.save(stream, "BMP")
    else:
        picture.image.save(stream, "PNG", compress_level=COMPRESSION)
    return _Encoded(stream.getvalue(), suffix, picture.image.size, notes, digest)


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
        content = entry.read(LONGEST_CAPTION)
        return content.decode("utf-16" if content.startswith(UTF16) else "utf-8-sig")
    except UnicodeDecodeError:
        reason = "is not UTF-8 text; save it again as UTF-8"
    except OSError as fault:
        reason = str(fault)
    made.left_out.append((entry.name, f"{reason}. Its image was taken without a caption"))
    made.broken.append(entry.name)
    return None


def default_directory(source: Path, token: str) -> Path:
    """`<SOURCE>_<TOKEN>` beside the source; a zip's extension is dropped."""
    source = Path(os.path.realpath(source))
    name = PurePosixPath(source.name).stem if source.suffix.lower() == ".zip" and source.is_file() else source.name
    return source.parent / f"{name}_{token}"
