"""What a pickled checkpoint (.ckpt, .pt, .bin) would call when it is opened, found without opening it.

A pickle is a program: it names functions and classes that its reader imports and calls. Those that make tensors are
harmless; a file that names others is opened only if the user trusts it on the command line. torch's own reader of plain
tensors is what guards the run; this module tells its verdict before torch is loaded.
"""

from __future__ import annotations

import os
import pickletools
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from schemas.config import TrainConfig
from schemas.files.textfile import is_regular, open_regular
from schemas.files.weights import PICKLES
from schemas.problems import Problem
from schemas.terminal import shell_word

FILES = ("pretrained_model_name_or_path", "vae", "network_weights", "base_weights")
HARMLESS = {"collections OrderedDict", "collections Counter", "_codecs encode", "builtins set", "builtins bytearray",
            "builtins complex", "__builtin__ set", "__builtin__ bytearray", "__builtin__ complex"}  # fmt: skip
TENSORS = ("torch", "torch.cuda", "torch.sparse", "torch._utils", "torch._tensor", "torch.storage",
           "torch.serialization", "torch.nn.parameter")  # fmt: skip
LARGEST = 200 << 20  # bytes of a zip member that are followed; a full SDXL file names 2,500 tensors in 400 kB
OLD_FORM = 5  # pickles, one after the other, at the start of a file that torch before 1.6 has written
TEXTS = ("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE")
DANGER = "opening it can run any code with your rights"


def foreign_names(path: Path) -> list[str]:
    """The functions and classes ("module.name") that a reader of plain tensors refuses, each once, in their order.

    Empty for a file of tensors, and for one that is no pickle at all: reading it will say so.
    """
    found: dict[str, None] = {}
    try:
        for program in _programs(path):
            for module, name in _named(program):
                plain = module in TENSORS and "." not in name
                if not plain and f"{module} {name}" not in HARMLESS:
                    found[f"{module}.{name}"] = None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, NotImplementedError, RuntimeError):
        pass  # damaged: what was found until there counts
    return list(found)


def _programs(path: Path) -> Iterator[IO[bytes]]:
    if not is_regular(path):
        return
    if not zipfile.is_zipfile(path):
        with open_regular(path, what="weights file") as stream:
            for _ in range(OLD_FORM):
                yield stream
        return
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.filename.endswith(".pkl") and member.file_size <= LARGEST:
                with archive.open(member) as stream:
                    yield stream


def _named(program: IO[bytes]) -> Iterator[tuple[str, str]]:
    """(module, name) of everything that one pickle imports."""
    texts: list[str] = []
    kept: dict[int, str] = {}
    last: str | None = None
    for operation, value, _ in pickletools.genops(program):
        word = operation.name
        if word in ("GLOBAL", "INST"):
            module, _, name = str(value).partition(" ")
            yield module, name
        elif word == "STACK_GLOBAL":
            module, name = texts[-2:] if len(texts) > 1 else ("?", "?")
            yield module, name
        if word in TEXTS:
            last = str(value)
            texts.append(last)
        elif word in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            if last is not None:
                kept[len(kept) if value is None else int(value)] = last
            elif value is None:
                kept[len(kept)] = "?"
        else:
            last = None
            if word in ("GET", "BINGET", "LONG_BINGET"):
                texts.append(kept.get(int(value or 0), "?"))


def trusted_file(trust: Sequence[str], path: str | Path) -> bool:
    """Whether `trust` names this file, by its name or as it was written; a name with spaces may have been split."""
    named = f" {' '.join(' '.join(trust).split())} "
    spellings = {str(path), Path(path).name, os.path.realpath(os.path.expanduser(path))}
    return any(f" {' '.join(spelling.split())} " in named for spelling in spellings)


def untrusted(key: str | None, path: str | Path, names: Sequence[str]) -> Problem:
    """What is said of a file that would run code: its name, what is inside, the danger, the way out."""
    inside = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    name = Path(path).name
    given = shell_word(name)
    return Problem(
        code="untrusted-file",
        key=key,
        got=str(path) if key else None,
        file=None if key else str(path),
        must=f"holds more than tensors ({inside}): {DANGER}",
        fix=f"take its .safetensors version, or if you trust whoever made it: --trust {given}",
    )


def check(config: TrainConfig) -> list[Problem]:
    """A problem for every weight file of the run that would run code and is not trusted. Reads names, opens nothing."""
    found = []
    for key in FILES:
        value = getattr(config, key)
        for file in value if isinstance(value, tuple) else (value,):
            if not file or not file.lower().endswith(PICKLES) or not Path(file).is_file():
                continue
            if not trusted_file(config.trust, file) and (names := foreign_names(Path(file))):
                found.append(untrusted(key, file, names))
    return found
