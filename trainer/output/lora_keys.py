"""LoRA tensor names of kohya, peft and diffusers, brought to kohya's for a list of targets (reference section 7.9)."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from schemas.files.documents import parse_json
from schemas.files.lora_names import (
    Module,
    module,
    same,
    split,
)

if TYPE_CHECKING:
    from trainer.families import Target

# Modules that no family lists as a target and that LyCORIS adapts in SD's U-Net.
ENDS = ("conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2")
COMPONENTS = {"unet": ("unet",), "text_encoder": ("te", "te1"), "text_encoder_2": ("te2",)}
COMPONENT_OF = {part: component for component, parts in COMPONENTS.items() for part in parts}


def to_kohya(
    tensors: Mapping[str, Tensor], targets: Sequence[Target], settings: Mapping[str, Any] | None = None
) -> dict[str, Tensor]:
    """The same tensors under kohya's names; what belongs to no target keeps its name.

    `settings` is what peft says of the file (lora_alpha, r, alpha_pattern ...), flat, each name behind its component
    ("unet.lora_alpha") or bare; alpha comes from there where the file has none.
    """
    keys = {target.key for target in targets}
    keys |= {key.replace("lora_", "oft_", 1) for key in keys}  # OFT files have a prefix of their own, and keep it
    known = _by_module(targets)
    found: dict[str, Tensor] = {}
    dotted: dict[str, tuple[str, str]] = {}  # kohya key -> (component, path) of a dotted name
    for name, tensor in tensors.items():
        flat, _, tail = name.partition(".")
        place = None if flat in keys else _place(name, known)
        if place is None:
            found[name] = tensor
            continue
        key, tail, path = place
        if tail == "dora_scale" and not name.endswith(".dora_scale"):
            # peft's magnitude vector: [out] or [1, out, 1, 1]; kohya: [out, 1] or [out, 1, 1, 1]
            tensor = tensor.reshape(-1, *[1] * max(tensor.dim() - 1, 1))
        found[f"{key}.{tail}"] = tensor
        if "." in name.removesuffix(tail).rstrip("."):
            dotted[key] = COMPONENT_OF[known[module(key)][0]], path
    for key, (component, path) in dotted.items():
        down = found.get(f"{key}.lora_down.weight")
        if down is not None and f"{key}.alpha" not in found:
            found[f"{key}.alpha"] = torch.tensor(_alpha(component, path, down.shape[0], settings or {}))
    return found


def _by_module(targets: Sequence[Target]) -> dict[Module, tuple[str, str, str]]:
    """Module -> (part, kohya key, path) of every target and of the U-Net's ends."""
    ends = {module(f"unet.{path}"): ("unet", f"lora_unet_{path.replace('.', '_')}", path) for path in ENDS}
    return ends | {module(target.key): (target.part, target.key, _bare(target.path)) for target in targets}


def _place(name: str, known: Mapping[Module, tuple[str, str, str]]) -> tuple[str, str, str] | None:
    """(kohya key, kohya ending, path) of a name in any spelling; None when it is of no target."""
    flat, _, rest = name.partition(".")
    split_ = (flat, rest) if flat.startswith(("lora_", "oft_")) else None
    if split_ is None:
        parts = split(name)
        if parts is None:
            return None
        split_ = (parts[0], parts[2])
    written, tail = split_
    meant = same(module(written), known)
    if meant is not None:
        _, key, path = known[meant]
        return key.replace("lora_", "oft_", 1) if written.startswith("oft_") else key, tail, path
    return None


def _bare(path: str) -> str:
    return path.removeprefix("text_model.")


def _alpha(component: str, path: str, rank: int, settings: Mapping[str, Any]) -> float:
    """Alpha in kohya's sense (scale = alpha / rank) from peft's settings; the rank where they are silent."""

    def said(name: str) -> Any:
        return settings.get(f"{component}.{name}", settings.get(name))

    alpha = said("lora_alpha")
    for pattern, special in (said("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", path):
            alpha = special
    if alpha is None:
        return float(rank)
    # rank-stabilised LoRA scales by alpha / √rank
    return float(alpha) * (math.sqrt(rank) if said("use_rslora") else 1.0)


def to_peft(weights: Mapping[str, Tensor], targets: Mapping[str, Target]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors under peft's names as diffusers keeps them, the settings for the header) of a kohya-keyed LoRA or DoRA.

    alpha / rank goes into B, so that readers of no settings apply the LoRA as trained; the settings hold the ranks for
    diffusers. `targets` by kohya key. KeyError for a module that is no LoRA (Tucker, LoHa, LoKr, OFT ...).
    """
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, dict[str, int]] = {}
    settings: dict[str, Any] = {}
    for key in dict.fromkeys(name.partition(".")[0] for name in weights):
        target = targets[key]
        component = next(name for name, parts in COMPONENTS.items() if target.part in parts)
        path = _bare(target.path)
        place = f"{component}.{'' if target.part == 'unet' else 'text_model.'}{path}"
        if f"{key}.lora_mid.weight" in weights:
            raise KeyError(f"{key}.lora_mid.weight")
        down, up = weights[f"{key}.lora_down.weight"], weights[f"{key}.lora_up.weight"]
        rank = down.shape[0]
        ranks.setdefault(component, {})[path] = rank
        tensors[f"{place}.lora_A.weight"] = down
        tensors[f"{place}.lora_B.weight"] = up * (float(weights.get(f"{key}.alpha", torch.tensor(rank))) / rank)
        magnitude = weights.get(f"{key}.dora_scale")
        if magnitude is not None:
            settings[f"{component}.use_dora"] = True
            shape = (-1,) if target.kind == "linear" else (1, -1, 1, 1)
            tensors[f"{place}.lora_magnitude_vector.weight"] = magnitude.reshape(shape)
    for component, found in ranks.items():
        common = Counter(found.values()).most_common(1)[0][0]
        other = {path: rank for path, rank in found.items() if rank != common}
        said = {"r": common, "lora_alpha": common, "rank_pattern": other, "alpha_pattern": other}
        settings |= {f"{component}.{name}": value for name, value in said.items()}
        settings[f"{component}.target_modules"] = list(found)
    return tensors, settings


def peft_settings(metadata: Mapping[str, str], adapter_config: str | None) -> dict[str, Any]:
    """What diffusers keeps in the header, or peft in adapter_config.json, of rank and alpha."""
    settings: dict[str, Any] = {}
    for text in (adapter_config, metadata.get("lora_adapter_metadata")):
        try:
            document = parse_json(text) if text else {}
        except ValueError:
            document = {}
        if isinstance(document, dict):
            settings |= document
    return settings
