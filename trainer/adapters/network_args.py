"""`network_args`: name=value words, read per network module (reference section 7.4, trap T22)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from schemas.options import NetworkOptions
from schemas.problems import ConfigError, Problem, error
from schemas.rules.network import LORA_PLUS, MODULES, NO_EFFECT
from trainer.adapters.blocks import block_values, lr_weights

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class LoraPlus:
    """Ratios of the up matrices' rate to the down matrices' (Hayou et al. 2024); None leaves them equal."""

    both: float | None = None
    unet: float | None = None
    text: float | None = None

    def ratio(self, part: str) -> float | None:
        """The ratio of a part ("unet", "te", "te1", "te2")."""
        return (self.unet if part == "unet" else self.text) or self.both


@dataclass(frozen=True)
class LoraArgs:
    """What `network_args` of networks.lora and its kin say; block lists run over the U-Net's block index."""

    conv_dim: int | None = None
    conv_alpha: float = 1.0
    rank_dropout: float = 0.0
    module_dropout: float = 0.0
    block_dims: tuple[int, ...] | None = None
    block_alphas: tuple[float, ...] | None = None
    conv_block_dims: tuple[int, ...] | None = None
    conv_block_alphas: tuple[float, ...] | None = None
    lr_weight: tuple[float, ...] | None = None
    loraplus: LoraPlus = LoraPlus()
    unit: int = 1  # of networks.dylora: ranks trained at once
    notes: tuple[Problem, ...] = ()

    @property
    def by_block(self) -> bool:
        """Whether each block has a rank of its own."""
        return self.block_dims is not None or self.lr_weight is not None

    @property
    def conv(self) -> bool:
        """Whether resnets and samplers are adapted too."""
        return self.conv_dim is not None or (self.by_block and self.conv_block_dims is not None)


def parse(module: str, words: tuple[str, ...]) -> dict[str, str]:
    """{name: value text}, split at the first "="; ConfigError for words without "=", all at once.

    Names that a module of ours does not know do nothing, as in the reference. LyCORIS is a package whose versions know
    different names, and a module that is not ours takes any name.
    """
    found, problems = {}, []
    for word in words:
        name, equals, value = (piece.strip() for piece in word.partition("="))
        if not equals:
            must, fix = "must be name=value", f"write {name}=VALUE"
            problems.append(Problem(code="bad-network-arg", key="network_args", got=word, must=must, fix=fix))
        elif module != "lycoris.kohya" and name not in MODULES.get(module, (name,)):
            continue  # the rules warn of it; the reference ignores it
        else:
            found[name] = value
    if problems:
        raise ConfigError(problems)
    return found


def number(given: Mapping[str, str], name: str, kind: Callable[[str], Number], lowest: float = 0.0) -> Number | None:
    """The number under `name`, None where it is not given or empty; ConfigError unless it is at least `lowest`."""
    text = given.get(name, "")
    if text in ("", "None"):
        return None
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not lowest <= value < float("inf"):
        words = "a whole number" if kind is int else "a number"
        raise error("bad-network-arg", f"{name} must be {words}, at least {lowest:g}", key="network_args",
                    got=f"{name}={text}", fix=f"correct {name}")  # fmt: skip
    return value


def chance(given: Mapping[str, str], name: str) -> float:
    """A probability below 1 under `name`; 0 where it is not given."""
    value = number(given, name, float)
    if value is not None and value >= 1:
        raise error("bad-network-arg", f"{name} must be a chance below 1", key="network_args", got=f"{name}={value}",
                    fix=f"lower {name}")  # fmt: skip
    return value or 0.0


def lora_plus(given: Mapping[str, str]) -> LoraPlus:
    """The three LoRA+ ratios."""
    return LoraPlus(*(number(given, name, float) for name in LORA_PLUS))


def truth(given: Mapping[str, str], name: str, default: bool = False) -> bool:
    """A yes or no under `name`, in the spellings people use."""
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False, "": default}
    text = given.get(name, "").lower()
    if text not in words:
        raise error("bad-network-arg", f"{name} must be True or False", key="network_args", got=f"{name}={text}",
                    fix=f"correct {name}")  # fmt: skip
    return words[text]


def lora_args(options: NetworkOptions, family: str, module: str = "networks.lora") -> LoraArgs:
    """`network_args` of networks.lora, dylora or lora_fa for a model of `family` ("sdxl" has 23 blocks, others 25)."""
    given = parse(module, options.network_args)
    notes = []
    for name in NO_EFFECT[module]:
        if given.pop(name, "") not in ("", "None", "0"):
            notes.append(no_effect(name, f"{module} does not take it", f"remove {name}"))
    if module == "networks.dylora" and options.network_dropout:
        notes.append(no_effect("network_dropout", f"{module} has no dropouts", "remove it", key="network_dropout"))
    if "dropout" in given:
        notes.append(no_effect("dropout", f"{module} takes network_dropout", "set network_dropout"))
    per_block = {
        "block_dims": block_values(given, "block_dims", int, family),
        "block_alphas": block_values(given, "block_alphas", float, family),
        "conv_block_dims": block_values(given, "conv_block_dims", int, family),
        "conv_block_alphas": block_values(given, "conv_block_alphas", float, family),
    }
    weights = lr_weights(given, family, notes)
    if weights is None and per_block["block_dims"] is None:
        for name in ("block_alphas", "conv_block_dims", "conv_block_alphas"):
            if per_block[name] is not None:
                notes.append(no_effect(name, "it counts only beside block_dims or an lr weight", "give block_dims"))
    if weights is None and "block_lr_zero_threshold" in given:
        notes.append(no_effect("block_lr_zero_threshold", "it counts only beside an lr weight", "remove it"))
    conv_alpha = number(given, "conv_alpha", float)
    return LoraArgs(
        conv_dim=number(given, "conv_dim", int),  # 0: of the resnets, only the layers that are no 3x3 convolutions
        conv_alpha=1.0 if conv_alpha is None else conv_alpha,
        rank_dropout=chance(given, "rank_dropout"),
        module_dropout=chance(given, "module_dropout"),
        lr_weight=weights,
        loraplus=lora_plus(given),
        unit=number(given, "unit", int, 1) or 1,
        notes=tuple(notes),
        **per_block,  # type: ignore[arg-type]
    )


def no_effect(name: str, why: str, fix: str, *, key: str = "network_args") -> Problem:
    """The warning that a setting changes nothing here."""
    must = f"does nothing: {why}"
    return Problem(code="no-effect", severity="warning", key=key, got=name, must=must, fix=fix)
