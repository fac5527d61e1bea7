"""Training states: a folder of plain files that appears and goes as a whole, and brings a run back to the bit."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from schemas.files.run_folder import (
    MANIFEST,
    PROGRESS,
    judge,
    manifest_of,
    sealed,
)
from schemas.files.run_folder import states_in as all_states_in
from schemas.files.writing import sync_folder, write_atomically
from schemas.problems import ConfigError, error

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
        _write_json(scratch / PROGRESS, sealed(progress))
        _write_json(scratch / MANIFEST, manifest_of(scratch))
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


def _write_part(folder: Path, name: str, part: Any) -> None:
    if hasattr(part, "exact_state"):
        tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in part.exact_state().items()}
        image = safetensors.torch.save(tensors)
        write_atomically(folder / f"{name}.safetensors", lambda stream: stream.write(image))
    else:
        state = part.state_dict()
        write_atomically(folder / f"{name}.pt", lambda stream: torch.save(state, stream))


def load_state(folder: Path, parts: Mapping[str, Any], *, verified: bool = False) -> dict[str, Any]:
    """Put every part back and return the progress; ConfigError when the state is unfinished, damaged or another's.

    Nothing is put back before every file of these parts has its checksum, unless the caller has `verified` that.
    """
    state = judge(folder, contents=not verified, only={_file_of(name, part) for name, part in parts.items()})
    if not state.whole:
        raise error("unfinished-state", f"is not a finished training state: {state.said}", key="resume",
                    got=str(folder), fix="name an older state")  # fmt: skip
    for name, part in parts.items():
        try:
            _read_part(folder, name, part)
        except ConfigError:
            raise
        except Exception as fault:
            reason = str(fault).partition("\n")[0] or type(fault).__name__
            raise error("state-mismatch", f"has a part that does not fit this run: {name} ({reason})", key="resume",
                        got=str(folder), fix="resume with the options of the first run") from fault  # fmt: skip
    return dict(state.progress)


def _file_of(name: str, part: Any) -> str:
    return f"{name}.safetensors" if hasattr(part, "exact_state") else f"{name}.pt"


def _read_part(folder: Path, name: str, part: Any) -> None:
    if hasattr(part, "exact_state"):
        tensors: dict[str, Tensor] = safetensors.torch.load_file(folder / _file_of(name, part))
        part.load_exact_state(tensors)
    else:
        # weights_only: a state may come from elsewhere, and pickle runs code
        part.load_state_dict(torch.load(folder / _file_of(name, part), map_location="cpu", weights_only=True))


def is_whole(folder: Path) -> bool:
    """Whether a state is finished and every file of it has its full length (a copy may have been cut off)."""
    return judge(folder).whole


def read_progress(folder: Path) -> dict[str, Any] | None:
    """The progress of a state; None when it is not whole."""
    state = judge(folder)
    return dict(state.progress) if state.whole else None


def write_progress(folder: Path, progress: Mapping[str, Any]) -> None:
    """A new progress for a finished state: the weights are the same, the position may be another name for it."""
    _write_json(folder / PROGRESS, sealed(progress))


def states_in(run_folder: Path) -> list[Path]:
    """The finished states of a run folder, by step."""
    return [state.path for state in all_states_in(run_folder) if state.whole]


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


class Named:
    """The whole states of a run folder by the names that they stand for.

    They are read once: a run may keep thousands, and each save asks for those that rotation drops. Whoever writes or
    removes a state tells it.
    """

    def __init__(self, run_folder: Path) -> None:
        self._names: dict[Path, list[str]] = {}
        self._places: dict[str, Path] = {}
        self.nameless: dict[Path, None] = {}
        for state in all_states_in(run_folder):
            if state.whole:
                self.add(state.path, state.progress.get("saves", []))

    def add(self, state: Path, names: Iterable[str]) -> None:
        """A state that is there now, or has other names now."""
        self.forget(state)
        self._names[state] = list(names)
        self._places |= dict.fromkeys(self._names[state], state)
        if not self._names[state]:
            self.nameless[state] = None

    def forget(self, state: Path) -> None:
        """A state that is gone."""
        self.nameless.pop(state, None)
        for name in self._names.pop(state, []):
            if self._places.get(name) == state:
                del self._places[name]

    def of(self, state: Path) -> list[str]:
        return list(self._names.get(state, []))

    def under(self, names: Iterable[str]) -> list[Path]:
        """The states that stand for one of these names, or more, by step."""
        return sorted({self._places[name] for name in names if name in self._places})
