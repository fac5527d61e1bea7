"""LoRA (Hu et al. 2021) for Linear and Conv2d, injected by peft, with kohya's init, scale and dropouts (section 7)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from schemas.network_args import nothing_to_adapt
from schemas.options import NetworkOptions
from schemas.problems import ConfigError, Problem, error
from trainer.adapters.adapter import Adapter, Loaded, chosen_parts, find_modules, freeze, model_of
from trainer.adapters.lora_layers import NAME, ConvLora, Dropouts, KohyaLayer, LinearLora, Shape
from trainer.adapters.network_args import LoraArgs, lora_args

if TYPE_CHECKING:
    from trainer.families import Models, Target


class Lora(Adapter):
    """networks.lora: LoRA layers in the models' own trees."""

    module = "networks.lora"
    layers: dict[str, KohyaLayer]  # type: ignore[assignment]

    @staticmethod
    def layer(base: Any, shape: Shape, dropouts: Dropouts, args: LoraArgs) -> KohyaLayer:
        """The layer that takes the place of one base module."""
        kind = LinearLora if isinstance(base, nn.Linear) else ConvLora
        return kind(base, shape, dropouts)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for key, layer in self.layers.items():
            yield f"{key}.lora_down.weight", layer.down.weight
            yield f"{key}.lora_up.weight", layer.up.weight

    def state_dict(self) -> dict[str, Tensor]:
        state = {}
        for key, layer in self.layers.items():
            state[f"{key}.alpha"] = torch.tensor(float(layer.alpha))
            state[f"{key}.lora_down.weight"] = layer.down.weight.detach()
            state[f"{key}.lora_up.weight"] = layer.up.weight.detach()
        return state

    @torch.no_grad()
    def load_state_dict(self, weights: Mapping[str, Tensor]) -> Loaded:
        """Fill A and B; the file's alpha governs what is saved and what scales (trap T24)."""
        given, missing = module_names(weights), []
        present = {key: layer for key, layer in self.layers.items() if key in given}
        _check_ranks(present, weights)
        for key, layer in self.layers.items():
            if key not in given:
                missing.append(key)
                continue
            layer.down.weight.copy_(weights[f"{key}.lora_down.weight"].view_as(layer.down.weight))
            layer.up.weight.copy_(weights[f"{key}.lora_up.weight"].view_as(layer.up.weight))
            alpha = weights.get(f"{key}.alpha")
            layer.set_alpha(float(layer.rank if alpha is None else alpha))
        return Loaded(len(present), tuple(missing), tuple(key for key in given if key not in self.layers))

    def set_multiplier(self, multiplier: float) -> None:
        for layer in self.layers.values():
            layer.set_multiplier(multiplier)

    @torch.no_grad()
    def apply_max_norm(self, limit: float) -> tuple[int, float, float]:
        """‖B A‖_F² = Σ (Bᵀ B) ∘ (A Aᵀ): r×r products instead of ΔW itself, and one wait for the device."""
        found = []
        for layer in self.layers.values():
            a, b = (factor.float() for factor in layer.factors())
            square = ((b.t() @ b) * (a @ a.t())).sum().clamp_min(0)
            found.append(square.sqrt() * (layer.alpha / layer.rank))
        norms = torch.stack([norm.to(found[0].device) for norm in found])
        floored = norms.clamp_min(limit / 2)
        ratios = floored.clamp_max(limit) / floored
        for layer, ratio in zip(self.layers.values(), ratios.unbind(), strict=True):
            self._scale(layer, ratio.to(layer.up.weight.device))
        held = norms * ratios
        return int((ratios != 1).sum()), float(held.mean()), float(held.max())

    def _scale(self, layer: KohyaLayer, ratio: Tensor) -> None:
        """ΔW of one layer times `ratio`."""
        layer.down.weight.mul_(ratio.sqrt())
        layer.up.weight.mul_(ratio.sqrt())


def module_names(weights: Mapping[str, Tensor]) -> dict[str, None]:
    """The modules that a kohya-keyed dict speaks of, in its order."""
    return dict.fromkeys(name.partition(".")[0] for name in weights)


def plain(key: str, weights: Mapping[str, Tensor]) -> bool:
    """Whether a module's tensors are A, B and alpha alone; Tucker cores and DoRA scales are LyCORIS' business."""
    return f"{key}.lora_mid.weight" not in weights and f"{key}.dora_scale" not in weights


def _check_ranks(layers: Mapping[str, KohyaLayer], weights: Mapping[str, Tensor]) -> None:
    wrong = []
    for key, layer in layers.items():
        down, up = weights.get(f"{key}.lora_down.weight"), weights.get(f"{key}.lora_up.weight")
        if down is None or up is None or not plain(key, weights):
            raise _not_plain(key)
        if down.numel() != layer.down.weight.numel() or up.numel() != layer.up.weight.numel():
            wrong.append((key, down, layer))
    if not wrong:
        return
    key, down, layer = wrong[0]
    theirs, ours = down.shape[0], layer.rank
    if theirs == ours:
        raise error("wrong-family", f"{key} has another width than the base model's module", key="network_weights",
                    got=list(down.shape), fix="load a LoRA of the base model's own family")  # fmt: skip
    name = "conv_dim" if layer.down.weight.dim() == 4 and layer.down.weight.shape[-1] > 1 else "network_dim"
    raise error(
        "rank-mismatch",
        f"is {ours}, but network_weights has rank {theirs} ({len(wrong)} modules differ, first {key})",
        key=name, got=ours, fix=f"set {name} to {theirs}, or set dim_from_weights",
    )  # fmt: skip


def _not_plain(key: str) -> Exception:
    return error("other-network-kind", f"{key} is not a plain LoRA (no lora_down and lora_up)", key="network_weights",
                 fix="set network_module to lycoris.kohya with the algo it was trained with")  # fmt: skip


def planned_shapes(targets: Sequence[Target], options: NetworkOptions, args: LoraArgs) -> dict[str, Shape]:
    """kohya key -> rank and alpha of every module to adapt (reference sections 7.3 to 7.5)."""
    parts, shapes = chosen_parts(options), {}
    dim = options.rank
    for target in targets:
        if target.part not in parts or (target.place in ("resnet", "sampler") and not args.conv):
            continue
        rank, alpha = dim, options.network_alpha
        if target.part == "unet":
            three = target.kind == "conv3x3"
            rank, alpha = (args.conv_dim or 0, args.conv_alpha) if three else (rank, alpha)
            if args.by_block and target.block is not None:
                rank, alpha = _block_shape(args, target.block, three, rank, alpha)
        if rank > 0:
            shapes[target.key] = Shape(rank, alpha or float(rank))
    return shapes


def _block_shape(args: LoraArgs, block: int, three: bool, rank: int, alpha: float) -> tuple[int, float]:
    if args.lr_weight is not None and args.lr_weight[block] == 0:
        return 0, alpha
    dims, alphas = (args.conv_block_dims, args.conv_block_alphas) if three else (args.block_dims, args.block_alphas)
    return rank if dims is None else dims[block], alpha if alphas is None else alphas[block]


def file_shapes(targets: Sequence[Target], options: NetworkOptions, weights: Mapping[str, Tensor]) -> dict[str, Shape]:
    """kohya key -> the rank and alpha that a weight file has; alpha is the rank where the file has none."""
    parts, shapes = chosen_parts(options), {}
    names = module_names(weights)
    for target in targets:
        if target.part in parts and target.key in names:
            down = weights.get(f"{target.key}.lora_down.weight")
            if down is None or not plain(target.key, weights):
                raise _not_plain(target.key)
            rank = down.shape[0]
            alpha = weights.get(f"{target.key}.alpha")
            shapes[target.key] = Shape(rank, float(rank if alpha is None else alpha))
    return shapes


def attach_lora(
    models: Models,
    targets: Sequence[Target],
    options: NetworkOptions,
    weights: Mapping[str, Tensor] | None,
    kind: type[Lora] = Lora,
) -> Lora:
    """Freeze `models`, inject the layers that options (or the file, with dim_from_weights) ask for, load `weights`."""
    args = lora_args(options, models.family, kind.module)
    from_file = options.dim_from_weights and weights is not None
    shapes = file_shapes(targets, options, weights) if from_file and weights else planned_shapes(targets, options, args)
    if not shapes:
        raise ConfigError([nothing_to_adapt(options)])
    adapted = [target for target in targets if target.key in shapes]
    dropouts = Dropouts(options.network_dropout or 0.0, args.rank_dropout, args.module_dropout)
    freeze(models)
    layers = inject(models, adapted, lambda key, base: kind.layer(base, shapes[key], dropouts, args))
    adapter = kind({target.key: target for target in adapted}, layers, args.loraplus)
    for _, parameter in adapter.named_parameters():
        parameter.requires_grad_(True)
    adapter.lr_weight = args.lr_weight
    if weights is not None:
        _load(adapter, weights)
    return adapter


def _load(adapter: Lora, weights: Mapping[str, Tensor]) -> None:
    asked = {key: layer.alpha for key, layer in adapter.layers.items()}
    adapter.notes += loading_notes(adapter.load_state_dict(weights))
    changed = [key for key, layer in adapter.layers.items() if layer.alpha != asked[key]]
    if changed:
        theirs, ours = adapter.layers[changed[0]].alpha, asked[changed[0]]
        must = f"is taken from network_weights as {theirs:g} in {len(changed)} modules"
        adapter.notes.append(Problem(code="alpha-from-file", severity="warning", key="network_alpha", got=ours,
                                     must=must, fix=f"set network_alpha to {theirs:g}"))  # fmt: skip


def loading_notes(loaded: Loaded, key: str = "network_weights") -> list[Problem]:
    """What the user should hear of a load; ConfigError `wrong-family` when nothing matched (trap T25)."""
    if not loaded.matched:
        raise error("wrong-family", "matches no module of this network", key=key,
                    got=list(loaded.unexpected[:3]), fix="load a LoRA of the base model's own family")  # fmt: skip
    if not loaded.missing and not loaded.unexpected:
        return []
    must = f"fills {loaded.matched} modules; {len(loaded.missing)} start fresh, {len(loaded.unexpected)} fit nowhere"
    first = list((*loaded.missing, *loaded.unexpected)[:3])
    return [Problem(code="partial-load", severity="warning", key=key, must=must, got=first)]


def inject(models: Models, targets: Sequence[Target], layer: Callable[[str, Any], KohyaLayer]) -> dict[str, KohyaLayer]:
    """kohya key -> the frozen layer that peft has put in the place of each target's module; `layer` makes it."""
    bases = find_modules(models, targets)
    keys = {base: key for key, base in bases.items()}
    made: dict[str, KohyaLayer] = {}

    def build(base: Any, adapter_name: str, **kwargs: Any) -> KohyaLayer:
        key = keys[base]
        made[key] = layer(key, base)
        return made[key]

    for part in dict.fromkeys(target.part for target in targets):
        paths = [target.path for target in targets if target.part == part]
        config = LoraConfig(r=1, lora_alpha=1, target_modules=paths)
        # peft calls the registered type like a class; this one looks rank and alpha up instead of matching patterns.
        config._register_custom_module({nn.Linear: build, nn.Conv2d: build})
        inject_adapter_in_model(config, model_of(models, part), adapter_name=NAME)
    for new in made.values():
        new.requires_grad_(False)
    return {target.key: made[target.key] for target in targets}
