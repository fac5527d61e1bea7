from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from schemas import TrainConfig
from schemas.options import NetworkOptions
from tests.tiny import tiny_checkpoint
from trainer.adapters import attach
from trainer.families import Models, Target, architecture, get, single_file

GOLDEN = Path(__file__).parents[2] / "golden"


@pytest.fixture(scope="session")
def golden():
    return lambda name: json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))


class Net(nn.Module):
    """One module of each kind."""

    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(6, 5)
        self.point = nn.Conv2d(3, 4, 1)
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)


class Text(nn.Module):
    def __init__(self):
        super().__init__()
        self.q = nn.Linear(6, 6)


TARGETS = [
    Target("te", "q", "lora_te_q", "linear", "text", None),
    Target("unet", "proj", "lora_unet_proj", "linear", "transformer", 1),
    Target("unet", "point", "lora_unet_point", "conv1x1", "transformer", 12),
    Target("unet", "conv", "lora_unet_conv", "conv3x3", "resnet", 1),
]
PAIR = [
    Target("te1", "q", "lora_te1_q", "linear", "text", None),
    Target("te2", "q", "lora_te2_q", "linear", "text", None),
]


@pytest.fixture
def net():
    """attach() on `Net`: net(network options) -> (models, adapter) with B drawn at random."""

    def build(targets=TARGETS, *, family="sd15", weights=None, zero=False, dtype=torch.float32, **options):
        torch.manual_seed(0)
        models = Models(family, Net().to(dtype), nn.Identity(), (Text().to(dtype), Text().to(dtype)), ())
        adapter = attach(models, targets, NetworkOptions(**options), weights=weights)
        for name, parameter in adapter.named_parameters():
            if "lora_up" in name and not zero and weights is None:
                nn.init.normal_(parameter)
        return models, adapter

    return build


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    loaded = {}
    for name in ("sd15", "sdxl"):
        config = TrainConfig(pretrained_model_name_or_path=str(tiny_checkpoint(folder, name)))
        models = get(name).load(config, dtype=torch.float32)
        loaded[name] = models, get(name).targets(models)
    return loaded


@pytest.fixture
def tiny(tiny_models):
    """tiny(family) -> (models of one's own, targets)."""

    def fresh(name):
        models, targets = tiny_models[name]
        parts = copy.deepcopy((models.unet, models.text_encoders))
        return Models(name, parts[0], models.vae, parts[1], models.tokenizers), targets

    return fresh


@pytest.fixture(scope="session")
def full():
    """family -> (full-size models without weights, targets); tests must not change them."""

    def build(family):
        configs = architecture.shipped(family)
        names = [name for name in ("unet", "text_encoder", "text_encoder_2") if name in configs]
        parts = [single_file.Part(name, configs[name], lambda path: path).build() for name in names]
        models = Models(family, parts[0], parts[0], tuple(parts[1:]), ())
        return models, get(family).targets(models)

    return {family: build(family) for family in ("sd15", "sdxl")}
