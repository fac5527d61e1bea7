"""What two small runs have left, compared file by file, and whether every file of a killed one is whole."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from trainer.dataset.images import opened
from trainer.output.states import is_whole

NAME = "n0m3"  # output_name of the runs


def files_in(place: Path) -> dict[str, Path]:
    """Files by name, previews without their time; what the torture itself writes is left out."""
    found = {}
    for top in (place / "out", place / "data"):
        for path in sorted(top.rglob("*")) if top.is_dir() else ():
            if path.is_file():
                name = re.sub(r"_\d{14}(?=[_.])", "_TIME", str(path.relative_to(place)))
                found[name if name not in found else f"{name} twice"] = path
    return found


def unsound(place: Path) -> list[str]:
    """Files under their final names that are not whole."""
    bad = []
    for name, path in files_in(place).items():
        if any(part.startswith(".") for part in path.parts[len(place.parts) :]):
            continue
        try:
            if path.suffix == ".safetensors":
                safetensors.torch.load_file(path)
            elif path.suffix == ".npz":
                with np.load(path) as stored:
                    [stored[key] for key in stored.files]
            elif path.suffix == ".png":
                with opened(path) as image:
                    image.load()
            elif path.suffix == ".json":
                json.loads(path.read_text(encoding="utf-8"))
        except Exception as fault:
            bad.append(f"{name}: {type(fault).__name__}")
    states = (place / "out" / f"{NAME}.run").glob("state-*")
    return [*bad, *(f"{state.name}: not whole" for state in states if not is_whole(state))]


def losses(place: Path) -> list[tuple[int, float]]:
    """(step, loss) of every record."""
    lines = (place / "out" / f"{NAME}.run" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [(record["step"], record["loss"]) for record in map(json.loads, lines)]


def differences(whole: Path, parted: Path) -> list[str]:
    """How a resumed run's results differ from the undisturbed run's; headers with dates excepted."""
    one, other = files_in(whole), files_in(parted)
    found = [
        f"{name}: only {'undisturbed' if name in one else 'resumed'}" for name in sorted(one.keys() ^ other.keys())
    ]
    for name in sorted(one.keys() & other.keys()):
        if name.endswith(".safetensors"):
            left, right = (safetensors.torch.load_file(files[name]) for files in (one, other))
            if left.keys() != right.keys() or not all(torch.equal(left[key], right[key]) for key in left):
                found.append(f"{name}: other tensors")
        elif name.endswith(".npz"):
            with np.load(one[name]) as first, np.load(other[name]) as second:
                keys = [key for key in first.files if key != "kohyakit_fingerprint"]
                if not all(np.array_equal(first[key], second[key]) for key in keys):
                    found.append(f"{name}: other arrays")
        elif name.endswith(".png") and one[name].read_bytes() != other[name].read_bytes():
            found.append(f"{name}: another picture")
    return found if losses(whole) == losses(parted) else [*found, "log.jsonl: other losses"]
