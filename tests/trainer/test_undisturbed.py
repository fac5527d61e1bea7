"""Previews and validation switch every dropout off, also those outside the model, and change nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from schemas import TrainConfig
from trainer import loop
from trainer.adapters import attach
from trainer.families import get
from trainer.output.previews import undisturbed

Start = Callable[..., int]
DROPS = ["rank_dropout=0.3", "module_dropout=0.3"]
LYCORIS = {"network_module": "lycoris.kohya", "network_args": ["algo=locon", "dropout=0.3", *DROPS]}
PLUGIN = """
import torch
def create_network(multiplier, network_dim, network_alpha, vae, text_encoder, unet, neuron_dropout=None, **kwargs):
    return Network(unet)
class Network(torch.nn.Module):
    def __init__(self, unet):
        super().__init__()
        self.inner = torch.nn.ModuleList([torch.nn.Dropout(0.5)])
        self.scale = torch.nn.Parameter(torch.ones(()))
    def apply_to(self, text_encoder, unet, apply_text_encoder=True, apply_unet=True):
        unet.conv_out.register_forward_hook(lambda module, given, out: self.inner[0](out) * self.scale)
    def prepare_optimizer_params(self, text_encoder_lr, unet_lr, default_lr):
        return [{"params": [self.scale], "lr": default_lr}]
    def prepare_grad_etc(self, text_encoder, unet):
        pass
"""


@pytest.mark.parametrize(
    "options",
    [{"network_dropout": 0.3, "network_args": DROPS}, LYCORIS, {"network_module": "networks.dylora"},
     {"network_module": "lycoris.kohya", "network_args": ["algo=dylora", "train_norm=True"]},
     {"network_module": "networks.loha", "network_args": DROPS}, {"network_module": "networks.oft"},
     {"network_module": "dropping"}],
    ids=lambda options: "-".join(map(str, options.values())),
)  # fmt: skip
def test_every_layer_of_every_kind_rests(
    options: dict[str, Any], base_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dropping.py").write_text(PLUGIN, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    config = TrainConfig(pretrained_model_name_or_path=str(base_models["sd15"]), network_dim=4, **given)
    models = get("sd15").load(config, dtype=torch.float32)
    adapter = attach(models, get("sd15").targets(models), config, trust=("dropping",))
    sys.modules.pop("dropping", None)
    roots = [*adapter.layers.values(), *([adapter.network] if hasattr(adapter, "network") else [])]
    layers = [module for root in roots for module in root.modules()]
    adapter.train()
    assert all(module.training for module in layers)
    with undisturbed([models.unet, *models.text_encoders]):
        assert not any(module.training for module in layers)
    assert all(module.training for module in layers)


@pytest.mark.parametrize("options", [LYCORIS, {"network_dropout": 0.3, "network_args": DROPS}], ids=["lycoris", "lora"])
def test_looking_often_changes_no_weight(options: dict[str, Any], start: Start, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("n0m3 --w 64 --h 64 --s 1 --d 1 --ss euler_a\n", encoding="utf-8")
    kept = {"validation_split": 0.4, "validation_seed": 1, "max_train_steps": 3, **options}
    assert start(output_dir=tmp_path / "rarely", validate_every_n_steps=1000, **kept) == 0
    assert start(output_dir=tmp_path / "often", validate_every_n_steps=1, sample_prompts=prompts,
                 sample_every_n_steps=1, **kept) == 0  # fmt: skip
    one, other = (load_file(tmp_path / name / "n0m3.safetensors") for name in ("rarely", "often"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_the_held_out_loss_has_no_chance_in_it(
    start: Start, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop.Validation, "due_at_epoch", lambda *_: False)
    kept = {"validation_split": 0.4, "validate_every_n_steps": 1, "max_train_steps": 3, "learning_rate": 1e-30}
    assert start(optimizer_type="SGD", **kept, **LYCORIS) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("validation: loss")]
    assert len(told) == 3
    assert len({line.partition(" at ")[0] for line in told}) == 1
