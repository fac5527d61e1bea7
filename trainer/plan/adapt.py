"""What a machine cannot do, and what is used instead; said before the run starts."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from schemas.config import TrainConfig
from schemas.optimizers import in_32_bit, without_paging


@dataclass(frozen=True)
class Adapted:
    """One argument that this machine cannot honour, and what is used instead."""

    argument: str
    before: Any
    after: Any
    why: str

    def as_json(self) -> dict[str, Any]:
        """The entry of `plan --json`."""
        return {"argument": self.argument, "from": self.before, "to": self.after, "why": self.why}


def adapt_to(config: TrainConfig, *, gpu: bool, packages: Collection[str]) -> tuple[TrainConfig, list[Adapted]]:
    """The config as a machine with or without a GPU and with these packages can run it, and every change made."""
    changes: list[Adapted] = []

    def use(argument: str, value: Any, why: str) -> None:
        nonlocal config
        before = getattr(config, argument)
        if before != value:
            changes.append(Adapted(argument, before, value, why))
            config = replace(config, **{argument: value})

    if not gpu:
        if config.mixed_precision == "fp16":
            use("mixed_precision", "no", "fp16 needs a GPU; on this CPU 32 bit is used")
        use("full_fp16", False, "fp16 gradients need a GPU")
        use("fp8_base", False, "8-bit floats need a GPU")
        use("fp8_base_unet", False, "8-bit floats need a GPU")
        use("cpu_offload_checkpointing", False, "there is no GPU memory to relieve")
        use("streamed_blocks", 0, "there is no GPU memory to relieve")
        plain = without_paging(config.optimizer_type)
        use("optimizer_type", plain, "paged optimizers need a GPU; the same optimizer without paging")
    if config.xformers and (not gpu or "xformers" not in packages):
        missing = "needs a GPU" if "xformers" in packages else "is not installed"
        use("xformers", False, f"xformers {missing}")
        use("sdpa", True, f"xformers {missing}; PyTorch's own attention computes the same")
    if "bitsandbytes" not in packages:
        if config.quantize_base == "nf4":
            use("quantize_base", "int8", "bitsandbytes, which knows nf4, is not installed; 8 bit needs no package")
        plain = in_32_bit(config.optimizer_type) or config.optimizer_type
        use("optimizer_type", plain, "bitsandbytes is not installed; the same optimizer in 32 bit")
    return config, changes
