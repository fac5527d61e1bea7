"""Training states: a folder of plain files that appears and goes as a whole, and brings a run back to the bit."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from schemas.problems import ConfigError, error
from schemas.writing import sync_folder, write_atomically

COMPLETE = "complete"  # written last; lists the bytes of every other file
PROGRESS = "progress.json"
UNDER_WAY = re.compile(r"\.(?P<name>.*state.*)\.\d+\.(?:tmp|old)")  # temporary names of a state folder


def save_state(folder: Path, parts: Mapping[str, Any], progress: Mapping[str, Any]) -> None:
    """Write every part's state and the readable `progress` (JSON) into `folder`, replacing an older one of that name.

    A part has `state_dict` and `load_state_dict`; an adapter's exact state is kept as safetensors, the others as
    NAME.pt. The folder is made under a temporary name and renamed when all of it is on the disk.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        scratch.mkdir()
        for name, part in parts.items():
            _write_part(scratch, name, part)
        _write_json(scratch / PROGRESS, progress)
        _write_json(scratch / COMPLETE, {path.name: path.stat().st_size for path in _parts_in(scratch)})
        if folder.exists():
            old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
            folder.rename(old)  # a kill between the two renames is mended by `sweep_states`
            scratch.rename(folder)
            shutil.rmtree(old, ignore_errors=True)
        else:
            scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    sync_folder(folder.parent)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    text = json.dumps(dict(value), indent=1).encode()
    write_atomically(path, lambda stream: stream.write(text))


def _parts_in(folder: Path) -> Iterator[Path]:
    """The files that must not change any more; progress may be written anew."""
    return (path for path in folder.iterdir() if path.name not in (COMPLETE, PROGRESS))


def _write_part(folder: Path, name: str, part: Any) -> None:
    if hasattr(part, "exact_state"):
        tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in part.exact_state().items()}
        image = safetensors.torch.save(tensors)
        write_atomically(folder / f"{name}.safetensors", lambda stream: stream.write(image))
    else:
        state = part.state_dict()
        write_atomically(folder / f"{name}.pt", lambda stream: torch.save(state, stream))


def load_state(folder: Path, parts: Mapping[str, Any]) -> dict[str, Any]:
    """Put every part back and return the progress; ConfigError when the state is unfinished, damaged or another's."""
    if not is_whole(folder):
        raise error("unfinished-state", "is not a finished training state", key="resume", got=str(folder),
                    fix="name an older state")  # fmt: skip
    for name, part in parts.items():
        try:
            _read_part(folder, name, part)
        except ConfigError:
            raise
        except Exception as fault:
            reason = str(fault).partition("\n")[0] or type(fault).__name__
            raise error("state-mismatch", f"has a part that does not fit this run: {name} ({reason})", key="resume",
                        got=str(folder), fix="resume with the options of the first run") from fault  # fmt: skip
    return read_progress(folder) or {}


def _read_part(folder: Path, name: str, part: Any) -> None:
    if hasattr(part, "exact_state"):
        tensors: dict[str, Tensor] = safetensors.torch.load_file(folder / f"{name}.safetensors")
        part.load_exact_state(tensors)
    else:
        # weights_only: a state may come from elsewhere, and pickle runs code
        part.load_state_dict(torch.load(folder / f"{name}.pt", map_location="cpu", weights_only=True))


def is_whole(folder: Path) -> bool:
    """Whether a state is finished and every file of it has its full length (a copy may have been cut off)."""
    try:
        text = (folder / COMPLETE).read_text(encoding="utf-8")
        sizes: dict[str, int] = json.loads(text)
        return all((folder / name).stat().st_size == size for name, size in sizes.items()) and bool(
            read_progress(folder)
        )
    except (OSError, ValueError, AttributeError):
        return False


def read_progress(folder: Path) -> dict[str, Any] | None:
    """progress.json of a state; None when it cannot be read."""
    try:
        found = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
        return found if isinstance(found, dict) and int(found["step"]) >= 0 else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_progress(folder: Path, progress: Mapping[str, Any]) -> None:
    """A new progress for a finished state: the weights are the same, the position may be another name for it."""
    _write_json(folder / PROGRESS, progress)


def states_in(run_folder: Path) -> list[Path]:
    """The finished states of a run folder, by step."""
    found = []
    for folder in run_folder.glob("*state*") if run_folder.is_dir() else ():
        if not folder.name.startswith(".") and is_whole(folder):
            progress = read_progress(folder)
            found.append((int(progress["step"]) if progress else -1, folder.name, folder))
    return [folder for _, _, folder in sorted(found)]


def newest_state(run_folder: Path) -> Path | None:
    """The finished state of the highest step in a run folder; None when there is none."""
    return next(reversed(states_in(run_folder)), None)


def remove_state(folder: Path) -> None:
    """Out of sight first: a removal that is cut off must not leave a part that looks like a state."""
    gone = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    shutil.rmtree(gone, ignore_errors=True)
    try:
        folder.rename(gone)
    except FileNotFoundError:
        return
    shutil.rmtree(gone, ignore_errors=True)


def sweep_states(run_folder: Path) -> None:
    """Remove what a killed start left under temporary names; a finished state whose last rename was missed is kept.

    Nobody else may be writing in this folder.
    """
    for path in sorted(run_folder.glob(".*"), key=lambda path: path.suffix != ".tmp"):  # the newer ones first
        match = UNDER_WAY.fullmatch(path.name)
        if match is None:
            continue
        if path.suffix == ".tmp" and is_whole(path) and not (run_folder / match["name"]).exists():
            path.rename(run_folder / match["name"])
        else:
            shutil.rmtree(path, ignore_errors=True)
