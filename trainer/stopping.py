"""Why a run ends before its last step: a signal, or numbers that are not numbers any more."""

from __future__ import annotations

import errno
import signal
from collections.abc import Mapping
from types import FrameType, TracebackType
from typing import Any

import torch

from schemas import TrainConfig


class TrainingStopped(RuntimeError):
    """The run cannot go on; the text says why, and what of it was saved."""


class StopRequest:
    """SIGINT and SIGTERM as a wish: the step is finished, the state saved. A second signal stops at once."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


class NotFinite(TrainingStopped):
    """A loss or gradient that is NaN or infinite; the step is not taken."""

    def __init__(self, what: str, value: float) -> None:
        super().__init__(f"the {what} is {value}")
        self.what = what


def likely_causes(config: TrainConfig) -> list[str]:
    """What most often makes a loss or gradient NaN or infinite with such options, and what to change."""
    causes = []
    if config.mixed_precision == "fp16" and not config.no_half_vae:
        causes.append("the VAE overflows in fp16: set no_half_vae")
    if config.full_fp16:
        causes.append("full_fp16 keeps gradients in fp16: unset it")
    rates = [config.learning_rate, config.unet_lr or 0.0, *config.text_encoder_lr]
    if max(rates) >= 1e-3 and not config.optimizer_type.lower().startswith(("prodigy", "dadapt")):
        causes.append(f"a learning rate of {max(rates):g} is high: try a tenth of it")
    causes.append("a broken picture or cache file: run `kohyakit dataset check`")
    return causes


def disk_full(fault: BaseException | None) -> bool:
    """Whether a full disk or quota is behind a fault; libraries wrap the system's own error."""
    while fault is not None:
        if isinstance(fault, OSError) and fault.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        fault = fault.__cause__ or fault.__context__
    return False


def size_in_bytes(value: Any) -> int:
    """Bytes of all tensors in nested containers: about what they take in a file."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return sum(size_in_bytes(item) for item in value.values())
    return sum(size_in_bytes(item) for item in value) if isinstance(value, list | tuple) else 0
