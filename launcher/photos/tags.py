"""`dataset tags`: list and change the tags of all captions at once; every change can be undone."""

from __future__ import annotations

import base64
import fnmatch
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.photos.folders import captions_of, relative, training_folders
from launcher.photos.source import inside
from schemas.files.documents import object_in
from schemas.files.textfile import CAPTION, LISTING, read_bytes
from schemas.files.writing import write_atomically
from schemas.problems import ConfigError, Problem, error
from trainer.dataset.names import fold

HISTORY = ".kohyakit-tags.json"  # in the directory: what the changes replaced, newest last
KEPT = 20  # changes that can be undone
SORTS = ("name", "count")

Edit = Callable[[list[str]], list[str]]


@dataclass(frozen=True)
class Caption:
    """The caption of an image as it stands in its file; `text` is None where there is no file."""

    image: Path
    file: Path
    text: str | None


@dataclass
class Captions:
    """Every caption below a directory; `unreadable` are files that are no text, and why."""

    directory: Path
    separator: str
    captions: list[Caption] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)

    def tags(self, text: str) -> list[str]:
        """The tags of one line of a caption."""
        return [part.strip() for part in text.split(self.separator) if part.strip()]

    def counts(self) -> Counter[str]:
        """How many captions hold each tag, in any of their lines."""
        return Counter(tag for one in self.captions for tag in self.held_by(one))

    def held_by(self, caption: Caption) -> set[str]:
        return {tag for line in (caption.text or "").splitlines() for tag in self.tags(line)}


@dataclass(frozen=True)
class Change:
    """What becomes of one caption file; None stands for no file. Bytes, so that undoing gives back the very file."""

    file: str
    before: bytes | None
    after: bytes | None

    def as_json(self) -> dict[str, Any]:
        return {"file": self.file, "before": _shown(self.before), "after": _shown(self.after)}


def read_captions(directory: Path, extension: str = ".txt", separator: str = ",") -> Captions:
    """The captions of every image that is trained on. ConfigError as `training_folders`."""
    dotted = extension if extension.startswith(".") else f".{extension}"
    found = Captions(directory, separator)
    for image, file in captions_of(training_folders(directory), dotted):
        if file is None:
            found.captions.append(Caption(image, image.with_suffix(dotted), None))
            continue
        if not inside(file, directory):
            found.unreadable.append((relative(file, directory), "is a link that leads out of the folder"))
            continue
        try:
            text = read_bytes(file, limit=CAPTION, what="a caption").decode("utf-8")
        except UnicodeDecodeError as fault:
            found.unreadable.append((relative(file, directory), f"is not UTF-8 text at byte {fault.start}"))
        except ConfigError as fault:
            found.unreadable.append((relative(file, directory), fault.problems[0].must))
        else:
            found.captions.append(Caption(image, file, text))
    return found


def holding(captions: Captions, pattern: str) -> list[Caption]:
    """The captions with a tag like `pattern`."""
    return [one for one in captions.captions if any(_like(tag, pattern) for tag in captions.held_by(one))]


def add(words: list[str], *, first: bool) -> Edit:
    """Tags that a caption has already are not added again."""

    def edit(tags: list[str]) -> list[str]:
        there = {fold(tag) for tag in tags}
        fresh = [word for word in dict.fromkeys(words) if fold(word) not in there]
        return fresh + tags if first else tags + fresh

    return edit


def remove(words: list[str]) -> Edit:
    return lambda tags: [tag for tag in tags if not any(_like(tag, word) for word in words)]


def replace(old: str, new: list[str]) -> Edit:
    """`new` stands where the first tag like `old` stood, and nothing twice."""

    def edit(tags: list[str]) -> list[str]:
        if not any(_like(tag, old) for tag in tags):
            return tags
        return _without_repeats([one for tag in tags for one in (new if _like(tag, old) else [tag])])

    return edit


def sort(counts: Counter[str] | None, *, keep: int) -> Edit:
    """By name, or the most frequent first; the first `keep` tags stay where they are."""

    def edit(tags: list[str]) -> list[str]:
        rest = sorted(tags[keep:], key=lambda tag: (-(counts[tag] if counts else 0), fold(tag)))
        return tags[:keep] + rest

    return edit


def dedupe() -> Edit:
    return _without_repeats


def _without_repeats(tags: list[str]) -> list[str]:
    return list({fold(tag): tag for tag in reversed(tags)}.values())[::-1]


def _like(tag: str, pattern: str) -> bool:
    """Whether a tag is meant: without regard to case, and * and ? stand for letters."""
    return fnmatch.fnmatchcase(fold(tag), fold(pattern))


def changes(captions: Captions, edit: Edit, *, create: bool = False) -> list[Change]:
    """What `edit` makes of every caption, line by line; captions that stay as they are keep every byte."""
    found = []
    for one in captions.captions:
        new = _new_text(one.text, edit, captions, create=create)
        if new is not None and new != one.text:
            before = None if one.text is None else one.text.encode("utf-8")
            found.append(Change(relative(one.file, captions.directory), before, new.encode("utf-8")))
    return found


def _new_text(text: str | None, edit: Edit, captions: Captions, *, create: bool) -> str | None:
    if text is None and not create:
        return None
    if not (text or "").strip("\ufeff \r\n\t"):  # none, or an empty one
        return _joined(edit([]), captions.separator) or text
    return "".join(_edited(line, edit, captions) for line in (text or "").splitlines(keepends=True))


def text_changes(captions: Captions, old: str, new: str) -> list[Change]:
    """`old` anywhere in a caption's text becomes `new`."""
    return [
        Change(relative(one.file, captions.directory), one.text.encode(), one.text.replace(old, new).encode())
        for one in captions.captions
        if one.text and old in one.text
    ]


def _edited(line: str, edit: Edit, captions: Captions) -> str:
    body = line.strip("\ufeff\r\n")
    tags = captions.tags(body)
    new = edit(list(tags))
    if not tags or new == tags:
        return line
    start, _, end = line.partition(body)
    return start + _joined(new, captions.separator) + end


def _joined(tags: list[str], separator: str) -> str:
    return f"{separator.rstrip()} ".join(tags)


def apply(captions: Captions, found: list[Change], words: list[str]) -> list[tuple[str, str]]:
    """Write the changes; the history first, so that a run that is cut off can be undone. What could not be written."""
    if not found:
        return []
    history = _history(captions.directory)
    entry = {
        "words": words,
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
        "files": [
            {"file": _packed(os.fsencode(one.file)), "before": _packed(one.before), "after": _packed(one.after)}
            for one in found
        ],
    }
    _write_history(captions.directory, [*history, entry][-KEPT:])
    return [fault for one in found for fault in _write(captions.directory, one)]


@dataclass(frozen=True)
class Undone:
    """The words of the change that was undone, its files, and files that were changed since and stay."""

    words: list[str]
    changes: list[Change]
    kept: list[tuple[str, str]]


def undo(directory: Path, *, dry_run: bool) -> Undone:
    """Take the newest change back. ConfigError `nothing-to-undo`, `bad-history`."""
    history = _history(directory)
    if not history:
        must = "no change of tags is remembered here"
        raise error("nothing-to-undo", must, key=str(directory), fix="give the directory that the change was made in")
    last = history[-1]
    back: list[Change] = []
    kept: list[tuple[str, str]] = []
    for one in last["files"]:
        change = Change(_name(one), _unpacked(one["after"]), _unpacked(one["before"]))
        now = _content(directory / change.file)
        if now == change.after:
            continue  # was never written, or is as it was already
        if now != change.before:
            kept.append((change.file, "was changed since, and stays as it is"))
        else:
            back.append(change)
    if not dry_run:
        kept += [fault for change in back for fault in _write(directory, change)]
        if not any(why.startswith("cannot") for _, why in kept):
            _write_history(directory, history[:-1])
    return Undone(list(last["words"]), back, kept)


def _content(file: Path) -> bytes | None:
    try:
        return read_bytes(file, limit=CAPTION, what="a caption") if os.path.lexists(file) else None
    except ConfigError:
        return b"\0"  # nothing that was ever written here


def _write(directory: Path, change: Change) -> Iterator[tuple[str, str]]:
    file = directory / change.file
    try:
        if change.after is None:
            file.unlink(missing_ok=True)
        else:
            after = change.after
            write_atomically(Path(os.path.realpath(file)), lambda stream: stream.write(after))
    except OSError as fault:
        yield change.file, f"cannot be written: {fault.strerror}"


def _history(directory: Path) -> list[dict[str, Any]]:
    file = directory / HISTORY
    if not os.path.lexists(file):
        return []
    entries = object_in(file, what="a history of tags", limit=LISTING).get("changes")
    if not isinstance(entries, list) or not all(_is_entry(one, directory) for one in entries):
        raise ConfigError([Problem(
            code="bad-history", file=str(file), must="is not the history of tags that was written here",
            fix="move it away; the captions themselves are as they are",
        )])  # fmt: skip
    return entries


def _is_entry(one: Any, directory: Path) -> bool:
    """Whether it has the right form and names only files below `directory`."""
    try:
        for file in one["files"]:
            _unpacked(file["before"]), _unpacked(file["after"])
            if not inside(directory / _name(file), directory):
                return False
        return all(isinstance(word, str) for word in one["words"])
    except (KeyError, TypeError, ValueError):
        return False


def _write_history(directory: Path, entries: list[dict[str, Any]]) -> None:
    file = directory / HISTORY
    if entries:
        text = json.dumps({"changes": entries})
        write_atomically(file, lambda stream: stream.write(text.encode("ascii")))
    else:
        file.unlink(missing_ok=True)


def _name(file: dict[str, Any]) -> str:
    return os.fsdecode(base64.b64decode(file["file"], validate=True))


def _packed(content: bytes | None) -> str | None:
    return None if content is None else base64.b64encode(content).decode("ascii")


def _unpacked(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text, validate=True)


def _shown(content: bytes | None) -> str | None:
    return None if content is None else content.decode("utf-8", "replace").strip("\ufeff \r\n")
