"""Data and prompts that a config file carries itself: part of the plan, written into the run folder at launch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.check import paths
from launcher.check.resolve import Resolved
from schemas.config import table
from schemas.problems import Problem

if TYPE_CHECKING:
    from trainer.dataset.files import Scan

DATASET, PROMPTS = "dataset.toml", "prompt.txt"
DOCUMENT_PATHS = ("image_dir", "metadata_file", "conditioning_data_dir")


def unpack(resolved: Resolved) -> Resolved:
    """The same with arguments that point to where the carried files will be written."""
    found = document(resolved)
    if found is not None:
        resolved = replace(resolved, draft=replace(resolved.draft, datasets=found))
        resolved = resolved.change("dataset_config", str(paths.run_folder(resolved) / DATASET), "computed")
        for name in ("train_data_dir", "reg_data_dir", "in_json"):
            if getattr(resolved.config, name):
                resolved = resolved.change(name, None, "computed")
    if resolved.draft.prompts:
        resolved = resolved.change("sample_prompts", str(paths.run_folder(resolved) / PROMPTS), "computed")
    return resolved


def document(resolved: Resolved) -> Mapping[str, Any] | None:
    """The dataset_config document that the file describes: its own, or one plain folder with the file's repeats."""
    if resolved.draft.datasets is not None:
        return resolved.draft.datasets
    repeats, folder = resolved.draft.carry.get("num_repeats"), resolved.config.train_data_dir
    if not repeats or not folder or resolved.config.dataset_config or resolved.config.in_json:
        return None
    if not Path(folder).is_dir() or _numbered(Path(folder)):
        return None
    return {"datasets": [{"subsets": [{"image_dir": folder, "num_repeats": int(repeats)}]}]}


def _numbered(folder: Path) -> bool:
    return any(path.is_dir() and path.name.partition("_")[0].isdigit() for path in folder.iterdir())


def carried_files(resolved: Resolved) -> dict[str, str]:
    """Name in the run folder -> text."""
    files = {}
    found = document(resolved)
    if found is not None:
        import toml

        files[DATASET] = toml.dumps(dict(found))
    if resolved.draft.prompts:
        files[PROMPTS] = resolved.draft.prompts.rstrip("\n") + "\n"
    return files


def scan_pictures(resolved: Resolved, *, verify: bool = False) -> Scan:
    """The scan of the training pictures, carried documents included."""
    from trainer.dataset.files import scan

    found = document(resolved)
    result = scan(resolved.config, verify=verify, document=found)
    if found is None:
        return result
    return replace(result, problems=[replace(one, file=one.file or resolved.draft.file) for one in result.problems])


def prompt_problems(resolved: Resolved) -> list[Problem]:
    """Faults of the preview prompts, wherever they come from, before they can stop a run half-way."""
    from schemas.problems import ConfigError
    from trainer.dataset.prompts import read_prompts

    config, text = resolved.config, resolved.draft.prompts
    if not config.sample_prompts or not (text or Path(config.sample_prompts).is_file()):
        return []
    found: list[Problem] = []
    try:
        read_prompts(config.sample_prompts, found, text=text)
    except ConfigError as fault:
        found = fault.problems
    if not text:
        return found  # of the prompt file itself, with its own lines
    return [resolved.placed(replace(problem, key="sample_prompts", file=None, line=None)) for problem in found]


def anchored(resolved: Resolved) -> Resolved:
    """The same with every path that is here, or will be made here, absolute: a run outlives the folder it began in."""
    for name, option in table().items():
        value, setting = getattr(resolved.config, name), resolved.settings.get(name)
        if not option.path or not value or setting is None:
            continue
        made = name in paths.OUTPUTS or setting.origin == "computed"
        if isinstance(value, tuple):
            after: Any = tuple(_absolute(path, made=made) for path in value)
        else:
            after = _absolute(value, made=made)
        if after != value:
            resolved = resolved.change(name, after, setting.origin)
    held = resolved.draft.datasets
    if held is None:
        held = _with_relative_paths(resolved.config.dataset_config)
        if held is not None:
            place = (paths.run_folder(resolved) / DATASET).absolute()
            resolved = resolved.change("dataset_config", str(place), "computed")
    if held is None:
        return resolved
    return replace(resolved, draft=replace(resolved.draft, datasets=_anchored_document(held)))


def _absolute(path: str, *, made: bool = False) -> str:
    if os.path.isabs(path) or paths.foreign(path) or not (made or os.path.exists(path)):
        return path
    return os.path.abspath(path)


def _anchored_document(held: Any) -> Any:
    """A dataset_config document with absolute paths."""
    if isinstance(held, Mapping):
        return {
            name: _absolute(value) if name in DOCUMENT_PATHS and isinstance(value, str) else _anchored_document(value)
            for name, value in held.items()
        }
    return [_anchored_document(one) for one in held] if isinstance(held, list) else held


def _with_relative_paths(file: str | None) -> Mapping[str, Any] | None:
    """The document of a dataset_config file that names folders from where the user stands; None for any other."""
    if not file or not os.path.isfile(file):
        return None
    from schemas.problems import ConfigError
    from trainer.dataset.document import read_document

    try:
        found = read_document(file, [])
    except ConfigError:
        return None
    return found if _anchored_document(found) != found else None
