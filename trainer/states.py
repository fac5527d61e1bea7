"""Training states: a folder of plain files that appears whole, and brings a run back to the bit."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from schemas.problems import ConfigError, error
from trainer.lora_file import sync_folder, write_atomically

COMPLETE = "complete"
PROGRESS = "progress.json"


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
        text = json.dumps(dict(progress), indent=1).encode()
        write_atomically(scratch / PROGRESS, lambda stream: stream.write(text))
        write_atomically(scratch / COMPLETE, lambda stream: None)
        if folder.exists():
            old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
            folder.rename(old)
            scratch.rename(folder)
            shutil.rmtree(old, ignore_errors=True)
        else:
            scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    sync_folder(folder.parent)


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
    if not (folder / COMPLETE).is_file():
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
    progress: dict[str, Any] = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
    return progress


def _read_part(folder: Path, name: str, part: Any) -> None:
    if hasattr(part, "exact_state"):
        tensors: dict[str, Tensor] = safetensors.torch.load_file(folder / f"{name}.safetensors")
        part.load_exact_state(tensors)
    else:
        # weights_only: a state may come from elsewhere, and pickle runs code
        part.load_state_dict(torch.load(folder / f"{name}.pt", map_location="cpu", weights_only=True))


def newest_state(run_folder: Path) -> Path | None:
    """The finished state of the highest step in a run folder; None when there is none."""
    found = []
    for folder in run_folder.glob("*state*") if run_folder.is_dir() else ():
        if (folder / COMPLETE).is_file() and not folder.name.startswith("."):
            try:
                step = int(json.loads((folder / PROGRESS).read_text(encoding="utf-8"))["step"])
            except (OSError, ValueError, KeyError, TypeError):
                continue
            found.append((step, folder.name, folder))
    return max(found)[2] if found else None
