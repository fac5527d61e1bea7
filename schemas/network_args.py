"""What each network_args key means: type, bounds, default, and which modules take it (sections 7.4 to 7.10)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from schemas.argument import Argument, name_values, setting, with_point
from schemas.blocks import lr_weights
from schemas.families import FAMILIES, facts_of, unet_of
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
PLAIN, DYLORA, OFT, LYCORIS = (SUPPORTED[0], SUPPORTED[2]), SUPPORTED[1:2], SUPPORTED[3:4], SUPPORTED[6:]
ALGOS = ("lora", "locon", "loha", "lokr", "dylora", "glora", "full", "diag-oft", "boft", "ia3")

NUMBER, RANK, SPLIT = Argument("number"), Argument("whole", ge=1), Argument("whole", ge=-1)
TEXT, FLAG, COUNT, SIZE = Argument("text"), Argument("flag"), Argument("whole", ge=0), Argument("number", ge=0)
CHANCE, DIMS, ALPHAS = Argument("number", ge=0, lt=1), Argument("wholes", ge=0), Argument("numbers", ge=0)


@dataclass(frozen=True)
class NetworkArg:
    """One key of network_args: its meaning, what counts without it, kind and bounds, the modules that take it.

    Modules in `idle` take it too and do nothing with it. `said` is its type in words where the kind does not say it.
    """

    meaning: str
    default: str
    form: Argument
    modules: tuple[str, ...]
    idle: tuple[str, ...] = ()
    said: str = ""

    @property
    def type(self) -> str:
        return self.said or TYPES[self.form.kind]


TYPES = {"whole": "integer", "numbers": "numbers, by commas", "wholes": "numbers, by commas", "any": "flag"}
TYPES |= {kind: kind for kind in ("number", "flag", "text")}
NETWORK_ARGS: dict[str, NetworkArg] = {
    "conv_dim": NetworkArg("Rank of the adapters on 3x3 convolutions (LoCon); without it they are not adapted.",
        "none; network_dim for LyCORIS", COUNT, (*LORAS, *BY_LYCORIS)),
    "conv_alpha": NetworkArg("Scale of those adapters as conv_alpha / conv_dim.",
        "1; network_alpha for LyCORIS", SIZE, (*LORAS, *BY_LYCORIS)),
    "dropout": NetworkArg("Chance that an activation inside the adapter is dropped; goes before network_dropout.",
        "network_dropout", CHANCE, BY_LYCORIS, idle=LORAS),
    "rank_dropout": NetworkArg("Chance that a whole rank channel is dropped for a picture.",
        "none", CHANCE, (*PLAIN, *BY_LYCORIS), idle=DYLORA),
    "module_dropout": NetworkArg("Chance that a module is skipped for a batch.",
        "none", CHANCE, (*PLAIN, *BY_LYCORIS), idle=DYLORA),
    "block_dims": NetworkArg("Rank of each U-Net block: 25 numbers for SD, 23 for SDXL; 0 leaves a block out.",
        "network_dim everywhere", DIMS, PLAIN, idle=DYLORA),
    "block_alphas": NetworkArg("Alpha of each U-Net block, as many as block_dims.",
        "network_alpha everywhere", ALPHAS, PLAIN, idle=DYLORA),
    "conv_block_dims": NetworkArg("Rank on the 3x3 convolutions of each U-Net block.",
        "conv_dim everywhere", DIMS, PLAIN, idle=DYLORA),
    "conv_block_alphas": NetworkArg("Alpha on the 3x3 convolutions of each U-Net block.",
        "conv_alpha everywhere", ALPHAS, PLAIN, idle=DYLORA),
    "down_lr_weight": NetworkArg(
        "Factor on the rate of each down block: 12 numbers (SDXL 9), or a shape such as sine+.5.",
        "1 everywhere", TEXT, PLAIN, idle=DYLORA, said="numbers, by commas, or a shape"),
    "mid_lr_weight": NetworkArg("Factor on the rate of the middle block (SDXL: three).",
        "1", TEXT, PLAIN, idle=DYLORA, said="numbers, by commas"),
    "up_lr_weight": NetworkArg("Factor on the rate of each up block, as down_lr_weight.",
        "1 everywhere", TEXT, PLAIN, idle=DYLORA, said="numbers, by commas, or a shape"),
    "block_lr_zero_threshold": NetworkArg("Blocks whose factor is not above this are not adapted.",
        "0", Argument("number"), PLAIN, idle=DYLORA),
    "loraplus_lr_ratio": NetworkArg("LoRA+: the up half learns this many times faster (16 is usual).",
        "none", SIZE, (*LORAS[:2], *BY_LYCORIS), idle=LORAS[2:]),
    "loraplus_unet_lr_ratio": NetworkArg("The same for the U-Net only; goes before loraplus_lr_ratio.",
        "loraplus_lr_ratio", SIZE, (*LORAS[:2], *BY_LYCORIS), idle=LORAS[2:]),
    "loraplus_text_encoder_lr_ratio": NetworkArg("The same for the text encoders only; goes before loraplus_lr_ratio.",
        "loraplus_lr_ratio", SIZE, (*LORAS[:2], *BY_LYCORIS), idle=LORAS[2:]),
    "unit": NetworkArg("DyLoRA: ranks are trained in steps of this; network_dim must be a multiple of it.",
        "1", Argument("whole", ge=1), (*DYLORA, *LYCORIS)),
    "enable_all_linear": NetworkArg("OFT on all linear layers; any text counts as true.",
        "off: attention only", FLAG, OFT),
    "enable_conv": NetworkArg("OFT on convolutions too; any text counts as true.", "off", FLAG, OFT),
    "algo": NetworkArg("LyCORIS's algorithm: lora (locon), loha, lokr, dylora, glora, full, diag-oft, boft, ia3.",
        "lora", TEXT, LYCORIS, said="name"),
    "preset": NetworkArg(
        "Which layers LyCORIS adapts: full, full-lin, attn-mlp, attn-only, unet-only, ... or a TOML file.",
        "full, convolutions included", TEXT, LYCORIS, said="name or path"),
    "use_tucker": NetworkArg("Tucker decomposition of 3x3 convolutions.", "off", FLAG, BY_LYCORIS),
    "use_cp": NetworkArg("Old name of use_tucker; beside it, it decides.", "off", FLAG, LYCORIS),
    "use_conv_cp": NetworkArg("An older name still of use_tucker; beside the others, it decides.",
        "off", FLAG, LYCORIS),
    "use_scalar": NetworkArg("A learned factor on each module.", "off", FLAG, LYCORIS),
    "block_size": NetworkArg("Ranks trained together by LyCORIS's DyLoRA.", "4", RANK, LYCORIS),
    "factor": NetworkArg("LoKr: size of the small factor; -1 splits as evenly as it goes.",
        "-1", Argument("whole", ge=-1), BY_LYCORIS[1:]),
    "decompose_both": NetworkArg("LoKr: decompose the small factor too; any text is yes, False too.",
        "off", Argument("any"), LYCORIS),
    "train_norm": NetworkArg("Train normalisation layers too.", "off", FLAG, LYCORIS),
    "constraint": NetworkArg("OFT: largest size of the rotation.", "0, none", SIZE, LYCORIS),
    "rescaled": NetworkArg("OFT: a learned scale on each module.", "off", FLAG, LYCORIS),
    "dora_wd": NetworkArg("DoRA: learn the weights' length apart from their direction (Liu et al. 2024).",
        "off", FLAG, LYCORIS),
    "wd_on_output": NetworkArg("DoRA: take the length over the output side.", "on since LyCORIS 3.2", FLAG, LYCORIS),
    "full_matrix": NetworkArg("LoKr: keep the large factor whole, whatever the rank.", "off", FLAG, LYCORIS),
    "bypass_mode": NetworkArg("Run the adapter beside the layer instead of adding it to the weight.",
        "off", FLAG, LYCORIS),
    "rs_lora": NetworkArg("Scale by alpha / sqrt(rank) instead of alpha / rank (Kalajdzievski 2023).",
        "off", FLAG, LYCORIS),
    "unbalanced_factorization": NetworkArg("LoKr: let the factors be of unlike size.", "off", FLAG, LYCORIS),
    "rank_dropout_scale": NetworkArg("Does nothing: LyCORIS does not pass it on.", "off", TEXT, LYCORIS, said="flag"),
    "train_on_input": NetworkArg("Does nothing: LyCORIS does not pass it on.", "off", TEXT, LYCORIS, said="flag"),
}  # fmt: skip


def known_to(module: str) -> list[str]:
    """The network_args that one of our modules takes (reference sections 7.4 and 7.10)."""
    return [name for name, row in NETWORK_ARGS.items() if module in (*row.modules, *row.idle)]


def modules_with(name: str) -> list[str]:
    """The network modules that take the key and do something with it."""
    return list(NETWORK_ARGS[name].modules)


def typed(module: str, texts: Mapping[str, str], family: str | None = None) -> tuple[dict[str, Any], list[Problem]]:
    """name -> value of what a module's network_args say, and what is wrong with them.

    A key without text, or with the text None, is not given. Keys that the module does not know or does nothing with are
    left out; a module that is not ours gets its texts as they are. The three weights of blocks become `lr_weight`.
    """
    if module not in SUPPORTED:
        return dict(texts), []
    taken, values, problems = {name for name, row in NETWORK_ARGS.items() if module in row.modules}, {}, []
    for name, text in texts.items():
        if name not in taken or text == "":
            continue
        form = NETWORK_ARGS[name].form
        if text == "None" and form.kind != "any":
            continue
        facts = facts_of(family)
        if name in BLOCKS and facts:
            form = replace(form, count=unet_of(family).blocks)
        try:
            if name in (*BLOCKS, *RATES) and facts and not isinstance(facts.network, UNet):
                raise ValueError(f"does nothing: {facts.title} has no blocks of a U-Net")
            value = form.read(text)
            if name in BLOCKS and len(value) not in (counts := _block_counts()):
                raise ValueError(
                    "must have " + " or ".join(f"{count} ({who})" for count, who in counts.items()) + " numbers"
                )
            values[name] = value
        except ValueError as fault:
            problems.append(bad(name, text, f"{name} {fault}", texts))
    if RATES[0] in taken:
        weights, found, wrong = lr_weights(values, values.get("block_lr_zero_threshold", 0.0), family)
        problems += [*found, *(bad(name, texts[name], must, texts) for name, must in wrong.items())]
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


def bad(name: str, text: str, must: str, texts: Mapping[str, str], *, fix: str = "") -> Problem:
    """The error that a value of network_args cannot be taken; without `fix`, it is to be left out."""
    point = with_point(text) if "must be a number" in must else None
    if point:
        fix = f"write a point: {with_it(texts, name, point)}"
    way_out = fix or f"correct it, or {without(texts, name)}"
    return Problem(code="bad-network-arg", key="network_args", got=f"{name}={text}", must=must, fix=way_out)


def nothing_to_adapt(options: NetworkOptions) -> Problem:
    """The error that no layer of the base model is left to adapt."""
    both = "--set network_train_unet_only=false --set network_train_text_encoder_only=false"
    fix = both if options.adapter == "networks.lora" else "--set network_module=networks.lora"
    return Problem(
        code="nothing-to-train",
        key="network_args" if options.network_args else "network_module",
        got=" ".join(options.network_args) or options.network_module,
        must="leaves no layer of the base model to adapt",
        fix="--set network_args=" if options.network_args else fix,
    )


def without(texts: Mapping[str, str], *names: str) -> str:
    """The --set that leaves keys of network_args out."""
    return setting("network_args", {name: text for name, text in texts.items() if name not in names})


def with_it(texts: Mapping[str, str], name: str, text: str) -> str:
    """The --set that gives a key of network_args another value."""
    return setting("network_args", {**texts, name: text})


def deciding_tucker(given: Mapping[str, Any]) -> str:
    """Which of its names switches LyCORIS' Tucker decomposition: the first one that is given, the old ones first."""
    return next((name for name in ("use_conv_cp", "use_cp", "use_tucker") if name in given), "use_tucker")
