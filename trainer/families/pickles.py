"""Opening pickled checkpoints: as plain tensors, or, where the user trusts the file by name, as whatever they hold."""

from __future__ import annotations

import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import torch

from schemas.files.pickles import foreign_names, trusted_file, untrusted
from schemas.problems import ConfigError, Problem, error


def load_pickle(path: Path, trust: Sequence[str] = (), *, mapped: bool = False) -> Any:
    """What a .ckpt, .pt or .bin file holds, on the CPU. `mapped` leaves tensors on the disk until they are needed.

    ConfigError `untrusted-file` when it holds more than tensors and `trust` does not name it, `not-readable` when it is
    damaged or no such file.
    """
    try:
        return _read(path, mapped, weights_only=True)
    except Exception as fault:
        if not path.is_file():
            raise error("no-file", "does not exist", file=str(path), fix="check the path") from None
        if not trusted_file(trust, path):
            raise ConfigError([_refusal(path, fault)]) from fault
    try:
        return _read(path, mapped, weights_only=False, pickle_module=Lenient)
    except Exception as fault:  # its own code runs here and may fail with anything
        said = f"{type(fault).__name__}: {str(fault).partition(chr(10))[0]}"
        raise error("not-readable", f"cannot be opened even though it is trusted: {said}", file=str(path),
                    fix="copy or download it again, or use its .safetensors version") from fault  # fmt: skip


def _refusal(path: Path, fault: Exception) -> Problem:
    """Why a file could not be read as plain tensors: for what it would run, or because it is damaged."""
    names = foreign_names(path)
    if not names and (named := re.search(r"Unsupported (?:global|class):? (?:GLOBAL )?([\w.]+)", str(fault))):
        names = [named[1]]
    if names:
        return untrusted(None, path, names)
    must = f"cannot be read as a checkpoint of plain tensors: {str(fault).partition(chr(10))[0]}"
    fix = "copy or download it again, or use its .safetensors version"
    return Problem(code="not-readable", file=str(path), must=must, fix=fix)


def _read(path: Path, mapped: bool, **how: Any) -> Any:
    try:
        return torch.load(path, map_location="cpu", mmap=mapped, **how)
    except (RuntimeError, ValueError):
        if not mapped:
            raise
        return torch.load(path, map_location="cpu", **how)  # files of old torch versions cannot be mapped


class Absent:
    """Stands for a class of a package that is not installed: checkpoints keep their trainer's settings, too."""

    def __new__(cls, *_: Any, **__: Any) -> Absent:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __hash__(self) -> int:
        return id(self)


class Lenient:
    """The `pickle_module` of a trusted file: like pickle, but a missing package leaves a hole instead of an error."""

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            try:
                return super().find_class(module, name)
            except (ImportError, AttributeError):
                return Absent

    @staticmethod
    def load(stream: IO[bytes], **how: Any) -> Any:
        return Lenient.Unpickler(stream, **how).load()
