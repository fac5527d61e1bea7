from __future__ import annotations

import sys
import textwrap

import lycoris.kohya
import pytest
import torch
from torch import nn

from schemas import TrainConfig
from schemas.options import NetworkOptions
from schemas.problems import ConfigError
from tests.trainer.adapters.conftest import Net, Text
from trainer.adapters import attach, merge_by_plugin
from trainer.adapters.plugin import attach_plugin, import_plugin
from trainer.families import Models
from trainer.output.lora_file import save_weights

# A bias on every Linear of the U-Net, in the form that the reference's plug-in interface asks for.
SOURCE = """
import torch
from safetensors.torch import load_file, save_file
CALLS = []

def create_network(multiplier, network_dim, network_alpha, vae, text_encoder, unet, neuron_dropout=None, **kwargs):
    CALLS.append(("create", network_dim, network_alpha, neuron_dropout, kwargs, isinstance(text_encoder, list)))
    return None if kwargs.get("none") else Network(unet)

def create_network_from_weights(multiplier, file, vae, text_encoder, unet, weights_sd=None, for_inference=False, **kw):
    CALLS.append(("from_weights", multiplier, for_inference))
    return Network(unet), load_file(file)

class Network(torch.nn.Module):
    def __init__(self, unet):
        super().__init__()
        linear = [m for m in unet.modules() if isinstance(m, torch.nn.Linear)]
        self.shifts = torch.nn.ParameterList(torch.zeros(m.out_features) for m in linear)
        self.spare = torch.nn.Parameter(torch.zeros(3))
        self.places = [linear]
    def apply_to(self, text_encoder, unet, apply_text_encoder=True, apply_unet=True):
        CALLS.append(("apply", apply_text_encoder, apply_unet))
        for shift, module in zip(self.shifts, self.places[0]):
            module.register_forward_hook(lambda m, i, out, shift=shift: out + shift)
    def load_weights(self, file):
        return self.load_state_dict(load_file(file), False)
    def prepare_optimizer_params(self, text_encoder_lr, unet_lr):
        self.requires_grad_(True)
        return [{"params": iter(self.shifts), "lr": unet_lr}]
    def enable_gradient_checkpointing(self):
        CALLS.append("checkpointing")
    def prepare_grad_etc(self, text_encoder, unet):
        CALLS.append("grad")
    def on_epoch_start(self, text_encoder, unet):
        CALLS.append("epoch")
        self.train()
    def on_step_start(self, text_encoder, unet):
        CALLS.append("step")
    def get_trainable_params(self):
        return self.parameters()
    def merge_to(self, text_encoder, unet, weights_sd, dtype, device):
        for index, module in enumerate(self.places[0]):
            module.bias.data += weights_sd[f"shifts.{index}"]
    def save_weights(self, file, dtype, metadata):
        save_file({name: tensor.detach().clone() for name, tensor in self.state_dict().items()}, file)
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    (tmp_path / "shifting.py").write_text(textwrap.dedent(SOURCE), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield import_plugin("shifting")
    del sys.modules["shifting"]


def bare(family="sd15"):
    torch.manual_seed(0)
    texts = (Text(), Text()) if family == "sdxl" else (Text(),)
    return Models(family, Net(), nn.Identity(), texts, ())


def attached(models, **options):
    options = TrainConfig(network_module="shifting", **options)
    return attach(models, [], options, trust=("shifting",))


def test_it_is_created_applied_and_asked_for_groups(plugin):
    models = bare("sdxl")
    adapter = attached(models, network_dim=2, network_dropout=0.1, network_args=("depth=3=4",),
                       network_train_unet_only=True, gradient_checkpointing=True)  # fmt: skip
    groups = adapter.groups(TrainConfig(unet_lr=2e-4))
    created, *rest = plugin.CALLS
    assert created == ("create", 2, 1.0, 0.1, {"depth": "3=4", "dropout": 0.1}, True)
    assert rest == [("apply", False, True), "checkpointing", "grad"]
    assert [(group["lr"], len(group["params"])) for group in groups] == [(2e-4, 1)]


def test_what_is_in_no_group_is_frozen_and_so_is_the_base(plugin):
    """Trap T39."""
    models = bare()
    adapter = attached(models)
    adapter.groups(TrainConfig(unet_lr=1e-3))
    assert [tuple(parameter.shape) for parameter in adapter.parameters()] == [(5,)]
    assert not any(parameter.requires_grad for parameter in models.unet.parameters())


def test_it_is_told_of_epochs_and_steps(plugin):
    adapter = attached(bare())
    adapter.eval()
    adapter.begin_epoch()
    adapter.begin_step()
    assert plugin.CALLS[-2:] == ["epoch", "step"]
    assert adapter.network.training


def test_it_follows_the_modes_and_moves_of_the_unet(plugin):
    models = bare()
    adapter = attached(models)
    models.unet.eval()
    assert not adapter.network.shifts.training
    for module in models.unet.modules():  # as previews do it
        module.training = True
    assert adapter.network.shifts.training
    models.unet.to("meta")
    assert {parameter.device.type for parameter in adapter.network.parameters()} == {"meta"}


def test_weights_are_saved_and_read_by_the_network_itself(plugin, tmp_path):
    models = bare()
    adapter = attached(models)
    nn.init.ones_(adapter.network.shifts[0])
    save_weights(tmp_path / "a.safetensors", adapter.state_dict(), {})
    second = bare()
    other = attached(second, network_weights=str(tmp_path / "a.safetensors"), dim_from_weights=True)
    x = torch.randn(2, 6)
    torch.testing.assert_close(second.unet.proj(x), models.unet.proj(x))
    other.load_exact_state({name: tensor + 1 for name, tensor in adapter.exact_state().items()})
    assert other.network.spare.tolist() == [1, 1, 1]
    third = bare()
    merge_by_plugin(third, plugin, str(tmp_path / "a.safetensors"), 0.5, torch.float32)
    assert plugin.CALLS[-1] == ("from_weights", 0.5, True)
    torch.testing.assert_close(third.unet.proj(x), models.unet.proj(x))


def test_foreign_weights_are_refused(plugin, tmp_path):
    """Trap T25."""
    save_weights(tmp_path / "a.safetensors", {"other": torch.ones(2)}, {})
    with pytest.raises(ConfigError, match="matches no tensor"):
        attached(bare(), network_weights=str(tmp_path / "a.safetensors"))


def test_what_it_cannot_do_is_said(plugin):
    assert [note.code for note in attached(bare(), scale_weight_norms=1.0).notes] == ["no-effect"]
    with pytest.raises(ConfigError, match="created no network"):
        attached(bare(), network_args=("none=1",))


@pytest.mark.parametrize(("name", "code"), [("no.such.module", "no-module"), ("json", "bad-network-module")])
def test_modules_that_are_no_plugins(name, code):
    with pytest.raises(ConfigError) as caught:
        import_plugin(name)
    assert caught.value.problems[0].code == code


def test_a_network_in_the_wild_works(tiny):
    """LyCORIS' own entry point, as sd-scripts would call it."""
    models, _ = tiny("sd15")
    options = NetworkOptions(network_dim=4, network_args=("algo=loha", "preset=attn-mlp"), scale_weight_norms=1.0)
    adapter = attach_plugin(models, options, lycoris.kohya)
    groups = adapter.groups(TrainConfig(learning_rate=1e-3, text_encoder_lr=(5e-4,)))
    assert [(group["name"], group["lr"]) for group in groups] == [("textencoder", 5e-4), ("unet", 1e-3)]
    models.unet(torch.randn(1, 4, 8, 8), torch.tensor(5), torch.randn(1, 5, 32)).sample.sum().backward()
    assert any(parameter.grad is not None for parameter in adapter.parameters())
    assert any(name.endswith("hada_w1_a") for name in adapter.state_dict())
    assert adapter.apply_max_norm(1.0)[0] >= 0


HOOKS = """
class Measured(Network):
    def update_grad_norms(self):
        CALLS.append("gradients")
        self.grad_norms = torch.stack([shift.grad.norm() for shift in self.shifts])
    def update_norms(self):
        CALLS.append("weights")
        self.weight_norms = torch.tensor([1.0, 2.0])
    def combined_weight_norms(self):
        return None
"""


def test_networks_without_norm_hooks_have_no_norms(plugin):
    adapter = attached(bare())
    adapter.see_gradients()
    assert adapter.norms() == {}


def test_norm_hooks_are_asked_and_their_means_logged(plugin):
    """Reference section 14."""
    exec(HOOKS, plugin.__dict__)
    plugin.Network = plugin.Measured
    adapter = attached(bare())
    adapter.network.shifts[0].grad = torch.tensor([3.0, 4.0, 0.0, 0.0, 0.0])
    adapter.see_gradients()
    assert adapter.norms() == {"norm/avg_key_norm": 1.5, "norm/avg_grad_norm": 5.0}
    assert plugin.CALLS[-2:] == ["gradients", "weights"]
