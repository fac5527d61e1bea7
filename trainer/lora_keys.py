"""LoRA tensor names of kohya, peft and diffusers, brought to kohya's for a list of targets (reference section 7.9)."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from schemas.documents import parse_json

if TYPE_CHECKING:
    from trainer.families import Target

# Endings of dotted names and what kohya calls them.
DOTTED = (
    (re.compile(r"\.lora_A(\.\w+)?\.weight$"), "lora_down.weight"),
    (re.compile(r"\.lora_B(\.\w+)?\.weight$"), "lora_up.weight"),
    (re.compile(r"(\.lora|_lora|\.lora_linear_layer)\.down\.weight$"), "lora_down.weight"),
    (re.compile(r"(\.lora|_lora|\.lora_linear_layer)\.up\.weight$"), "lora_up.weight"),
    (re.compile(r"\.lora_magnitude_vector(\.\w+)?(\.weight)?$"), "dora_scale"),
    (re.compile(r"((\.lora|_lora|\.lora_linear_layer)(\.down\.weight)?)?\.(network_)?alpha$"), "alpha"),
)
# The names of old diffusers files inside a path.
OLD_PATHS = (
    (re.compile(r"\.processor\.to_(q|k|v)$"), r".to_\1"),
    (re.compile(r"\.processor\.to_out$"), ".to_out.0"),
    (re.compile(r"\.self_attn\.to_(q|k|v|out)$"), r".self_attn.\1_proj"),
)
# Modules that no family lists as a target and that LyCORIS adapts in SD's U-Net.
ENDS = ("conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2")
COMPONENTS = {"unet": ("unet",), "text_encoder": ("te", "te1"), "text_encoder_2": ("te2",)}


def to_kohya(
    tensors: Mapping[str, Tensor], targets: Sequence[Target], settings: Mapping[str, Any] | None = None
) -> dict[str, Tensor]:
    """The same tensors under kohya's names; what belongs to no target keeps its name.

    `settings` is what peft says of the file (lora_alpha, r, alpha_pattern ...), flat, each name behind its component
    ("unet.lora_alpha") or bare; alpha comes from there where the file has none.
    """
    keys = _kohya_names(targets)
    paths: dict[tuple[str, str], str] = {("unet", path): f"lora_unet_{path.replace('.', '_')}" for path in ENDS}
    paths |= {(target.part, _bare(target.path)): target.key for target in targets}
    found: dict[str, Tensor] = {}
    dotted: dict[str, tuple[str, str]] = {}  # kohya key -> (component, path) of a dotted name
    for name, tensor in tensors.items():
        module, _, tail = name.partition(".")
        if module in keys:
            found[f"{keys[module]}.{tail}"] = tensor
            continue
        place = _place(name, paths)
        if place is None:
            found[name] = tensor
            continue
        key, tail, component, path = place
        if tail == "dora_scale":  # peft: [out] or [1, out, 1, 1]; kohya: [out, 1] or [out, 1, 1, 1]
            tensor = tensor.reshape(-1, *[1] * max(tensor.dim() - 1, 1))
        found[f"{key}.{tail}"] = tensor
        dotted[key] = component, path
    for key, (component, path) in dotted.items():
        down = found.get(f"{key}.lora_down.weight")
        if down is not None and f"{key}.alpha" not in found:
            found[f"{key}.alpha"] = torch.tensor(_alpha(component, path, down.shape[0], settings or {}))
    return found


def _kohya_names(targets: Sequence[Target]) -> dict[str, str]:
    """Every flat name that files use for a target: kohya's, and the one made of the diffusers path."""
    names: dict[str, str] = {}
    for target in targets:
        path = _bare(target.path).replace(".", "_")
        if target.part == "unet":
            names.setdefault(f"lora_unet_{path}", target.key)
        else:
            names.setdefault(f"lora_{target.part}_text_model_{path}", target.key)
    # OFT files (kohya's) have the same names behind another prefix, and keep it
    twins = {name.replace("lora_", "oft_", 1): key.replace("lora_", "oft_", 1) for name, key in names.items()}
    return names | twins | {target.key: target.key for target in targets}


def _bare(path: str) -> str:
    return path.removeprefix("text_model.")


def _place(name: str, paths: Mapping[tuple[str, str], str]) -> tuple[str, str, str, str] | None:
    """(kohya key, kohya ending, component, path) of a dotted name; None when it is of no target."""
    name = name.removeprefix("base_model.model.")
    component, _, rest = name.partition(".")
    if component not in COMPONENTS:
        component = "text_encoder" if name.startswith(("text_model.", "encoder.layers.")) else "unet"
        rest = name
    for ending, tail in DOTTED:
        hit = ending.search(rest)
        if not hit:
            continue
        path = rest[: hit.start()]
        for old, new in OLD_PATHS:
            path = old.sub(new, path)
        for part in COMPONENTS[component]:
            key = paths.get((part, _bare(path)))
            if key:
                return key, tail, component, path
    return None


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
