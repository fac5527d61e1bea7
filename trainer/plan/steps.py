"""How long a run is, counted in optimizer updates (reference sections 4 and 8.5)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from schemas.config import TrainConfig
from schemas.problems import error


@dataclass(frozen=True)
class Steps:
    """The lengths of a run. An update is one optimizer step; all numbers are the same on every process."""

    batches_per_epoch: int  # of one process
    updates_per_epoch: int
    epochs: int  # the last one may be cut short
    total: int  # updates
    warmup: int  # updates
    decay: int  # updates
    processes: int
    text_encoder: int | None = None  # updates after which the text encoders rest; None: they learn to the end

    def epoch_end(self, epoch: int) -> int:
        """Updates done when epoch `epoch` (from 1) ends."""
        return min(epoch * self.updates_per_epoch, self.total)

    def epoch_of(self, step: int) -> int:
        """The epoch (from 1) that update `step` (from 1) belongs to; 0 before the first update."""
        return math.ceil(step / self.updates_per_epoch)


def count(config: TrainConfig, batches: int, processes: int = 1) -> Steps:
    """The lengths that follow from `batches`, the number of batches of one epoch over all processes.

    Each process gets ceil(batches / processes); a last incomplete accumulation group is an update too.
    Raises ConfigError when there is nothing to train on.
    """
    if batches < 1:
        raise error("no-images", "there is no picture to train on", fix="check train_data_dir or dataset_config")
    per_process = math.ceil(batches / processes)
    updates = math.ceil(per_process / config.gradient_accumulation_steps)
    total = config.max_train_steps if config.max_train_epochs is None else config.max_train_epochs * updates
    return Steps(
        batches_per_epoch=per_process,
        updates_per_epoch=updates,
        epochs=math.ceil(total / updates),
        total=total,
        warmup=int(portion(config.lr_warmup_steps, total)),
        decay=int(portion(config.lr_decay_steps, total)),
        processes=processes,
        text_encoder=_text_encoder_end(config, total),
    )


def _text_encoder_end(config: TrainConfig, total: int) -> int | None:
    """The update after which stop_text_encoder_training lets the text encoders rest; a share is rounded up, as the
    form of early 2023 did. -1 is what that form left behind for "not at all"; no LoRA trainer heeded it."""
    value = config.stop_text_encoder_training
    if value <= 0:
        return None
    end = math.ceil(value * total) if isinstance(value, float) and value <= 1 else int(value)
    return end if end < total else None


def portion(value: int | float, total: int, processes: int = 1) -> float:
    """Updates meant by a whole number, or by a share of the run (a float up to 1.0).

    The reference truncates a share to whole scheduler steps, of which it takes `processes` per update, so that the
    result may be a fraction of an update. It does not multiply whole numbers by the process count, so that they last
    too short there (trap T28); here they always are updates.
    """
    if isinstance(value, float) and value <= 1:
        return int(value * total * processes) / processes
    return int(value)
