"""The work folder: each config being edited is a file in it, saved on every change, every version before it kept.

WORK/n0m3.json                              the file itself: any editor and the command line see the same
WORK/.kohyakit-ui/configs/n0m3/meta.json    where it came from, its versions, the words of its next launch
WORK/.kohyakit-ui/configs/n0m3/0001-n0m3.json ...   every version, byte for byte
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from launcher.run.files import write_bytes
from schemas.files.documents import parse_json
from schemas.files.textfile import CONFIG, is_regular, read_bytes
from schemas.problems import ConfigError, error

HIDDEN = ".kohyakit-ui"
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}", re.ASCII)
KEPT = 200  # versions of one file
LOCKS: defaultdict[str, threading.RLock] = defaultdict(threading.RLock)


class Conflict(Exception):
    """The file is not as the page has seen it: `disk` is what stands there now, `ours` what the page last saved."""

    def __init__(self, disk: bytes, ours: bytes) -> None:
        super().__init__("the file has changed on disk")
        self.disk, self.ours = disk, ours


@dataclass(frozen=True)
class Version:
    """One saved state of a file: its name then, its fingerprint, and what made it."""

    number: int
    file: str
    mark: str
    why: str
    time: float = 0.0

    @property
    def kept_as(self) -> str:
        return f"{self.number:04d}-{self.file}"


@dataclass(frozen=True)
class Entry:
    """A config in the work folder. `at` is the place of the current version in `versions`.

    `words` go on the command line of its launch and into no file: {"sets", "trust", "vram", "overwrite"}.
    """

    id: str
    versions: tuple[Version, ...]
    at: int
    source: str | None = None
    preset: str | None = None
    words: dict[str, Any] = field(default_factory=dict)
    lost: tuple[str, ...] = ()

    @property
    def now(self) -> Version:
        return self.versions[self.at]

    @property
    def file(self) -> str:
        return self.now.file


def mark_of(content: bytes) -> str:
    """The fingerprint by which versions are told apart."""
    return hashlib.sha256(content).hexdigest()[:16]


class Work:
    """The work folder at `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hidden = folder / HIDDEN
        self.configs = self.hidden / "configs"

    def lock(self, name: str) -> threading.RLock:
        """Held while the config of that ID is read and written, so that no change of two gets lost."""
        return LOCKS[str(self.configs / name)]

    def entries(self) -> list[Entry]:
        """Every config, the one changed last first."""
        try:
            names = os.listdir(self.configs)
        except OSError:
            return []
        found = [entry for name in names if (entry := self._read(name)) is not None]
        return sorted(found, key=lambda entry: -entry.now.time)

    def entry(self, name: str) -> Entry:
        """ConfigError `no-config`."""
        found = self._read(name)
        if found is None:
            must = "is no config in the work folder"
            raise error("no-config", must, got=name[:80], fix="open a file or a preset on the start page")
        return found

    def _read(self, name: str) -> Entry | None:
        if NAME.fullmatch(name) is None:
            return None
        try:
            text = read_bytes(self.configs / name / "meta.json", limit=CONFIG, what="record of a config")
            kept = parse_json(text)
            versions = tuple(Version(**one) for one in kept["versions"])
            at = min(max(0, int(kept["at"])), len(versions) - 1)
            lost = tuple(str(one) for one in kept.get("lost", ()))
            found = Entry(
                name, versions, at, kept.get("source"), kept.get("preset"), dict(kept.get("words") or {}), lost
            )
            return found if versions and all(_safe(one.file) for one in versions) else None
        except (ConfigError, ValueError, KeyError, TypeError, UnicodeError):
            return None

    def path(self, entry: Entry) -> Path:
        """The file itself."""
        return self.folder / entry.file

    def content(self, entry: Entry) -> bytes:
        """The file's bytes; Conflict when somebody else has changed it, or it has gone."""
        ours = self.kept(entry)
        try:
            disk = read_bytes(self.path(entry), limit=CONFIG, what="config file")
        except ConfigError:
            disk = b""
        if mark_of(disk) != entry.now.mark:
            raise Conflict(disk, ours)
        return disk

    def kept(self, entry: Entry, at: int | None = None) -> bytes:
        """A version as it was saved."""
        version = entry.now if at is None else entry.versions[at]
        return read_bytes(self.configs / entry.id / version.kept_as, limit=CONFIG, what="version of a config")

    def add(self, file: str, content: bytes, *, source: str | None = None, preset: str | None = None) -> Entry:
        """A new config with that content; the one that was made from the same source before, if nothing differs."""
        for entry in self.entries():
            first = entry.versions[0]
            if source is not None and (entry.source, first.mark) == (source, mark_of(content)):
                return entry
        with LOCKS[str(self.configs)]:
            stem, suffix = _clean(file)
            name, number = stem, 1
            while (self.configs / name).exists() or os.path.lexists(self.folder / f"{name}{suffix}"):
                number += 1
                name = f"{stem}-{number}"
            entry = Entry(name, (), -1, source, preset)
            return self._write(entry, f"{name}{suffix}", content, "opened")

    def save(self, entry: Entry, content: bytes, why: str, *, file: str | None = None, within: float = 0.0) -> Entry:
        """A further version; the versions that were undone before are dropped from the list.

        One that changes the same thing again `within` seconds, as typing does, takes the place of the one before.
        """
        if content == self.kept(entry) and file in (None, entry.file):
            return entry
        last = entry.at == len(entry.versions) - 1
        if entry.at > 0 and last and entry.now.why == why and time.time() - entry.now.time < within:
            if file in (None, entry.file) and entry.versions[entry.at - 1].file == entry.file:
                return self._write(entry, entry.file, content, why, replaces=True)
        return self._write(entry, file or entry.file, content, why)

    def _write(self, entry: Entry, file: str, content: bytes, why: str, *, replaces: bool = False) -> Entry:
        """The version first, then the file, then the list: wherever it is cut off, all is whole and nothing is lost."""
        number = max((one.number for one in entry.versions), default=0) + 1
        version = Version(number, file, mark_of(content), why, time.time())
        write_bytes(self.configs / entry.id / version.kept_as, content)
        write_bytes(self.folder / file, content)
        before = self.path(entry) if entry.versions and entry.file != file else None
        replaced = self.configs / entry.id / entry.now.kept_as if replaces else None
        versions = (*entry.versions[: entry.at + (not replaces)], version)
        if len(versions) > KEPT:  # the first stays: it is the file as it came
            (self.configs / entry.id / versions[1].kept_as).unlink(missing_ok=True)
            versions = (versions[0], *versions[2:])
        entry = self._keep(replace(entry, versions=versions, at=len(versions) - 1))
        if replaced is not None:
            replaced.unlink(missing_ok=True)
        if before is not None and is_regular(before):
            before.unlink()
        return entry

    def _keep(self, entry: Entry) -> Entry:
        kept = {
            "source": entry.source,
            "preset": entry.preset,
            "words": entry.words,
            "lost": list(entry.lost),
            "at": entry.at,
            "versions": [
                {"number": one.number, "file": one.file, "mark": one.mark, "why": one.why, "time": one.time}
                for one in entry.versions
            ],
        }
        text = json.dumps(kept, indent=1, ensure_ascii=True)
        write_bytes(self.configs / entry.id / "meta.json", text.encode())
        return entry

    def with_words(self, entry: Entry, words: dict[str, Any]) -> Entry:
        """Other words for its launch."""
        return self._keep(replace(entry, words={name: value for name, value in words.items() if value}))

    def with_lost(self, entry: Entry, lost: list[str]) -> Entry:
        """What a change of format could not take along."""
        return self._keep(replace(entry, lost=tuple(lost)))

    def step(self, entry: Entry, by: int) -> Entry:
        """Undo (-1) or redo (+1): that version's bytes are the file again."""
        self.content(entry)  # not over what somebody else has written
        at = entry.at + by
        if not 0 <= at < len(entry.versions):
            word = "undo" if by < 0 else "redo"
            raise error("nothing-there", f"there is nothing to {word}", fix="change something first")
        moved = replace(entry, at=at)
        write_bytes(self.path(moved), self.kept(moved))
        before = self.path(entry)
        self._keep(moved)
        if moved.file != entry.file and is_regular(before):
            before.unlink()
        return moved

    def settle(self, entry: Entry, take: str) -> Entry:
        """Ends a conflict: `disk` takes what the other program wrote as a version of its own, `ours` puts ours back.

        Either way both are among the versions, so that undo reaches them.
        """
        try:
            self.content(entry)
            return entry
        except Conflict as both:
            entry = self._write(entry, entry.file, both.disk, "changed by another program")
            return entry if take == "disk" else self._write(entry, entry.file, both.ours, "put back")

    def recovered(self, entry: Entry) -> Entry:
        """The same after a start in the middle of a save: a version that was written but not listed is listed."""
        number = max(one.number for one in entry.versions) + 1
        for path in self._unlisted(entry, number):
            content = read_bytes(path, limit=CONFIG, what="version of a config")
            file = path.name.partition("-")[2]
            try:
                disk = read_bytes(self.folder / file, limit=CONFIG, what="config file")
            except ConfigError:
                continue
            if disk == content and mark_of(disk) != entry.now.mark:
                version = Version(number, file, mark_of(content), "saved", time.time())
                versions = (*entry.versions[: entry.at + 1], version)
                return self._keep(replace(entry, versions=versions, at=len(versions) - 1))
        return entry

    def _unlisted(self, entry: Entry, number: int) -> Iterator[Path]:
        yield from (path for path in (self.configs / entry.id).glob(f"{number:04d}-*") if _safe(path.name))


def _safe(file: str) -> bool:
    return isinstance(file, str) and NAME.fullmatch(file) is not None


def _clean(file: str) -> tuple[str, str]:
    """(stem, suffix) of a name that every system takes."""
    stem, suffix = os.path.splitext(os.path.basename(file.replace("\\", "/")))
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-") or "config"
    kind = suffix.lower() if re.fullmatch(r"\.[A-Za-z0-9]{1,5}", suffix) else ".txt"
    return plain[:60], kind
