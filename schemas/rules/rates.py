"""How fast each group of an adapter's parameters learns, from the config alone (reference sections 7.5 to 7.7)."""

from __future__ import annotations

from typing import Any, Protocol

from schemas.config import TrainConfig
from schemas.families import facts_of, unet_of
from schemas.network_args import LORA_PLUS, NETWORK_ARGS, network_values

WITH_UPS = ("lora", "locon", "dylora")  # LyCORIS' algorithms whose up matrices LoRA+ speeds up


class Rates(Protocol):
    """The part of the optimizer options that says how fast each part learns."""

    @property
    def learning_rate(self) -> float: ...
    @property
    def unet_lr(self) -> float | None: ...
    @property
    def text_encoder_lr(self) -> tuple[float, ...]: ...


def part_rates(learning_rate: float, unet_lr: float | None, text_encoder_lr: tuple[float, ...]) -> dict[str, float]:
    """Rate of each part: "te" of a single text encoder, "te1" and "te2" of two, "unet"."""
    text = text_encoder_lr or (learning_rate,)
    unet = learning_rate if unet_lr is None else unet_lr
    return {"te": text[0], "te1": text[0], "te2": text[min(1, len(text) - 1)], "unet": unet}


def rates_of(config: Rates) -> dict[str, float]:
    """The same of a config."""
    return part_rates(config.learning_rate, config.unet_lr, config.text_encoder_lr)


def ratio(given: dict[str, Any], part: str) -> float | None:
    """LoRA+: how many times faster a part's up matrices learn; None leaves them equal."""
    both, unet, text = (given.get(name) for name in LORA_PLUS)
    return (unet if part == "unet" else text) or both


def trained_parts(config: TrainConfig, family: str | None) -> list[str]:
    """The parts that may train, whatever their rates. Where the family is unknown, as many encoders as have rates."""
    facts = facts_of(family)
    parts = facts.text_parts if facts else ("te1", "te2") if len(config.text_encoder_lr) > 1 else ("te",)
    text = [] if config.network_train_unet_only or config.network_module == "networks.oft" else parts
    unet = [] if config.network_train_text_encoder_only else ["unet"]
    return [*text, *unet]


def group_rates(config: TrainConfig, family: str | None) -> dict[str, float]:
    """Words for each group of parameters -> its rate; groups of rate 0 do not train and are left out."""
    given, _ = network_values(config, family)
    rates, found = rates_of(config), {}
    for part in trained_parts(config, family):
        name = {"unet": "U-Net", "te2": "second text encoder"}.get(part, "text encoder")
        found[name] = rates[part]
        weights = given.get("lr_weight") if part == "unet" else None
        if weights is not None:
            conv = "conv_dim" in given or "conv_block_dims" in given
            found.pop(name)
            blocks = [block for block in sorted(unet_of(family).adapted(conv=conv)) if block < len(weights)]
            found |= {f"U-Net block {block}": rates[part] * weights[block] for block in blocks}
        faster = ratio(given, part) if _has_ups(config, given) else None
        if faster is not None:
            mine = {key: rate for key, rate in found.items() if key.startswith(name)}
            found |= {f"{key} with LoRA+": rate * faster for key, rate in mine.items()}
    return {name: rate for name, rate in found.items() if rate > 0}


def _has_ups(config: TrainConfig, given: dict[str, Any]) -> bool:
    module = config.adapter
    if module == "lycoris.kohya":
        return given.get("algo", "lora") in WITH_UPS
    return module in NETWORK_ARGS[LORA_PLUS[0]].modules
