"""What was just written is read again, tensor by tensor, before it may replace anything."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import safetensors
import torch
from torch import Tensor

from schemas.files.weights import module_of

# Tensors that start at zero, so that an untrained adapter changes nothing: the product with them is the adapter.
UPS = (".lora_up.weight", ".lora_B.weight", ".hada_w2_a", ".lokr_w2", ".lokr_w2_b", ".oft_blocks")


DISK = "the disk, its connection or the memory is faulty"
FINER = "set save_precision=float"


class UnsoundFile(RuntimeError):
    """A file that must not be kept. `weights` says whether the weights in memory are sound all the same."""

    def __init__(self, text: str, *, weights: bool) -> None:
        super().__init__(text)
        self.weights = weights


def read_back(
    path: Path,
    tensors: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    modules: Collection[str] | None = None,
    size: int | None = None,
) -> None:
    """Compares a LoRA file with the `tensors` that went into it; one tensor is in memory at a time.

    `weights` are the same before they took the file's number format, `size` the bytes that were written, `modules` the
    names of modules that may stand in it (None: any). UnsoundFile says what is wrong.
    """
    there = path.stat().st_size
    if size is not None and there != size:
        raise UnsoundFile(f"{size:,} bytes were written and {there:,} are there: {DISK}", weights=True)
    try:
        seen = set()
        for name, tensor in _stored(path, size is not None):
            _compare(name, tensor, tensors, weights)
            seen.add(name)
    except UnsoundFile:
        raise
    except Exception as fault:
        lines = str(fault).splitlines() or [type(fault).__name__]
        raise UnsoundFile(f"it cannot be read again ({lines[0]}): {DISK}", weights=True) from fault
    if missing := tensors.keys() - seen:
        raise UnsoundFile(f"{min(missing)} is missing in it: {DISK}", weights=True)
    strange = [name for name in tensors if modules is not None and module_of(name) not in modules]
    if strange:
        raise UnsoundFile(f"{strange[0]} is no name that other programs know", weights=True)
    if untouched(tensors) and not untouched(weights):
        kind = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
        raise UnsoundFile(f"all that was learnt is too small for {kind}, it became 0; {FINER}", weights=True)


def _stored(path: Path, safe: bool) -> Iterator[tuple[str, Tensor]]:
    if safe:
        with safetensors.safe_open(path, "pt") as file:
            for name in list(file.keys()):
                yield name, file.get_tensor(name)
    else:
        yield from torch.load(path, map_location="cpu", weights_only=True, mmap=True).items()


def _compare(name: str, tensor: Tensor, tensors: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    wrote = tensors.get(name)
    if wrote is None:
        raise UnsoundFile(f"{name} is in it and was not written: {DISK}", weights=True)
    if not torch.isfinite(tensor).all():
        if not torch.isfinite(weights[name]).all():
            raise UnsoundFile(f"{name} is not finite: the training has come apart", weights=False)
        if not torch.isfinite(wrote).all():
            kind = str(wrote.dtype).removeprefix("torch.")
            raise UnsoundFile(f"{name} has a value too large for {kind}; {FINER}", weights=True)
    if tensor.dtype != wrote.dtype or not torch.equal(tensor, wrote):
        raise UnsoundFile(f"{name} has other values than were written: {DISK}", weights=True)


def untouched(weights: Mapping[str, Tensor]) -> bool:
    """Whether an adapter changes nothing yet; False for kinds whose tensors are not known here."""
    ups = [tensor for name, tensor in weights.items() if name.endswith(UPS)]
    return bool(ups) and not any(bool(tensor.any()) for tensor in ups)
