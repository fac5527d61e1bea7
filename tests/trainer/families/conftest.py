from __future__ import annotations

import pytest
import torch

from schemas import TrainConfig
from tests.tiny import tiny_checkpoint
from trainer.families import get


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    return {family: tiny_checkpoint(folder, family) for family in ("sd15", "sd2", "sdxl")}


@pytest.fixture(scope="session")
def tiny(checkpoints):
    """family name -> (family, models, config); the models are shared, tests must not change them."""
    found = {}
    for name, file in checkpoints.items():
        config = TrainConfig(pretrained_model_name_or_path=str(file))
        found[name] = get(name), get(name).load(config, dtype=torch.float32), config
    return found
