"""What keeps LoRA files from being merged, resized, extracted or converted, found from their headers alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from schemas.families import FAMILIES
from schemas.files import lora_names
from schemas.files.lora_kinds import DORA, Kind, kind_of, not_linear
from schemas.files.weights import (
    PICKLES,
    Header,
    checkpoint_family,
    lora_facts,
    lora_file,
    read_header,
)
from schemas.problems import ConfigError, Problem, error


def check(wish: Mapping[str, Any]) -> None:
    """ConfigError with what is wrong with a wish of `kohyakit lora`; torch is not needed to know it."""
    _output(Path(wish["output"]), overwrite=bool(wish["overwrite"]), folder=wish.get("to") == "peft")
    files = [Path(file) for file in wish["files"]]
    inputs = [*files, *([Path(wish["into"])] if wish.get("into") else [])]
    for file in inputs:
        _input(file)
        _is_not_output(file, Path(wish["output"]))
    if wish["do"] == "extract":
        _checkpoints(files)
        return
    headers = [read_header(lora_file(file)) for file in files]
    families = [lora_facts(lora_file(file)).family for file in files]
    if wish["do"] == "merge":
        _one_family(files, families)
        if wish["into"]:
            _fits_checkpoint(files, families, Path(wish["into"]))
        else:
            problems = [one for file, header in zip(files, headers, strict=True)
                        if (one := _no_sum(file, header, wish["rank"]))]  # fmt: skip
            if problems:
                raise ConfigError(problems)
        _same_widths(files, headers)
    elif wish["do"] == "resize":
        _has_low_rank(files[0], headers[0])
    elif wish["to"] != "kohya":
        _has_form(files[0], headers[0], wish["to"])


def _output(path: Path, *, overwrite: bool, folder: bool) -> None:
    if not path.absolute().parent.is_dir():
        raise error("no-folder", "is in a folder that does not exist", file=str(path), fix="make it first")
    if folder:
        if path.exists() and not path.is_dir():
            raise error("file-exists", "is a file; peft's form is a folder", file=str(path), fix="name a new folder")
        if path.is_dir() and any(path.iterdir()) and not overwrite:
            raise error("file-exists", "is not empty", file=str(path), fix="--overwrite, or another name")
        return
    if path.is_dir():
        raise error("file-exists", "is a folder", file=str(path), fix="name a file, such as merged.safetensors")
    if path.suffix != ".safetensors":
        fix = f"-o {path}.safetensors"
        raise error("bad-name", "must end in .safetensors, or other programs do not find it", file=str(path), fix=fix)
    if path.exists() and not overwrite:
        raise error("file-exists", "exists already", file=str(path), fix="--overwrite, or another name")


def _input(path: Path) -> None:
    if path.suffix.lower() in PICKLES:
        fix = "load it once in a program that saves .safetensors"
        raise error("pickled", "is a pickled file, which is not read here", file=str(path), fix=fix)
    if path.is_dir() and lora_file(path) == path:
        fix = "name the .safetensors file"
        raise error("no-file", "is a folder; a single file is needed", file=str(path), fix=fix)


def _is_not_output(file: Path, output: Path) -> None:
    if output.exists() and file.exists() and output.samefile(lora_file(file)):
        raise error("file-exists", "is read and written at once", file=str(output), fix="give another name with -o")


def _checkpoints(files: Sequence[Path]) -> None:
    families = [checkpoint_family(file) for file in files]
    for file, family in zip(files, families, strict=True):
        if family not in FAMILIES:
            must = "is a LoRA, not a checkpoint" if family == "lora" else f"is a checkpoint of the family {family}"
            fix = "extract TUNED BASE takes two whole checkpoints of Stable Diffusion 1.5, 2.x or XL"
            raise error("not-a-checkpoint", must, file=str(file), fix=fix)
    if len(set(families)) > 1:
        must = f"is {families[0]}, and {files[1]} is {families[1]}"
        raise error("wrong-family", must, file=str(files[0]), fix="name the base model it was tuned from")
    tuned, base = (read_header(file).tensors for file in files)
    wrong = [name for name, info in base.items() if name in tuned and tuned[name].shape != info.shape]
    if wrong:
        must = f"has {wrong[0]} of shape {list(tuned[wrong[0]].shape)}, BASE {list(base[wrong[0]].shape)}"
        raise error("wrong-shape", must, file=str(files[0]), fix="name the base model it was tuned from")


def _one_family(files: Sequence[Path], families: Sequence[str]) -> None:
    known = {family: file for file, family in zip(files, families, strict=True) if family != "unknown"}
    if len(known) > 1:
        (one, first), (other, second), *_ = known.items()
        must = f"is a LoRA for {one}, {second} is for {other}"
        raise error("wrong-family", must, file=str(first), fix="merge files of one base model's family")


def _fits_checkpoint(files: Sequence[Path], families: Sequence[str], model: Path) -> None:
    theirs = checkpoint_family(model)
    if theirs not in FAMILIES:
        must = "is a LoRA, not a checkpoint" if theirs == "lora" else f"is a checkpoint of the family {theirs}"
        fix = "--into takes a whole checkpoint of Stable Diffusion 1.5, 2.x or XL in one .safetensors file"
        raise error("not-a-checkpoint", must, file=str(model), fix=fix)
    for file, family in zip(files, families, strict=True):
        if family not in (theirs, "unknown"):
            must = f"is a LoRA for {family}, {model} is {theirs}"
            raise error("wrong-family", must, file=str(file), fix=f"use a checkpoint of {family}")


def kinds(header: Header) -> dict[str, Kind]:
    """module as written -> kind of its tensors."""
    endings: dict[str, set[str]] = {}
    for name in header.tensors:
        found = lora_names.split(name)
        if found:
            endings.setdefault(found[0], set()).add(found[2])
    return {module: kind_of(tails) for module, tails in endings.items()}


def _no_sum(file: Path, header: Header, rank: int | None) -> Problem | None:
    for module, kind in kinds(header).items():
        if not kind.additive:
            must = f"{module} is {kind.name}, which has no sum with others: {not_linear(kind)}"
            fix = "--into MODEL merges it into a checkpoint"
            return Problem(code="not-mergeable", must=must, file=str(file), fix=fix)
        if rank is None and kind.name in ("LoHa", "LoKr"):
            must = f"{module} is {kind.name}, and a sum of such is none"
            return Problem(code="not-mergeable", must=must, file=str(file), fix="--rank 32 makes a LoRA of the sum")
    return None


def _has_low_rank(file: Path, header: Header) -> None:
    for module, kind in kinds(header).items():
        if not (kind.additive or kind is DORA):
            must = f"{module} is {kind.name}, which no rank can be cut from: {not_linear(kind)}"
            fix = "lora merge --into MODEL takes it as it is"
            raise error("no-low-rank", must, file=str(file), fix=fix)


def _has_form(file: Path, header: Header, form: str) -> None:
    for module, kind in kinds(header).items():
        if not kind.low:
            must = f"{module} is {kind.name}, and {form} has no form for it"
            fix = "lora resize makes a LoRA of it" if kind.additive else "--to kohya keeps it"
            raise error("no-such-form", must, file=str(file), fix=fix)


def _same_widths(files: Sequence[Path], headers: Sequence[Header]) -> None:
    """Widths of modules that several files adapt; only of plain factors, other kinds show it when they are read."""
    seen: dict[tuple[lora_names.Module, str], tuple[int, Path]] = {}
    for file, header in zip(files, headers, strict=True):
        for name, info in header.tensors.items():
            found = lora_names.split(name)
            axis = {"lora_down.weight": 1, "lora_up.weight": 0}.get(found[2]) if found else None
            if found is None or axis is None or len(info.shape) < 2:
                continue
            place = (lora_names.module(found[0]), found[2])
            width, where = seen.setdefault(place, (info.shape[axis], file))
            if width != info.shape[axis]:
                must = f"{found[0]} has width {info.shape[axis]}, in {where} it has {width}"
                raise error("wrong-family", must, file=str(file), fix="merge files of one base model's family")
