"""Optimizers by name (reference section 8.1): what a name resolves to, what it needs, which combinations go wrong."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator

from schemas.config import TrainConfig
from schemas.problems import Problem, nearest
from schemas.rules.arguments import parse_literal_args
from schemas.rules.registry import rule, trusted
from schemas.terminal import shell_word

BITSANDBYTES = ("AdamW8bit", "PagedAdamW", "PagedAdamW8bit", "PagedAdamW32bit", "Lion8bit", "PagedLion8bit")
DADAPT = ("DAdaptAdaGrad", "DAdaptAdam", "DAdaptAdan", "DAdaptLion", "DAdaptSGD")
SCHEDULE_FREE = ("RAdamScheduleFree", "AdamWScheduleFree", "SGDScheduleFree")
TORCH = ("Adadelta", "Adagrad", "Adam", "Adamax", "ASGD", "Muon", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD")

# name -> class; these names are taken in any case
OPTIMIZERS: dict[str, str] = {
    "AdamW": "torch.optim.AdamW",
    **{name: f"bitsandbytes.optim.{name}" for name in BITSANDBYTES},
    "SGDNesterov": "torch.optim.SGD",
    "SGDNesterov8bit": "bitsandbytes.optim.SGD8bit",
    "Lion": "lion_pytorch.Lion",
    "DAdaptation": "dadaptation.experimental.DAdaptAdamPreprint",
    "DAdaptAdamPreprint": "dadaptation.experimental.DAdaptAdamPreprint",
    **{name: f"dadaptation.{name}" for name in DADAPT},
    "DAdaptAdanIP": "dadaptation.experimental.DAdaptAdanIP",
    "Prodigy": "prodigyopt.Prodigy",
    "AdaFactor": "transformers.optimization.Adafactor",
    **{name: f"schedulefree.{name}" for name in SCHEDULE_FREE},
    "CAME": "pytorch_optimizer.CAME",  # Luo et al. 2023; kit: the reference takes the dotted name only
}
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
_FOLDED = {name.lower(): path for name, path in OPTIMIZERS.items()}


def resolve(name: str) -> str | None:
    """The dotted class that `optimizer_type` means ("" is AdamW), or None when no such optimizer is known."""
    text = name.strip()
    if "." in text:
        return ELSEWHERE.get(text, text)
    if text in TORCH:
        return f"torch.optim.{text}"
    return _FOLDED.get((text or "AdamW").lower())


def sets_its_own_rate(path: str) -> bool:
    """D-Adaptation and Prodigy find the rate themselves and want learning rates of about 1."""
    return path.startswith(("dadaptation.", "prodigyopt.", "prodigyplus."))


def known_class(dotted: str) -> bool:
    """Whether a dotted class lies in a package whose optimizers may be named without trust."""
    package = dotted.partition(".")[0]
    return package in PACKAGES and dotted.startswith(f"{ONLY.get(package, package)}.")


@functools.cache
def installed(package: str) -> bool:
    """Whether a top-level package can be imported; nothing is imported."""
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False


@rule
def one_optimizer(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """use_8bit_adam, use_lion_optimizer and optimizer_type exclude each other."""
    given = [name for name in ("use_8bit_adam", "use_lion_optimizer", "optimizer_type") if getattr(config, name)]
    if len(given) > 1:
        yield Problem(
            code="two-optimizers",
            key=given[0],
            got=", ".join(given),
            must="only one option may choose the optimizer",
            fix=f"keep optimizer_type and remove {', '.join(name for name in given if name != 'optimizer_type')}",
        )


@rule
def known_optimizer(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """The optimizer exists, may be imported, and its package is installed."""
    path = resolve(config.optimizer_type)
    if path is None:
        names = [*OPTIMIZERS, *TORCH]
        guess = nearest(config.optimizer_type, names)
        yield Problem(
            code="unknown-optimizer",
            key="optimizer_type",
            got=config.optimizer_type,
            must=f"must be one of {', '.join(names)}, or a dotted class name",
            fix=f"--set optimizer_type={guess or 'AdamW'}",
        )
        return
    if config.optimizer_type.strip() in ELSEWHERE:
        must = f"is of another trainer's package; {path} is the same optimizer, and trains here"
        key, got = "optimizer_type", config.optimizer_type
        yield Problem(code="same-optimizer", severity="note", key=key, got=got, must=must)
    package = path.split(".")[0]
    if not known_class(path) and not trusted(config, path):
        yield Problem(
            code="untrusted-module",
            key="optimizer_type",
            got=path,
            must="is not on the list of known packages and would run its code",
            fix=f"if you trust it: --trust {shell_word(path)}",
        )
    if not installed(package):
        yield Problem(
            code="missing-package",
            key="optimizer_type",
            got=config.optimizer_type,
            must=f"needs the package {package}, which is not installed",
            fix=f"pip install {PACKAGES.get(package, package)}",
        )


@rule
def optimizer_arguments(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """optimizer_args are name=value with Python literals; lr is not one of them; Nesterov wants momentum."""
    given, problems = parse_literal_args(config.optimizer_args, "optimizer_args")
    yield from problems
    if "lr" in given:
        yield Problem(
            code="rate-in-arguments",
            key="optimizer_args",
            got=given["lr"],
            must="must not contain lr",
            fix=f"--set learning_rate={shell_word(given['lr'])}",
        )
    if config.optimizer_type.lower().startswith("sgdnesterov") and not given.get("momentum", 0.9):
        yield Problem(
            code="nesterov-without-momentum",
            key="optimizer_args",
            got=given["momentum"],
            must="Nesterov needs a positive momentum",
            fix="momentum=0.9",
        )


@rule
def rates_fit_the_optimizer(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """Self-tuning optimizers want rates of about 1 and one rate for all; the others diverge with such rates."""
    path = resolve(config.optimizer_type)
    if path is None or config.lr_scheduler.startswith("adafactor"):
        return
    rates = [rate for rate in (*config.text_encoder_lr, config.unet_lr) if rate] or [config.learning_rate]
    if sets_its_own_rate(path):
        if min(rates) <= 0.1:
            yield Problem(
                code="rate-too-low",
                severity="warning",
                key="learning_rate",
                got=min(rates),
                must=f"{path} sets its own rate and wants about 1 here",
                fix="--set learning_rate=1 --set unet_lr=1 --set text_encoder_lr=1",
            )
        if len(set(rates)) > 1:
            yield Problem(
                code="rates-differ",
                severity="warning",
                key="learning_rate",
                got=rates,
                must=f"{path} finds one rate for everything; differing rates are unusual",
            )
    elif max(rates) >= 0.1:
        yield Problem(
            code="rate-too-high",
            severity="warning",
            key="learning_rate",
            got=max(rates),
            must="is a rate for Prodigy or D-Adaptation; others usually diverge with it",
            fix="--set learning_rate=1e-4, or choose Prodigy",
        )


@rule
def fused_backward(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """fused_backward_pass is for Adafactor without accumulation."""
    if config.fused_backward_pass and (
        resolve(config.optimizer_type) != OPTIMIZERS["AdaFactor"] or config.gradient_accumulation_steps > 1
    ):
        yield Problem(
            code="fused-backward-pass",
            key="fused_backward_pass",
            got=True,
            must="works only with AdaFactor and without gradient accumulation",
            fix="--set fused_backward_pass=false",
        )
