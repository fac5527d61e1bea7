"""Which modules a LyCORIS preset picks, found on diffusers' trees and named as kohya names them."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from schemas.families import FAMILIES
from schemas.network_args import bad
from schemas.problems import ConfigError
from trainer.adapters.adapter import model_of

if TYPE_CHECKING:
    from trainer.families import Models, Target

# diffusers' class under the name that presets know.
CLASSES = {"Attention": "CrossAttention"}
# Of the whole-U-Net names in the presets, those whose path is kohya's too; original paths have none of them.
WHOLE_UNET = ("conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2")
# A norm's key comes from its neighbour's: (norm, neighbour, endings to exchange in the neighbour's key).
NORMS: tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...] = (
    ("norm", "proj_in", (("proj_in", "norm"),)),
    ("norm1", "attn1.to_q", (("attn1_to_q", "norm1"),)),
    ("norm2", "attn1.to_q", (("attn1_to_q", "norm2"),)),
    ("norm3", "attn1.to_q", (("attn1_to_q", "norm3"),)),
    ("norm1", "conv1", (("conv1", "norm1"), ("in_layers_2", "in_layers_0"))),
    ("norm2", "conv2", (("conv2", "norm2"), ("out_layers_3", "out_layers_0"))),
)


@dataclass(frozen=True)
class Preset:
    """Module classes and path patterns to adapt, and what single classes or paths do otherwise."""

    conv: bool = True
    unet_modules: tuple[str, ...] = ()
    unet_names: tuple[str, ...] = ()
    text_modules: tuple[str, ...] = ()
    text_names: tuple[str, ...] = ()
    by_module: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    by_name: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    exclude: tuple[str, ...] = ()
    fnmatch: bool = False

    def matches(self, pattern: str, path: str) -> bool:
        """Whether a path, or its end behind a dot, is what the pattern says."""
        if self.fnmatch:
            return fnmatch.fnmatch(path, pattern)
        return path == pattern or path.endswith(f".{pattern}") or re.match(pattern, path) is not None


@dataclass(frozen=True)
class Choice:
    """One module to adapt, with what the preset says of it alone."""

    target: Target
    algo: str | None = None
    dim: int | None = None
    alpha: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    norm: bool = False

    @property
    def key(self) -> str:
        return self.target.key


def read_preset(name: str) -> Preset:
    """A built-in preset or a preset TOML; ConfigError when it is neither."""
    from lycoris.config import PRESET
    from lycoris.utils.preset import read_preset as read_file

    if name in PRESET:
        found = PRESET[name]
    else:
        found = read_file(name) if Path(name).is_file() else None
    if found is None:
        must = f"preset must be one of {', '.join(PRESET)}, or a preset file that can be read"
        raise ConfigError([bad("preset", name, must, {}, fix="correct preset")])
    full = PRESET["full"]

    def words(key: str) -> tuple[str, ...]:
        return tuple(found.get(key, full.get(key, ())))

    return Preset(
        conv=bool(found.get("enable_conv", True)),
        unet_modules=words("unet_target_module"),
        unet_names=words("unet_target_name"),
        text_modules=words("text_encoder_target_module"),
        text_names=words("text_encoder_target_name"),
        by_module=found.get("module_algo_map", {}),
        by_name=found.get("name_algo_map", {}),
        exclude=words("exclude_name"),
        fnmatch=bool(found.get("use_fnmatch", False)),
    )


def choose(models: Models, targets: Sequence[Target], preset: Preset, *, parts: set[str], norms: bool) -> list[Choice]:
    """Every module that the preset adapts, in the order of the trees, each once."""
    choices: dict[str, Choice] = {}
    present = dict.fromkeys(target.part for target in targets if target.part in parts)
    for part in present:
        known = {target.path: target for target in targets if target.part == part}
        if part == "unet":
            known |= extra_targets(models, known.values(), norms)
        for path, module, said in _walk(model_of(models, part), preset, unet=part == "unet"):
            target = known.get(path)
            if target is None or target.key in choices or not isinstance(module, _kinds(norms)):
                continue
            choice = _with(Choice(target, norm=not isinstance(module, (nn.Linear, nn.Conv2d))), said)
            choices[target.key] = choice
    return list(choices.values())


def _kinds(norms: bool) -> tuple[type[nn.Module], ...]:
    plain = (nn.Linear, nn.Conv2d)
    return (*plain, nn.LayerNorm, nn.GroupNorm) if norms else plain


def _walk(root: nn.Module, preset: Preset, *, unet: bool) -> Iterator[tuple[str, nn.Module, Mapping[str, Any]]]:
    """(path, module, what the preset says of it) of all modules that its classes or names cover."""
    classes = preset.unet_modules if unet else preset.text_modules
    names = preset.unet_names if unet else preset.text_names
    inside: dict[str, Mapping[str, Any]] = {}  # path of a covered block -> what is said of its contents
    for path, module in root.named_modules():
        if any(preset.matches(pattern, path) for pattern in preset.exclude):
            continue
        kind = CLASSES.get(type(module).__name__, type(module).__name__)
        above = inside.get(path.rpartition(".")[0])
        named = [pattern for pattern in names if preset.matches(pattern, path)]
        if named:
            said = next((preset.by_name[p] for p in preset.by_name if preset.matches(p, path)), None)
            yield path, module, said if said is not None else preset.by_module.get(kind, {})
        elif above is not None or kind in classes:
            said = preset.by_module.get(kind, above if above is not None else {})
            inside[path] = said
            yield path, module, said


def _with(choice: Choice, said: Mapping[str, Any]) -> Choice:
    known = ("algo", "dim", "alpha")
    extra = {name: value for name, value in said.items() if name not in known}
    return replace(choice, **{name: said[name] for name in known if name in said}, extra=extra)


def extra_targets(models: Models, known: Iterable[Target], norms: bool = True) -> dict[str, Target]:
    """Modules of the U-Net that only LyCORIS adapts, by path: its ends (SD) and, with train_norm, the norms."""
    from trainer.families import Target

    found: dict[str, Target] = {}
    if not FAMILIES[models.family].original_paths:
        for path in WHOLE_UNET:
            kind = "conv3x3" if path.startswith("conv") else "linear"
            found[path] = Target("unet", path, "lora_unet_" + path.replace(".", "_"), kind, "sampler", None)  # type: ignore[arg-type]
    if norms:
        for target in known:
            path = target.path
            for norm, neighbour, endings in NORMS if target.part == "unet" else ():
                if path == neighbour or path.endswith(f".{neighbour}"):
                    place = path.removesuffix(neighbour) + norm
                    found[place] = replace(target, path=place, key=_exchange(target.key, endings))
    return found


def _exchange(key: str, endings: Sequence[tuple[str, str]]) -> str:
    for old, new in endings:
        if key.endswith(old):
            return key.removesuffix(old) + new
    return key
