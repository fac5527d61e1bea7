"""What other programs make of the file that a run would write; no rule of a config, but a finding of its plan."""

from __future__ import annotations

import math
from collections.abc import Iterator

from schemas import interop
from schemas.argument import whole_of
from schemas.config import TrainConfig
from schemas.files.weights import Header, LoraFacts
from schemas.network_args import LORAS, SUPPORTED, deciding_tucker
from schemas.problems import Problem
from schemas.rules.arguments import network_args
from schemas.rules.network import NO_DORA, switched_on

WHOLE_FACTORS = {"lokr-whole"}  # whose rank and alpha say nothing
WHOLE = 10000  # a rank from which on LyCORIS keeps both factors of any LoKr whole


def kinds(config: TrainConfig) -> tuple[str, ...]:
    """The rows of `schemas.interop` for the file of a run; none for a plug-in's."""
    module = config.network_module or "networks.lora"
    if module in LORAS:
        return ("lora",)
    if module not in SUPPORTED:
        return ()
    given, _ = network_args(config.network_args)
    lycoris = module == "lycoris.kohya"
    on = switched_on(given) if lycoris else set()
    algo = given.get("algo", "").lower() or "lora" if lycoris else module.removeprefix("networks.")
    side = "input" if given.get("wd_on_output", "").lower() in ("false", "0", "no") else "output"
    found = interop.kind(
        algo,
        side if "dora_wd" in on and algo not in NO_DORA else None,
        whole="full_matrix" in on or (config.network_dim or 4) >= WHOLE,
        bounded=lycoris and ("rescaled" in on or given.get("constraint", "0") not in ("", "None", "0", "0.0")),
    )
    return tuple(name for name in (found, *(("full",) if "train_norm" in on else ())) if name in interop.KINDS)


def continues(config: TrainConfig, header: Header, facts: LoraFacts) -> bool:
    """Whether the configured network can hold a file's tensors, as far as their kind goes."""
    mine, theirs = kinds(config), interop.kinds_of_file(header, facts)
    if not mine or not theirs:
        return True  # a plug-in reads its own; peft's names are read for what they are
    if config.network_module == "lycoris.kohya" and config.dim_from_weights:
        return theirs != ("oft",)
    given, _ = network_args(config.network_args)
    algo = given.get("algo", "").lower() if config.network_module == "lycoris.kohya" else ""
    if mine[0] == theirs[0] == "product-dora":
        return algo == facts.algo
    cores = any(name.endswith((".lora_mid.weight", ".hada_t1", ".lokr_t2")) for name in header.tensors)
    tucker = deciding_tucker(given) in switched_on(given)
    if (cores and not tucker) or (tucker and not cores and facts.conv_dim and facts.algo in ("lora", "loha")):
        return False
    bare = [name.removesuffix("-whole").removesuffix("-bounded") for name in (mine[0], theirs[0])]
    return bare[0] == bare[1]


def file_conv_dim(config: TrainConfig) -> int | None:
    """The rank on 3x3 convolutions; None where they are not adapted, or where it is not a plain number."""
    given, _ = network_args(config.network_args)
    usual = str(config.network_dim or 4) if config.network_module == "lycoris.kohya" else ""
    rank = given.get("conv_dim") or usual
    return whole_of(rank) if "conv_block_dims" not in given else None


def file_alpha(config: TrainConfig) -> float:
    """The alpha that a file of this config has: alpha / rank is its scale, however LyCORIS came to it."""
    given, _ = network_args(config.network_args)
    rank = config.network_dim or 4
    alpha = config.network_alpha or rank
    if config.network_module != "lycoris.kohya":
        return alpha
    if given.get("algo", "").lower() == "dylora":
        blocks = given.get("block_size") or "4"
        return alpha * (whole_of(blocks) or 4)
    return alpha * math.sqrt(rank) if "rs_lora" in switched_on(given) else alpha


def other_programs(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """Which image programs would read the file wrongly, in part or not at all, and what to train instead."""
    trained = kinds(config)
    found = interop.readings(trained, family)
    bad = {program: one for program, one in found.items() if one.verdict not in ("right", "unknown")}
    if not bad:
        return
    advice = next((interop.KINDS[name].advice for name in trained if interop.KINDS[name].advice), "")
    silent = any(one.verdict in ("wrong", "partly", "nothing") for name, one in bad.items() if name != "diffusers")
    yield Problem(
        code="other-programs",
        severity="warning" if silent else "note",
        key="network_args" if config.network_args else "network_module",
        got=" + ".join(interop.KINDS[name].title.replace("`", "") for name in trained),
        must="its file is " + "; ".join(interop.sentences(bad)),
        fix=advice if silent and advice else None,
    )
