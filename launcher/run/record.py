"""run.json: what a run was made of (origins, versions, fingerprints) and one entry for every start of it."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import platform
import struct
import zlib
from pathlib import Path
from typing import Any

from launcher.check import paths
from launcher.check.plan import Plan
from launcher.run.files import write_json
from schemas.config import Option, table
from schemas.files.run_folder import (
    RECORD,
    last_step,
    read_record,
    states_in,
)
from schemas.files.textfile import open_regular

PACKAGES = ("kohyakit", "torch", "accelerate", "diffusers", "transformers", "peft", "safetensors", "lycoris_lora",
            "bitsandbytes", "xformers", "prodigyopt", "numpy", "pillow")  # fmt: skip
MARKED = 4096  # bytes at each of three places of a picture


def describe(plan: Plan) -> dict[str, Any]:
    """The document at the first start."""
    resolved = plan.checked.resolved
    return {
        "file": resolved.draft.file,
        "format": resolved.draft.format,
        "family": plan.family,
        "origins": {name: entry for name, entry in resolved.argument_table().items() if entry["origin"] != "default"},
        "options": options(plan),
        "adapted": [change.as_json() for change in plan.checked.adapted],
        "command": plan.command,
        "accelerate": plan.launch.as_json(),
        "steps": plan.steps_json(),
        "versions": versions(),
        "machine": machine(plan),
        "dataset": dataset_fingerprint(plan),
        "model": model_fingerprint(plan.config.pretrained_model_name_or_path),
        "vae": model_fingerprint(plan.config.vae),
        "starts": [],
    }


def options(plan: Plan) -> dict[str, Any]:
    """Every argument that is not at the trainer's own default, secrets blanked."""
    shown = plan.checked.resolved.argument_table()
    return {name: shown[name]["value"] for name, option in table().items() if _value(option) != shown[name]["value"]}


def _value(option: Option) -> Any:
    """The default as `argument_table` shows values."""
    return list(option.default) if isinstance(option.default, tuple) else option.default


def versions() -> dict[str, str]:
    """Python and the packages that decide what is computed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine(plan: Plan) -> dict[str, Any]:
    """What rounding depends on: the cards, or on a CPU its kind and the threads of a process."""
    from launcher.check.machine import this_machine

    found: dict[str, Any] = {"system": f"{platform.system()} {platform.machine()}"}
    if plan.launch.cpu:
        return {**found, "device": "cpu", "threads": plan.launch.threads}
    return {**found, "device": ", ".join(gpu.name for gpu in this_machine().gpus)}


def dataset_fingerprint(plan: Plan) -> dict[str, Any]:
    """One hash over all pictures and captions, what was counted, and per picture [its mark, its caption's mark].

    Marks are of content, so that a copy of the data on another machine is the same data.
    """
    scan = plan.checked.scan
    samples = (*scan.samples, *scan.validation) if scan else ()
    roots = {str(sample.path.parent.parent) for sample in samples}
    root = Path(next(iter(roots))) if len(roots) == 1 else None
    files: dict[str, list[str | None]] = {}
    for sample in samples:
        path = sample.path
        name = path.relative_to(root).as_posix() if root else path.as_posix()
        text = sample.caption if sample.has_caption else None
        files[name] = [_mark(path), None if text is None else f"{zlib.crc32(text.encode('utf-8', 'replace')):08x}"]
    digest = hashlib.sha256(json.dumps(sorted(files.items())).encode())
    counted = plan.dataset_json() or {}
    found = {"fingerprint": digest.hexdigest(), "images": counted.get("images")}
    return {**found, "repeats": counted.get("repeats_total"), "files": files}


def _mark(path: Path) -> str:
    """Size and a sum over the ends and the middle of a file: an edited picture has another."""
    size = path.stat().st_size
    total = 0
    with path.open("rb") as stream:
        for place in sorted({0, max(0, size // 2), max(0, size - MARKED)}):
            stream.seek(place)
            total = zlib.crc32(stream.read(MARKED), total)
    return f"{size}-{total:08x}"


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
        with open_regular(path, what="weights file") as stream:
            start = stream.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            digest.update(start + stream.read(min(length, 100 * 2**20)))
            if size > 2**20:
                stream.seek(-(2**20), 2)
            digest.update(stream.read(2**20))
    return {"name": path.name, "size": size, "fingerprint": digest.hexdigest()}


def now() -> str:
    """Local time with its offset, to the second."""
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def begin(folder: Path, plan: Plan, *, mode: str) -> None:
    """Adds a start; the entry has no end while the run goes on."""
    record = read_record(folder)
    if "options" not in record:  # the first start, or a file that was lost or damaged since
        record = {**describe(plan), **record}
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
    write_json(folder / RECORD, record)


def end(folder: Path, code: int) -> dict[str, Any]:
    """Closes the newest start with its exit code and the last step that the log knows."""
    record = read_record(folder)
    if record.get("starts"):
        record["starts"][-1] |= {"end": now(), "exit": code, "last_step": last_step(folder)}
        write_json(folder / RECORD, record)
    return record


def newest_state(folder: Path) -> Path | None:
    """The whole state with the highest step, as far as sizes tell."""
    return next((state.path for state in reversed(states_in(folder)) if state.whole), None)


def saved_files(plan: Plan, since: float = 0.0) -> list[Path]:
    """What a run has left since that time, weights first, then its newest state."""
    results = paths.existing_results(plan.checked.resolved)
    there = [path for path in results if path.suffix != ".run" and path.stat().st_mtime >= since - 1]
    there.sort(key=lambda path: path.stem != paths.run_name(plan.checked.resolved))
    state = newest_state(paths.run_folder(plan.checked.resolved))
    return [*there, *([state] if state else [])]
