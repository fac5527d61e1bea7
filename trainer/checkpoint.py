"""What a run writes and reads back: LoRA files, their metadata, training states."""

from __future__ import annotations

from trainer.lora_file import ema_copy, load_weights, model_hashes, peft_copy, save_peft_copy, save_weights
from trainer.metadata import BaseFile, DatasetFacts, RunFacts, build_metadata
from trainer.states import load_state, newest_state, save_state

__all__ = [
    "BaseFile",
    "DatasetFacts",
    "RunFacts",
    "build_metadata",
    "ema_copy",
    "load_state",
    "load_weights",
    "model_hashes",
    "newest_state",
    "peft_copy",
    "save_peft_copy",
    "save_state",
    "save_weights",
]
