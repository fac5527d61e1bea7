"""Every kind that can be trained can be merged, continued and inspected: one list of kinds, one set of questions."""

from __future__ import annotations

import math

import pytest
import torch

from launcher.about import inspect as lora
from schemas import TrainConfig
from schemas.files.lora_shape import adapter_shape
from schemas.files.weights import lora_facts, read_header
from schemas.options import NetworkOptions
from tests.tiny import stir
from trainer.adapters import attach, merge_weights
from trainer.families import Sizes, get
from trainer.output.lora_file import load_weights, save_weights

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
    "boft": (L, ("algo=boft",), {"network_dim": 8}),
    "boft bounded and rescaled": (L, ("algo=boft", "constraint=0.001", "rescaled=True"), {"network_dim": 8}),
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


QUICK = ("dora on input", "loha tucker dora", "lokr tucker both unbalanced", "full", "glora rs_lora scalar")
XL = ("locon", "oft everywhere", "lycoris tucker", "dora on input", "lokr tucker", "full and norms")
CASES = [
    *(pytest.param(kind, "sd15", marks=() if kind in QUICK else pytest.mark.slow) for kind in KINDS),
    *(pytest.param(kind, "sdxl", marks=() if kind == XL[0] else pytest.mark.slow) for kind in XL),
]


def close(found, wanted):
    torch.testing.assert_close(found, wanted, atol=5e-4, rtol=1e-3)


@pytest.mark.parametrize(("kind", "family"), CASES)
def test_every_kind(tiny, tmp_path, kind, family):
    """Merged at any strength it is as trained, continued it starts as trained, and its tensors tell what it is."""
    models, targets = tiny(family)
    torch.manual_seed(0)
    before = output(models)
    adapter = attach(models, targets, NetworkOptions(**options(kind)))
    stir(adapter, 0.05)
    adapter.eval()
    trained = output(models)
    assert (trained - before).abs().max() > 1e-2
    file = tmp_path / "n0m3.safetensors"
    version = {"sd15": "sd_v1", "sdxl": "sdxl_base_v1-0"}[family]  # the widths of tiny models are of no family
    save_weights(file, adapter.state_dict(), {"ss_base_model_version": version})
    for multiplier in (1.0, 0.7):
        adapter.set_multiplier(multiplier)
        bare, _ = tiny(family)
        merge_weights(bare, targets, load_weights(file, targets, family), multiplier)
        close(output(bare), output(models))
    with adapter.switched_off():
        close(output(models), before)
    is_continued(tiny(family)[0], targets, file, options(kind), adapter, trained)
    alone = options(kind, dim_from_weights=True, network_dim=None, network_alpha=1.0)
    alone["network_args"] = alone["network_args"] if alone["network_module"] == "networks.dylora" else ()
    is_continued(tiny(family)[0], targets, file, alone, adapter, trained)
    is_inspected(tiny(family)[0], targets, file, kind, adapter)


def is_continued(models, targets, file, given, adapter, trained):
    second = attach(models, targets, NetworkOptions(**given), weights=load_weights(file, targets, models.family))
    second.eval()
    assert not [note.code for note in second.notes if note.code == "partial-load"]
    close(output(models), trained)
    stored, found = adapter.state_dict(), second.state_dict()
    assert found.keys() == stored.keys()
    for name, tensor in found.items():  # a 1x1 convolution may be kept as a matrix
        torch.testing.assert_close(tensor.float().view_as(stored[name]), stored[name].float(), atol=1e-6, rtol=1e-5)


def is_inspected(models, targets, file, kind, adapter):
    """Without our header: family, rank, alpha, health, and options that make a network of the same tensors."""
    facts, asked, shown = lora_facts(file), options(kind), lora.describe(str(file))
    assert facts.family == models.family
    assert shown["health"]["ok"]
    assert shown["health"]["moved_modules"] == shown["health"]["modules"] == len(adapter.layers)
    assert sum(shown["parts"].values()) == len(adapter.layers) == facts.modules
    if not any(word in kind for word in ("full", "ia3", "oft", "whole", "by its rank", "by blocks", "dylora")):
        root = math.sqrt(asked["network_dim"]) if "rs_lora" in kind else asked["network_dim"]
        assert (facts.dim, facts.alpha) == (asked["network_dim"], pytest.approx(2.0 / root * asked["network_dim"]))
    found = adapter_shape(read_header(file), facts)
    rebuilt = attach(models, targets, NetworkOptions(
        network_module=found.module, network_dim=found.dim, network_args=found.network_args,
        network_alpha=1.0 if found.alpha is None else found.alpha, network_train_unet_only=not facts.text_encoder,
    ))  # fmt: skip
    bare = {name: tensor.numel() for name, tensor in adapter.state_dict().items()}
    assert {name: tensor.numel() for name, tensor in rebuilt.state_dict().items()} == bare


@pytest.mark.parametrize("kind", ["locon", "lokr dora", "glora", "diag-oft", "full", "ia3"])
def test_merged_into_half_precision(tiny, kind):
    models, targets = tiny("sd15")
    adapter = attach(models, targets, NetworkOptions(**options(kind, network_train_unet_only=True)))
    stir(adapter, 0.05)
    whole, half = tiny("sd15")[0], tiny("sd15")[0]
    half.unet.to(torch.bfloat16)
    for base in (whole, half):
        merge_weights(base, targets, adapter.state_dict())
    one, other = whole.unet.state_dict(), half.unet.state_dict()
    assert {tensor.dtype for tensor in other.values()} == {torch.bfloat16}
    assert all((one[name] - other[name]).abs().max() <= 0.02 * (1 + one[name].abs().max()) for name in one)
