"""LoRA (Hu et al. 2021) for Linear and Conv2d, injected by peft, with kohya's init, scale and dropouts (section 7)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners import lora as peft_lora
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from schemas.options import NetworkOptions
from schemas.problems import Problem, error
from trainer.adapters.adapter import Adapter, Loaded, chosen_parts, find_modules, freeze, model_of
from trainer.adapters.network_args import LoraArgs, lora_args

if TYPE_CHECKING:
    from trainer.families import Models, Target

NAME = "default"  # peft's name of the one adapter
DEFAULT_DIM = 4


@dataclass(frozen=True)
class Shape:
    """Rank and alpha of one module."""

    rank: int
    alpha: float


@dataclass(frozen=True)
class Dropouts:
    """Chances of dropping one r-dim activation, one rank channel of a sample, one whole module."""

    activation: float = 0.0
    rank: float = 0.0
    module: float = 0.0

    @property
    def inner(self) -> bool:
        return self.activation > 0 or self.rank > 0


class KohyaLayer(LoraLayer):
    """The half that Linear and Conv2d share: y = W x + (multiplier α / r) B A x.

    It sits in peft's slots (`lora_A`, `lora_B`, `scaling`), so peft's merging works on it; only the forward is ours. A
    is Kaiming-uniform with a = √5, B is 0; both are float32 and drawn on the CPU, so that a seed gives the same start
    anywhere.
    """

    base_layer: Any
    down: Any
    up: Any

    def _fill(self, base: nn.Module, shape: Shape, dropouts: Dropouts, down: Any, up: Any) -> None:
        LoraLayer.__init__(self, base)
        self._active_adapter = NAME
        self.fan_in_fan_out = False
        self.dropouts = dropouts
        self.multiplier = 1.0
        self.r[NAME] = shape.rank
        self.lora_dropout[NAME] = nn.Identity()
        self.lora_bias[NAME] = self.use_rslora[NAME] = self.use_dora[NAME] = False
        device: torch.device = self.base_layer.weight.device
        # torch fills a new Linear or Conv2d with the very Kaiming draw that A needs; B comes from the meta device.
        up.weight = nn.Parameter(torch.zeros(up.weight.shape, device=device))
        self.lora_A[NAME], self.lora_B[NAME] = down.to(device), up
        # Plain references: the look-up through two containers would cost more than the small products on a GPU.
        self.__dict__["down"], self.__dict__["up"] = self.lora_A[NAME], self.lora_B[NAME]
        self.set_alpha(shape.alpha)

    @property
    def rank(self) -> int:
        return self.r[NAME]

    @property
    def alpha(self) -> float:
        return self.lora_alpha[NAME]

    def set_alpha(self, alpha: float) -> None:
        """The alpha that is saved and that scales."""
        self.lora_alpha[NAME] = alpha
        self.scaling[NAME] = self.multiplier * alpha / self.rank

    def set_multiplier(self, multiplier: float) -> None:
        """Strength on top of alpha / r."""
        self.multiplier = multiplier
        self.set_alpha(self.alpha)

    def factors(self) -> tuple[Tensor, Tensor]:
        """(A [r, in·k·k], B [out, r]) with ΔW = (α / r) B A."""
        return self.down.weight.flatten(1), self.up.weight.flatten(1)

    def _weights(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """A and B in the dtype that meets `x`; under autocast the products cast for themselves."""
        a, b = self.down.weight, self.up.weight
        if a.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
            return a.to(x.dtype), b.to(x.dtype)
        return a, b

    def _idle(self) -> bool:
        """Whether this call is the base layer alone: switched off, merged, of no strength, or dropped as a whole."""
        if self._disable_adapters or self.merged_adapters or self.scaling[NAME] == 0:
            return True
        return self.training and self.dropouts.module > 0 and bool(torch.rand(()) < self.dropouts.module)

    def _drop(self, h: Tensor, channel: int) -> Tensor:
        """Dropout on the r-dim activations; rank dropout zeroes whole channels of a sample, both keep the mean."""
        if self.dropouts.activation:
            h = F.dropout(h, self.dropouts.activation)
        if self.dropouts.rank:
            keep = 1 - self.dropouts.rank
            shape = [1] * h.dim()
            shape[0], shape[channel] = h.shape[0], h.shape[channel]
            h = h * torch.empty(shape, dtype=h.dtype, device=h.device).bernoulli_(keep).div_(keep)
        return h


class LinearLora(KohyaLayer, peft_lora.Linear):
    """Linear: A [r, in], B [out, r]."""

    def __init__(self, base: nn.Linear, shape: Shape, dropouts: Dropouts) -> None:
        nn.Module.__init__(self)
        down = nn.Linear(base.in_features, shape.rank, bias=False, device=_birthplace(base))
        up = nn.Linear(shape.rank, base.out_features, bias=False, device="meta")
        self._fill(base, shape, dropouts, down, up)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y: Tensor = self.base_layer(x, *args, **kwargs)
        if self._idle():
            return y
        a, b = self._weights(x)
        h = F.linear(x, a)
        if self.training and self.dropouts.inner:
            h = self._drop(h, channel=-1)
        # One fused product-and-add instead of three passes over the output.
        total = torch.addmm(y.flatten(0, -2), h.flatten(0, -2), b.t(), alpha=self.scaling[NAME])
        return total.view(y.shape)


class ConvLora(KohyaLayer, peft_lora.Conv2d):
    """Conv2d: A [r, in, k, k] with the base's stride and padding, B [out, r, 1, 1]."""

    def __init__(self, base: nn.Conv2d, shape: Shape, dropouts: Dropouts) -> None:
        nn.Module.__init__(self)
        same: dict[str, Any] = {"kernel_size": base.kernel_size, "stride": base.stride, "padding": base.padding}
        down = nn.Conv2d(base.in_channels, shape.rank, **same, bias=False, device=_birthplace(base))
        up = nn.Conv2d(shape.rank, base.out_channels, 1, bias=False, device="meta")
        self._kernel_dim = 4
        self.conv_fn = F.conv2d
        self._fill(base, shape, dropouts, down, up)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y: Tensor = self.base_layer(x, *args, **kwargs)
        if self._idle():
            return y
        a, b = self._weights(x)
        h = F.conv2d(x, a, None, self.base_layer.stride, self.base_layer.padding)
        if self.training and self.dropouts.inner:
            h = self._drop(h, channel=1)
        if self.scaling[NAME] != 1:
            h = h * self.scaling[NAME]
        return y + F.conv2d(h, b)


def _birthplace(base: nn.Module) -> str:
    return "meta" if base.weight.device.type == "meta" else "cpu"


class Lora(Adapter):
    """networks.lora: LoRA layers in the models' own trees."""

    layers: dict[str, KohyaLayer]  # type: ignore[assignment]

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
        for layer, root in zip(self.layers.values(), ratios.sqrt().unbind(), strict=True):
            layer.down.weight.mul_(root.to(layer.down.weight.device))
            layer.up.weight.mul_(root.to(layer.up.weight.device))
        held = norms * ratios
        return int((ratios != 1).sum()), float(held.mean()), float(held.max())


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
    dim = options.network_dim or DEFAULT_DIM
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
    dims, alphas = (
        (args.conv_block_dims, args.conv_block_alphas) if three else (args.block_dims, args.block_alphas)
    )
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
    models: Models, targets: Sequence[Target], options: NetworkOptions, weights: Mapping[str, Tensor] | None
) -> Lora:
    """Freeze `models`, inject the layers that options (or the file, with dim_from_weights) ask for, load `weights`."""
    args = lora_args(options, models.family)
    from_file = options.dim_from_weights and weights is not None
    shapes = file_shapes(targets, options, weights) if from_file and weights else planned_shapes(targets, options, args)
    if not shapes:
        raise error("nothing-to-train", "leaves no module to adapt", key="network_args", got=list(options.network_args),
                    fix="raise the ranks or the block weights")  # fmt: skip
    adapted = [target for target in targets if target.key in shapes]
    dropouts = Dropouts(options.network_dropout or 0.0, args.rank_dropout, args.module_dropout)
    freeze(models)
    adapter = Lora({target.key: target for target in adapted}, inject(models, adapted, shapes, dropouts), args.loraplus)
    adapter.lr_weight = args.lr_weight
    adapter.notes += args.notes
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


def inject(
    models: Models, targets: Sequence[Target], shapes: Mapping[str, Shape], dropouts: Dropouts
) -> dict[str, KohyaLayer]:
    """kohya key -> the layer that peft has put in the place of each target's module."""
    bases = find_modules(models, targets)
    keys = {base: key for key, base in bases.items()}
    made: dict[str, KohyaLayer] = {}

    def build(base: Any, adapter_name: str, **kwargs: Any) -> KohyaLayer:
        key = keys[base]
        kind = LinearLora if isinstance(base, nn.Linear) else ConvLora
        made[key] = kind(base, shapes[key], dropouts)
        return made[key]

    for part in dict.fromkeys(target.part for target in targets):
        paths = [target.path for target in targets if target.part == part]
        config = LoraConfig(r=1, lora_alpha=1, target_modules=paths)
        # peft calls the registered type like a class; this one looks rank and alpha up instead of matching patterns.
        config._register_custom_module({nn.Linear: build, nn.Conv2d: build})
        inject_adapter_in_model(config, model_of(models, part), adapter_name=NAME)
    for layer in made.values():
        layer.requires_grad_(False)
        layer.down.weight.requires_grad_(True)
        layer.up.weight.requires_grad_(True)
    return {target.key: made[target.key] for target in targets}
