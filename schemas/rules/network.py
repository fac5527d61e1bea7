"""Rules on the adapter: its module, its network_args, which parts are trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from schemas import optimizers
from schemas.argument import name_values
from schemas.config import TrainConfig
from schemas.families import facts_of, unet_of
from schemas.network_args import (
    BLOCKS,
    BY_LYCORIS,
    LORA_PLUS,
    LORAS,
    NETWORK_ARGS,
    RATES,
    SUPPORTED,
    bad,
    deciding_tucker,
    known_to,
    network_values,
    typed,
    with_it,
    without,
)
from schemas.packages import needs, trusted, untrusted
from schemas.problems import Problem, Severity, nearest
from schemas.rules.rates import WITH_UPS, rates_of, trained_parts
from schemas.rules.registry import rule

OTHER_FAMILIES = (
    "networks.lora_flux",
    "networks.oft_flux",
    "networks.lora_sd3",
    "networks.lora_lumina",
    "networks.lora_anima",
    "networks.lora_hunyuan_image",
)
NO_DORA = ("dylora", "glora", "full", "diag-oft", "boft", "ia3")
BIASED = ("ia3", "diag-oft", "boft")  # whose bypass_mode works on outputs, bias included


@rule
def network_module(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """The adapter's module is one that the trainer has; a foreign one needs trust."""
    module = config.adapter
    supported = ", ".join(SUPPORTED)
    if module in BY_LYCORIS:
        yield from needs("lycoris", "network_module", module)
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
        fix = f"--set network_module={nearest(module, SUPPORTED) or 'networks.lora'}"
        yield untrusted(module, "network_module", f"is not a known adapter; supported are {supported}", fix)


@rule
def known_network_args(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """Unknown names in network_args do nothing, here and in the reference (traps T22); each is named."""
    given, problems = name_values(config.network_args, "network_args")
    yield from problems
    module = config.adapter
    known = known_to(module) if module in SUPPORTED else list(given)
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
    """Every value has its kind and lies within its bounds; block lists are as long as the model has blocks."""
    texts, _ = name_values(config.network_args, "network_args")
    _, problems = typed(config.adapter, texts, family)
    yield from problems


@rule
def idle_network_args(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """Settings that the chosen adapter takes and does nothing with are named."""
    texts, _ = name_values(config.network_args, "network_args")
    for name, why, fix in _idle(config, texts, network_values(config, family)[0]):
        key = "network_args" if name in texts else name
        got = f"{name}={texts[name]}" if name in texts else getattr(config, name)
        must = f"{name} does nothing: {why}"
        yield Problem(code="no-effect", severity="warning", key=key, got=got, must=must, fix=fix)


def _idle(config: TrainConfig, texts: Mapping[str, str], given: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(option or key of network_args, why it does nothing, what to do)."""
    module, algo = config.adapter, given.get("algo", config.adapter.removeprefix("networks."))
    own_preset = str(given.get("preset", "")).endswith(".toml")  # it may name other algorithms
    for name in (name for name, row in NETWORK_ARGS.items() if module in row.idle):
        if texts.get(name, "") not in ("", "None", "0"):
            instead = f"--set network_dropout={texts[name]} " if name == "dropout" else ""
            yield name, f"{module} does not take it", instead + without(texts, name)
    if module == "networks.dylora" or module == "networks.oft":
        for name in ("network_dropout",) if module == "networks.dylora" else ("network_dropout", "scale_weight_norms"):
            if getattr(config, name):
                yield name, f"{module} does not know it", f"--set {name}="
    if module in BY_LYCORIS and algo in ("loha", "lokr") and not own_preset:
        for name, value in (("dropout", given.get("dropout")), ("network_dropout", config.network_dropout)):
            if value:
                fix = without(texts, name) if name in texts else f"--set {name}="
                yield name, f"{algo} has no dropout of activations", fix
    if module in BY_LYCORIS and algo not in WITH_UPS and not own_preset:
        for name in LORA_PLUS:
            if name in given:
                yield name, f"{algo} has no up matrices", without(texts, name)
    if module not in LORAS or "lr_weight" in given:
        return
    for name in BLOCKS[1:] if "block_dims" not in given else ():
        if name in given:
            yield name, "it counts only beside block_dims or an lr weight", without(texts, name)
    if "block_lr_zero_threshold" in given:
        yield "block_lr_zero_threshold", "it counts only beside an lr weight", without(texts, "block_lr_zero_threshold")


@rule
def switches_of_oft(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """networks.oft's switches are off where they say so; the reference takes any text for on."""
    texts, _ = name_values(config.network_args, "network_args")
    for name, on in network_values(config)[0].items() if config.adapter == "networks.oft" else ():
        if not on:
            must = "is off here as it says; Kohya takes any text for on, this one too"
            got, fix = f"{name}={texts[name]}", without(texts, name)
            yield Problem(code="unusual-spelling", severity="note", key="network_args", got=got, must=must, fix=fix)


def switched_on(given: Mapping[str, str]) -> set[str]:
    """The names whose text is a yes."""
    return {name for name, text in given.items() if text.lower() in ("true", "1", "yes")}


@rule
def traits_of_lycoris(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """LyCORIS reads some of its network_args otherwise than they look (GUI notes, section 2.2)."""
    given, _ = name_values(config.network_args, "network_args")
    if config.network_module != "lycoris.kohya":
        return
    on = switched_on(given)
    values, _ = network_values(config)
    algo, tucker = values.get("algo", "lora"), deciding_tucker(values)
    said: list[tuple[str, str, Severity]] = []
    if algo == "lokr" and given.get("decompose_both") and "decompose_both" not in on:
        said.append(("decompose_both", "is read as true: LyCORIS takes any text for yes, and Kohya trains so", "note"))
    if tucker != "use_tucker" and "use_tucker" in on and tucker not in on:
        said.append(("use_tucker", f"has no effect: {tucker}={given[tucker]} beside it decides", "note"))
    for name in ("rank_dropout_scale", "train_on_input"):
        if name in on:
            said.append((name, "has no effect: LyCORIS does not pass it on to its modules", "note"))
    if "dora_wd" in on and algo in NO_DORA:
        said.append(("dora_wd", f"has no effect: LyCORIS' {algo} has no DoRA", "note"))
    if "bypass_mode" in on and algo in BIASED:
        must = "trains on outputs with their bias, which no reader of the file changes, base_weights neither"
        said.append(("bypass_mode", must, "warning"))
    if "bypass_mode" in on and "dora_wd" in on and algo not in NO_DORA:
        must = "trains without DoRA, whose scale is in the file all the same and changes it for every reader"
        said.append(("bypass_mode", must, "warning"))
    for name, must, severity in said:
        yield Problem(
            code="lycoris-trait",
            severity=severity,
            key="network_args",
            got=f"{name}={given[name]}",
            must=f"{name} {must}",
            fix=without(given, name),
        )


@rule
def ranks_of_dylora(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """DyLoRA trains several ranks at a time, of which every rank is a multiple (reference section 7.10)."""
    texts, _ = name_values(config.network_args, "network_args")
    given, _ = network_values(config)
    by_lycoris = config.network_module == "lycoris.kohya" and given.get("algo") == "dylora"
    if config.network_module != "networks.dylora" and not by_lycoris:
        return
    name, usual = ("block_size", 4) if by_lycoris else ("unit", 1)
    unit = given.get(name, usual)
    for key, rank in (("network_dim", config.rank), ("conv_dim", given.get("conv_dim", 0))):
        if rank % unit:
            fitting = -(-rank // unit) * unit
            set_it = f"--set network_dim={fitting}" if key == "network_dim" else with_it(texts, key, str(fitting))
            must, fix = f"{key} must be a multiple of {name}={unit}", f"{set_it}, or change {name}"
            wrong = bad(key, str(rank), must, texts, fix=fix)
            yield replace(wrong, key="network_dim", got=rank) if key == "network_dim" else wrong


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
    module = config.adapter
    given, _ = network_values(config)
    algo = given.get("algo", "lora")
    tucker = bool(given.get(deciding_tucker(given)))
    plain = module in LORAS or (module == "lycoris.kohya" and algo in ("lora", "locon", "dylora") and not tucker)
    if not plain:
        yield Problem(
            code="no-peft-copy",
            key="save_peft",
            got=True,
            must=f"works for {', '.join(LORAS)} and for lycoris.kohya with algo=locon; other kinds have no form there",
            fix="--set save_peft=false",
        )


@rule
def average_of_the_weights(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """ema_decay is an average of its own, which schedule-free optimizers keep already; ema_previews needs it."""
    if config.ema_previews and not config.ema_decay:
        must = "has no effect: there is no average without ema_decay"
        yield Problem(
            code="no-effect", severity="note", key="ema_previews", got=True, must=must, fix="--set ema_previews=false"
        )
    if config.ema_decay and optimizers.read(config)[0].schedule_free:
        must = f"does not go with {config.optimizer_type}, which keeps an average of its own and saves that"
        yield Problem(code="two-averages", key="ema_decay", got=config.ema_decay, must=must, fix="--set ema_decay=")


@rule
def text_encoder_that_stops(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """stop_text_encoder_training needs a text encoder that learns, something else that does, and a kind of ours."""
    name, end = "stop_text_encoder_training", config.stop_text_encoder_training
    if end <= 0:
        return
    if config.adapter not in SUPPORTED:
        must = f"works for {', '.join(SUPPORTED)}: nobody knows which weights of another module are a text encoder's"
        yield Problem(code="stop-of-unknown-parts", key=name, got=end, must=must, fix=f"--set {name}=0")
    elif config.network_train_text_encoder_only:
        must = "would leave nothing to train: network_train_text_encoder_only is set"
        yield Problem(code="nothing-trained", key=name, got=end, must=must, fix=f"--set {name}=0")
    elif config.network_train_unet_only or (config.text_encoder_lr and not any(config.text_encoder_lr)):
        must = "has no effect: the text encoder is not trained"
        yield Problem(code="no-effect", severity="note", key=name, got=end, must=must, fix=f"--set {name}=0")
    else:
        must = "is kohyakit's own: sd-scripts' LoRA trainer would train the text encoder to the end"
        yield Problem(code="not-in-sd-scripts", severity="note", key=name, got=end, must=must)


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
    parts, rates = trained_parts(config, family), rates_of(config)
    if not any(rates[part] for part in parts) and not config.lr_scheduler.startswith("adafactor:"):
        unset = [f"--set {name}=" for name in ("unet_lr", "text_encoder_lr") if getattr(config, name) not in (None, ())]
        yield Problem(
            code="nothing-trained",
            key="learning_rate",
            got=config.learning_rate,
            must="every part that may be trained has the rate 0",
            fix=" ".join(["--set learning_rate=1e-4", *unset]),
        )
    elif parts == ["unet"] or not any(rates[part] for part in parts if part != "unet"):
        yield from _no_block(config, family)


def _no_block(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """Where the U-Net alone trains, its block lists must leave something of it."""
    texts, _ = name_values(config.network_args, "network_args")
    given, problems = network_values(config, family)
    if problems or not isinstance(given.get("lr_weight", given.get("block_dims")), tuple):
        return
    conv = "conv_dim" in given or "conv_block_dims" in given
    weights = given.get("lr_weight", (1.0,) * 25)
    dims = given.get("block_dims", (config.rank,) * 25)
    threes = given.get("conv_block_dims", (given.get("conv_dim", 0),) * 25)
    blocks = [
        block for block in unet_of(family).adapted(conv=conv) if block < min(len(weights), len(dims), len(threes))
    ]
    if not any(weights[block] and (dims[block] or (conv and threes[block])) for block in blocks):
        lists = [name for name in (*RATES, "block_dims", "conv_block_dims") if name in texts]
        yield Problem(
            code="nothing-trained",
            key="network_args",
            got=" ".join(f"{name}={texts[name]}" for name in lists),
            must="leaves no block of the U-Net to train, which is all that may be trained",
            fix=without(texts, *lists),
        )


@rule
def text_encoder_rates(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """Each text encoder has its own rate; the reference trains both with the first (traps T48)."""
    rates = config.text_encoder_lr
    if len(set(rates)) > 1:
        facts = facts_of(family)
        only = f"{facts.name} has one text encoder: the first counts" if facts and len(facts.text_parts) == 1 else ""
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
            fix="--set network_weights=FILE, or --set dim_from_weights=false",
        )
    if len(config.base_weights_multiplier) > len(config.base_weights):
        yield Problem(
            code="multiplier-without-weights",
            severity="warning",
            key="base_weights_multiplier",
            got=list(config.base_weights_multiplier),
            must=f"there are only {len(config.base_weights)} base_weights; the rest is not used",
        )
