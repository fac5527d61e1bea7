"""`lycoris.kohya`, `networks.loha`, `networks.lokr`: the LyCORIS package's modules, on our targets and key names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from schemas.network_args import deciding_tucker
from schemas.options import NetworkOptions
from schemas.problems import ConfigError, Problem, error
from trainer.adapters.adapter import Adapter, Loaded, chosen_parts, freeze, is_up, model_of
from trainer.adapters.lora import DEFAULT_DIM, loading_notes, module_names
from trainer.adapters.lycoris_targets import Choice, Preset, choose, read_preset
from trainer.adapters.network_args import LoraPlus, arguments, lora_plus, no_effect

if TYPE_CHECKING:
    from trainer.families import Models, Target

try:
    from lycoris.modules import MODULE_LIST, NormModule
    from lycoris.modules.dylora import DyLoraModule
    from lycoris.modules.ia3 import IA3Module
    from lycoris.modules.locon import LoConModule
    from lycoris.modules.loha import LohaModule
    from lycoris.modules.lokr import LokrModule
    from lycoris.wrapper import network_module_dict
except ImportError as fault:
    raise error("package-missing", "needs the lycoris-lora package", key="network_module",
                fix="pip install lycoris-lora") from fault  # fmt: skip

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


def settings(options: NetworkOptions, given: Mapping[str, Any], preset: Preset) -> Settings:
    """Typed arguments with LyCORIS' defaults: conv_dim and conv_alpha are the linear ones where not given.

    Read as its kohya module reads them, which passes rank_dropout_scale and train_on_input to nobody.
    """
    algo = given.get("algo", "lora")
    dim, alpha = options.network_dim or DEFAULT_DIM, options.network_alpha
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


class RankBlocks(DyLoraModule):
    """LyCORIS' DyLoRA with all ranks in use outside training, and a draw that gradient checkpointing can repeat."""

    def get_random_rank_weight(self) -> tuple[Tensor, Tensor, float]:
        block = int(torch.randint(self.block_count, ())) if self.training else self.block_count - 1
        found: tuple[Tensor, Tensor, float] = self.get_weight(block * self.block_size)
        return found


PRODUCTS = (LohaModule, LokrModule)  # they know no dropout of activations, and say so once a module


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
    made: nn.Module = algo(
        choice.key, base, 1.0, dim, alpha, dropout, said.rank_dropout, said.module_dropout, tucker, **extra
    )
    return made


def module_from_weights(key: str, base: nn.Module, weights: Mapping[str, Tensor]) -> Any:
    """The LyCORIS module that a file's tensors of `key` describe; ConfigError when no algorithm knows them."""
    for kind in MODULE_LIST:
        if kind.algo_check(weights, key):
            try:
                with torch.no_grad():
                    made = _from_tensors(kind, key, base, kind.extract_state_dict(weights, key))
                    if kind is LokrModule and made.use_w1 and made.use_w2 and f"{key}.alpha" in weights:
                        made.alpha.fill_(float(weights[f"{key}.alpha"]))  # of no effect, but the file's to keep
                    return made
            except (RuntimeError, ValueError, TypeError, NotImplementedError) as fault:
                raise error("wrong-family", f"{key} does not fit the base model: {fault}", key="network_weights",
                            fix="use a file of the base model's own family") from fault  # fmt: skip
    names = [name.partition(".")[2] for name in weights if name.startswith(f"{key}.")]
    raise error("other-network-kind", f"{key} is of a kind that LyCORIS does not know", key="network_weights",
                got=names, fix="use another file")  # fmt: skip


def _from_tensors(kind: Any, key: str, base: nn.Module, tensors: Sequence[Tensor]) -> Any:
    if kind is not IA3Module:
        return kind.make_module_from_state_dict(key, base, *tensors)
    # the package's own reader does not take the tensors that its writer leaves
    weight, on_input = tensors
    made = IA3Module(key, base, train_on_input=bool(on_input))
    made.weight.copy_(weight)
    return made


def merged_weight(module: Any, weight: Tensor, multiplier: float) -> Tensor:
    """`weight` with the difference of a LyCORIS module added, in float32."""
    if not isinstance(module, PRODUCTS):
        merged, _ = module.get_merged_weight(multiplier, weight.shape, weight.device)
        return merged.float().view_as(weight)
    # their own merging multiplies alpha / rank twice
    difference = module.get_weight(weight.shape)
    if module.wd:
        return module.apply_weight_decompose(weight + difference, multiplier).float()
    return weight + multiplier * difference.float()


class Lycoris(Adapter):
    """Each module sits under its base module and takes over that one's forward."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for key, layer in self.layers.items():
            for name, parameter in layer.named_parameters():
                yield f"{key}.{name}", parameter

    def state_dict(self) -> dict[str, Tensor]:
        state = {}
        for key, layer in self.layers.items():
            for name, tensor in layer.state_dict().items():
                state[f"{key}.{name}"] = _alpha_for_readers(layer, tensor) if name == "alpha" else tensor.detach()
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
        given: dict[str, dict[str, Tensor]] = {}
        for name, tensor in weights.items():
            key, _, ending = name.partition(".")
            given.setdefault(key, {})[ending] = tensor
        for key in given.keys() & self.layers.keys():
            _fill(key, self.layers[key], given[key])
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


def _alpha_for_readers(layer: Any, alpha: Tensor) -> Tensor:
    """LyCORIS scales DyLoRA by alpha / blocks in training; whoever reads the file divides by the rank."""
    return alpha.detach().float() * (layer.block_size if isinstance(layer, DyLoraModule) else 1)


def _fill(key: str, layer: Any, own: dict[str, Tensor]) -> None:
    """Load one module's tensors; the file's alpha scales too (trap T24)."""
    expected = {name: tuple(tensor.shape) for name, tensor in layer.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in own.items()}
    wrong = [name for name, shape in expected.items() if found.get(name) != shape and name != "alpha"]
    if wrong:
        raise error("rank-mismatch", f"{key}: the file has {found}, the network needs {expected}", key="network_dim",
                    got=wrong, fix="use the file's algo, dim and factor, or set dim_from_weights")  # fmt: skip
    if isinstance(layer, DyLoraModule):  # keeps its ranks in pieces and ignores load_state_dict
        for piece, part in zip(layer.up_list, own["lora_up.weight"].chunk(layer.block_count, 1), strict=True):
            piece.copy_(part.view_as(piece))
        for piece, part in zip(layer.down_list, own["lora_down.weight"].chunk(layer.block_count, 0), strict=True):
            piece.copy_(part.reshape(piece.shape))
    elif hasattr(layer, "is_diff"):  # algo=full adds to what it holds; start from the base
        layer.weight.copy_(layer._org_weight[0].to(layer.weight) + own["diff"].to(layer.weight))
        if "diff_b" in own:
            layer.bias.copy_(layer.org_bias[0].to(layer.bias) + own["diff_b"].to(layer.bias))
    else:
        layer.load_state_dict(own, strict=False)
    if "alpha" in own and isinstance(getattr(layer, "scale", None), float) and hasattr(layer, "lora_dim"):
        alpha = float(own["alpha"]) / (layer.block_size if isinstance(layer, DyLoraModule) else 1)
        layer.alpha.fill_(alpha)
        layer.scale = alpha / layer.lora_dim


def attach_lycoris(
    models: Models, targets: Sequence[Target], options: NetworkOptions, weights: Mapping[str, Tensor] | None
) -> Lycoris:
    """Freeze `models`, put LyCORIS modules where preset (or, with dim_from_weights, file) says; load `weights`."""
    given = arguments(options)
    preset = read_preset(given.get("preset", "full"))
    said = settings(options, given, preset)
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
        module.removeprefix("networks."), options.network_dim or DEFAULT_DIM, options.network_alpha, conv_dim=conv_dim,
        conv_alpha=given.get("conv_alpha", 1.0), dropout=given.get("dropout") or options.network_dropout or 0.0,
        rank_dropout=given.get("rank_dropout", 0.0), module_dropout=given.get("module_dropout", 0.0),
        tucker=given.get("use_tucker", False), train_norm=False,
        extra={"factor": given.get("factor") or -1},
    )  # fmt: skip
    names = module_names(weights) if weights is not None and options.dim_from_weights else ()
    places = ("text", "transformer", "resnet", "sampler") if conv_dim or names else ("text", "transformer")
    parts = chosen_parts(options)
    choices = [Choice(target) for target in targets if target.part in parts and target.place in places]
    return _attach(models, choices, said, options, given, weights)


def _attach(
    models: Models, choices: Sequence[Choice], said: Settings, options: NetworkOptions, given: Mapping[str, Any],
    weights: Mapping[str, Tensor] | None,
) -> Lycoris:  # fmt: skip
    freeze(models)
    trees = {choice.target.part: dict(model_of(models, choice.target.part).named_modules()) for choice in choices}
    names = module_names(weights) if weights is not None and options.dim_from_weights else None
    layers: dict[str, nn.Module] = {}
    for choice in choices:
        base = trees[choice.target.part][choice.target.path]
        if names is None or weights is None:
            layer = _built(choice, base, said)
        else:
            layer = module_from_weights(choice.key, base, weights) if choice.key in names else None
        if layer is not None:
            layers[choice.key] = _apply(layer, base)
    if not layers:
        raise error("nothing-to-train", "leaves no module to adapt", key="network_args", got=list(options.network_args),
                    fix="choose other places or weights")  # fmt: skip
    adapted = {choice.key: choice.target for choice in choices if choice.key in layers}
    adapter = Lycoris(adapted, layers, lora_plus(given))
    adapter.notes += _without_effect(adapter, said) if names is None else _lost_dropouts(said)
    if getattr(options, "save_peft", False):
        _check_peft(adapter)
    if weights is not None:
        if names is None:
            adapter.notes += loading_notes(adapter.load_state_dict(weights))
        else:
            unused = tuple(key for key in names if key not in layers)
            adapter.notes += loading_notes(Loaded(len(layers), (), unused))
    return adapter


def _check_peft(adapter: Lycoris) -> None:
    """A preset can bring in kinds that diffusers has no form for."""
    for key, layer in adapter.layers.items():
        if not isinstance(layer, (LoConModule, DyLoraModule)) or getattr(layer, "tucker", False):
            kind = type(layer).__name__.removesuffix("Module")
            raise error("no-peft-copy", f"cannot be kept: {key} is a {kind}, not a plain LoRA", key="save_peft",
                        got=True, fix="--set save_peft=false, or another preset")  # fmt: skip


def _without_effect(adapter: Lycoris, said: Settings) -> list[Problem]:
    """What these algorithms do not know, although it was asked for."""
    notes = []
    if said.dropout and all(isinstance(layer, PRODUCTS) for layer in adapter.layers.values()):
        notes.append(no_effect("dropout", f"{said.algo} has no dropout of activations", "use rank_dropout",
                               key="network_dropout"))  # fmt: skip
    ups = any(is_up(name.partition(".")[2]) for name, _ in adapter.named_parameters())
    if adapter.loraplus != LoraPlus() and not ups:
        notes.append(no_effect("loraplus_lr_ratio", f"{said.algo} has no up matrices", "remove it"))
    return notes


def _built(choice: Choice, base: nn.Module, said: Settings) -> nn.Module | None:
    try:
        return build(choice, base, said)
    except (AssertionError, ValueError) as fault:
        raise ConfigError([
            Problem(code="bad-network-arg", key="network_args", got=f"algo={choice.algo or said.algo}",
                    must=f"does not work on {choice.key}: {fault}", fix="change the algo, the preset or the ranks")
        ]) from fault  # fmt: skip


def _apply(layer: Any, base: nn.Module) -> nn.Module:
    layer.float().requires_grad_(True)
    device = next(base.parameters()).device
    layer.apply_to()
    base.add_module("lycoris", layer)  # so that it follows the model to a device and into train mode
    moved: nn.Module = layer.to(device)
    return moved


def _lost_dropouts(said: Settings) -> list[Problem]:
    if not (said.dropout or said.rank_dropout or said.module_dropout):
        return []
    return [Problem(code="no-effect", severity="warning", key="dim_from_weights", got=True,
                    must="builds LyCORIS modules without dropouts", fix="give algo and dims instead")]  # fmt: skip
