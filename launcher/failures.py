"""Why a run failed, in one sentence, and what to try: known causes recognised in the trainer's last lines."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Failure:
    """`cause` is the trainer's own last error or the known meaning of it; `advice` is empty when nothing is known."""

    cause: str
    advice: str = ""


# Pattern in the output, what it means (None: the error's own words), what to try.
KNOWN: tuple[tuple[str, str | None, str], ...] = (
    (
        r"OutOfMemoryError|CUDA out of memory|HIP out of memory",
        "the GPU's memory is full",
        "kohyakit plan FILE --vram GB lists what makes it fit; gradient_checkpointing=true helps most",
    ),
    (
        r"DefaultCPUAllocator: can't allocate|MemoryError|Cannot allocate memory|signal 9|SIGKILL",
        "main memory is full, or the trainer was killed",
        "max_data_loader_n_workers=0, a smaller train_batch_size, or cache_latents_to_disk=true",
    ),
    (r"No space left on device", "the disk is full", "make room, or --set output_dir=FOLDER on another disk"),
    (
        r"(?i)loss is nan|non-finite loss|NaN loss|nan detected",
        "the loss became NaN",
        "a lower learning rate, mixed_precision=bf16, or no_half_vae=true for SDXL",
    ),
    (r"No module named '([\w.]+)'", None, "pip install {0}"),
    (
        r"size mismatch for|shape mismatch|Error\(s\) in loading state_dict",
        None,
        "network_dim, network_alpha and the base model must be those the file was trained with",
    ),
    (r"CUDA driver version is insufficient|no kernel image", None, "install a PyTorch that fits the driver"),
    (r"EADDRINUSE|Address already in use", "another run uses the same port", "--main-port with a free number"),
    (r"DataLoader worker .* (?:exited|killed)", "a process that prepares data died", "max_data_loader_n_workers=0"),
    (r"Too many open files", None, "max_data_loader_n_workers=0, or raise the limit with ulimit -n"),
    (r"Permission denied", None, "check the owner of output_dir"),
)  # fmt: skip
ERROR = re.compile(r"^(?:\[rank\d+\]:? ?)?((?:[A-Za-z_][\w.]*\.)?[A-Z]\w*(?:Error|Exception|Exit|Interrupt)): ?(.*)$")
NOT_THE_CAUSE = ("CalledProcessError", "ChildFailedError")


def diagnose(lines: Sequence[str], code: int) -> Failure:
    """The first real cause in a failed trainer's output."""
    own = last_error(lines)
    text = "\n".join(lines)
    if code < 0 and own is None:
        text += f"\nsignal {-code}"
    for pattern, meaning, advice in KNOWN:
        found = re.search(pattern, own or "") or (re.search(pattern, text) if own is None or meaning else None)
        if found:
            cause = meaning if own is None or meaning is None else f"{meaning} ({own})"
            return Failure(cause or own or found.group(0), advice.format(*found.groups()))
    return Failure(own or (f"it was ended by signal {-code}" if code < 0 else f"it ended with code {code}"))


def last_error(lines: Sequence[str]) -> str | None:
    """The exception that ended the trainer: the last `SomeError: message` that is not a wrapper's."""
    for line in reversed(lines):
        found = ERROR.match(line)
        if found and not found.group(1).endswith(NOT_THE_CAUSE):
            return line.strip()
    return None
