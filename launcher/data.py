"""Data and prompts that a config file carries itself: part of the plan, written into the run folder at launch."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher import paths
from launcher.resolve import Resolved
from schemas.problems import Problem

if TYPE_CHECKING:
    from trainer.dataset.files import Scan

DATASET, PROMPTS = "dataset.toml", "prompt.txt"


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
    """The scan of the training pictures. A carried document passes through a temporary file outside the run."""
    from trainer.dataset.files import scan

    found = document(resolved)
    if found is None:
        return scan(resolved.config, verify=verify)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / DATASET
        file.write_text(carried_files(resolved)[DATASET], encoding="utf-8")
        result = scan(replace(resolved.config, dataset_config=str(file)), verify=verify)
        return replace(result, problems=[_of_file(problem, str(file), resolved) for problem in result.problems])


def _of_file(problem: Problem, temporary: str, resolved: Resolved) -> Problem:
    return replace(problem, file=resolved.draft.file) if problem.file == temporary else problem


def prompt_problems(resolved: Resolved) -> list[Problem]:
    """Faults of the preview prompts, wherever they come from, before they can stop a run half-way."""
    from schemas.problems import ConfigError
    from trainer.dataset.prompts import read_prompts

    config, text = resolved.config, resolved.draft.prompts
    if not config.sample_prompts or not (text or Path(config.sample_prompts).is_file()):
        return []
    try:
        if text is None:
            read_prompts(config.sample_prompts)
        else:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / PROMPTS
                file.write_text(text, encoding="utf-8")
                read_prompts(file)
    except ConfigError as fault:
        return [resolved.placed(replace(problem, key="sample_prompts", file=None)) for problem in fault.problems]
    return []
