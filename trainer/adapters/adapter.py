"""What every kind of adapter offers the loop: parameters, groups, state, strength, norm limit."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from schemas.problems import Problem
from schemas.rules.rates import Rates, part_rates
from trainer.adapters.network_args import LoraPlus

if TYPE_CHECKING:
    from trainer.families import Models, Target


@dataclass(frozen=True)
class Loaded:
    """What a weight file had to do with the adapter: modules filled, left as created, and of no use."""

    matched: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]


class Adapter:
    """Trainable weights beside a frozen model, under kohya's key names.

    `layers` maps the kohya key of a module to its layer, in the order of the targets; subclasses say how a layer's
    tensors are named. `notes` holds what the user should hear of.
    """

    def __init__(self, targets: Mapping[str, Target], layers: Mapping[str, nn.Module], loraplus: LoraPlus) -> None:
        self.targets = dict(targets)
        self.layers = dict(layers)
        self.loraplus = loraplus
        self.lr_weight: tuple[float, ...] | None = None
        self.notes: list[Problem] = []
        self._resting: frozenset[str] = frozenset()  # layers that learn no more

    # -- to be said by each kind ---------------------------------------------------------------------------------------

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """(kohya name, parameter) of every weight of the adapter, frozen ones included."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Tensor]:
        """What goes into the LoRA file: kohya keys, `.alpha` as 0-dim float included; tensors are not copies."""
        raise NotImplementedError

    def load_state_dict(self, weights: Mapping[str, Tensor]) -> Loaded:
        """Fill the layers; ConfigError `rank-mismatch` when a shape differs."""
        raise NotImplementedError

    def set_multiplier(self, multiplier: float) -> None:
        """Strength of the whole adapter; 1 is as trained."""
        raise NotImplementedError

    def apply_max_norm(self, limit: float) -> tuple[int, float, float]:
        """(modules scaled down, mean norm, largest norm) after holding each ‖ΔW‖_F to `limit` (section 7.8)."""
        raise NotImplementedError

    # -- the same for all ----------------------------------------------------------------------------------------------

    def exact_state(self) -> dict[str, Tensor]:
        """Everything that a bit-exact resume needs."""
        return self.state_dict()

    def load_exact_state(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `exact_state`; KeyError when a tensor is missing."""
        missing = self.load_state_dict(state).missing
        if missing:
            raise KeyError(missing[0])

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        """The base model alone, for as long as the context lasts."""
        self.set_multiplier(0.0)
        try:
            yield
        finally:
            self.set_multiplier(1.0)

    def begin_epoch(self) -> None:
        """To be called before each epoch; only plug-ins do something then."""

    def begin_step(self) -> None:
        """To be called before each forward pass of training; only plug-ins do something then."""

    def see_gradients(self) -> None:
        """To be called when the gradients of a step are complete; only plug-ins do something then."""

    def norms(self) -> dict[str, float]:
        """What a plug-in with norm hooks has measured of itself, by tracker tag (section 14); after a step."""
        return {}

    def parameters(self) -> list[nn.Parameter]:
        """The weights that train."""
        return [parameter for _, parameter in self.named_parameters() if parameter.requires_grad]

    def train(self, mode: bool = True) -> None:
        """Switch the dropouts of the adapter; layers that rest have none."""
        for key, layer in self.layers.items():
            layer.train(mode and key not in self._resting)

    def rest_text_encoders(self) -> None:
        """From here on the text encoders' layers stay as they are: no gradient, no dropout, no step of the optimizer.

        Optimizers pass over parameters without a gradient, weight decay and moments included.
        """
        self._resting = frozenset(key for key in self.layers if self.targets[key].part != "unet")
        for name, parameter in self.named_parameters():
            if name.partition(".")[0] in self._resting:
                parameter.requires_grad_(False)
                parameter.grad = None
        for key in self._resting:
            self.layers[key].eval()

    def eval(self) -> None:
        """Switch the dropouts off."""
        self.train(False)

    def to_dtype(self, dtype: torch.dtype) -> None:
        """Keep the adapter itself in `dtype` (full_fp16, full_bf16)."""
        for _, parameter in self.named_parameters():
            parameter.data = parameter.data.to(dtype)

    @property
    def modules_count(self) -> dict[str, int]:
        """Modules adapted, by part ("te", "te1", "te2", "unet")."""
        counts: dict[str, int] = {}
        for key in self.layers:
            part = self.targets[key].part
            counts[part] = counts.get(part, 0) + 1
        return counts

    def groups(self, options: Rates) -> list[dict[str, Any]]:
        """Parameter groups {"params", "lr", "name"} as the reference's (sections 7.5 to 7.7).

        Parts whose rate is 0 are frozen and left out, so that they cannot pollute the gradient norm (trap T39).
        """
        members: dict[tuple[str, float], list[nn.Parameter]] = {}
        parts = {self.targets[key].part for key in self.layers}
        rates = part_rates(options.learning_rate, options.unet_lr, options.text_encoder_lr)
        names = _text_names(parts, rates)
        for name, parameter in self.named_parameters():
            key, _, tensor = name.partition(".")
            target = self.targets[key]
            lr, group = rates[target.part], names.get(target.part, "unet")
            if target.part == "unet" and self.lr_weight is not None and target.block is not None:
                lr, group = lr * self.lr_weight[target.block], f"unet_block{target.block}"
            ratio = self.loraplus.ratio(target.part)
            if ratio is not None and is_up(tensor):
                lr, group = lr * ratio, f"{group} plus"
            parameter.requires_grad_(lr > 0)
            if lr > 0:
                members.setdefault((group, lr), []).append(parameter)
        last = "unet_block12" if any("mid_block" in key for key in self.layers) else ""  # SD's U-Net lists it last
        order = sorted(members, key=lambda place: (place[0].split(" ")[0] == last, *_order(place[0])))
        return [{"params": members[name, lr], "lr": lr, "name": name} for name, lr in order]


def is_up(tensor: str) -> bool:
    """Whether a tensor of this name is the matrix that LoRA+ speeds up."""
    return "lora_up" in tensor or tensor.startswith("up_list")


def _text_names(parts: Collection[str], rates: Mapping[str, float]) -> dict[str, str]:
    apart = "te2" in parts and rates["te1"] != rates["te2"]
    return {part: f"textencoder{part[2:] if apart else ''}" for part in ("te", "te1", "te2")}


def _order(name: str) -> tuple[bool, int, str]:
    """Text before U-Net, blocks by number, each before its LoRA+ twin."""
    number = name.partition(" ")[0].removeprefix("unet_block")
    return name.startswith("unet"), int(number) if number.isdigit() else -1, name


def model_of(models: Models, part: str) -> nn.Module:
    """The module tree that a part's paths are relative to."""
    if part == "unet":
        return models.unet
    return models.text_encoders[1 if part == "te2" else 0]


def find_modules(models: Models, targets: Sequence[Target]) -> dict[str, nn.Module]:
    """kohya key -> the base module it names; every tree is walked once."""
    trees = {part: dict(model_of(models, part).named_modules()) for part in {target.part for target in targets}}
    return {target.key: trees[target.part][target.path] for target in targets}


def chosen_parts(options: Any) -> set[str]:
    """The parts that the options let train."""
    assert not (options.network_train_unet_only and options.network_train_text_encoder_only)
    parts = {"te", "te1", "te2", "unet"}
    if options.network_train_unet_only:
        parts = {"unet"}
    if options.network_train_text_encoder_only:
        parts -= {"unet"}
    return parts


def freeze(models: Models) -> None:
    """No base parameter asks for a gradient."""
    for model in (models.unet, models.vae, *models.text_encoders):
        if model is not None:
            model.requires_grad_(False)
