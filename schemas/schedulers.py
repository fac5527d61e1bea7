"""Every learning-rate schedule as one row: its name and its own arguments (reference section 8.5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from schemas.argument import Argument

Arguments = Mapping[str, Argument]
WAVES = ("linear", "cosine", "1-sqrt")
NUMBER, POSITIVE, COUNT = Argument("number"), Argument("number", ge=0), Argument("whole", ge=0)
WAVE, STEPS, FLAG = Argument("text", choices=WAVES), Argument("whole", ge=1), Argument("flag")

# lr_scheduler -> what lr_scheduler_args may give it
SCHEDULERS: dict[str, Arguments] = {
    "constant": {},
    "constant_with_warmup": {},
    "linear": {},
    "cosine": {"num_cycles": NUMBER},
    "cosine_with_restarts": {},
    "polynomial": {"lr_end": POSITIVE},
    "inverse_sqrt": {},
    "cosine_with_min_lr": {"min_lr": POSITIVE},
    "warmup_stable_decay": {"warmup_type": WAVE, "decay_type": WAVE},
    "piecewise_constant": {"step_rules": Argument("any")},
    "adafactor": {},
}


@dataclass(frozen=True)
class TorchScheduler:
    """A class of torch: the arguments it must be given, and all that it takes. `usable`: literals can say them."""

    needs: tuple[str, ...]
    args: Arguments = field(default_factory=dict)
    usable: bool = True


_CYCLE: Arguments = {"cycle_momentum": FLAG, "base_momentum": POSITIVE, "max_momentum": POSITIVE}
_SHARE = Argument("number", gt=0, le=1)
# lr_scheduler_type -> its arguments
TORCH_SCHEDULERS: dict[str, TorchScheduler] = {
    "LambdaLR": TorchScheduler(("lr_lambda",), usable=False),
    "MultiplicativeLR": TorchScheduler(("lr_lambda",), usable=False),
    "StepLR": TorchScheduler(("step_size",), {"step_size": STEPS, "gamma": NUMBER}),
    "MultiStepLR": TorchScheduler(("milestones",), {"milestones": Argument("wholes", ge=0), "gamma": NUMBER}),
    "ConstantLR": TorchScheduler((), {"factor": _SHARE, "total_iters": COUNT}),
    "LinearLR": TorchScheduler(
        (), {"start_factor": _SHARE, "end_factor": Argument("number", ge=0, le=1), "total_iters": STEPS}
    ),
    "ExponentialLR": TorchScheduler(("gamma",), {"gamma": Argument("number", gt=0)}),
    "PolynomialLR": TorchScheduler((), {"total_iters": STEPS, "power": POSITIVE}),
    "CosineAnnealingLR": TorchScheduler(("T_max",), {"T_max": STEPS, "eta_min": POSITIVE}),
    "CyclicLR": TorchScheduler(
        ("base_lr", "max_lr"),
        {
            "base_lr": POSITIVE, "max_lr": POSITIVE, "step_size_up": STEPS,
            "step_size_down": Argument("whole", ge=1, optional=True),
            "mode": Argument("text", choices=("triangular", "triangular2", "exp_range")), "gamma": NUMBER,
            "scale_mode": Argument("text", choices=("cycle", "iterations")), **_CYCLE,
        },
    ),
    "OneCycleLR": TorchScheduler(
        ("max_lr", "total_steps"),
        {
            "max_lr": POSITIVE, "total_steps": STEPS, "pct_start": Argument("number", ge=0, le=1),
            "anneal_strategy": Argument("text", choices=("cos", "linear")), **_CYCLE,
            "div_factor": Argument("number", gt=0), "final_div_factor": Argument("number", gt=0), "three_phase": FLAG,
        },
    ),
    "CosineAnnealingWarmRestarts": TorchScheduler(("T_0",), {"T_0": STEPS, "T_mult": STEPS, "eta_min": POSITIVE}),
}  # fmt: skip


def step_rules(rules: Any) -> tuple[list[tuple[int, float]], float]:
    """([(until update, factor)], factor from then on) of a text such as "1:30,0.5:60,0.1"; ValueError for others."""
    *parts, last = str(rules).split(",")
    bounds = sorted((int(until), float(value)) for value, until in (part.split(":") for part in parts))
    final = float(last)
    if not all(0 <= value < float("inf") for value in (final, *(value for _, value in bounds))):
        raise ValueError("a factor is no number")
    return bounds, final
