"""Cache files: written whole or not at all, and marked with what they were made from."""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from schemas.files.documents import parse_json
from schemas.files.textfile import open_regular
from schemas.files.writing import disk_fault, write_atomically
from schemas.problems import ConfigError, error

FINGERPRINT = "kohyakit_fingerprint"
VERSION = 1  # raised whenever the same inputs would give other numbers
BLOCKS, BLOCK = 16, 4096  # of a weights file, spread evenly, that tell it from another
WEIGHTS = (".safetensors", ".bin", ".ckpt", ".pt")

Arrays = dict[str, np.ndarray]


def save(path: Path, arrays: Arrays, fingerprint: Mapping[str, Any]) -> None:
    """Writes an .npz whole. ConfigError when the folder may not be written; a full disk is no fault of the input."""
    mark = np.array(json.dumps(fingerprint, sort_keys=True))
    try:
        write_atomically(path, lambda stream: np.savez(stream, **arrays, **{FINGERPRINT: mark}))  # type: ignore[arg-type]
    except OSError as fault:
        if disk_fault(fault) and fault.errno != errno.EROFS:
            raise
        raise error(
            "cannot-write-cache",
            f"cannot be written: {fault.strerror}",
            file=str(path),
            key="cache_latents_to_disk",
            fix="make the folder writable, or cache in memory",
        ) from None


def load(path: Path, names: Sequence[str] | None = None) -> tuple[Arrays, dict[str, Any] | None] | None:
    """(arrays, fingerprint or None) of a cache file, only those `names` it has; None when there is no sound file."""
    try:
        with open_regular(path, what="cache file") as stream, np.load(stream, allow_pickle=False) as stored:
            marked = FINGERPRINT in stored.files
            arrays = {
                name: stored[name] for name in stored.files if name != FINGERPRINT and (names is None or name in names)
            }
            return arrays, parse_json(str(stored[FINGERPRINT])) if marked else None
    except (ConfigError, OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def source_mark(path: Path) -> list[Any]:
    """[bytes, time of change, content hash] of a source file."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, content_hash(path)]


def same_source(path: Path, mark: Sequence[Any]) -> bool:
    """Whether `path` still holds what `mark` was taken from; a new date alone does not count."""
    stat = path.stat()
    if stat.st_size != mark[0]:
        return False
    return stat.st_mtime_ns == mark[1] or content_hash(path) == mark[2]


def content_hash(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


@functools.cache
def weights_mark(model: str | None, parts: tuple[str, ...] = ()) -> str:
    """A name for the weights in `model`: a file, a folder (its sub-folders `parts`, if there), or a hub id as it is."""
    if not model or not os.path.exists(model):
        return str(model)
    root = Path(model)
    if root.is_file():
        files = [root]
    else:
        places = [root / part for part in parts if (root / part).is_dir()] or [root]
        files = sorted(file for place in places for file in place.iterdir() if file.suffix in WEIGHTS)
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        size = file.stat().st_size
        digest.update(str(size).encode())
        with open(file, "rb") as stream:
            for number in range(BLOCKS):
                stream.seek(max(0, size - BLOCK) * number // (BLOCKS - 1))
                digest.update(stream.read(BLOCK))
    return digest.hexdigest()
