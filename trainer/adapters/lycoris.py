"""`lycoris.kohya`, `networks.loha`, `networks.lokr`: the LyCORIS package's modules, on our targets and key names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from lycoris.wrapper import network_module_dict
from torch import Tensor, nn

from schemas.network_args import bad, deciding_tucker, nothing_to_adapt
from schemas.options import NetworkOptions
from schemas.problems import ConfigError, Problem, error
from trainer.adapters.adapter import Adapter, Loaded, chosen_parts, freeze, model_of
from trainer.adapters.lora import loading_notes, module_names
from trainer.adapters.lycoris_modules import (
    PRODUCTS,
    DyLoraModule,
    LoConModule,
    NormModule,
    RankBlocks,
    fill,
    for_readers,
    misfits,
    module_from_weights,
    tensors_of,
    with_strength,
)
from trainer.adapters.lycoris_targets import Choice, Preset, choose, extra_targets, read_preset
from trainer.adapters.network_args import arguments, lora_plus

if TYPE_CHECKING:
    from trainer.families import Models, Target

TRUTHS = ("use_scalar", "rescaled", "full_matrix", "bypass_mode", "rs_lora", "unbalanced_factorization")


@dataclass(frozen=True)
class Settings:
    """What `network_args` of lycoris.kohya say; `extra` are the algorithms' own keyword arguments."""

    algo: str
    dim: int
    alpha: float
    conv_dim: int
    conv_alpha: float
    dropout: float
    rank_dropout: float
    module_dropout: float
    tucker: bool
    train_norm: bool
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def training(self) -> dict[str, Any]:
        """What no tensor of a file tells, for `module_from_weights`."""
        said = {"dropout": self.dropout, "rank_dropout": self.rank_dropout, "module_dropout": self.module_dropout}
        said |= {name: self.extra[name] for name in ("use_scalar", "bypass_mode") if name in self.extra}
        return said | {"blocks": self.extra["block_size"] if self.algo == "dylora" else None}


def settings(options: NetworkOptions, given: Mapping[str, Any], preset: Preset) -> Settings:
    """Typed arguments with LyCORIS' defaults: conv_dim and conv_alpha are the linear ones where not given.

    Read as its kohya module reads them, which passes rank_dropout_scale and train_on_input to nobody.
    """
    algo = given.get("algo", "lora")
    dim, alpha = options.rank, options.network_alpha
    extra: dict[str, Any] = {name: given.get(name, False) for name in TRUTHS}
    extra |= {
        "block_size": given.get("block_size", 4),
        "factor": given.get("factor") or -1,
        "decompose_both": bool(given.get("decompose_both")),  # any text, False too
        "constraint": given.get("constraint", 0.0),
        "weight_decompose": given.get("dora_wd", False),
        "wd_on_out": given.get("wd_on_output", True),
    }
    return Settings(
        algo, dim, alpha,
        conv_dim=given.get("conv_dim", dim) if preset.conv else 0,
        conv_alpha=given.get("conv_alpha", alpha),
        dropout=given.get("dropout", options.network_dropout or 0.0),
        rank_dropout=given.get("rank_dropout", 0.0), module_dropout=given.get("module_dropout", 0.0),
        tucker=given.get(deciding_tucker(given), False),
        train_norm=given.get("train_norm", False), extra=extra,
    )  # fmt: skip


def build(choice: Choice, base: nn.Module, said: Settings) -> nn.Module | None:
    """The LyCORIS module for one base module, None where the preset leaves its kind out."""
    if choice.norm:
        norm: nn.Module = NormModule(choice.key, base, 1.0, said.rank_dropout, said.module_dropout)
        return norm
    spatial = isinstance(base, nn.Conv2d) and base.kernel_size != (1, 1)
    dim = choice.dim or (said.conv_dim if spatial else said.dim)
    if dim <= 0:
        return None
    alpha = choice.alpha or (said.conv_alpha if spatial else said.alpha)
    algo = (network_module_dict | {"dylora": RankBlocks})[choice.algo or said.algo]
    tucker = bool(choice.extra.get("use_tucker", said.tucker))
    extra = said.extra | {name: value for name, value in choice.extra.items() if name != "use_tucker"}
    dropout = 0.0 if algo in PRODUCTS else said.dropout
    made: nn.Module = with_strength(
        algo(choice.key, base, 1.0, dim, alpha, dropout, said.rank_dropout, said.module_dropout, tucker, **extra)
    )
    return made


class Lycoris(Adapter):
    """Each module sits under its base module and takes over that one's forward."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for key, layer in self.layers.items():
            for name, parameter in layer.named_parameters():
                yield f"{key}.{name}", parameter

    def state_dict(self) -> dict[str, Tensor]:
        state: dict[str, Tensor] = {}
        for key, layer in self.layers.items():
            state |= {f"{key}.{name}": tensor for name, tensor in for_readers(layer).items()}
        return state

    def exact_state(self) -> dict[str, Tensor]:
        # The file form folds scalars into weights and differences into floats; a resume needs them as they are.
        return {name: tensor.detach() for name, tensor in self._tensors()}

    @torch.no_grad()
    def load_exact_state(self, state: Mapping[str, Tensor]) -> None:
        for name, tensor in self._tensors():
            tensor.copy_(state[name])

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for key, layer in self.layers.items():
            for name, tensor in (*layer.named_parameters(), *layer.named_buffers()):
                if name != "dtype_tensor":
                    yield f"{key}.{name}", tensor

    @torch.no_grad()
    def load_state_dict(self, weights: Mapping[str, Tensor]) -> Loaded:
        given = module_names(weights)
        for key, layer in self.layers.items():
            if key in given:
                _load(key, layer, tensors_of(key, weights))
        missing = tuple(key for key in self.layers if key not in given)
        unexpected = tuple(key for key in given if key not in self.layers)
        return Loaded(len(self.layers) - len(missing), missing, unexpected)

    def set_multiplier(self, multiplier: float) -> None:
        for layer in self.layers.values():
            layer.multiplier = multiplier  # type: ignore[assignment]

    @torch.no_grad()
    def apply_max_norm(self, limit: float) -> tuple[int, float, float]:
        scaled, norms = 0, []
        for layer in self.layers.values():
            changed, norm = layer.apply_max_norm(limit, next(layer.parameters()).device)  # type: ignore[operator]
            if changed is not None:
                scaled += int(changed)
                norms.append(float(norm))
        return (scaled, sum(norms) / len(norms), max(norms)) if norms else (0, 0.0, 0.0)


def _load(key: str, layer: Any, own: dict[str, Tensor]) -> None:
    wrong = misfits(layer, own, layer.org_module[0])
    if wrong:
        raise error("rank-mismatch", f"{key}: in the file {', '.join(wrong)}", key="network_dim",
                    got={name: list(tensor.shape) for name, tensor in own.items()},
                    fix="use the file's algo, dim, factor and DoRA form, or set dim_from_weights")  # fmt: skip
    fill(layer, own)


def attach_lycoris(
    models: Models, targets: Sequence[Target], options: NetworkOptions, weights: Mapping[str, Tensor] | None
) -> Lycoris:
    """Freeze `models`, put LyCORIS modules where preset (or, with dim_from_weights, file) says; load `weights`."""
    given = arguments(options)
    preset = read_preset(given.get("preset", "full"))
    said = settings(options, given, preset)
    if weights is not None and options.dim_from_weights:
        choices = _in_file(models, targets, options, weights)
    else:
        choices = choose(models, targets, preset, parts=chosen_parts(options), norms=said.train_norm)
    return _attach(models, choices, said, options, given, weights)


def attach_product(
    models: Models, targets: Sequence[Target], options: NetworkOptions, weights: Mapping[str, Tensor] | None
) -> Lycoris:
    """networks.loha, networks.lokr: Hadamard and Kronecker products where networks.lora would put its own.

    Resnets and samplers are adapted with conv_dim only, whose alpha is 1 where not given.
    """
    module = str(options.network_module)
    given = arguments(options)
    conv_dim = given.get("conv_dim", 0)
    said = Settings(
        module.removeprefix("networks."), options.rank, options.network_alpha, conv_dim=conv_dim,
        conv_alpha=given.get("conv_alpha", 1.0), dropout=given.get("dropout") or options.network_dropout or 0.0,
        rank_dropout=given.get("rank_dropout", 0.0), module_dropout=given.get("module_dropout", 0.0),
        tucker=given.get("use_tucker", False), train_norm=False,
        extra={"factor": given.get("factor") or -1},
    )  # fmt: skip
    places = ("text", "transformer", "resnet", "sampler") if conv_dim else ("text", "transformer")
    parts = chosen_parts(options)
    choices = [Choice(target) for target in targets if target.part in parts and target.place in places]
    if weights is not None and options.dim_from_weights:
        choices = _in_file(models, targets, options, weights)
    return _attach(models, choices, said, options, given, weights)


def _in_file(
    models: Models, targets: Sequence[Target], options: NetworkOptions, weights: Mapping[str, Tensor]
) -> list[Choice]:
    """The modules that a file names: with dim_from_weights it says where, whatever the preset."""
    names, parts = module_names(weights), chosen_parts(options)
    found = {target.key: target for target in (*targets, *extra_targets(models, targets).values())}
    return [Choice(target) for key, target in found.items() if key in names and target.part in parts]


def _attach(
    models: Models, choices: Sequence[Choice], said: Settings, options: NetworkOptions, given: Mapping[str, Any],
    weights: Mapping[str, Tensor] | None,
) -> Lycoris:  # fmt: skip
    freeze(models)
    trees = {choice.target.part: dict(model_of(models, choice.target.part).named_modules()) for choice in choices}
    from_file = weights if options.dim_from_weights else None
    layers: dict[str, nn.Module] = {}
    for choice in choices:
        base = trees[choice.target.part][choice.target.path]
        if from_file is None:
            layer = _built(choice, base, said)
        else:
            layer = module_from_weights(choice.key, base, from_file, said.training)
        if layer is not None:
            layers[choice.key] = _apply(layer, base)
    if not layers:
        raise ConfigError([nothing_to_adapt(options)])
    adapted = {choice.key: choice.target for choice in choices if choice.key in layers}
    adapter = Lycoris(adapted, layers, lora_plus(given))
    if getattr(options, "save_peft", False):
        _check_peft(adapter)
    if from_file is not None:
        unused = tuple(key for key in module_names(from_file) if key not in layers)
        adapter.notes += loading_notes(Loaded(len(layers), (), unused))
        if said.dropout and all(isinstance(layer, PRODUCTS) for layer in layers.values()):
            must = "network_dropout does nothing: the file's kind has no dropout of activations"
            adapter.notes.append(Problem(code="no-effect", severity="warning", key="network_dropout", got=said.dropout,
                                         must=must, fix="--set network_dropout="))  # fmt: skip
    elif weights is not None:
        adapter.notes += loading_notes(adapter.load_state_dict(weights))
    return adapter


def _check_peft(adapter: Lycoris) -> None:
    """A preset can bring in kinds that diffusers has no form for."""
    for key, layer in adapter.layers.items():
        if not isinstance(layer, (LoConModule, DyLoraModule)) or getattr(layer, "tucker", False):
            kind = type(layer).__name__.removesuffix("Module")
            raise error("no-peft-copy", f"cannot be kept: {key} is a {kind}, not a plain LoRA", key="save_peft",
                        got=True, fix="--set save_peft=false, or another preset")  # fmt: skip


def _built(choice: Choice, base: nn.Module, said: Settings) -> nn.Module | None:
    try:
        return build(choice, base, said)
    except (AssertionError, ValueError) as fault:
        must, fix = f"does not work on {choice.key}: {fault}", "change the algo, the preset or the ranks"
        raise ConfigError([bad("algo", choice.algo or said.algo, must, {}, fix=fix)]) from fault


def _apply(layer: Any, base: nn.Module) -> nn.Module:
    layer.float().requires_grad_(True)
    device = next(base.parameters()).device
    layer.apply_to()
    base.add_module("lycoris", layer)  # so that it follows the model to a device and into train mode
    moved: nn.Module = layer.to(device)
    return moved
