"""Every kind that can be trained can be merged, continued and inspected: one list of kinds, the same questions to each."""

from __future__ import annotations

import math

import pytest
import torch

from launcher import lora
from schemas import TrainConfig
from schemas.lora_shape import adapter_shape
from schemas.options import NetworkOptions
from schemas.weights import lora_facts, read_header
from tests.tiny import stir
from trainer.adapters import attach, merge_weights
from trainer.families import Sizes, get
from trainer.lora_file import load_weights, save_weights

L = "lycoris.kohya"
FACTORS = ("algo=lokr", "factor=4")
# name -> network_module, network_args and what else of the options
KINDS = {
    "lora": ("networks.lora", ()),
    "locon": ("networks.lora", ("conv_dim=2", "conv_alpha=1")),
    "lora by blocks": ("networks.lora", ("block_dims=" + ",".join(["3"] * 12 + ["5"] * 13),)),
    "lora_fa": ("networks.lora_fa", ("conv_dim=2",)),
    "dylora": ("networks.dylora", ("unit=2", "conv_dim=2")),
    "oft": ("networks.oft", ()),
    "oft everywhere": ("networks.oft", ("enable_all_linear=true", "enable_conv=true")),
    "loha": ("networks.loha", ()),
    "loha conv": ("networks.loha", ("conv_dim=3", "use_tucker=True")),
    "lokr": ("networks.lokr", ("factor=4",)),
    "lokr conv": ("networks.lokr", ("factor=4", "conv_dim=1", "use_tucker=True")),
    "lycoris locon": (L, ("algo=locon", "conv_dim=2", "conv_alpha=1")),
    "lycoris tucker": (L, ("algo=locon", "conv_dim=2", "use_tucker=True", "train_norm=True")),
    "lycoris attn-mlp": (L, ("algo=locon", "preset=attn-mlp")),
    "lycoris rs_lora": (L, ("algo=locon", "rs_lora=True")),
    "lycoris scalar": (L, ("algo=locon", "use_scalar=True")),
    "dora": (L, ("algo=locon", "dora_wd=True")),
    "dora on input": (L, ("algo=locon", "dora_wd=True", "wd_on_output=False", "conv_dim=2")),
    "dora tucker": (L, ("algo=locon", "dora_wd=True", "conv_dim=2", "use_tucker=True")),
    "lycoris loha": (L, ("algo=loha", "conv_dim=2")),
    "loha rs_lora scalar": (L, ("algo=loha", "rs_lora=True", "use_scalar=True")),
    "loha tucker dora": (L, ("algo=loha", "conv_dim=2", "use_tucker=True", "dora_wd=True")),
    "loha dora on input": (L, ("algo=loha", "dora_wd=True", "wd_on_output=False")),
    "lycoris lokr": (L, ("algo=lokr",)),
    "lokr factor": (L, FACTORS),
    "lokr scalar": (L, (*FACTORS, "use_scalar=True")),
    "lokr rs_lora": (L, (*FACTORS, "rs_lora=True")),
    "lokr whole": (L, (*FACTORS, "full_matrix=True")),
    "lokr whole rs_lora": (L, (*FACTORS, "full_matrix=True", "rs_lora=True")),
    "lokr by its rank": (L, FACTORS, {"network_dim": 100000}),
    "lokr both": (L, ("algo=lokr", "factor=8", "decompose_both=True"), {"network_dim": 1}),
    "lokr both of a whole second": (L, ("algo=lokr", "factor=32", "decompose_both=True")),
    "lokr unbalanced": (L, (*FACTORS, "unbalanced_factorization=True")),
    "lokr unbalanced whole": (L, (*FACTORS, "unbalanced_factorization=True", "full_matrix=True")),
    "lokr tucker": (L, (*FACTORS, "conv_dim=2", "use_tucker=True")),
    "lokr tucker both unbalanced": (L, ("algo=lokr", "factor=8", "use_tucker=True", "decompose_both=True",
                                        "unbalanced_factorization=True"), {"network_dim": 1}),
    "lokr dora": (L, (*FACTORS, "dora_wd=True")),
    "lokr dora on input": (L, (*FACTORS, "dora_wd=True", "wd_on_output=False", "unbalanced_factorization=True")),
    "lycoris dylora": (L, ("algo=dylora", "block_size=2", "train_norm=True")),
    "glora": (L, ("algo=glora",)),
    "glora rs_lora scalar": (L, ("algo=glora", "rs_lora=True", "use_scalar=True")),
    "full": (L, ("algo=full",)),
    "full and norms": (L, ("algo=full", "train_norm=True")),
    "ia3": (L, ("algo=ia3",)),
    "diag-oft": (L, ("algo=diag-oft",)),
    "diag-oft bounded and rescaled": (L, ("algo=diag-oft", "constraint=0.001", "rescaled=True")),
    "boft": (L, ("algo=boft",)),
    "boft bounded and rescaled": (L, ("algo=boft", "constraint=0.001", "rescaled=True")),
}  # fmt: skip


def options(kind, **more):
    module, args, *rest = KINDS[kind]
    given = {"network_module": module, "network_args": args, "network_dim": 4, "network_alpha": 2.0}
    if module == "networks.oft":
        given["network_alpha"] = 0.01
    return given | (rest[0] if rest else {}) | more


@torch.no_grad()
def output(models):
    """What U-Net and text encoders say, always the same."""
    draw = torch.Generator().manual_seed(1)
    family = get(models.family)
    said = family.encode(models, ["a frog, n0m3"], TrainConfig())
    sizes = Sizes(*(torch.full((1, 2), side) for side in (64, 0, 64)))
    picture = torch.randn(1, 4, 8, 8, generator=draw)
    return torch.cat([
        family.predict(models.unet, picture, torch.tensor([7]), said, sizes).flatten(), said.hidden.flatten()
    ])  # fmt: skip


@pytest.fixture(params=[*((kind, "sd15") for kind in KINDS), ("lycoris tucker", "sdxl"), ("oft everywhere", "sdxl"),
                        ("lokr tucker", "sdxl"), ("dora on input", "sdxl"), ("locon", "sdxl"), ("full and norms", "sdxl")],
                ids=" ".join)  # fmt: skip
def trained(request, tiny, tmp_path):
    """A kind after some steps: (kind, family, adapter, models, its file)."""
    kind, family = request.param
    if family == "sdxl" and "block_dims" in str(KINDS[kind]):
        pytest.fail("block lists are SD's here")
    models, targets = tiny(family)
    torch.manual_seed(0)
    before = output(models)
    adapter = attach(models, targets, NetworkOptions(**options(kind)))
    torch.testing.assert_close(output(models), before, atol=1e-4, rtol=1e-4)
    stir(adapter, 0.05)
    adapter.eval()
    file = tmp_path / "n0m3.safetensors"
    save_weights(file, adapter.state_dict(), {})
    assert (output(models) - before).abs().max() > 1e-2
    return kind, family, adapter, models, file


def close(found, wanted):
    torch.testing.assert_close(found, wanted, atol=5e-4, rtol=1e-3)


def test_merged_is_as_trained(trained, tiny):
    kind, family, adapter, models, file = trained
    for multiplier in (1.0, 0.7, 0.0):
        adapter.set_multiplier(multiplier)
        bare, targets = tiny(family)
        merge_weights(bare, targets, load_weights(file, targets, family), multiplier)
        close(output(bare), output(models))
    close(output(models), output(tiny(family)[0]))


def test_merged_into_half_precision(trained, tiny):
    kind, family, adapter, models, file = trained
    bare, targets = tiny(family)
    merged, _ = tiny(family)
    merged.unet.to(torch.bfloat16)
    merge_weights(bare, targets, load_weights(file, targets, family))
    merge_weights(merged, targets, load_weights(file, targets, family))
    one, other = (model.unet.state_dict() for model in (bare, merged))
    assert all((one[name] - other[name]).abs().max() <= 0.02 * (1 + one[name].abs().max()) for name in one)


@pytest.mark.parametrize("way", ["network_weights", "dim_from_weights", "from the file alone"])
def test_continued_as_trained(trained, tiny, way):
    kind, family, adapter, models, file = trained
    more = options(kind, dim_from_weights=way != "network_weights")
    if way == "from the file alone":
        more |= {"network_dim": None, "network_alpha": 1.0}
        if more["network_module"] == L:
            more["network_args"] = ()
    again, targets = tiny(family)
    second = attach(again, targets, NetworkOptions(**more), weights=load_weights(file, targets, family))
    second.eval()
    assert not [note.code for note in second.notes if note.code == "partial-load"]
    close(output(again), output(models))
    stored = adapter.state_dict()
    found = second.state_dict()
    assert found.keys() == stored.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor.float(), stored[name].float(), atol=1e-6, rtol=1e-5)


def test_inspected(trained, tiny):
    """Without a header: rank, alpha, health, and options that make a network of the same tensors."""
    kind, family, adapter, models, file = trained
    facts, header = lora_facts(file), read_header(file)
    shown = lora.describe(str(file))
    assert shown["health"]["ok"]
    assert shown["health"]["moved_modules"] == shown["health"]["modules"] == len(adapter.layers)
    assert sum(shown["parts"].values()) == len(adapter.layers) == facts.modules
    assert facts.family in ((family, "unknown") if "oft" in kind else (family,))
    found = adapter_shape(header, facts)
    asked = options(kind)
    ranked = not any(word in kind for word in ("full", "ia3", "oft", "whole", "by its rank", "lokr both of"))
    if ranked and kind != "lora by blocks":
        assert facts.dim == asked["network_dim"]
        scale = facts.alpha / facts.dim
        root = "rs_lora" in kind
        assert scale == pytest.approx(2.0 / (math.sqrt(asked["network_dim"]) if root else asked["network_dim"]))
    again, targets = tiny(family)
    rebuilt = attach(again, targets, NetworkOptions(
        network_module=found.module, network_dim=found.dim, network_args=found.network_args,
        network_alpha=1.0 if found.alpha is None else found.alpha, network_train_unet_only=not facts.text_encoder,
    ))  # fmt: skip
    stored = {name: tensor.shape for name, tensor in adapter.state_dict().items()}
    assert {name: tensor.shape for name, tensor in rebuilt.state_dict().items()} == stored
