"""The folders named at the start, and nothing outside them: every path that a page sends comes through here."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launcher.check import data, paths
from launcher.check.data import DOCUMENT_PATHS
from launcher.check.resolve import PRESETS, Resolved
from schemas.config import table
from schemas.problems import ConfigError, Problem, error
from schemas.terminal import shell_words

DATA_LEVELS = 4  # a folder of data, and as deep below it as images are looked for
SHOWN = 2000  # entries of a folder that are listed
DATA = ("train_data_dir", "reg_data_dir", "conditioning_data_dir")
OUTSIDE = "lies outside the folders that this page was started with, so it is neither read nor listed"


@dataclass(frozen=True)
class Folders:
    """`roots` are real paths; `start` the words that started the server, for the advice to start it with more."""

    roots: tuple[Path, ...]
    start: tuple[str, ...] = ()

    def holds(self, path: str | os.PathLike[str]) -> bool:
        """Whether `path`, all links followed, lies in one of the folders. Of a missing one its folder counts."""
        try:
            real = Path(os.path.realpath(path))
        except (OSError, ValueError):
            return False
        return any(real == root or root in real.parents for root in self.roots)

    def inside(self, path: str) -> Path:
        """`path` as it is really called; ConfigError `outside-folders`, `no-file`."""
        if not path or "\0" in path:
            raise error("no-file", "is no name of a file or folder", got=path, fix="choose one from the list")
        if not self.holds(path):
            raise ConfigError([self.refusal(path)])
        return Path(os.path.realpath(path))

    def leading_out(self, folder: str | os.PathLike[str]) -> str | None:
        """A link in a folder of data, or in one below it, that leads out of the folders; None where there is none."""
        level = [os.fspath(folder)]
        for _ in range(DATA_LEVELS):
            below: list[str] = []
            for place in level:
                try:
                    entries = list(os.scandir(place))
                except OSError:
                    continue
                for entry in entries:
                    if entry.is_symlink():
                        if not self.holds(entry.path):
                            return entry.path
                    elif entry.is_dir():
                        below.append(entry.path)
            level = below
        return None

    def refusal(self, path: str, key: str | None = None) -> Problem:
        """Says which folder to add, and how."""
        folder = path if os.path.splitext(path)[1] == "" else os.path.dirname(path) or path
        fix = f"stop the server and start it with that folder too: {shell_words([*self.start, folder])}"
        return Problem(code="outside-folders", key=key, got=path, must=OUTSIDE, fix=fix)

    def listing(self, path: str | None) -> dict[str, Any]:
        """What a picker shows of a folder: the folders in it, the files with their size; without a path the roots."""
        if not path:
            return {"path": None, "parent": None, "left_out": 0, "files": [],
                    "folders": [{"name": str(root), "path": str(root)} for root in self.roots]}  # fmt: skip
        place = self.inside(path)
        place = place if place.is_dir() else place.parent
        found = sorted(_entries(place, self), key=lambda one: one["name"].lower())
        parent = str(place.parent) if self.holds(place.parent) else None
        return {
            "path": str(place),
            "parent": parent,
            "folders": [one for one in found if one["folder"]][:SHOWN],
            "files": [one for one in found if not one["folder"]][:SHOWN],
            "left_out": max(0, len(found) - SHOWN),
        }


def _entries(place: Path, folders: Folders) -> Iterator[dict[str, Any]]:
    try:
        entries = list(os.scandir(place))
    except OSError as fault:
        raise error(
            "cannot-read", f"cannot be listed: {fault.strerror}", file=str(place), fix="choose another"
        ) from None
    for entry in entries:
        if entry.name.startswith(".") or (entry.is_symlink() and not folders.holds(entry.path)):
            continue
        try:
            name = entry.name.encode("utf-8", "replace").decode()
            yield {"name": name, "path": entry.path, "folder": entry.is_dir(),
                   "bytes": 0 if entry.is_dir() else entry.stat().st_size}  # fmt: skip
        except OSError:
            continue


def within(resolved: Resolved, folders: Folders) -> tuple[Resolved, list[Problem]]:
    """The same without the paths that lead outside, which nobody may read then, and a finding for each of them."""
    found: list[Problem] = []
    for name, value in _named(resolved):
        if paths.foreign(value) or value.startswith("data:") or _of_ours(value):
            continue
        if folders.holds(value):
            if name not in DATA or (link := folders.leading_out(value)) is None:
                continue
            value = link
        if name == "pretrained_model_name_or_path" and not os.path.isabs(value) and ".." not in Path(value).parts:
            continue  # a hub id, or a name that is not here
        found.append(resolved.placed(folders.refusal(value, name)))
        option = table()[name]
        resolved = resolved.change(name, () if option.many else None, resolved.settings[name].origin)
    named = list(_document_paths(_document(resolved)))
    beyond = [path for path in named if not folders.holds(path)]
    beyond += [link for path in named if folders.holds(path) and (link := folders.leading_out(path))]
    if beyond:
        found += [resolved.placed(folders.refusal(path, "dataset_config")) for path in beyond]
        resolved = replace(resolved, draft=replace(resolved.draft, datasets=None))
        resolved = resolved.change("dataset_config", None, "file")
    return resolved, found


def _named(resolved: Resolved) -> Iterator[tuple[str, str]]:
    for name, option in table().items():
        value = getattr(resolved.config, name)
        if option.path and value and name in resolved.settings:
            yield from ((name, one) for one in (value if isinstance(value, tuple) else (value,)))


def _of_ours(path: str) -> bool:
    """The toy models that come with the program."""
    return (PRESETS.parent / "trainer" / "toy") in Path(os.path.realpath(path)).parents


def _document(resolved: Resolved) -> Any:
    """The dataset document that the file holds or names."""
    held = data.document(resolved)
    file = resolved.config.dataset_config
    if held is None and file and os.path.isfile(file):
        from trainer.dataset.document import read_document

        try:
            return read_document(file, [])
        except ConfigError:
            return None
    return held


def _document_paths(held: Any) -> Iterable[str]:
    if isinstance(held, Mapping):
        for name, value in held.items():
            if name in DOCUMENT_PATHS and isinstance(value, str):
                yield value
            else:
                yield from _document_paths(value)
    elif isinstance(held, list):
        for one in held:
            yield from _document_paths(one)
