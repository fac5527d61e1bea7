"""`networks.oft`: orthogonal finetuning (Qiu et al. 2023) of the U-Net, in kohya's file form (section 7.10)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from schemas.network_args import nothing_to_adapt
from schemas.options import NetworkOptions
from schemas.problems import ConfigError, error
from trainer.adapters.adapter import Adapter, Loaded, chosen_parts, find_modules, freeze
from trainer.adapters.lora import loading_notes, module_names
from trainer.adapters.network_args import LoraPlus, arguments

if TYPE_CHECKING:
    from trainer.families import Models, Target

PREFIX, LORA_PREFIX = "oft_unet_", "lora_unet_"


def oft_key(key: str) -> str:
    """The name of a U-Net module in OFT files."""
    return PREFIX + key.removeprefix(LORA_PREFIX)


def rotation(blocks: Tensor, limit: float) -> Tensor:
    """R = (I + Q)(I − Q)⁻¹ of each block, [k, n, n] in float32 (Cayley transform).

    Q is the skew part M − Mᵀ of `blocks`, its norm over all blocks held to `limit`; 0 is no limit.
    """
    with torch.autocast(blocks.device.type, enabled=False):
        blocks = blocks.float()
        q = blocks - blocks.transpose(1, 2)
        if limit > 0:
            norm = q.norm()
            q = q * ((norm.clamp_max(limit) + 1e-8) / (norm + 1e-8))
        eye = torch.eye(q.shape[-1], device=q.device)
        # (I + Q) and (I − Q)⁻¹ commute, so one solve does
        return torch.linalg.solve(eye - q, eye + q)


def rotated(weight: Tensor, blocks: Tensor, alpha: float, multiplier: float = 1.0) -> Tensor:
    """The difference that an OFT makes to a weight [out, ...], in float32."""
    count, size, _ = blocks.shape
    turn = rotation(blocks, alpha * weight.shape[0]) - torch.eye(size)
    parts = weight.float().reshape(count, size, -1)
    return multiplier * torch.einsum("knm,kni->kmi", turn, parts).reshape(weight.shape)


class OftLayer(nn.Module):
    """Turns the outputs of one Linear or Conv2d, in k blocks of n channels each: y' = y (I + multiplier (R − I)).

    The bias is not turned. It sits under its base module and takes over that one's forward.
    """

    def __init__(self, base: nn.Linear | nn.Conv2d, count: int, alpha: float) -> None:
        super().__init__()
        self.width: int = base.weight.shape[0]
        self.alpha, self.multiplier = alpha, 1.0
        size = self.width // count
        self.oft_blocks = nn.Parameter(torch.zeros(count, size, size, device=base.weight.device))
        self.bias = base.bias
        self.last = isinstance(base, nn.Linear)  # where the channels are: last, or second
        self.base_forward = base.forward
        base.forward = self.forward  # type: ignore[assignment,method-assign]

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y: Tensor = self.base_forward(x, *args, **kwargs)
        if self.multiplier == 0:
            return y
        count, size, _ = self.oft_blocks.shape
        turn = rotation(self.oft_blocks, self.alpha * self.width)
        turn = (self.multiplier * (turn - torch.eye(size, device=turn.device))).to(y.dtype)
        if self.last:
            parts = (y if self.bias is None else y - self.bias).unflatten(-1, (count, size))
            return y + torch.einsum("...kn,knm->...km", parts, turn).flatten(-2).to(y.dtype)
        parts = (y if self.bias is None else y - self.bias.view(-1, 1, 1)).unflatten(1, (count, size))
        return y + torch.einsum("bknhw,knm->bkmhw", parts, turn).flatten(1, 2).to(y.dtype)


class Oft(Adapter):
    """networks.oft; its modules stand under `oft_unet_` names."""

    layers: dict[str, OftLayer]  # type: ignore[assignment]

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for key, layer in self.layers.items():
            yield f"{key}.oft_blocks", layer.oft_blocks

    def state_dict(self) -> dict[str, Tensor]:
        state = {}
        for key, layer in self.layers.items():
            state[f"{key}.oft_blocks"] = layer.oft_blocks.detach()
            state[f"{key}.alpha"] = torch.tensor(float(layer.alpha))
        return state

    @torch.no_grad()
    def load_state_dict(self, weights: Mapping[str, Tensor]) -> Loaded:
        """Fill the blocks; the file's alpha is the constraint from then on."""
        given = module_names(weights)
        for key, layer in self.layers.items():
            if key not in given:
                continue
            blocks = weights.get(f"{key}.oft_blocks")
            if blocks is None:
                raise error("other-network-kind", f"{key} has no oft_blocks", key="network_weights",
                            fix="set network_module to the kind that the file was trained with")  # fmt: skip
            if blocks.shape != layer.oft_blocks.shape:
                ours, theirs = layer.oft_blocks.shape[0], blocks.shape[0]
                raise error("rank-mismatch", f"is {ours}, but network_weights has {theirs} blocks", key="network_dim",
                            got=ours, fix=f"set network_dim to {theirs}, or set dim_from_weights")  # fmt: skip
            layer.oft_blocks.copy_(blocks)
            layer.alpha = float(weights.get(f"{key}.alpha", torch.tensor(layer.alpha)))
        missing = tuple(key for key in self.layers if key not in given)
        unexpected = tuple(key for key in given if key not in self.layers)
        return Loaded(len(self.layers) - len(missing), missing, unexpected)

    def set_multiplier(self, multiplier: float) -> None:
        for layer in self.layers.values():
            layer.multiplier = multiplier

    def apply_max_norm(self, limit: float) -> tuple[int, float, float]:
        """Does nothing: the constraint alpha bounds the rotation already; `notes` says so."""
        return 0, 0.0, 0.0


def oft_targets(targets: Sequence[Target], given: Mapping[str, Any]) -> list[Target]:
    """Attention projections; all of the transformers with enable_all_linear; resnets and samplers with enable_conv."""
    everything, conv = given.get("enable_all_linear", False), given.get("enable_conv", False)
    chosen = []
    for target in targets:
        if target.part != "unet":
            continue
        inside = everything or ".attn1." in target.path or ".attn2." in target.path
        if inside if target.place == "transformer" else conv:
            chosen.append(replace(target, key=oft_key(target.key)))
    return chosen


def attach_oft(
    models: Models, targets: Sequence[Target], options: NetworkOptions, weights: Mapping[str, Tensor] | None
) -> Oft:
    """Freeze `models`, let the layers take over the chosen modules' forward, load `weights`."""
    given = arguments(options)
    assert "unet" in chosen_parts(options), "networks.oft adapts the U-Net only"
    chosen = oft_targets(targets, given)
    from_file = weights is not None and options.dim_from_weights
    if weights is not None and from_file:
        in_file = module_names(weights)
        chosen = [replace(target, key=oft_key(target.key)) for target in targets if oft_key(target.key) in in_file]
    if not chosen:
        raise ConfigError([nothing_to_adapt(options)])
    freeze(models)
    count = options.rank
    bases: dict[str, Any] = find_modules(models, chosen)
    counts = {key: weights[f"{key}.oft_blocks"].shape[0] if weights and from_file else count for key in bases}
    _check_divides(bases, counts)
    layers = {key: OftLayer(base, counts[key], options.network_alpha) for key, base in bases.items()}
    for key, base in bases.items():
        base.add_module("oft", layers[key])  # so that it follows the model to a device
    adapter = Oft({target.key: target for target in chosen}, layers, LoraPlus())
    if weights is not None:
        adapter.notes += loading_notes(adapter.load_state_dict(weights))
    return adapter


def _check_divides(bases: Mapping[str, Any], counts: Mapping[str, int]) -> None:
    common = math.gcd(*(base.weight.shape[0] for base in bases.values()))
    for key, base in bases.items():
        if base.weight.shape[0] % counts[key]:
            fitting = max(divisor for divisor in range(1, counts[key]) if common % divisor == 0)
            must = f"is the number of blocks here and must divide the {base.weight.shape[0]} channels of {key}"
            raise error("bad-network-dim", must, key="network_dim", got=counts[key], fix=f"set it to {fitting}")
