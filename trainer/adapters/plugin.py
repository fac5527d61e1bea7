"""A user's own `network_module` behind the adapter's face: the reference's plug-in interface (section 7.1).

The network is given the text encoder (SD) or the list of both (SDXL) and our U-Net, which is diffusers': module paths
are `down_blocks...`, for SDXL too, where the reference hands over original paths (`input_blocks...`).
"""

from __future__ import annotations

import importlib
import inspect
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from schemas.argument import name_values
from schemas.network_args import SUPPORTED
from schemas.options import NetworkOptions
from schemas.problems import Problem, error, taken
from schemas.rules.rates import Rates
from trainer.adapters.adapter import Adapter, Loaded, chosen_parts, freeze
from trainer.adapters.network_args import LoraPlus

if TYPE_CHECKING:
    from trainer.families import Models

log = logging.getLogger("trainer")
FROM_WEIGHTS = "create_network_from_weights"
NORMS = {"norm/avg_key_norm": "weight_norms", "norm/avg_grad_norm": "grad_norms",
         "norm/avg_combined_norm": "combined_weight_norms"}  # fmt: skip


def is_plugin(module: str | None) -> bool:
    """Whether a network module is none of ours, so that only itself can read its weights."""
    return module is not None and module not in SUPPORTED


def import_plugin(name: str) -> ModuleType:
    """The module of that dotted name; ConfigError when it cannot be imported or has no `create_network`."""
    try:
        module = importlib.import_module(name)
    except ImportError as fault:
        raise error("no-module", f"cannot be imported: {fault}", key="network_module", got=name,
                    fix="install it, or put its folder into PYTHONPATH") from fault  # fmt: skip
    if not hasattr(module, "create_network"):
        raise error("bad-network-module", "has no create_network", key="network_module", got=name,
                    fix="use a module that follows the plug-in interface of sd-scripts")  # fmt: skip
    return module


class Follower(nn.Module):
    """Sits under the U-Net and passes modes and moves on to a network that is not part of its tree."""

    network: Any  # a plain attribute: as a child it would be moved and listed twice

    def __init__(self, network: nn.Module) -> None:
        self.__dict__["network"] = network
        super().__init__()

    @property
    def training(self) -> bool:
        return bool(self.network.training)

    @training.setter
    def training(self, mode: bool) -> None:
        self.network.train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> Follower:
        self.network._apply(fn)
        return self


class Plugin(Adapter):
    """Any network that follows the interface. Its own groups and names are used as they come."""

    def __init__(self, network: Any, models: Models) -> None:
        super().__init__({}, {}, LoraPlus())
        self.network = network
        self.unet, self.text = models.unet, text_encoders(models)
        models.unet.add_module("plugin", Follower(network))

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        found: Iterator[tuple[str, nn.Parameter]] = self.network.named_parameters()
        return found

    def groups(self, options: Rates) -> list[dict[str, Any]]:
        """The network's own groups; what stands in none is frozen (trap T39)."""
        network, rates = self.network, list(options.text_encoder_lr)
        several = getattr(network, "prepare_optimizer_params_with_multiple_te_lrs", None)
        if several:
            found = several(rates or None, options.unet_lr, options.learning_rate)
        else:
            given = [rates[0] if rates else None, options.unet_lr, options.learning_rate]
            takes = inspect.signature(network.prepare_optimizer_params)
            try:
                takes.bind(*given)
            except TypeError:
                given.pop()  # older networks know no default rate
            found = network.prepare_optimizer_params(*given)
        found, names = found if isinstance(found, tuple) else (found, None)
        groups = []
        for index, group in enumerate(found):
            said = {name: value for name, value in group.items() if name != "lr" or value is not None}
            usual = {"lr": options.learning_rate, "name": names[index] if names else f"group{index}"}
            groups.append({**usual, **said, "params": list(group["params"])})
        network.prepare_grad_etc(self.text, self.unet)
        trained = {id(parameter) for group in groups for parameter in group["params"]}
        for _, parameter in self.named_parameters():
            if id(parameter) not in trained:
                parameter.requires_grad_(False)
        return groups

    def begin_epoch(self) -> None:
        self.network.on_epoch_start(self.text, self.unet)

    def begin_step(self) -> None:
        if hasattr(self.network, "on_step_start"):
            self.network.on_step_start(self.text, self.unet)

    def see_gradients(self) -> None:
        if hasattr(self.network, "update_grad_norms"):
            self.network.update_grad_norms()

    def norms(self) -> dict[str, float]:
        if hasattr(self.network, "update_norms"):
            self.network.update_norms()
        found = {}
        for tag, name in NORMS.items():
            value = getattr(self.network, name, None)
            value = value() if callable(value) else value
            if value is not None:
                found[tag] = float(torch.as_tensor(value, dtype=torch.float64).mean())
        return found

    def train(self, mode: bool = True) -> None:
        self.network.train(mode)

    def to_dtype(self, dtype: torch.dtype) -> None:
        self.network.to(dtype)

    def state_dict(self) -> dict[str, Tensor]:
        """What the network itself writes: it may name its tensors otherwise than its parameters."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "network.safetensors"
            self.network.save_weights(str(file), None, None)
            return load_file(file)

    def load_state_dict(self, weights: Mapping[str, Tensor]) -> Loaded:
        own = dict(self.network.state_dict())
        self.network.load_state_dict(dict(weights), strict=False)
        missing = tuple(name for name in own if name not in weights)
        unexpected = tuple(name for name in weights if name not in own)
        return Loaded(len(own) - len(missing), missing, unexpected)

    def exact_state(self) -> dict[str, Tensor]:
        return {name: tensor.detach() for name, tensor in self._tensors()}

    @torch.no_grad()
    def load_exact_state(self, state: Mapping[str, Tensor]) -> None:
        for name, tensor in self._tensors():
            tensor.copy_(state[name])

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.network.named_parameters()
        yield from self.network.named_buffers()

    def set_multiplier(self, multiplier: float) -> None:
        if hasattr(self.network, "set_multiplier"):
            self.network.set_multiplier(multiplier)
        else:
            self.network.multiplier = multiplier

    def apply_max_norm(self, limit: float) -> tuple[int, float, float]:
        limits = getattr(self.network, "apply_max_norm_regularization", None)
        if limits is None:
            return 0, 0.0, 0.0
        count, mean, largest = limits(limit, next(self.unet.parameters()).device)
        return int(count), float(mean), float(largest)


def text_encoders(models: Models) -> Any:
    """The text encoder alone (SD), or the list of both (SDXL)."""
    return models.text_encoders[0] if len(models.text_encoders) == 1 else list(models.text_encoders)


def attach_plugin(models: Models, options: NetworkOptions, module: ModuleType) -> Plugin:
    """Freeze `models`, let the module create and apply its network, and read network_weights with it (section 7.2)."""
    name, text, parts = module.__name__, text_encoders(models), chosen_parts(options)
    settings: dict[str, Any] = taken(name_values(options.network_args, "network_args"))
    settings.setdefault("dropout", options.network_dropout)
    freeze(models)
    if options.dim_from_weights and options.network_weights:
        create = getattr(module, FROM_WEIGHTS, None) or _without(name, FROM_WEIGHTS, "dim_from_weights")
        network, _ = create(1.0, options.network_weights, models.vae, text, models.unet, **settings)
    else:
        network = module.create_network(
            1.0, options.network_dim, options.network_alpha, models.vae, text, models.unet,
            neuron_dropout=options.network_dropout, **settings,
        )  # fmt: skip
    if network is None:
        raise error("bad-network-module", "created no network", key="network_module", got=name,
                    fix="look at what it printed, and at network_args")  # fmt: skip
    if hasattr(network, "prepare_network"):
        said = {field.name: getattr(options, field.name) for field in fields(options)}
        network.prepare_network(SimpleNamespace(**said))
    network.apply_to(text, models.unet, bool(parts - {"unet"}), "unet" in parts)
    if options.network_weights:
        _check_loaded(network, network.load_weights(options.network_weights), options.network_weights)
    if getattr(options, "gradient_checkpointing", False):
        network.enable_gradient_checkpointing()
    adapter = Plugin(network, models)
    if options.scale_weight_norms and not hasattr(network, "apply_max_norm_regularization"):
        adapter.notes.append(Problem(code="no-effect", severity="warning", key="scale_weight_norms",
                                     got=options.scale_weight_norms, must=f"does nothing: {name} does not know it",
                                     fix="--set scale_weight_norms="))  # fmt: skip
    return adapter


def _check_loaded(network: nn.Module, info: Any, file: str) -> None:
    """Trap T25: a file of which nothing fits is refused; the rest of the report is logged."""
    log.info("%s: %s", file, info)
    missing: Sequence[str] = getattr(info, "missing_keys", ())
    own = network.state_dict()
    if own and set(own) <= set(missing):
        raise error("wrong-family", "matches no tensor of this network", key="network_weights", got=file,
                    fix="use weights of this network module and base model")  # fmt: skip


def merge_by_plugin(models: Models, module: ModuleType, file: str, multiplier: float, dtype: torch.dtype) -> None:
    """`base_weights` of a plug-in: its own network adds `file` to the base model (section 7.2)."""
    create = getattr(module, FROM_WEIGHTS, None) or _without(module.__name__, FROM_WEIGHTS, "base_weights")
    text = text_encoders(models)
    network, weights = create(multiplier, file, models.vae, text, models.unet, for_inference=True)
    network.merge_to(text, models.unet, weights, dtype, next(models.unet.parameters()).device)


def _without(name: str, function: str, key: str) -> Any:
    raise error("bad-network-module", f"needs {function}, which {name} does not have", key=key,
                fix=f"remove {key}")  # fmt: skip
