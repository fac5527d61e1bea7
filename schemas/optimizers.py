"""Every optimizer as one row: its names, its class, its own arguments, what it costs and what it asks of the rates.

Names: reference section 8.1. Arguments are those of the classes' own signatures; `lr` and the parameters are ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from schemas.argument import Argument, name_values, parse_literal_args, setting
from schemas.packages import PACKAGES
from schemas.problems import Problem, nearest
from schemas.terminal import shell_word

Arguments = Mapping[str, Argument]
FLAG, MAYBE, COUNT = Argument("flag"), Argument("flag", optional=True), Argument("whole", ge=0)
POSITIVE, ABOVE = Argument("number", ge=0), Argument("number", gt=0)
GROWTH, FREE = Argument("number", ge=0, endless=True), Argument("any", choices=(None,), optional=True)
PAIR, TRIPLE = Argument("numbers", ge=0, lt=1, count=2), Argument("numbers", ge=0, lt=1, count=3)
BETA3 = Argument("number", ge=0, lt=1, optional=True)
DECAYED: Arguments = {"weight_decay": POSITIVE}
ADAM: Arguments = {"betas": PAIR, "eps": POSITIVE, **DECAYED}
TORCH_FLAGS: Arguments = {"foreach": MAYBE, "maximize": FLAG, "capturable": FLAG, "differentiable": FLAG}
TORCH_ADAM: Arguments = {**ADAM, **TORCH_FLAGS}
BITS: Arguments = {"args": FREE, "min_8bit_size": COUNT}
BITS_ADAM: Arguments = {**ADAM, **BITS, "amsgrad": FLAG, "optim_bits": Argument("whole", choices=(8, 32))}
EIGHT_ADAM: Arguments = {**BITS_ADAM, "amsgrad": Argument("flag", choices=(False,)),
                         "optim_bits": Argument("whole", choices=(32,))}  # fmt: skip
BITS_LION: Arguments = {"betas": PAIR, **DECAYED, **BITS}
PAGED: Arguments = {"is_paged": FLAG}
ADAPT: Arguments = {**DECAYED, "log_every": COUNT, "d0": ABOVE}
GROWS: Arguments = {**ADAPT, "growth_rate": GROWTH}
SHARDED: Arguments = {"fsdp_in_use": FLAG}
ADAN: Arguments = {**GROWS, "betas": TRIPLE, "eps": ABOVE, "no_prox": FLAG}
FREE_OF_SCHEDULE: Arguments = {**DECAYED, "r": Argument("number"), "weight_lr_power": Argument("number"),
                               "foreach": MAYBE}  # fmt: skip


@dataclass(frozen=True)
class Optimizer:
    """One class. `names` are what optimizer_type may call it, in any case; a dotted `path` names it always.

    `state` is bytes of state for each trained number of 32 bit. `eight_bit` names the same with states of 8 bit,
    `unpaged` the same without paging. `one_rate`: it cannot go on with groups of different rates. `matrices`: it takes
    parameters of two axes only. Under one of `names` it is made with `fixed`, and with `usual` where not given.
    """

    path: str
    names: tuple[str, ...] = ()
    state: float = 8.0
    eight_bit: str | None = None
    unpaged: str | None = None
    one_rate: bool = False
    matrices: bool = False
    args: Arguments = field(default_factory=dict)
    usual: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def made(self) -> str:
        """The name of the class alone."""
        return self.path.rpartition(".")[2]


def _bits(
    name: str, args: Arguments, state: float = 8.0, eight_bit: str | None = None, unpaged: str | None = None
) -> Optimizer:
    return Optimizer(f"bitsandbytes.optim.{name}", (name,), state, eight_bit, unpaged, args=args)


def _adapt(path: str, args: Arguments, *names: str, state: float = 12.0, one_rate: bool = True) -> Optimizer:
    return Optimizer(f"dadaptation.{path}", names or (path,), state, one_rate=one_rate, args=args)


def _torch(name: str, args: Arguments, state: float = 8.0, *, matrices: bool = False) -> Optimizer:
    return Optimizer(f"torch.optim.{name}", (), state, matrices=matrices, args=args)


MOMENTUM, NESTEROV = {"momentum": 0.9}, {"nesterov": True}
ADAPT_ADAM: Arguments = {**GROWS, **SHARDED, "betas": PAIR, "eps": ABOVE, "decouple": FLAG}
ROWS: list[Optimizer] = [
    Optimizer("torch.optim.AdamW", ("AdamW",), eight_bit="AdamW8bit",
              args={**TORCH_ADAM, "amsgrad": FLAG, "fused": MAYBE}),
    _bits("AdamW8bit", {**EIGHT_ADAM, **PAGED}, 2.1),
    _bits("PagedAdamW", BITS_ADAM, eight_bit="PagedAdamW8bit", unpaged="AdamW"),
    _bits("PagedAdamW8bit", EIGHT_ADAM, 2.1, unpaged="AdamW8bit"),
    _bits("PagedAdamW32bit", BITS_ADAM, eight_bit="PagedAdamW8bit", unpaged="AdamW"),
    _bits("Lion8bit", {**BITS_LION, **PAGED}, 1.1),
    _bits("PagedLion8bit", BITS_LION, 1.1, unpaged="Lion8bit"),
    Optimizer("torch.optim.SGD", ("SGDNesterov",), 4, "SGDNesterov8bit", usual=MOMENTUM, fixed=NESTEROV, args={
        "momentum": POSITIVE, "dampening": Argument("number"), **DECAYED, "nesterov": FLAG, "foreach": MAYBE,
        "maximize": FLAG, "differentiable": FLAG, "fused": MAYBE}),
    Optimizer("bitsandbytes.optim.SGD8bit", ("SGDNesterov8bit",), 1.1, usual=MOMENTUM, fixed=NESTEROV, args={
        "momentum": ABOVE, "dampening": Argument("number"), **DECAYED, "nesterov": FLAG, **BITS}),
    Optimizer("lion_pytorch.Lion", ("Lion",), 4, "Lion8bit", args={
        "betas": Argument("numbers", ge=0, le=1, count=2), **DECAYED, "use_triton": FLAG,
        "decoupled_weight_decay": FLAG}),
    _adapt("experimental.DAdaptAdamPreprint", ADAPT_ADAM, "DAdaptation", "DAdaptAdamPreprint"),
    _adapt("DAdaptAdaGrad", {**GROWS, "momentum": POSITIVE, "eps": ABOVE}, one_rate=False),
    _adapt("DAdaptAdam", {**ADAPT_ADAM, "use_bias_correction": FLAG}),
    _adapt("DAdaptAdan", ADAN, state=20, one_rate=False),
    _adapt("DAdaptLion", {**ADAPT, **SHARDED, "betas": PAIR}, state=8),
    _adapt("DAdaptSGD", {**GROWS, **SHARDED, "momentum": POSITIVE}),
    _adapt("experimental.DAdaptAdanIP", ADAN, "DAdaptAdanIP", state=20, one_rate=False),
    Optimizer("prodigyopt.Prodigy", ("Prodigy",), 16, one_rate=True, args={
        "betas": PAIR, "beta3": BETA3, "eps": ABOVE, **DECAYED, "decouple": FLAG, "use_bias_correction": FLAG,
        "safeguard_warmup": FLAG, "d0": ABOVE, "d_coef": ABOVE, "growth_rate": GROWTH, **SHARDED,
        "slice_p": Argument("whole", ge=1)}),
    Optimizer("transformers.optimization.Adafactor", ("AdaFactor",), 0.5, usual={"relative_step": True}, args={
        "eps": Argument("numbers", ge=0, count=2), "clip_threshold": ABOVE, "decay_rate": Argument("number"),
        "beta1": BETA3, **DECAYED, "scale_parameter": FLAG, "relative_step": FLAG, "warmup_init": FLAG}),
    Optimizer("schedulefree.RAdamScheduleFree", ("RAdamScheduleFree",), args={
        **FREE_OF_SCHEDULE, "betas": PAIR, "eps": POSITIVE, "silent_sgd_phase": FLAG}),
    Optimizer("schedulefree.AdamWScheduleFree", ("AdamWScheduleFree",), args={
        **FREE_OF_SCHEDULE, "betas": PAIR, "eps": POSITIVE, "warmup_steps": COUNT}),
    Optimizer("schedulefree.SGDScheduleFree", ("SGDScheduleFree",), 4, args={
        **FREE_OF_SCHEDULE, "momentum": Argument("number", gt=0, lt=1), "warmup_steps": COUNT}),
    # Luo et al. 2023; one whole average, the others factored into rows and columns. The reference takes the dotted name
    Optimizer("pytorch_optimizer.CAME", ("CAME",), 4.5, args={
        "betas": TRIPLE, **DECAYED, "weight_decouple": FLAG, "fixed_decay": FLAG, "clip_threshold": ABOVE,
        "ams_bound": FLAG, "eps1": ABOVE, "eps2": ABOVE, "maximize": FLAG, "foreach": MAYBE}),
    # classes of torch, under their own names in their own spelling
    _torch("Adadelta", {"rho": Argument("number", ge=0, le=1), "eps": POSITIVE, **DECAYED, **TORCH_FLAGS}),
    _torch("Adagrad", {"lr_decay": POSITIVE, "eps": POSITIVE, **DECAYED, "initial_accumulator_value": POSITIVE,
                       "foreach": MAYBE, "maximize": FLAG, "differentiable": FLAG, "fused": MAYBE}, 4),
    _torch("Adam", {**TORCH_ADAM, "amsgrad": FLAG, "fused": MAYBE, "decoupled_weight_decay": FLAG}),
    _torch("Adamax", TORCH_ADAM),
    _torch("ASGD", {"lambd": Argument("number"), "alpha": Argument("number"), "t0": Argument("number"), **DECAYED,
                    **TORCH_FLAGS}),
    _torch("Muon", {**DECAYED, "momentum": POSITIVE, "nesterov": FLAG, "ns_coefficients": Argument("numbers", count=3),
                    "eps": POSITIVE, "ns_steps": Argument("whole", ge=1, lt=100),
                    "adjust_lr_fn": Argument("text", choices=("original", "match_rms_adamw"), optional=True)},
           matrices=True),
    _torch("NAdam", {**TORCH_ADAM, "momentum_decay": POSITIVE, "decoupled_weight_decay": FLAG}),
    _torch("RAdam", {**TORCH_ADAM, "decoupled_weight_decay": FLAG}),
    _torch("RMSprop", {"alpha": POSITIVE, "eps": POSITIVE, **DECAYED, "momentum": POSITIVE, "centered": FLAG,
                       **TORCH_FLAGS}, 4),
    _torch("Rprop", {"etas": Argument("numbers", gt=0, count=2), "step_sizes": Argument("numbers", count=2),
                     **TORCH_FLAGS}),
    # known by their dotted names only; None: their arguments are not listed here
    Optimizer("bitsandbytes.optim.Adam8bit", (), 2.1),
    Optimizer("bitsandbytes.optim.AdEMAMix8bit", (), 3.1),
    Optimizer("bitsandbytes.optim.PagedAdEMAMix8bit", (), 3.1),
    Optimizer("prodigyplus.ProdigyPlusScheduleFree", (), 6),
]  # fmt: skip


class Options(Protocol):
    """The options that choose an optimizer."""

    @property
    def optimizer_type(self) -> str: ...
    @property
    def optimizer_args(self) -> tuple[str, ...]: ...
    @property
    def use_8bit_adam(self) -> bool: ...
    @property
    def use_lion_optimizer(self) -> bool: ...


# the reference's old switches -> the name they mean
OLD = {"use_8bit_adam": "AdamW8bit", "use_lion_optimizer": "Lion"}
# name -> class; these names are taken in any case
OPTIMIZERS: dict[str, str] = {}
TORCH = (*(row.made for row in ROWS if row.path.startswith("torch.optim.") and not row.names), "SGD")
BY_PATH: dict[str, Optimizer] = {}
_FOLDED: dict[str, str] = {}


def register(row: Optimizer) -> None:
    """Makes an optimizer known to the whole program."""
    if row not in ROWS:
        ROWS.append(row)
    BY_PATH[row.path] = row
    OPTIMIZERS.update(dict.fromkeys(row.names, row.path))
    _FOLDED.update({name.lower(): row.path for name in row.names})


for _row in ROWS:
    register(_row)
# the same optimizer in a package of another tool -> the class that trains it here
ELSEWHERE = {"LoraEasyCustomOptimizer.came.CAME": "pytorch_optimizer.CAME"}


def resolve(name: str) -> str | None:
    """The dotted class that `optimizer_type` means ("" is AdamW), or None when no such optimizer is known."""
    text = name.strip()
    if "." in text:
        return ELSEWHERE.get(text, text)
    if text in TORCH:
        return f"torch.optim.{text}"
    return _FOLDED.get((text or "AdamW").lower())


@dataclass(frozen=True)
class Chosen:
    """The optimizer that a config asks for: as it names it, its dotted class ("" where there is none), its arguments.

    `args` are those given, with the row's usual ones. `row` is None for a class of which nothing is known.
    """

    name: str
    path: str
    row: Optimizer | None
    args: Mapping[str, Any]

    @property
    def by_name(self) -> bool:
        """Whether it is named as the reference does, so that the row's usual and fixed arguments go with it."""
        return self.row is not None and self.name.lower() in {name.lower() for name in self.row.names}

    @property
    def fixed(self) -> Mapping[str, Any]:
        return self.row.fixed if self.row is not None and self.by_name else {}

    @property
    def relative_step(self) -> bool:
        """Whether Adafactor sets its own rates (reference section 8.3): by default, and whenever warmup_init is on."""
        adafactor = self.by_name and "relative_step" in self.args
        return adafactor and bool(self.args["relative_step"] or self.args.get("warmup_init"))

    @property
    def schedule_free(self) -> bool:
        """Whether it averages instead of following a schedule, as these packages' names say."""
        return self.path.endswith("ScheduleFree")

    @property
    def own_rate(self) -> bool:
        """D-Adaptation and Prodigy find the rate themselves and want learning rates of about 1."""
        package = PACKAGES.get(self.path.partition(".")[0])
        return package is not None and package.own_rate

    @property
    def is_adafactor(self) -> bool:
        """Whether it is Adafactor under its short name, with all that the reference does for it."""
        return self.by_name and self.path == OPTIMIZERS["AdaFactor"]

    @property
    def state(self) -> float:
        """Bytes of state for each trained number of 32 bit; two averages, as Adam keeps, where nothing is known."""
        return 8.0 if self.row is None else self.row.state

    @property
    def eight_bit(self) -> bool:
        return self.path.endswith("8bit")

    @property
    def paged(self) -> bool:
        return self.path.rpartition(".")[2].startswith("Paged")


def read(options: Options) -> tuple[Chosen, list[Problem]]:
    """The optimizer of a config, and everything that is wrong with its name and its arguments."""
    asked = {name: getattr(options, name) for name in ("use_8bit_adam", "use_lion_optimizer", "optimizer_type")}
    names = [OLD.get(option, value) for option, value in asked.items() if value]
    given, problems = parse_literal_args(options.optimizer_args, "optimizer_args")
    if len(names) > 1:
        wrong = [option for option, value in asked.items() if value]
        problems.append(Problem(code="two-optimizers", key=wrong[0], got=", ".join(wrong),
                                must="only one option may choose the optimizer",
                                fix=f"keep optimizer_type and remove {', '.join(wrong[:-1])}"))  # fmt: skip
    name = (names[-1] if names else "AdamW").strip()
    path = resolve(name)
    if path is None:
        return Chosen(name, "", None, given), [*problems, unknown(name, with_args=bool(options.optimizer_args))]
    if name in ELSEWHERE:
        must = f"is of another trainer's package; {path} is the same optimizer, and trains here"
        problems.append(Problem(code="same-optimizer", severity="note", key="optimizer_type", got=name, must=must))
    chosen = Chosen(name, path, BY_PATH.get(path), given)
    problems += _wrong_arguments(options, chosen)
    usual = chosen.row.usual if chosen.row is not None and chosen.by_name else {}
    given |= {key: value for key, value in usual.items() if key not in given}  # last: the order is that of the header
    return chosen, problems


def unknown(name: str, *, with_args: bool = False) -> Problem:
    """The error that there is no optimizer of a name."""
    names = [*OPTIMIZERS, *TORCH]
    fix = f"--set optimizer_type={nearest(name, names) or 'AdamW'}" + (" --set optimizer_args=" if with_args else "")
    return Problem(code="unknown-optimizer", key="optimizer_type", got=name, fix=fix,
                   must=f"must be one of {', '.join(names)}, or a dotted class name")  # fmt: skip


def bad_argument(got: Any, must: str, fix: str) -> Problem:
    """The error that an optimizer does not take its arguments, or not so."""
    return Problem(code="bad-optimizer-argument", key="optimizer_args", got=got, must=must, fix=fix)


def rates_differ(chosen: Chosen, rates: Mapping[str, float], key: str, fix: str) -> Iterator[Problem]:
    """The finding that an optimizer which finds one rate for everything meets groups of different rates."""
    ends = chosen.row is not None and chosen.row.one_rate
    if len(set(rates.values())) < 2 or not (ends or chosen.own_rate):
        return
    differ = {rate: name for name, rate in reversed(list(rates.items()))}
    shown = ", ".join(f"{name} {rate:g}" for rate, name in sorted(differ.items())[:4])
    must = f"{chosen.path} finds one rate for everything "
    must += "and ends at the first step where rates differ" if ends else "(unusual)"
    severity = "error" if ends else "warning"
    yield Problem(code="rates-differ", severity=severity, key=key, got=shown, must=must, fix=fix)  # type: ignore[arg-type]


def _wrong_arguments(options: Options, chosen: Chosen) -> Iterator[Problem]:
    """Names and values that this optimizer does not take."""
    given, row, texts = chosen.args, chosen.row, name_values(options.optimizer_args, "")[0]
    texts = {name: text.rstrip(",") for name, text in texts.items()}

    def without(*names: str) -> str:
        return setting("optimizer_args", {name: text for name, text in texts.items() if name not in names})

    if "lr" in given:
        yield Problem(code="rate-in-arguments", key="optimizer_args", got=given["lr"], must="must not contain lr",
                      fix=f"{without('lr')} --set learning_rate={shell_word(given['lr'])}")  # fmt: skip
    if row is None or not row.args:
        return
    wrong = [name for name, value in given.items() if name not in row.args or not row.args[name].fits(value)]
    way_out = without(*wrong)  # of all at once: a --set replaces the whole list
    for name in wrong:
        form = row.args.get(name)
        if name != "lr":
            must = _not_taken(name, row) if form is None else f"{name} of {row.made} {form.must}"
            yield bad_argument(f"{name}={given[name]}", must, way_out if form is None else f"correct it, or {way_out}")
    fixed = [name for name in chosen.fixed if name in given]
    for name in fixed:
        must = f"must not contain {name}: {chosen.name} sets it"
        yield bad_argument(f"{name}={given[name]}", must, without(name))
    usual = {**row.usual, **given} if chosen.by_name else given
    if {**usual, **chosen.fixed}.get("nesterov") and "dampening" in row.args:
        if not usual.get("momentum"):
            fix = f"{without('momentum')} for the usual 0.9" if chosen.by_name else "add momentum=0.9"
            yield Problem(code="nesterov-without-momentum", key="optimizer_args", got=given.get("momentum", 0),
                          must="Nesterov needs a positive momentum", fix=fix)  # fmt: skip
        if given.get("dampening"):
            yield bad_argument(f"dampening={given['dampening']}", "Nesterov needs dampening=0", without("dampening"))
    if "relative_step" in row.args and not chosen.by_name:  # made as it is, it cannot set its own rates beside ours
        on = [name for name, default in (("relative_step", True), ("warmup_init", False)) if given.get(name, default)]
        off = setting("optimizer_args", {**texts, **dict.fromkeys(on, "False")})
        must = f"{' and '.join(on)} must be False for {chosen.name}, which gets its rates from here"
        if on:
            got = " ".join(options.optimizer_args) or None
            yield bad_argument(got, must, f"--set optimizer_type=AdaFactor, or {off}")


def _not_taken(name: str, row: Optimizer) -> str:
    others = [other.made for other in ROWS if name in other.args]
    guess = nearest(name, row.args)
    hint = f"; did you mean {guess}?" if guess else f"; it belongs to {', '.join(others[:3])}" if others else ""
    return f"{row.made} does not take {name}{hint} (it takes {', '.join(row.args)})"


def without_paging(name: str) -> str:
    """The same optimizer without paging, which needs a GPU; the name itself where it has none."""
    row = BY_PATH.get(resolve(name) or "")
    return (row and row.unpaged) or name


def in_32_bit(name: str) -> str | None:
    """The same optimizer with states of 32 bit, without bitsandbytes; None where there is none."""
    plain = without_paging(name).lower()
    rows = (row for row in ROWS if (row.eight_bit or "").lower() == plain and not row.path.startswith("bitsandbytes."))
    return next((row.names[0] for row in rows), None)
