"""The files of a photo folder or a zip, in natural order. A zip is never unpacked by its own names."""

from __future__ import annotations

import functools
import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from launcher.photos.image import CAPTIONS
from schemas.files.textfile import read_bytes, regular_stream
from schemas.problems import ConfigError, Problem, error
from trainer.dataset.images import HEAD, LARGEST_FILE

LARGEST_TOTAL = 64 << 30  # bytes, of all of them
LARGEST_RATIO = 200  # unpacked to packed; pictures hardly shrink at all
SMALL = 10 << 20  # bytes; below this a high ratio (a blank picture, a text) is harmless
MOST_FILES = 100_000
TEXTS = (*CAPTIONS, ".json", ".csv", ".md")  # a link to somebody's keys could pass as one of these
# What zipfile raises for a damaged archive, names that are not UTF-8 and methods it does not know included.
ZIP_FAULTS = (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError, EOFError, OverflowError,
              MemoryError, struct.error, zlib.error)  # fmt: skip
ANEW = "pack the photos anew, or unpack it yourself and give the folder"
CLUTTER = {"__MACOSX", ".DS_Store", "Thumbs.db", "desktop.ini"}


@dataclass(frozen=True)
class Entry:
    """One file of the source. `name` is relative, with forward slashes."""

    name: str
    read: Callable[[int], bytes]  # at most so many bytes, else OSError
    head: Callable[[], bytes] = bytes  # its first bytes, which tell what it is

    @property
    def stem(self) -> str:
        """The name without its last extension, folder included."""
        return str(PurePosixPath(self.name).with_suffix(""))

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix.lower()


@dataclass(frozen=True)
class Source:
    """All files worth looking at, and those passed over, each with the reason."""

    entries: tuple[Entry, ...]
    left_out: tuple[tuple[str, str], ...]


def natural(name: str) -> list[tuple[int, int, str]]:
    """Sort key that puts photo2 before photo10; digits are compared as text, however many they are."""
    parts = re.split(r"([0-9]+)", name.lower())
    digits = ((part, part.lstrip("0")) for part in parts)
    return [(0, len(bare), bare) if part.isdecimal() else (1, 0, part) for part, bare in digits]


def read_source(source: Path) -> Source:
    """The files under a folder, or in a zip. ConfigError `no-source`, `not-a-source`, `unsafe-archive`."""
    if source.is_dir():
        return _folder(source)
    if not source.exists():
        raise error("no-source", f"{source}: there is no such folder or zip file", fix="check the path")
    if source.is_file() and zipfile.is_zipfile(source):
        return _archive(source)
    raise error("not-a-source", f"{source}: must be a folder of photos, or a zip of them", fix="give the folder")


def _folder(source: Path) -> Source:
    entries: list[Entry] = []
    left_out: list[tuple[str, str]] = []

    def locked(fault: OSError) -> None:
        left_out.append((_relative(Path(fault.filename), source), f"cannot be opened: {fault.strerror}"))

    for top, folders, files in os.walk(source, onerror=locked):
        here = Path(top)
        for name in sorted(folders):
            if (here / name).is_symlink():
                left_out.append((_relative(here / name, source), "a link to a folder; links are not followed"))
        folders[:] = [name for name in folders if name not in CLUTTER and not name.startswith(".")]
        for name in files:
            path = here / name
            if name in CLUTTER or name.startswith("."):
                continue
            if not path.is_file():
                left_out.append((_relative(path, source), "not a regular file, or a link that leads nowhere"))
            elif path.suffix.lower() in TEXTS and not inside(path, source):
                left_out.append((_relative(path, source), "a link that leads out of the folder"))
            else:
                read = functools.partial(_read, path)
                entries.append(Entry(_relative(path, source), read, functools.partial(_head, path)))
    return Source(tuple(sorted(entries, key=lambda entry: natural(entry.name))), tuple(left_out))


def inside(path: Path, folder: Path) -> bool:
    """Whether `path` lies in `folder` once every link is followed."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def _read(path: Path, limit: int) -> bytes:
    try:
        return read_bytes(path, limit=limit, what="a photo")
    except ConfigError as fault:
        raise OSError(fault.problems[0].must) from None


def _head(path: Path) -> bytes:
    try:
        with regular_stream(path, limit=LARGEST_FILE, what="a photo") as stream:
            return stream.read(HEAD)
    except (ConfigError, OSError):
        return b""


def _relative(path: Path, source: Path) -> str:
    return path.relative_to(source).as_posix()


def _archive(source: Path) -> Source:
    try:
        with zipfile.ZipFile(source) as archive:
            infos = [info for info in archive.infolist() if not info.is_dir()]
    except ZIP_FAULTS as fault:
        raise error("unreadable-archive", f"{source}: is not a whole zip file: {fault}", fix=ANEW) from None
    problems = [_problem(source, info.filename, reason) for info in infos if (reason := unsafe(info))]
    if len(infos) > MOST_FILES:
        problems.append(_problem(source, source.name, f"holds {len(infos)} files, more than {MOST_FILES}"))
    if sum(info.file_size for info in infos) > LARGEST_TOTAL:
        problems.append(_problem(source, source.name, f"unpacks to more than {LARGEST_TOTAL >> 30} GiB"))
    if problems:
        raise ConfigError(problems)
    kept = [info for info in infos if not _is_clutter(info.filename)]
    entries = [Entry(info.filename, _reader(source, info), _zip_head(source, info)) for info in kept]
    return Source(tuple(sorted(entries, key=lambda entry: natural(entry.name))), ())


def unsafe(info: zipfile.ZipInfo) -> str | None:
    """Why this zip member must not be trusted, or None."""
    name = info.orig_filename
    if name.startswith(("/", "\\")) or re.match(r"^[A-Za-z]:", name) or "\0" in name:
        return "has an absolute name"
    if ".." in re.split(r"[/\\]", name):
        return "points outside the archive"
    if stat.S_ISLNK(info.external_attr >> 16):
        return "is a link"
    if info.flag_bits & 0x1:
        return "is encrypted"
    if info.file_size > LARGEST_FILE:
        return f"unpacks to more than {LARGEST_FILE >> 20} MiB"
    if info.file_size > SMALL and info.file_size > LARGEST_RATIO * max(info.compress_size, 1):
        return "unpacks to a suspicious multiple of its size"
    return None


def _is_clutter(name: str) -> bool:
    return any(part in CLUTTER or part.startswith(".") for part in PurePosixPath(name).parts)


def _reader(source: Path, info: zipfile.ZipInfo) -> Callable[[int], bytes]:
    def read(limit: int) -> bytes:
        try:
            with zipfile.ZipFile(source) as archive, archive.open(info) as member:
                # The declared size was checked above; one byte more shows a member that lies about it.
                content = member.read(limit + 1)
        except ZIP_FAULTS as fault:
            raise OSError(f"cannot be unpacked: {fault}") from None
        if len(content) > limit:
            raise OSError(f"unpacks to more than the {limit:,} bytes that are read")
        return content

    return read


def _zip_head(source: Path, info: zipfile.ZipInfo) -> Callable[[], bytes]:
    def head() -> bytes:
        try:
            with zipfile.ZipFile(source) as archive, archive.open(info) as member:
                return member.read(HEAD)
        except ZIP_FAULTS:
            return b""

    return head


def _problem(source: Path, name: str, reason: str) -> Problem:
    return Problem(
        code="unsafe-archive",
        key=name,
        must=f"{reason}, so {source.name} is not opened",
        fix=ANEW,
    )
