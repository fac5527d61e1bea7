"""What each network_args key means: type, bounds, default, and which modules take it (sections 7.4 to 7.10)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from schemas.argument import Argument, name_values, setting, with_point
from schemas.blocks import lr_weights
from schemas.families import FAMILIES, unet_of
from schemas.options import NetworkOptions
from schemas.problems import Problem, nearest
from schemas.unet import UNet

SUPPORTED = (
    "networks.lora",
    "networks.dylora",
    "networks.lora_fa",
    "networks.oft",
    "networks.loha",
    "networks.lokr",
    "lycoris.kohya",
)
LORAS = SUPPORTED[:3]
BY_LYCORIS = SUPPORTED[-3:]
LORA_PLUS = ("loraplus_lr_ratio", "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio")
RATES = ("down_lr_weight", "mid_lr_weight", "up_lr_weight", "block_lr_zero_threshold")
BLOCKS = ("block_dims", "block_alphas", "conv_block_dims", "conv_block_alphas")
DROPOUTS = ("dropout", "rank_dropout", "module_dropout")
CONV = ("conv_dim", "conv_alpha")
LOHA = (*CONV, *DROPOUTS, "use_tucker", *LORA_PLUS)
# module -> its network_args (reference sections 7.4 and 7.10)
MODULES: dict[str, tuple[str, ...]] = {
    "networks.lora": (*CONV, *DROPOUTS, *BLOCKS, *RATES, *LORA_PLUS),
    "networks.dylora": (*CONV, *DROPOUTS, "unit", *BLOCKS, *RATES, *LORA_PLUS),
    "networks.lora_fa": (*CONV, *DROPOUTS, *BLOCKS, *RATES, *LORA_PLUS),
    "networks.oft": ("enable_all_linear", "enable_conv"),
    "networks.loha": LOHA,
    "networks.lokr": (*LOHA, "factor"),
    "lycoris.kohya": (
        "algo", "preset", *LOHA, "use_cp", "use_conv_cp", "use_scalar", "block_size", "factor", "decompose_both",
        "train_norm", "constraint", "rescaled", "dora_wd", "wd_on_output", "full_matrix", "bypass_mode", "rs_lora",
        "unbalanced_factorization", "rank_dropout_scale", "train_on_input", "unit",
    ),
}  # fmt: skip
# network_args that a module takes and does nothing with
NO_EFFECT: dict[str, tuple[str, ...]] = {
    "networks.lora": (),
    "networks.dylora": ("rank_dropout", "module_dropout", "dropout", *BLOCKS, *RATES),
    "networks.lora_fa": LORA_PLUS,
}
ALGOS = ("lora", "locon", "loha", "lokr", "dylora", "glora", "full", "diag-oft", "boft", "ia3")

NUMBER, RANK, SPLIT = Argument("number"), Argument("whole", ge=1), Argument("whole", ge=-1)
TEXT, FLAG, COUNT, SIZE = Argument("text"), Argument("flag"), Argument("whole", ge=0), Argument("number", ge=0)
CHANCE, DIMS, ALPHAS = Argument("number", ge=0, lt=1), Argument("wholes", ge=0), Argument("numbers", ge=0)


@dataclass(frozen=True)
class NetworkArg:
    """One key of network_args; `default` is what counts without it, as words; `form` its kind and bounds."""

    meaning: str
    type: str
    default: str
    form: Argument


NETWORK_ARGS: dict[str, NetworkArg] = {
    "conv_dim": NetworkArg(
        "Rank of the adapters on 3x3 convolutions (LoCon); without it they are not adapted.",
        "integer",
        "none; network_dim for LyCORIS",
        COUNT,
    ),
    "conv_alpha": NetworkArg(
        "Scale of those adapters as conv_alpha / conv_dim.", "number", "1; network_alpha for LyCORIS", SIZE
    ),
    "dropout": NetworkArg(
        "Chance that an activation inside the adapter is dropped; goes before network_dropout.",
        "number",
        "network_dropout",
        CHANCE,
    ),
    "rank_dropout": NetworkArg("Chance that a whole rank channel is dropped for a picture.", "number", "none", CHANCE),
    "module_dropout": NetworkArg("Chance that a module is skipped for a batch.", "number", "none", CHANCE),
    "block_dims": NetworkArg(
        "Rank of each U-Net block: 25 numbers for SD, 23 for SDXL; 0 leaves a block out.",
        "numbers, by commas",
        "network_dim everywhere",
        DIMS,
    ),
    "block_alphas": NetworkArg(
        "Alpha of each U-Net block, as many as block_dims.", "numbers, by commas", "network_alpha everywhere", ALPHAS
    ),
    "conv_block_dims": NetworkArg(
        "Rank on the 3x3 convolutions of each U-Net block.", "numbers, by commas", "conv_dim everywhere", DIMS
    ),
    "conv_block_alphas": NetworkArg(
        "Alpha on the 3x3 convolutions of each U-Net block.", "numbers, by commas", "conv_alpha everywhere", ALPHAS
    ),
    "down_lr_weight": NetworkArg(
        "Factor on the rate of each down block: 12 numbers (SDXL 9), or a shape such as sine+.5.",
        "numbers, by commas, or a shape",
        "1 everywhere",
        TEXT,
    ),
    "mid_lr_weight": NetworkArg(
        "Factor on the rate of the middle block (SDXL: three).", "numbers, by commas", "1", TEXT
    ),
    "up_lr_weight": NetworkArg(
        "Factor on the rate of each up block, as down_lr_weight.",
        "numbers, by commas, or a shape",
        "1 everywhere",
        TEXT,
    ),
    "block_lr_zero_threshold": NetworkArg(
        "Blocks whose factor is not above this are not adapted.", "number", "0", Argument("number")
    ),
    "loraplus_lr_ratio": NetworkArg(
        "LoRA+: the up half learns this many times faster (16 is usual).", "number", "none", SIZE
    ),
    "loraplus_unet_lr_ratio": NetworkArg(
        "The same for the U-Net only; goes before loraplus_lr_ratio.", "number", "loraplus_lr_ratio", SIZE
    ),
    "loraplus_text_encoder_lr_ratio": NetworkArg(
        "The same for the text encoders only; goes before loraplus_lr_ratio.", "number", "loraplus_lr_ratio", SIZE
    ),
    "unit": NetworkArg(
        "DyLoRA: ranks are trained in steps of this; network_dim must be a multiple of it.",
        "integer",
        "1",
        Argument("whole", ge=1),
    ),
    "enable_all_linear": NetworkArg(
        "OFT on all linear layers; any text counts as true.", "flag", "off: attention only", FLAG
    ),
    "enable_conv": NetworkArg("OFT on convolutions too; any text counts as true.", "flag", "off", FLAG),
    "algo": NetworkArg(
        "LyCORIS's algorithm: lora (locon), loha, lokr, dylora, glora, full, diag-oft, boft, ia3.", "name", "lora", TEXT
    ),
    "preset": NetworkArg(
        "Which layers LyCORIS adapts: full, full-lin, attn-mlp, attn-only, unet-only, ... or a TOML file.",
        "name or path",
        "full, convolutions included",
        TEXT,
    ),
    "use_tucker": NetworkArg("Tucker decomposition of 3x3 convolutions.", "flag", "off", FLAG),
    "use_cp": NetworkArg("Old name of use_tucker; beside it, it decides.", "flag", "off", FLAG),
    "use_conv_cp": NetworkArg("An older name still of use_tucker; beside the others, it decides.", "flag", "off", FLAG),
    "use_scalar": NetworkArg("A learned factor on each module.", "flag", "off", FLAG),
    "block_size": NetworkArg("Ranks trained together by LyCORIS's DyLoRA.", "integer", "4", RANK),
    "factor": NetworkArg(
        "LoKr: size of the small factor; -1 splits as evenly as it goes.", "integer", "-1", Argument("whole", ge=-1)
    ),
    "decompose_both": NetworkArg(
        "LoKr: decompose the small factor too; any text is yes, False too.", "flag", "off", Argument("any")
    ),
    "train_norm": NetworkArg("Train normalisation layers too.", "flag", "off", FLAG),
    "constraint": NetworkArg("OFT: largest size of the rotation.", "number", "0, none", SIZE),
    "rescaled": NetworkArg("OFT: a learned scale on each module.", "flag", "off", FLAG),
    "dora_wd": NetworkArg(
        "DoRA: learn the weights' length apart from their direction (Liu et al. 2024).", "flag", "off", FLAG
    ),
    "wd_on_output": NetworkArg("DoRA: take the length over the output side.", "flag", "on since LyCORIS 3.2", FLAG),
    "full_matrix": NetworkArg("LoKr: keep the large factor whole, whatever the rank.", "flag", "off", FLAG),
    "bypass_mode": NetworkArg(
        "Run the adapter beside the layer instead of adding it to the weight.", "flag", "off", FLAG
    ),
    "rs_lora": NetworkArg(
        "Scale by alpha / sqrt(rank) instead of alpha / rank (Kalajdzievski 2023).", "flag", "off", FLAG
    ),
    "unbalanced_factorization": NetworkArg("LoKr: let the factors be of unlike size.", "flag", "off", FLAG),
    "rank_dropout_scale": NetworkArg("Does nothing: LyCORIS does not pass it on.", "flag", "off", TEXT),
    "train_on_input": NetworkArg("Does nothing: LyCORIS does not pass it on.", "flag", "off", TEXT),
}


def modules_with(name: str) -> list[str]:
    """The network modules that take the key and do something with it."""
    return [module for module, names in MODULES.items() if name in names and name not in NO_EFFECT.get(module, ())]


def typed(module: str, texts: Mapping[str, str], family: str | None = None) -> tuple[dict[str, Any], list[Problem]]:
    """name -> value of what a module's network_args say, and what is wrong with them.

    A key without text, or with the text None, is not given. Keys that the module does not know or does nothing with are
    left out; a module that is not ours gets its texts as they are. The three weights of blocks become `lr_weight`.
    """
    if module not in MODULES:
        return dict(texts), []
    idle, values, problems = NO_EFFECT.get(module, ()), {}, []
    for name, text in texts.items():
        if name not in MODULES[module] or name in idle or text == "":
            continue
        form = NETWORK_ARGS[name].form
        if text == "None" and form.kind != "any":
            continue
        if name in BLOCKS and family in FAMILIES:
            form = replace(form, count=unet_of(family).blocks)
        try:
            value = form.read(text)
            if name in BLOCKS and len(value) not in (counts := _block_counts()):
                raise ValueError(
                    "must have " + " or ".join(f"{count} ({who})" for count, who in counts.items()) + " numbers"
                )
            values[name] = value
        except ValueError as fault:
            problems.append(bad(name, text, f"{name} {fault}", texts))
    if RATES[0] in MODULES[module] and RATES[0] not in idle:
        weights, found = lr_weights(values, values.get("block_lr_zero_threshold", 0.0), family)
        problems += [_with_way_out(one, texts) for one in found]
        if weights is not None:
            values["lr_weight"] = weights
    if module == "lycoris.kohya" and "algo" in values:
        values["algo"] = values["algo"].lower()
        if values["algo"] not in ALGOS:
            guess = nearest(values["algo"], ALGOS) or "lora"
            must = f"algo must be one of {', '.join(ALGOS)}"
            problems.append(bad("algo", texts["algo"], must, texts, fix=with_it(texts, "algo", guess)))
    return values, problems


def network_values(config: NetworkOptions, family: str | None = None) -> tuple[dict[str, Any], list[Problem]]:
    """name -> typed value of the options' network_args, with every finding: no pair, wrong kind, out of bounds."""
    texts, problems = name_values(config.network_args, "network_args")
    values, found = typed(config.adapter, texts, family)
    return values, problems + found


def _block_counts() -> dict[int, str]:
    """How long a block list may be -> for whom."""
    counts: dict[int, list[str]] = {}
    for facts in FAMILIES.values():
        if isinstance(facts.network, UNet):
            counts.setdefault(facts.network.blocks, []).append(facts.title)
    return {count: ", ".join(titles) for count, titles in counts.items()}


def _with_way_out(problem: Problem, texts: Mapping[str, str]) -> Problem:
    """An error about one key with the --set that leaves the key out."""
    name = str(problem.got).partition("=")[0]
    return problem if problem.severity != "error" else replace(problem, fix=f"correct it, or {without(texts, name)}")


def bad(name: str, text: str, must: str, texts: Mapping[str, str], *, fix: str = "") -> Problem:
    """The error that a value of network_args cannot be taken; without `fix`, it is to be left out."""
    point = with_point(text) if "must be a number" in must else None
    if point:
        fix = f"write a point: {with_it(texts, name, point)}"
    way_out = fix or f"correct it, or {without(texts, name)}"
    return Problem(code="bad-network-arg", key="network_args", got=f"{name}={text}", must=must, fix=way_out)


def without(texts: Mapping[str, str], *names: str) -> str:
    """The --set that leaves keys of network_args out."""
    return setting("network_args", {name: text for name, text in texts.items() if name not in names})


def with_it(texts: Mapping[str, str], name: str, text: str) -> str:
    """The --set that gives a key of network_args another value."""
    return setting("network_args", {**texts, name: text})


def deciding_tucker(given: Mapping[str, Any]) -> str:
    """Which of its names switches LyCORIS' Tucker decomposition: the first one that is given, the old ones first."""
    return next((name for name in ("use_conv_cp", "use_cp", "use_tucker") if name in given), "use_tucker")
