"""run.json: what a run was made of (origins, versions, fingerprints) and one entry for every start of it."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import platform
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launcher import paths
from launcher.files import write_json
from launcher.plan import Plan

PACKAGES = ("kohyakit", "torch", "accelerate", "diffusers", "transformers", "peft", "safetensors", "lycoris_lora",
            "bitsandbytes", "xformers", "prodigyopt", "numpy", "pillow")  # fmt: skip


def describe(plan: Plan) -> dict[str, Any]:
    """The document at the first start."""
    resolved = plan.checked.resolved
    return {
        "file": resolved.draft.file,
        "format": resolved.draft.format,
        "family": plan.family,
        "origins": {name: entry for name, entry in resolved.argument_table().items() if entry["origin"] != "default"},
        "adapted": [change.as_json() for change in plan.checked.adapted],
        "command": plan.command,
        "accelerate": plan.launch.as_json(),
        "steps": plan.steps_json(),
        "versions": versions(),
        "dataset": dataset_fingerprint(plan),
        "model": model_fingerprint(plan.config.pretrained_model_name_or_path),
        "starts": [],
    }


def versions() -> dict[str, str]:
    """Python and the packages that decide what is computed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def dataset_fingerprint(plan: Plan) -> dict[str, Any]:
    """One hash over names, sizes and times of all pictures and captions, and what was counted."""
    scan = plan.checked.scan
    digest = hashlib.sha256()
    for sample in scan.samples if scan else ():
        for path in _files(sample.path, plan.config.caption_extension):
            facts = path.stat()
            digest.update(f"{path.parent.name}/{path.name} {facts.st_size} {facts.st_mtime_ns}\n".encode())
    counted = plan.dataset_json() or {}
    return {"fingerprint": digest.hexdigest(), "images": counted.get("images"), "repeats": counted.get("repeats_total")}


def _files(picture: Path, extension: str) -> Iterator[Path]:
    yield picture
    caption = picture.with_suffix(extension) if extension.startswith(".") else picture
    if caption != picture and caption.exists():
        yield caption


def model_fingerprint(model: str | None) -> dict[str, Any]:
    """Name, size and a hash of a safetensors file's header (or of a folder's file names and sizes)."""
    if not model or not Path(model).exists():
        return {"name": model}
    path = Path(model)
    digest = hashlib.sha256()
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        for file in files:
            digest.update(f"{file.relative_to(path)} {file.stat().st_size}\n".encode())
        size = sum(file.stat().st_size for file in files)
    else:
        size = path.stat().st_size
        with path.open("rb") as stream:
            start = stream.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            digest.update(start + stream.read(min(length, 100 * 2**20)))
            if size > 2**20:
                stream.seek(-(2**20), 2)
            digest.update(stream.read(2**20))
    return {"name": path.name, "size": size, "fingerprint": digest.hexdigest()}


def read_record(folder: Path) -> dict[str, Any]:
    """run.json of a run folder; empty when there is none or it cannot be read."""
    try:
        found = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def now() -> str:
    """Local time with its offset, to the second."""
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def begin(folder: Path, plan: Plan, *, mode: str) -> None:
    """Adds a start; the entry has no end while the run goes on."""
    record = read_record(folder) or describe(plan)
    record.setdefault("starts", []).append(
        {
            "begin": now(),
            "end": None,
            "exit": None,
            "last_step": None,
            "mode": mode,
            "command": plan.command,
            "processes": plan.launch.num_processes,
            "versions": versions(),
        }
    )
    write_json(folder / "run.json", record)


def end(folder: Path, code: int) -> dict[str, Any]:
    """Closes the newest start with its exit code and the last step that the log knows."""
    record = read_record(folder)
    if record.get("starts"):
        record["starts"][-1] |= {"end": now(), "exit": code, "last_step": last_step(folder)}
        write_json(folder / "run.json", record)
    return record


def last_step(folder: Path) -> int | None:
    """The step of the newest whole line of log.jsonl."""
    try:
        with (folder / "log.jsonl").open("rb") as stream:
            stream.seek(0, 2)
            stream.seek(max(0, stream.tell() - 65536))
            lines = stream.read().splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            step = json.loads(line).get("step")
        except (ValueError, AttributeError):
            continue
        if isinstance(step, int):
            return step
    return None


def newest_state(folder: Path) -> Path | None:
    """The finished state with the highest step: it has its progress.json, which is written last."""
    states = [path for path in folder.glob("state-*") if (path / "progress.json").is_file()]
    return max(
        states, key=lambda path: int(path.name.rpartition("-")[2] or 0) if path.name[6:].isdigit() else -1, default=None
    )


def saved_files(plan: Plan, since: float = 0.0) -> list[Path]:
    """What a run has left since that time, weights first, then its newest state."""
    results = paths.existing_results(plan.checked.resolved)
    there = [path for path in results if path.suffix != ".run" and path.stat().st_mtime >= since - 1]
    there.sort(key=lambda path: path.stem != paths.run_name(plan.checked.resolved))
    state = newest_state(paths.run_folder(plan.checked.resolved))
    return [*there, *([state] if state else [])]
