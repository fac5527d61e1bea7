"""`lycoris.kohya`: the LyCORIS package's modules behind the adapter's face, on our targets and key names."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from schemas.options import NetworkOptions
from schemas.problems import ConfigError, Problem, error, nearest
from trainer.adapters.adapter import Adapter, Loaded, chosen_parts, freeze, model_of
from trainer.adapters.lora import DEFAULT_DIM, loading_notes, module_names
from trainer.adapters.lycoris_targets import Choice, Preset, choose, read_preset
from trainer.adapters.network_args import chance, lora_plus, number, parse

if TYPE_CHECKING:
    from trainer.families import Models, Target

try:
    from lycoris.modules import MODULE_LIST, NormModule
    from lycoris.wrapper import network_module_dict
except ImportError as fault:
    raise error("package-missing", "needs the lycoris-lora package", key="network_module", got="lycoris.kohya",
                fix="pip install lycoris-lora") from fault  # fmt: skip

ALGOS = ("lora", "locon", "loha", "lokr", "dylora", "glora", "full", "diag-oft", "boft", "ia3")
TRUTHS = ("use_scalar", "rescaled", "full_matrix", "bypass_mode", "rs_lora", "unbalanced_factorization",
          "decompose_both", "rank_dropout_scale", "train_on_input")  # fmt: skip


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


def settings(options: NetworkOptions, given: Mapping[str, str], preset: Preset) -> Settings:
    """Typed arguments with LyCORIS' defaults: conv_dim and conv_alpha are the linear ones where not given."""
    algo = (given.get("algo") or "lora").lower()
    if algo not in ALGOS:
        guess = nearest(algo, ALGOS)
        raise error("bad-network-arg", f"algo must be one of {', '.join(ALGOS)}", key="network_args",
                    got=f"algo={algo}", fix=f"did you mean {guess}?" if guess else "choose one of them")  # fmt: skip
    dim, alpha = options.network_dim or DEFAULT_DIM, options.network_alpha
    block_size = number(given, "block_size", int, 1) or 4
    if algo == "dylora" and dim % block_size:
        raise error("bad-network-arg", "must be a multiple of block_size for dylora", key="network_dim", got=dim,
                    fix=f"set network_dim to {math.ceil(dim / block_size) * block_size}")  # fmt: skip
    dropout = chance(given, "dropout") if "dropout" in given else options.network_dropout or 0.0
    extra: dict[str, Any] = {name: truth(given, name) for name in TRUTHS}
    extra |= {
        "block_size": block_size,
        "factor": number(given, "factor", int, -1) or -1,
        "constraint": number(given, "constraint", float) or 0.0,
        "weight_decompose": truth(given, "dora_wd"),
        "wd_on_out": truth(given, "wd_on_output", default=True),
    }
    return Settings(
        algo, dim, alpha,
        conv_dim=(number(given, "conv_dim", int) or dim) if preset.conv else 0,
        conv_alpha=number(given, "conv_alpha", float) or alpha,
        dropout=dropout, rank_dropout=chance(given, "rank_dropout"), module_dropout=chance(given, "module_dropout"),
        tucker=any(truth(given, name) for name in ("use_tucker", "use_cp", "use_conv_cp")),
        train_norm=truth(given, "train_norm"), extra=extra,
    )  # fmt: skip


def truth(given: Mapping[str, str], name: str, default: bool = False) -> bool:
    """A yes or no under `name`, in the spellings people use."""
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False, "": default}
    text = given.get(name, "").lower()
    if text not in words:
        raise error("bad-network-arg", f"{name} must be True or False", key="network_args", got=f"{name}={text}",
                    fix=f"correct {name}")  # fmt: skip
    return words[text]


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
    algo = network_module_dict[choice.algo or said.algo]
    tucker = bool(choice.extra.get("use_tucker", said.tucker))
    extra = said.extra | {name: value for name, value in choice.extra.items() if name != "use_tucker"}
    made: nn.Module = algo(
        choice.key, base, 1.0, dim, alpha, said.dropout, said.rank_dropout, said.module_dropout, tucker, **extra
    )
    return made


def module_from_weights(key: str, base: nn.Module, weights: Mapping[str, Tensor]) -> Any:
    """The LyCORIS module that a file's tensors of `key` describe; ConfigError when no algorithm knows them."""
    for kind in MODULE_LIST:
        if kind.algo_check(weights, key):
            try:
                with torch.no_grad():
                    return kind.make_module_from_state_dict(key, base, *kind.extract_state_dict(weights, key))
            except (RuntimeError, ValueError, TypeError, NotImplementedError) as fault:
                raise error("wrong-family", f"{key} does not fit the base model: {fault}", key="network_weights",
                            fix="use a file of the base model's own family") from fault  # fmt: skip
    names = [name.partition(".")[2] for name in weights if name.startswith(f"{key}.")]
    raise error("other-network-kind", f"{key} is of a kind that LyCORIS does not know", key="network_weights",
                got=names, fix="use another file")  # fmt: skip


class Lycoris(Adapter):
    """lycoris.kohya: each module sits under its base module and takes over that one's forward."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for key, layer in self.layers.items():
            for name, parameter in layer.named_parameters():
                yield f"{key}.{name}", parameter

    def state_dict(self) -> dict[str, Tensor]:
        state = {}
        for key, layer in self.layers.items():
            for name, tensor in layer.state_dict().items():
                state[f"{key}.{name}"] = tensor.detach().float() if name == "alpha" else tensor.detach()
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
        given, missing, matched = module_names(weights), [], 0
        for key, layer in self.layers.items():
            if key not in given:
                missing.append(key)
                continue
            own = {name.partition(".")[2]: tensor for name, tensor in weights.items() if name.partition(".")[0] == key}
            _fill(key, layer, own)
            matched += 1
        return Loaded(matched, tuple(missing), tuple(key for key in given if key not in self.layers))

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


def _fill(key: str, layer: Any, own: dict[str, Tensor]) -> None:
    """Load one module's tensors; the file's alpha scales too (trap T24)."""
    expected = {name: tuple(tensor.shape) for name, tensor in layer.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in own.items()}
    wrong = [name for name, shape in expected.items() if found.get(name) != shape and name != "alpha"]
    if wrong:
        raise error("rank-mismatch", f"{key}: the file has {found}, the network needs {expected}", key="network_dim",
                    got=wrong, fix="use the file's algo, dim and factor, or set dim_from_weights")  # fmt: skip
    if hasattr(layer, "up_list"):  # dylora keeps its ranks in pieces and ignores load_state_dict
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
        layer.alpha.fill_(float(own["alpha"]))
        layer.scale = float(own["alpha"]) / layer.lora_dim


def attach_lycoris(
    models: Models, targets: Sequence[Target], options: NetworkOptions, weights: Mapping[str, Tensor] | None
) -> Lycoris:
    """Freeze `models`, put LyCORIS modules where preset (or, with dim_from_weights, file) says; load `weights`."""
    given = parse("lycoris.kohya", options.network_args)
    preset = read_preset(given.get("preset") or "full")
    said = settings(options, given, preset)
    choices = choose(models, targets, preset, parts=chosen_parts(options), norms=said.train_norm)
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
                    fix="choose another preset")  # fmt: skip
    adapted = {choice.key: choice.target for choice in choices if choice.key in layers}
    adapter = Lycoris(adapted, layers, lora_plus(given))
    if weights is not None:
        if names is None:
            adapter.notes += loading_notes(adapter.load_state_dict(weights))
        else:
            unused = tuple(key for key in names if key not in layers)
            adapter.notes += loading_notes(Loaded(len(layers), (), unused))
            adapter.notes += _lost_dropouts(said)
    return adapter


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
