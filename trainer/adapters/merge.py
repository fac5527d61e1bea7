"""`base_weights`: finished LoRA files added to the base model before training (reference section 7.2)."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from schemas.problems import error
from trainer.adapters.adapter import Loaded, find_modules
from trainer.adapters.lora import loading_notes, module_names, plain
from trainer.adapters.oft import LORA_PREFIX, PREFIX, rotated

if TYPE_CHECKING:
    from trainer.families import Models, Target

log = logging.getLogger("trainer")


@torch.no_grad()
def merge_weights(
    models: Models, targets: Sequence[Target], weights: Mapping[str, Tensor], multiplier: float = 1.0
) -> int:
    """W += multiplier ΔW for every target in `weights` (kohya keys), summed in float32, kept in W's own dtype.

    Returns the number of modules changed; what matches nothing is told in the log. ConfigError `wrong-family` when
    nothing matched. Call it before `attach`.
    """
    weights = {_as_lora(name): tensor for name, tensor in weights.items()}
    given = module_names(weights)
    chosen = [target for target in targets if target.key in given]
    if len(chosen) < len(given):
        chosen += [target for target in _lycoris_places(models, targets) if target.key in given]
    for key, base in find_modules(models, chosen).items():
        delta = difference(key, base, weights, multiplier)
        bias = next((f"{key}.{name}" for name in ("diff_b", "b_norm") if f"{key}.{name}" in weights), None)
        if bias is not None and base.bias is not None:
            _add(base.bias, multiplier * weights[bias].float())
        _add(base.weight, delta)
    matched = {target.key for target in chosen}
    unused = tuple(key for key in given if key not in matched)
    for note in loading_notes(Loaded(len(matched), (), unused), key="base_weights"):
        log.warning("%s", note)
    return len(matched)


def _lycoris_places(models: Models, targets: Sequence[Target]) -> list[Target]:
    from trainer.adapters.lycoris_targets import extra_targets

    known = {target.key for target in targets}
    return [target for target in extra_targets(models, targets).values() if target.key not in known]


def _add(weight: Any, delta: Tensor) -> None:
    weight.data = (weight.data.float() + delta.to(weight.device).view_as(weight)).to(weight.dtype)


def _as_lora(name: str) -> str:
    """OFT files have a prefix of their own."""
    return LORA_PREFIX + name.removeprefix(PREFIX) if name.startswith(PREFIX) else name


def difference(key: str, base: Any, weights: Mapping[str, Tensor], multiplier: float) -> Tensor:
    """multiplier ΔW of one module in float32, for a plain LoRA, an OFT or any LyCORIS kind."""
    blocks = weights.get(f"{key}.oft_blocks")
    if blocks is not None and blocks.dim() == 3 and f"{key}.rescale" not in weights:
        alpha = float(weights.get(f"{key}.alpha", torch.tensor(0.0)))
        return rotated(base.weight.cpu(), blocks.cpu(), alpha, multiplier)
    down, up = weights.get(f"{key}.lora_down.weight"), weights.get(f"{key}.lora_up.weight")
    if down is None or up is None or not plain(key, weights):
        return _lycoris_difference(key, base, weights, multiplier)
    rank = down.shape[0]
    alpha = float(weights.get(f"{key}.alpha", torch.tensor(float(rank))))
    if up.shape[0] * down.flatten(1).shape[1] != base.weight.numel():
        raise error("wrong-family", f"{key} has another width than the base model's module", key="base_weights",
                    got=list(down.shape), fix="use a LoRA of the base model's own family")  # fmt: skip
    return (up.flatten(1).float() @ down.flatten(1).float()) * (multiplier * alpha / rank)


def _lycoris_difference(key: str, base: Any, weights: Mapping[str, Tensor], multiplier: float) -> Tensor:
    from trainer.adapters.lycoris_modules import merged_difference, module_from_weights, tensors_of

    base = base if base.weight.dtype == torch.float32 else copy.deepcopy(base).float()
    own = {f"{key}.{name}": tensor.float() for name, tensor in tensors_of(key, weights).items()}
    module = module_from_weights(key, base, own).to(base.weight.device).float()
    return merged_difference(module, base.weight.detach(), multiplier)
