"""What is not as it was when a run began, and whether going on is still the same run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from launcher.check.plan import Plan
from launcher.run import record
from schemas.config import table

Verdict = Literal["exact", "equivalent", "new run"]
ORDER: tuple[Verdict, ...] = ("exact", "equivalent", "new run")
# May change on a resume, and do not touch the numbers that are computed.
PLACES = ("resume", "output_dir", "output_name", "config_file", "overwrite", "trust", "network_weights")
# May change on a resume; the same is computed in another order, so that rounding differs.
ROUNDING = ("gradient_checkpointing", "xformers", "sdpa", "mem_eff_attn", "torch_compile", "dynamo_backend",
            "cpu_offload_checkpointing")  # fmt: skip
LENGTHS = ("max_train_steps", "max_train_epochs")
ROUNDING_PACKAGES = ("torch", "bitsandbytes", "xformers", "lycoris_lora", "prodigyopt", "diffusers", "transformers")
NAMED = 4  # files of a kind that are named


@dataclass(frozen=True)
class Change:
    """One difference from the first start; `makes` is what going on is called with it."""

    what: str
    makes: Verdict

    def __str__(self) -> str:
        return self.what


def changes(plan: Plan, kept: Mapping[str, Any]) -> list[Change]:
    """Every difference between a run's record and the plan to go on with it; empty where nothing was kept."""
    if not kept:
        return []
    return [*_options(plan, kept), *_data(plan, kept), *_model(plan, kept), *_surroundings(plan, kept)]


def verdict(found: list[Change]) -> Verdict:
    """The worst of all."""
    return max((change.makes for change in found), key=ORDER.index, default="exact")


def _options(plan: Plan, kept: Mapping[str, Any]) -> Iterator[Change]:
    """Arguments, key by key, with what a resume makes of each."""
    if "options" not in kept:
        return
    before, after = kept["options"], record.options(plan)
    for name in sorted({*before, *after}):
        option = table().get(name)
        if option is None or name in PLACES or option.secret or option.path:
            continue
        default = list(option.default) if isinstance(option.default, tuple) else option.default
        old, new = before.get(name, default), after.get(name, default)
        if old == new:
            continue
        makes: Verdict = "exact" if option.resumable else "new run"
        if name in LENGTHS or name in ROUNDING:
            makes = "equivalent"
        allowed = "may change" if option.resumable else "may not change on a resume"
        yield Change(f"{name}: {old!r} -> {new!r} ({allowed})", makes)


def _data(plan: Plan, kept: Mapping[str, Any]) -> Iterator[Change]:
    """Pictures and captions added, removed and edited."""
    if plan.checked.scan is None:  # not found at all, which is told as an error
        return
    now, before = record.dataset_fingerprint(plan), kept.get("dataset") or {}
    if before.get("fingerprint") in (None, now["fingerprint"]):
        return
    old, new = before.get("files"), now["files"]
    if not isinstance(old, dict):
        yield Change("the dataset has changed", "new run")
        return
    for index, (kind, word) in enumerate((("picture", "pictures"), ("caption", "captions"))):
        was = {name: marks[index] for name, marks in old.items() if marks[index] is not None}
        is_now = {name: marks[index] for name, marks in new.items() if marks[index] is not None}
        for verb, names in (
            ("added", is_now.keys() - was.keys()),
            ("removed", was.keys() - is_now.keys()),
            ("edited", {name for name in was.keys() & is_now.keys() if was[name] != is_now[name]}),
        ):
            if names:
                yield Change(f"{len(names)} {kind if len(names) == 1 else word} {verb}: {_some(names)}", "new run")
    repeats = before.get("repeats"), now["repeats"]
    if old.keys() == new.keys() and repeats[0] != repeats[1]:
        yield Change(f"the dataset counts {repeats[0]} -> {repeats[1]} images with repeats", "new run")


def _some(names: set[str]) -> str:
    shown = sorted(names)[:NAMED]
    return ", ".join(shown) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _model(plan: Plan, kept: Mapping[str, Any]) -> Iterator[Change]:
    """What the frozen weights are, wherever they lie; files that are not found are told as errors."""
    files = {"base model": ("model", plan.config.pretrained_model_name_or_path), "VAE": ("vae", plan.config.vae)}
    for word, (name, file) in files.items():
        before, now = kept.get(name), record.model_fingerprint(file)
        if before is None or (file and "fingerprint" not in now):
            continue
        if before.get("fingerprint") != now.get("fingerprint"):
            yield Change(f"the {word} has changed: {before.get('name')} -> {now.get('name')}", "new run")


def _surroundings(plan: Plan, kept: Mapping[str, Any]) -> Iterator[Change]:
    """Versions, machine and processes."""
    before, versions = kept.get("versions") or {}, record.versions()
    for name in sorted({*before, *versions}):
        if before.get(name) != versions.get(name):
            makes: Verdict = "equivalent" if name in ROUNDING_PACKAGES else "exact"
            yield Change(f"{name} {before.get(name, 'absent')} -> {versions.get(name, 'absent')}", makes)
    machine, here = kept.get("machine") or {}, record.machine(plan)
    for name, old in machine.items():
        if old != here.get(name):
            yield Change(f"{name} {old} -> {here.get(name)}", "exact" if name == "system" else "equivalent")
    processes = (kept.get("accelerate") or {}).get("num_processes")
    if processes and processes != plan.launch.num_processes:
        yield Change(f"{processes} -> {plan.launch.num_processes} processes", "equivalent")
