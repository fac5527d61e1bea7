"""A config that no rule objects to."""

from __future__ import annotations

from typing import Any

SOUND: dict[str, Any] = {
    "pretrained_model_name_or_path": "model.safetensors",
    "output_dir": "out",
    "output_name": "name",
    "train_data_dir": "pictures",
    "resolution": "512,512",
    "network_module": "networks.lora",
    "learning_rate": 1e-4,
}
