"""Rules on the adapter: its module, its network_args, which parts are trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from schemas.config import TrainConfig
from schemas.problems import Problem, nearest
from schemas.rules.arguments import network_args
from schemas.rules.optimizers import installed
from schemas.rules.registry import rule, trusted

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
        "algo", "preset", *LOHA, "use_cp", "use_scalar", "block_size", "factor", "decompose_both", "train_norm",
        "constraint", "rescaled", "dora_wd", "wd_on_output", "full_matrix", "bypass_mode", "rs_lora",
        "unbalanced_factorization", "rank_dropout_scale", "train_on_input", "unit",
    ),
}  # fmt: skip
# network_args that a module takes and does nothing with
NO_EFFECT: dict[str, tuple[str, ...]] = {
    "networks.lora": (),
    "networks.dylora": ("rank_dropout", "module_dropout", "dropout", *BLOCKS, *RATES),
    "networks.lora_fa": LORA_PLUS,
}
OTHER_FAMILIES = (
    "networks.lora_flux",
    "networks.oft_flux",
    "networks.lora_sd3",
    "networks.lora_lumina",
    "networks.lora_anima",
    "networks.lora_hunyuan_image",
)
SHAPES = ("cosine", "sine", "linear", "reverse_linear", "zeros")
ALGOS = ("lora", "locon", "loha", "lokr", "dylora", "glora", "full", "diag-oft", "boft", "ia3")


@rule
def network_module(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """The adapter's module is one that the trainer has; a foreign one needs trust."""
    module = config.network_module or "networks.lora"
    supported = ", ".join(SUPPORTED)
    if module in BY_LYCORIS and not installed("lycoris"):
        yield Problem(
            code="missing-package",
            key="network_module",
            got=module,
            must="needs the package lycoris-lora, which is not installed",
            fix="pip install lycoris-lora",
        )
    if module in SUPPORTED or trusted(config, module):
        return
    facts: dict[str, Any] = {"key": "network_module", "got": module}
    if module in OTHER_FAMILIES:
        yield Problem(
            code="other-family-module",
            **facts,
            must="adapts another model family than SD and SDXL",
            fix="--set network_module=networks.lora",
        )
    else:
        guess = nearest(module, MODULES)
        yield Problem(
            code="untrusted-module",
            **facts,
            must=f"is not a known adapter; supported are {supported}",
            fix=f"--set network_module={guess or 'networks.lora'}, or if you trust it: --trust {module}",
        )


@rule
def known_network_args(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """Unknown names in network_args do nothing, here and in the reference (traps T22); each is named."""
    given, problems = network_args(config.network_args)
    yield from problems
    module = config.network_module or "networks.lora"
    known = MODULES.get(module, tuple(given))
    for name in given:
        if name not in known:
            guess = nearest(name, known)
            yield Problem(
                code="unknown-network-arg",
                severity="warning",
                key="network_args",
                got=f"{name}={given[name]}",
                must=f"has no effect: it is not an argument of {module}; known: {', '.join(known)}",
                fix=f"did you mean {guess}?" if guess else f"remove {name}",
            )


@rule
def network_arg_values(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """Ranks and block lists are numbers, and as many as the model has blocks (reference section 7.5)."""
    given, _ = network_args(config.network_args)
    given = {name: value for name, value in given.items() if value not in ("", "None")}
    checks: dict[str, tuple[Callable[[str], object], str]] = {
        **dict.fromkeys(("conv_dim", "unit", "block_size", "factor"), (int, "a whole number")),
        **dict.fromkeys(("conv_alpha", *DROPOUTS, "block_lr_zero_threshold", *LORA_PLUS), (float, "a number")),
        **dict.fromkeys(("block_dims", "conv_block_dims"), (_whole_numbers, "whole numbers, separated by commas")),
        **dict.fromkeys(
            ("block_alphas", "conv_block_alphas", "mid_lr_weight"), (_numbers, "numbers, separated by commas")
        ),
    }
    for name, (reader, form) in checks.items():
        if name in given and not _reads(reader, given[name]):
            yield _bad(name, given[name], f"must be {form}")
    counts = {"sd15": (25,), "sd2": (25,), "sdxl": (23,)}.get(family or "", (25, 23))
    for name in BLOCKS:
        if name in given and len(given[name].split(",")) not in counts:
            yield _bad(
                name,
                given[name],
                f"must have {' (SD) or '.join(map(str, counts))} numbers, it has {len(given[name].split(','))}",
            )
    most = 9 if family == "sdxl" else 12
    for name in ("down_lr_weight", "up_lr_weight"):
        if name in given and not _rates_or_shape(given[name]):
            yield _bad(
                name,
                given[name],
                f"must be up to {most} numbers separated by commas, or one of {', '.join(SHAPES)} (+number)",
            )
        elif len(given.get(name, "").split(",")) > most:
            yield Problem(
                code="list-cut",
                severity="warning",
                key="network_args",
                got=f"{name}={given[name]}",
                must=f"{name} has more numbers than there are blocks ({most}); what follows does nothing",
                fix=f"leave {most} numbers",
            )
    if config.network_module == "lycoris.kohya" and given.get("algo", "lora").lower() not in ALGOS:
        yield _bad("algo", given["algo"], f"must be one of {', '.join(ALGOS)}")


def _whole_numbers(text: str) -> list[int]:
    return [int(item) for item in text.split(",")]


def _numbers(text: str) -> list[float]:
    return [float(item or 0) for item in text.split(",")]


def _reads(reader: Callable[[str], object], text: str) -> bool:
    try:
        reader(text)
    except ValueError:
        return False
    return True


def _rates_or_shape(text: str) -> bool:
    if "," in text:
        return _reads(_numbers, text)
    shape, sign, offset = text.partition("+")
    return shape in SHAPES and (not sign or _reads(float, offset))


def deciding_tucker(given: Mapping[str, str]) -> str:
    """Which of its names switches LyCORIS' Tucker decomposition: the first one that is given, the old ones first."""
    return next((name for name in ("use_conv_cp", "use_cp", "use_tucker") if given.get(name)), "use_tucker")


@rule
def traits_of_lycoris(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """LyCORIS reads some of its network_args otherwise than they look (GUI notes, section 2.2)."""
    given, _ = network_args(config.network_args)
    if config.network_module != "lycoris.kohya":
        return
    on = {name for name, text in given.items() if text.lower() in ("true", "1", "yes")}
    algo, tucker = given.get("algo", "lora").lower(), deciding_tucker(given)
    said = []
    if algo == "lokr" and given.get("decompose_both") and "decompose_both" not in on:
        said.append(("decompose_both", "is read as true: LyCORIS takes any text for yes, and Kohya trains so"))
    if tucker != "use_tucker" and "use_tucker" in on and tucker not in on:
        said.append(("use_tucker", f"has no effect: {tucker}={given[tucker]} beside it decides"))
    for name in ("rank_dropout_scale", "train_on_input"):
        if name in on:
            said.append((name, "has no effect: LyCORIS does not pass it on to its modules"))
    for name, must in said:
        yield Problem(
            code="lycoris-trait",
            severity="note",
            key="network_args",
            got=f"{name}={given[name]}",
            must=f"{name} {must}",
            fix=f"remove {name} from network_args",
        )


@rule
def ranks_of_dylora(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """networks.dylora trains `unit` ranks at a time, of which every rank is a multiple (reference section 7.10)."""
    given, _ = network_args(config.network_args)
    if config.network_module != "networks.dylora" or not _reads(int, given.get("unit", "1") or "1"):
        return
    unit = max(int(given.get("unit") or 1), 1)
    ranks: list[tuple[str, int]] = [("network_dim", config.network_dim or 4)]
    if _reads(int, given.get("conv_dim", "")):
        ranks.append(("conv_dim", int(given["conv_dim"])))
    for name, rank in ranks:
        if rank % unit:
            yield Problem(
                code="bad-network-arg",
                key="network_dim" if name == "network_dim" else "network_args",
                got=rank,
                must=f"{name} must be a multiple of unit={unit}",
                fix=f"set {name} to {-(-rank // unit) * unit}, or change unit",
            )


@rule
def oft_is_for_the_unet(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """networks.oft adapts the U-Net only, and its alpha is the constraint on the rotation (reference section 7.10)."""
    if config.network_module != "networks.oft":
        return
    if config.network_train_text_encoder_only:
        yield Problem(
            code="nothing-trained",
            key="network_train_text_encoder_only",
            got=True,
            must="leaves nothing to train: networks.oft adapts the U-Net only",
            fix="remove it, or --set network_module=networks.lora",
        )
    if config.network_alpha >= 1:
        yield Problem(
            code="loose-constraint",
            severity="warning",
            key="network_alpha",
            got=config.network_alpha,
            must="is the constraint of networks.oft, which bounds nothing from 1 on",
            fix="--set network_alpha=1e-3",
        )


@rule
def peft_copies(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """A copy for diffusers can be made of plain LoRAs and DoRAs only."""
    if not config.save_peft:
        return
    module = config.network_module or "networks.lora"
    given, _ = network_args(config.network_args)
    algo = given.get("algo", "lora").lower()
    tucker = given.get(deciding_tucker(given), "").lower() in ("true", "1", "yes")
    plain = module in LORAS or (module == "lycoris.kohya" and algo in ("lora", "locon", "dylora") and not tucker)
    if not plain:
        yield Problem(
            code="no-peft-copy",
            key="save_peft",
            got=True,
            must=f"works for {', '.join(LORAS)} and for lycoris.kohya with algo=locon; other kinds have no form there",
            fix="--set save_peft=false",
        )


def _bad(name: str, value: str, must: str) -> Problem:
    return Problem(code="bad-network-arg", key="network_args", got=f"{name}={value}", must=must, fix=f"correct {name}")


@rule
def something_is_trained(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """At least one part has a rate above 0 (traps T19, T39)."""
    if config.network_train_unet_only and config.network_train_text_encoder_only:
        yield Problem(
            code="nothing-trained",
            key="network_train_unet_only",
            got=True,
            must="excludes network_train_text_encoder_only",
            fix="remove one of the two",
        )
        return
    unet = 0 if config.network_train_text_encoder_only else _first(config.unet_lr, config.learning_rate)
    text = 0 if config.network_train_unet_only else _first(*config.text_encoder_lr[:1], config.learning_rate)
    if not unet and not text and not config.lr_scheduler.startswith("adafactor:"):
        yield Problem(
            code="nothing-trained",
            key="learning_rate",
            got=config.learning_rate,
            must="every part that may be trained has the rate 0",
            fix="--set learning_rate=1e-4",
        )


def _first(*rates: float | None) -> float:
    return next((rate for rate in rates if rate is not None), 0.0)


@rule
def text_encoder_rates(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """Each text encoder has its own rate; the reference trains both with the first (traps T48)."""
    rates = config.text_encoder_lr
    if len(set(rates)) > 1:
        only = "sd15 and sd2 have one text encoder: the first counts" if family in ("sd15", "sd2") else ""
        yield Problem(
            code="text-rates",
            severity="warning",
            key="text_encoder_lr",
            got=list(rates),
            must=only or "each text encoder trains at its own rate; Kohya trains both at the first",
            fix=f"--set text_encoder_lr={rates[0]} to train as Kohya would",
        )


@rule
def weights_to_start_from(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """dim_from_weights needs network_weights; multipliers need their files."""
    if config.dim_from_weights and not config.network_weights:
        yield Problem(
            code="dim-without-weights",
            key="dim_from_weights",
            got=True,
            must="needs network_weights",
            fix="--set network_weights=FILE, or remove dim_from_weights",
        )
    if len(config.base_weights_multiplier) > len(config.base_weights):
        yield Problem(
            code="multiplier-without-weights",
            severity="warning",
            key="base_weights_multiplier",
            got=list(config.base_weights_multiplier),
            must=f"there are only {len(config.base_weights)} base_weights; the rest is not used",
        )
