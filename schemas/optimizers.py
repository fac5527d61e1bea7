"""Every optimizer as one row: its names, its class, its own arguments, what it costs and what it asks of the rates.

Names: reference section 8.1. Arguments are those of the classes' own signatures; `lr` and the parameters are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from schemas.argument import Argument

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

    `state` is bytes of state for each trained number of 32 bit. `own_rate`: it finds the rate itself and wants about 1.
    `one_rate`: it cannot go on with groups of different rates. `matrices`: it takes parameters of two axes only.
    """

    path: str
    names: tuple[str, ...] = ()
    state: float = 8.0
    eight_bit: str | None = None
    own_rate: bool = False
    one_rate: bool = False
    matrices: bool = False
    args: Arguments = field(default_factory=dict)

    @property
    def made(self) -> str:
        """The name of the class alone."""
        return self.path.rpartition(".")[2]


def _bits(name: str, args: Arguments, state: float = 8.0, eight_bit: str | None = None) -> Optimizer:
    return Optimizer(f"bitsandbytes.optim.{name}", (name,), state, eight_bit, args=args)


def _adapt(path: str, args: Arguments, *names: str, state: float = 12.0, one_rate: bool = True) -> Optimizer:
    return Optimizer(f"dadaptation.{path}", names or (path,), state, own_rate=True, one_rate=one_rate, args=args)


def _torch(name: str, args: Arguments, state: float = 8.0, *, matrices: bool = False) -> Optimizer:
    return Optimizer(f"torch.optim.{name}", (), state, matrices=matrices, args=args)


ADAPT_ADAM: Arguments = {**GROWS, **SHARDED, "betas": PAIR, "eps": ABOVE, "decouple": FLAG}
ROWS: tuple[Optimizer, ...] = (
    Optimizer("torch.optim.AdamW", ("AdamW",), eight_bit="AdamW8bit",
              args={**TORCH_ADAM, "amsgrad": FLAG, "fused": MAYBE}),
    _bits("AdamW8bit", {**EIGHT_ADAM, **PAGED}, 2.1),
    _bits("PagedAdamW", BITS_ADAM, eight_bit="PagedAdamW8bit"),
    _bits("PagedAdamW8bit", EIGHT_ADAM, 2.1),
    _bits("PagedAdamW32bit", BITS_ADAM, eight_bit="PagedAdamW8bit"),
    _bits("Lion8bit", {**BITS_LION, **PAGED}, 1.1),
    _bits("PagedLion8bit", BITS_LION, 1.1),
    Optimizer("torch.optim.SGD", ("SGDNesterov",), 4, "SGDNesterov8bit", args={
        "momentum": POSITIVE, "dampening": Argument("number"), **DECAYED, "nesterov": FLAG, "foreach": MAYBE,
        "maximize": FLAG, "differentiable": FLAG, "fused": MAYBE}),
    Optimizer("bitsandbytes.optim.SGD8bit", ("SGDNesterov8bit",), 1.1, args={
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
    Optimizer("prodigyopt.Prodigy", ("Prodigy",), 16, own_rate=True, one_rate=True, args={
        "betas": PAIR, "beta3": BETA3, "eps": ABOVE, **DECAYED, "decouple": FLAG, "use_bias_correction": FLAG,
        "safeguard_warmup": FLAG, "d0": ABOVE, "d_coef": ABOVE, "growth_rate": GROWTH, **SHARDED,
        "slice_p": Argument("whole", ge=1)}),
    Optimizer("transformers.optimization.Adafactor", ("AdaFactor",), 0.5, args={
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
    Optimizer("prodigyplus.ProdigyPlusScheduleFree", (), 6, own_rate=True),
)  # fmt: skip
BY_PATH = {row.path: row for row in ROWS}
# name -> class; these names are taken in any case
OPTIMIZERS: dict[str, str] = {name: row.path for row in ROWS for name in row.names}
TORCH = (*(row.made for row in ROWS if row.path.startswith("torch.optim.") and not row.names), "SGD")
_FOLDED = {name.lower(): path for name, path in OPTIMIZERS.items()}
# the same optimizer in a package of another tool -> the class that trains it here
ELSEWHERE = {"LoraEasyCustomOptimizer.came.CAME": "pytorch_optimizer.CAME"}
# packages whose classes may be named without trust, and the pip name of each that is optional
EXTRA = '"kohyakit[optimizers]"'
PACKAGES: dict[str, str] = {
    "torch": "torch",
    "transformers": "transformers",
    "bitsandbytes": EXTRA,
    "lion_pytorch": EXTRA,
    "dadaptation": EXTRA,
    "prodigyopt": EXTRA,
    "schedulefree": EXTRA,
    "prodigyplus": "prodigy-plus-schedule-free",
    "pytorch_optimizer": EXTRA,
}
# of packages that hold much besides optimizers, only these modules
ONLY = {"torch": "torch.optim", "transformers": "transformers.optimization"}


def resolve(name: str) -> str | None:
    """The dotted class that `optimizer_type` means ("" is AdamW), or None when no such optimizer is known."""
    text = name.strip()
    if "." in text:
        return ELSEWHERE.get(text, text)
    if text in TORCH:
        return f"torch.optim.{text}"
    return _FOLDED.get((text or "AdamW").lower())


def row_of(path: str | None) -> Optimizer | None:
    """The row of a dotted class; None for one of which nothing is known."""
    return BY_PATH.get(path or "")


def sets_its_own_rate(path: str) -> bool:
    """D-Adaptation and Prodigy find the rate themselves and want learning rates of about 1."""
    return path.startswith(("dadaptation.", "prodigyopt.", "prodigyplus."))


def state_bytes(path: str) -> float:
    """Bytes of state for each trained number of 32 bit; two averages, as Adam keeps, where nothing is known."""
    made = path.rpartition(".")[2]
    return next((row.state for row in ROWS if row.made == made), 8.0)


def known_class(dotted: str) -> bool:
    """Whether a dotted class lies in a package whose optimizers may be named without trust."""
    package = dotted.partition(".")[0]
    return package in PACKAGES and dotted.startswith(f"{ONLY.get(package, package)}.")
