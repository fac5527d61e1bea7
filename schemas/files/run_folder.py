"""What a run folder holds, and whether a state in it is whole: one judge for the launcher and the trainer.

A state's manifest (`complete`, written last) lists every other file with its size and SHA-256; progress.json, which may
be written anew, carries its own. The previous version listed sizes alone: such a state is judged by what it has.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from schemas.files.documents import parse_json
from schemas.files.textfile import open_regular, read_text
from schemas.problems import ConfigError

LOG = "log.jsonl"
VALIDATION = "validation.jsonl"  # one record a measurement of the held-out loss, where images are held out
RECORD = "run.json"
CONFIG = "config.toml"
MANIFEST = "complete"
PROGRESS = "progress.json"
CHECK = "sha256"  # the entry of progress.json that covers the others
STATE = re.compile(r"state-(\d+)")
MOST_STEPS = 99_999_999  # what the eight digits of a state's name can say
LARGEST_JSON = 256 * 2**20  # bytes; a larger file is none of ours and is not read
# Entries of progress.json that are numbers, with the least that each can be.
LEAST = {"step": 0, "epoch": 1, "batch": 0, "shift": 0, "processes": 1, "batches": 1}
FOREIGN = ("train_state.json", "random_states_0.pkl", "optimizer.bin", "pytorch_model.bin")  # of accelerate's states


def read_json(path: Path) -> Any:
    """What a JSON file of a run folder holds; None when it is missing, damaged, too large or no regular file."""
    try:
        return parse_json(read_text(path, limit=LARGEST_JSON, what="file of a run"))
    except (ConfigError, ValueError):
        return None


def read_object(path: Path) -> dict[str, Any]:
    """The object of a JSON file of a run folder; empty when there is none."""
    found = read_json(path)
    return found if isinstance(found, dict) else {}


# What run.json holds, by the kind of each entry, and the numbers in those entries with the most that each can be.
OBJECTS = ("origins", "options", "accelerate", "steps", "versions", "machine", "dataset", "model", "vae")
LISTS = ("starts", "remarks", "adapted")
COUNTS = {
    "accelerate": {"num_processes": 4096},
    "steps": {"total": MOST_STEPS, "updates_per_epoch": MOST_STEPS},
    "dataset": {"images": MOST_STEPS, "repeats": MOST_STEPS},
}


def read_record(run: Path) -> dict[str, Any]:
    """run.json with every entry of the kind it must have; what is not is left out. Empty when there is none."""
    record = read_object(run / RECORD)
    for name in OBJECTS:
        if name in record and not isinstance(record[name], dict):
            del record[name]
    for name in LISTS:
        if name in record:
            held = record[name] if isinstance(record[name], list) else []
            record[name] = [entry for entry in held if isinstance(entry, dict)]
    for name, counts in COUNTS.items():
        for count, most in counts.items():
            if count in record.get(name, {}) and not _is_count(record[name][count], 1, most):
                del record[name][count]
    if "origins" in record:
        record["origins"] = {name: entry for name, entry in record["origins"].items() if _is_origin(entry)}
    for start in record.get("starts", []):
        if not isinstance(start.get("versions", {}), dict):
            del start["versions"]
    if "files" in record.get("dataset", {}) and not _is_fingerprints(record["dataset"]["files"]):
        del record["dataset"]["files"]
    if not isinstance(record.get("family", ""), str):
        del record["family"]
    return record


def _is_count(value: Any, least: int, most: int = MOST_STEPS) -> bool:
    return type(value) is int and least <= value <= most


def _is_origin(entry: Any) -> bool:
    """Whether this says who set an option: a word, and the key of the file or nothing."""
    words = (entry.get("origin"), entry.get("from") or "") if isinstance(entry, dict) else (None,)
    return all(isinstance(word, str) for word in words)


def _is_fingerprints(files: Any) -> bool:
    """Whether these are, by image, the fingerprints of its pixels and of its caption."""
    return isinstance(files, dict) and all(isinstance(marks, list) and len(marks) == 2 for marks in files.values())


def read_log(run: Path, name: str = LOG) -> Iterator[dict[str, Any]]:
    """Every whole record of log.jsonl (or of the log of that name) that has a step, in the order of the file."""
    try:
        with open_regular(run / name, what="log of a run") as stream:
            yield from _records(stream)
    except ConfigError:
        return


def _records(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    for line in lines:
        entry = record_in(line)
        if entry is not None:
            yield entry


def record_in(line: bytes) -> dict[str, Any] | None:
    """The record of a line of log.jsonl; None where it is none, such as one that was cut off or damaged."""
    try:
        entry = parse_json(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and _is_count(entry.get("step"), 0) else None


def last_step(run: Path) -> int | None:
    """The step of the newest whole line of log.jsonl."""
    try:
        with open_regular(run / LOG, what="log of a run") as stream:
            stream.seek(0, 2)
            stream.seek(max(0, stream.tell() - 65536))
            lines = stream.read().splitlines()
    except ConfigError:
        return None
    return next((int(entry["step"]) for entry in _records(reversed(lines))), None)


@dataclass(frozen=True)
class State:
    """A state folder as judged: what is wrong with it, file by file; whole where nothing is."""

    path: Path
    progress: Mapping[str, Any] = field(default_factory=dict)
    damage: tuple[str, ...] = ()
    checksums: bool = True  # False for a state of the previous version, whose manifest has sizes alone

    @property
    def whole(self) -> bool:
        return not self.damage

    @property
    def step(self) -> int:
        """Updates done; of a damaged state what its name says, -1 where that says nothing."""
        if self.whole:
            return int(self.progress["step"])
        match = STATE.fullmatch(self.path.name)
        return int(match[1]) if match else -1

    @property
    def said(self) -> str:
        """The damage in one line."""
        return "; ".join(self.damage[:3]) + (f" and {len(self.damage) - 3} more" if len(self.damage) > 3 else "")


def judge(folder: Path, *, contents: bool = False, only: Iterable[str] | None = None) -> State:
    """Whether a state can be gone on from. With `contents` every byte is read and compared (of the files `only`)."""
    manifest = read_json(folder / MANIFEST)
    if not isinstance(manifest, dict):
        missing = not (folder / MANIFEST).exists()
        return State(folder, damage=(f"{MANIFEST} is {'missing: it was not finished' if missing else 'damaged'}",))
    checksums = not any(type(entry) is int for entry in manifest.values())
    damage = []
    for name, entry in sorted(manifest.items()):
        if name != PROGRESS:  # judged below; the previous version never listed it
            fault = _file_fault(folder, name, entry, contents=contents and (only is None or name in only))
            damage += [f"{name} {fault}"] if fault else []
    progress = read_json(folder / PROGRESS)
    fault = _progress_fault(folder, progress, sealed=checksums and bool(manifest))
    damage += [f"{PROGRESS} {fault}"] if fault else []
    kept = {name: value for name, value in progress.items() if name != CHECK} if isinstance(progress, dict) else {}
    return State(folder, kept, tuple(damage), checksums)


def _file_fault(folder: Path, name: str, entry: Any, *, contents: bool) -> str | None:
    """What is wrong with one file of a state."""
    if name in ("", ".", "..") or re.search(r"[/\\\x00]", name):
        return "is no name of a file in this folder"
    size = entry.get("bytes") if isinstance(entry, dict) else entry
    if type(size) is not int or not (isinstance(entry, int) or isinstance(entry.get("sha256"), str)):
        return f"has no size and checksum in {MANIFEST}"
    try:
        found = os.stat(folder / name)
    except FileNotFoundError:
        return "is missing"
    except (OSError, ValueError) as fault:
        return f"cannot be read ({fault})"
    if not stat.S_ISREG(found.st_mode):
        return "is no regular file"
    if found.st_size != size:
        return "is empty" if not found.st_size else f"has {found.st_size:,} bytes where {size:,} were written"
    if not contents or isinstance(entry, int):
        return None
    try:
        return None if checksum(folder / name) == entry["sha256"] else "is not what was written: its checksum differs"
    except OSError as fault:
        return f"cannot be read ({fault.strerror})"


def _progress_fault(folder: Path, progress: Any, *, sealed: bool) -> str | None:
    """What is wrong with the position that a state stands for; `sealed` is one that must carry its checksum."""
    if progress is None:
        return "is damaged" if (folder / PROGRESS).exists() else "is missing"
    if not isinstance(progress, dict) or "step" not in progress:
        return "is no object with a step"
    for name, least in LEAST.items():
        value = progress.get(name, least)
        if not _is_count(value, least):
            return f"says {name} {_short(value)}, which no run can reach"
    saves = progress.get("saves", [])
    if not isinstance(saves, list) or not all(isinstance(name, str) for name in saves):
        return f"says saves {_short(saves)}, which is no list of names"
    match = STATE.fullmatch(folder.name)
    if match and int(match[1]) != progress["step"]:
        return f"says step {progress['step']}, the folder's name says {int(match[1])}"
    if CHECK in progress or sealed:
        return None if progress.get(CHECK) == _seal(progress) else "is not what was written: its checksum differs"
    return None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 30 else text[:29] + "…"


def sealed(progress: Mapping[str, Any]) -> dict[str, Any]:
    """The content of progress.json: readable, with a checksum over itself."""
    return {**progress, CHECK: _seal(progress)}


def _seal(progress: Mapping[str, Any]) -> str:
    rest = {name: value for name, value in progress.items() if name != CHECK}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def manifest_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and checksum of every file of a state that must not change any more."""
    files = (path for path in sorted(folder.iterdir()) if path.name not in (MANIFEST, PROGRESS))
    return {path.name: {"bytes": path.stat().st_size, "sha256": checksum(path)} for path in files}


def checksum(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def states_in(run: Path) -> list[State]:
    """Every state of a run folder, damaged ones too, by step; judged by their sizes and their progress."""
    try:
        folders = [path for path in run.iterdir() if STATE.fullmatch(path.name) and path.is_dir()]
    except OSError:
        return []
    return sorted((judge(path) for path in folders), key=lambda state: (state.step, state.path.name))


def newest_whole(run: Path, *, before: int | None = None, contents: bool = True) -> tuple[State | None, list[State]]:
    """(newest state whose every byte is as it was written, the damaged newer ones); of steps `before` that one only."""
    damaged: list[State] = []
    for state in reversed(states_in(run)):
        if before is not None and state.step >= before:
            continue
        state = judge(state.path, contents=contents) if state.whole else state
        if state.whole:
            return state, damaged
        damaged.append(state)
    return None, damaged


def same_place(one: Path, other: Path) -> bool:
    """Whether two paths mean the same folder."""
    return os.path.realpath(one) == os.path.realpath(other)


def is_foreign_state(folder: Path) -> bool:
    """Whether a folder is a state that accelerate wrote, as sd-scripts keeps them."""
    return not (folder / MANIFEST).exists() and any((folder / name).is_file() for name in FOREIGN)
