"""The sizes that the plan counts are those of the tensors that the trainer saves, for every kind of network."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from schemas import TrainConfig
from schemas.files.lora_names import Module, module
from tests.tiny import tiny_checkpoint
from trainer.adapters import attach
from trainer.families import Models, get
from trainer.plan.adapter import adapter, factorization, saved_numbers, trained_numbers
from trainer.plan.modules import layers_of, usual

LYCORIS = "lycoris.kohya"
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("networks.lora", {}),
    "locon": ("networks.lora", {"network_args": ("conv_dim=3",)}),
    "1x1 only": ("networks.lora", {"network_args": ("conv_dim=0",)}),
    "blocks": ("networks.lora", {"network_args": ("down_lr_weight=0,1,1,0,1", "conv_dim=2")}),
    "dylora": ("networks.dylora", {"network_args": ("unit=2", "conv_dim=2")}),
    "lora_fa": ("networks.lora_fa", {}),
    "oft": ("networks.oft", {"network_dim": 2, "network_args": ("enable_all_linear=True", "enable_conv=True")}),
    "oft attention": ("networks.oft", {"network_dim": 2}),
    "loha": ("networks.loha", {}),
    "loha tucker": ("networks.loha", {"network_args": ("conv_dim=3", "use_tucker=True")}),
    "lokr": ("networks.lokr", {"network_args": ("factor=4", "conv_dim=2")}),
    "lokr whole": ("networks.lokr", {"network_dim": 100000, "network_args": ("factor=6", "conv_dim=100000")}),
    **{f"lycoris {algo}": (LYCORIS, {"network_args": (f"algo={algo}",)}) for algo in (
        "locon", "loha", "lokr", "dylora", "glora", "full", "diag-oft", "ia3")},
    "lycoris boft": (LYCORIS, {"network_dim": 16, "network_args": ("algo=boft", "preset=attn-only")}),
    "lokr of both": (LYCORIS, {"network_dim": 2, "network_args": (
        "algo=lokr", "factor=8", "decompose_both=True", "use_tucker=True", "unbalanced_factorization=True")}),
    "lokr full matrix": (LYCORIS, {"network_dim": 2, "network_args": ("algo=lokr", "full_matrix=True", "factor=6")}),
    "dora": (LYCORIS, {"network_args": ("algo=lora", "dora_wd=True")}),
    "dora by input": (LYCORIS, {"network_args": ("algo=loha", "dora_wd=True", "wd_on_output=False")}),
    "tucker and norms": (LYCORIS, {"network_args": ("use_tucker=True", "train_norm=True")}),
    "rescaled": (LYCORIS, {"network_args": ("algo=diag-oft", "rescaled=True", "constraint=1")}),
    **{f"preset {name}": (LYCORIS, {"network_args": (f"preset={name}",)}) for name in (
        "full-lin", "attn-mlp", "attn-only", "unet-only", "unet-transformer-only", "unet-convblock-only")},
    "unet only": ("networks.lora", {"network_train_unet_only": True}),
    "text only": ("networks.lora", {"network_train_text_encoder_only": True}),
}  # fmt: skip


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, Models]]:
    folder, found = tmp_path_factory.mktemp("models"), {}
    for family in ("sd15", "sdxl"):
        file = tiny_checkpoint(Path(folder), family)
        config = TrainConfig(pretrained_model_name_or_path=str(file))
        found[family] = str(file), get(family).load(config, dtype=torch.float32)
    return found


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
@pytest.mark.parametrize("kind", KINDS)
def test_shapes_are_those_that_the_trainer_saves(family: str, kind: str, bases: Any) -> None:
    file, models = bases[family][0], copy.deepcopy(bases[family][1])
    network, options = KINDS[kind]
    config = TrainConfig(**{"network_module": network, "network_dim": 4, "learning_rate": 1e-4, **options})
    made = attach(models, get(family).targets(models), config)
    saved: dict[Module, dict[str, tuple[int, ...]]] = {}
    for name, tensor in made.state_dict().items():
        key, _, ending = name.partition(".")
        saved.setdefault(module(key), {})[ending] = tuple(tensor.shape)
    layers = layers_of(family, file)
    planned = {Module(layer.part, layer.path): tensors for layer, tensors in adapter(config, family, layers)}
    assert planned == saved
    trained = sum(weight.numel() for group in made.groups(config) for weight in group["params"])
    scalars = sum(1 for name, _ in made.named_parameters() if name.endswith(".scalar"))
    assert trained_numbers(config, family, layers) == trained - scalars
    assert saved_numbers(config, family, layers) == sum(tensor.numel() for tensor in made.state_dict().values())


def test_whole_matrices_of_lokr_are_small_at_any_rank() -> None:
    config = TrainConfig(network_module=LYCORIS, network_dim=100000, learning_rate=1e-4,
                         network_args=("algo=lokr", "factor=6"))  # fmt: skip
    assert trained_numbers(config, "sd15", usual("sd15")) < 60_000_000


def test_factors_multiply_out() -> None:
    for dimension in (127, 128, 250, 320, 1280):
        for factor in (-1, 2, 6, 16, 100000):
            assert math.prod(factorization(dimension, factor)) == dimension
