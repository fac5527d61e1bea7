"""A LoRA as peft keeps it: a folder for each part of the model with adapter_model.safetensors and its config."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.output.lora_keys import COMPONENTS, bare
from trainer.output.run_folder import write_text
from trainer.output.streaming import Entry, write_streamed

if TYPE_CHECKING:
    from trainer.families import Target

MAGNITUDE = ".lora_magnitude_vector.weight"


def write_peft(
    folder: Path, entries: Sequence[Entry], settings: Mapping[str, Any], metadata: Mapping[str, str],
    targets: Mapping[str, Target],
) -> None:  # fmt: skip
    """`entries` under diffusers' names, `settings` behind their component, as `to_peft` gives both."""
    from peft import LoraConfig

    for component, parts in COMPONENTS.items():
        # the path of the module in transformers' own tree: there the `text_model` level comes and goes with versions
        paths = {bare(target.path): target.path for target in targets.values() if target.part in parts}
        own = [_renamed(entry, component, paths) for entry in entries if entry.name.startswith(f"{component}.")]
        if not own:
            continue
        said = {name.partition(".")[2]: value for name, value in settings.items() if name.startswith(f"{component}.")}
        for pattern in ("rank_pattern", "alpha_pattern"):
            said[pattern] = {paths.get(path, path): rank for path, rank in said[pattern].items()}
        said["target_modules"] = [paths.get(path, path) for path in said["target_modules"]]
        config = LoraConfig(**said).to_dict()
        text = json.dumps({name: sorted(v) if isinstance(v, set) else v for name, v in config.items()}, indent=2)
        write_streamed(folder / component / "adapter_model.safetensors", own, {**metadata, "format": "pt"})
        write_text(folder / component / "adapter_config.json", text + "\n")


def _renamed(entry: Entry, component: str, paths: Mapping[str, str]) -> Entry:
    path, _, tail = entry.name.removeprefix(f"{component}.").rpartition(".lora_")
    path = paths.get(bare(path), path)
    name = f"base_model.model.{path}.lora_{tail}"
    if name.endswith(MAGNITUDE):  # peft's files say it without "weight"
        name = name.removesuffix(".weight")
    return replace(entry, name=name)
