"""What the disk says of a config's paths: missing inputs, folders of another machine, results in the way."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

from launcher.check.resolve import Resolved
from schemas.config import Option, table
from schemas.files.run_folder import last_step
from schemas.files.saved_names import MOMENT, saved_as
from schemas.files.weights import lora_file
from schemas.problems import Problem
from schemas.rules import names
from schemas.terminal import shell_word

OUTPUTS = ("output_dir", "logging_dir", "console_log_file")
READ_AS_FILES = ("network_weights", "base_weights", "log_tracker_config")
LEFT_TO_OTHERS = ("pretrained_model_name_or_path", "config_file", "tokenizer_cache_dir", "offload_optimizer_nvme_path",
                  "offload_param_nvme_path")  # fmt: skip
HOMES = ("home", "Users", "mnt", "media", "Volumes")
DEFAULT_NAME = "last"  # the reference's name for the final file when output_name is unset
EXTENSIONS = (".safetensors", ".ckpt", ".pt")


def run_name(resolved: Resolved) -> str:
    """Base name of everything the run writes."""
    return resolved.config.output_name or DEFAULT_NAME


def output_dir(resolved: Resolved) -> Path:
    """Folder of the results."""
    return Path(resolved.config.output_dir or ".")


def run_folder(resolved: Resolved) -> Path:
    """`<output_dir>/<output_name>.run`."""
    return output_dir(resolved) / f"{run_name(resolved)}.run"


def foreign(path: str) -> bool:
    """Whether an absolute path cannot be of this machine: another system's form, or a root that is not here."""
    windows = re.match(r"^[A-Za-z]:[\\/]|^\\\\", path) is not None
    if os.name == "nt":
        return path.startswith("/") and not path.startswith("//")
    if windows:
        return True
    if not path.startswith("/"):
        return False
    parts = PurePosixPath(path).parts
    depth = 3 if len(parts) > 2 and parts[1] in HOMES else 2
    return not os.path.exists(os.path.join(*parts[:depth]))


def path_problems(resolved: Resolved) -> list[Problem]:
    """Every path argument that this machine cannot serve, except the base model and the training pictures' content."""
    model = "pretrained_model_name_or_path"  # opened, and judged, elsewhere
    found = [resolved.placed(one) for one in names.irregular(resolved.config) if one.key != model]
    irregular = {problem.got for problem in found}
    for option in table().values():
        value = getattr(resolved.config, option.name)
        if not option.path or not value or option.name in LEFT_TO_OTHERS or _unused(resolved, option.name):
            continue
        for path in value if isinstance(value, tuple) else (value,):
            problem = None if path in irregular else _path_problem(resolved, option, path)
            if problem is not None:
                found.append(resolved.placed(problem))
    return found


def _unused(resolved: Resolved, name: str) -> bool:
    """Folder options that a dataset_config replaces, and names that are not local paths."""
    config = resolved.config
    if config.dataset_config or resolved.draft.datasets is not None:
        if name in ("train_data_dir", "reg_data_dir", "in_json"):
            return True
    setting = resolved.settings.get(name)
    if setting is not None and setting.origin == "computed" and name in ("dataset_config", "sample_prompts"):
        return True  # written into the run folder at launch
    if name == "resume" and config.resume_from_huggingface:
        return True
    return name == "metadata_thumbnail" and str(config.metadata_thumbnail).startswith("data:")


def without(resolved: Resolved, name: str) -> str:
    """The --set words that leave a path out, with those of the options that need it."""
    config = resolved.config
    if name == "logging_dir" and config.log_with:
        return "--set logging_dir= --set log_with="
    if name == "network_weights" and config.dim_from_weights:
        return "--set network_weights= --set dim_from_weights=false"
    return f"--set {name}="


def _path_problem(resolved: Resolved, option: Option, path: str) -> Problem | None:
    name = option.name
    setting = resolved.settings.get(name)
    given_here = setting is not None and setting.origin in ("--set", "computed")
    required = name in ("output_dir", "train_data_dir", "dataset_config")
    fix = f"--set {name}=PATH" if required else f"--set {name}=PATH, or {without(resolved, name)} to go without"
    if not given_here and foreign(path) and not os.path.exists(path):
        must = "is a path of another machine; it is not created here"
        return Problem(code="foreign-path", key=name, got=path, must=must, fix=fix)
    if name in OUTPUTS:
        return _unwritable(name, path, fix)
    if not os.path.exists(path):
        if name == "vae" and _hub_id(path):
            must = "is not on this machine; nothing is downloaded during a run"
            return Problem(code="not-downloaded", key=name, got=path, must=must, fix=fix)
        return Problem(code="no-file", key=name, got=path, must="does not exist", fix=fix)
    if name in READ_AS_FILES and os.path.isdir(lora_file(path)):
        return Problem(code="not-a-file", key=name, got=path, must="is a folder that holds no such file", fix=fix)
    return None


def _hub_id(path: str) -> bool:
    return re.fullmatch(r"[\w.-]+/[\w.-]+", path) is not None


def _unwritable(name: str, path: str, fix: str) -> Problem | None:
    folder = Path(path).parent if name == "console_log_file" else Path(path)
    if name == "console_log_file" and os.path.isdir(path):
        return Problem(code="not-a-file", key=name, got=path, must="is a folder, not a file", fix=fix)
    places = (Path(path), *Path(path).parents)
    lost = next((place for place in places if place.is_symlink() and not place.exists()), None)
    if lost is not None:
        must = f"leads through {lost}, a link to nothing that is there"
        return Problem(code="not-writable", key=name, got=path, must=must, fix=fix)
    if folder.exists() and not folder.is_dir():
        return Problem(code="not-a-folder", key=name, got=path, must="is a file, not a folder", fix=fix)
    parent = folder.absolute()
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        return Problem(
            code="not-writable", key=name, got=path, must=f"cannot be created or written in {parent}", fix=fix
        )
    return None


def existing_results(resolved: Resolved) -> list[Path]:
    """Files of an earlier run under the same name: trained weights, states, and a run folder that has begun."""
    folder, name = output_dir(resolved), run_name(resolved)
    if not folder.is_dir():
        return []
    saved, state = saved_as(name), re.compile(rf"{re.escape(name)}({MOMENT})?-state")
    found = sorted(path for path in folder.iterdir() if saved.fullmatch(path.name) or state.fullmatch(path.name))
    run = folder / f"{name}.run"
    return [*found, run] if has_begun(run) else found


def has_begun(run: Path) -> bool:
    """Whether a run folder holds a state or a step; a start that was killed before those has left nothing to keep."""
    return run.is_dir() and (any(run.glob("state-*")) or last_step(run) is not None)


def bytes_there(resolved: Resolved) -> int:
    """What the results of this run take on the disk already."""
    places = existing_results(resolved)
    files = [file for place in places for file in (place.rglob("*") if place.is_dir() else (place,))]
    return sum(file.stat().st_size for file in files if file.is_file())


def overwrite_problem(resolved: Resolved) -> Problem | None:
    """Refusal to replace an earlier run, naming what is there."""
    if resolved.config.overwrite:
        return None
    there = existing_results(resolved)
    if not there:
        return None
    names = ", ".join(path.name for path in there[:6]) + (f" and {len(there) - 6} more" if len(there) > 6 else "")
    fix = f"{_going_on(there)}, another name with --set output_name=NAME, or --overwrite"
    must = f"already has results in {output_dir(resolved)}: {names}"
    return resolved.placed(Problem(code="results-exist", key="output_name", got=run_name(resolved), must=must, fix=fix))


def _going_on(there: list[Path]) -> str:
    """The command that goes on with an earlier run: exactly from its state, or further from its LoRA."""
    place = there[-1]  # the run folder, where there is one
    more = "" if any(place.glob("state-*")) or (place == there[0] and place.is_dir()) else " --epochs 2"
    return f"kohyakit resume {shell_word(place)}{more}"


def as_warnings(problems: list[Problem]) -> Iterator[Problem]:
    """The same findings about a file that may have been written for another machine."""
    for problem in problems:
        yield replace(problem, severity="warning") if problem.severity == "error" else problem
