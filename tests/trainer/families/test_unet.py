from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from schemas.families import FAMILIES
from trainer.families import Models, architecture, get, single_file
from trainer.families.unet import joined

GOLDEN = Path(__file__).parents[2] / "golden"


def golden(name):
    return json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def full():
    """Full-size modules without weights."""

    def build(family):
        configs = architecture.shipped(family)
        names = [name for name in ("unet", "text_encoder", "text_encoder_2") if name in configs]
        parts = [single_file.Part(name, configs[name], lambda path: path).build() for name in names]
        return Models(family, parts[0], parts[0], tuple(parts[1:]), ())

    return {family: build(family) for family in ("sd15", "sd2", "sdxl")}


def lora_shapes(models, targets, dim, conv_dim=None):
    """Kohya's tensors of a LoRA on these targets: name -> shape (reference sections 7.3, 7.4, 7.9)."""
    roots = {"te": 0, "te1": 0, "te2": 1}
    shapes = {}
    for target in targets:
        root = models.unet if target.part == "unet" else models.text_encoders[roots[target.part]]
        weight = root.get_submodule(target.path).weight
        rank = conv_dim if target.kind == "conv3x3" else dim
        ones = [1, 1] if weight.ndim == 4 else []
        shapes[f"{target.key}.alpha"] = []
        shapes[f"{target.key}.lora_down.weight"] = [rank, *weight.shape[1:]]
        shapes[f"{target.key}.lora_up.weight"] = [weight.shape[0], rank, *ones]
    return shapes


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_names_and_shapes_of_a_plain_lora(full, family):
    targets = [t for t in get(family).targets(full[family]) if t.place in ("text", "transformer")]
    assert lora_shapes(full[family], targets, 16) == golden(f"keys_{family}_lora_dim16")


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_names_and_shapes_of_a_lora_with_convolutions(full, family):
    targets = get(family).targets(full[family])
    assert lora_shapes(full[family], targets, 16, 8) == golden(f"keys_{family}_locon_dim16_conv8")


@pytest.mark.parametrize(
    ("family", "text", "transformer", "everything"),
    [("sd15", 72, 192, 278), ("sd2", 138, 192, 278), ("sdxl", 264, 722, 788)],
)
def test_module_counts(full, family, text, transformer, everything):
    places = Counter(target.place for target in get(family).targets(full[family]))
    assert (places["text"], places["transformer"]) == (text, transformer)
    assert places.total() - places["text"] == everything


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_block_indices_are_the_references(full, family):
    case = next(
        case
        for case in golden("network")["cases"]
        if case["model"] == family and "conv_dim=8 conv_alpha=4" in case["args"]
    )
    expected = {
        (int(block), kind.split()[0]): number
        for block, kinds in case["unet_blocks"].items()
        for kind, number in kinds.items()
    }
    found = Counter((t.block, t.kind) for t in get(family).targets(full[family]) if t.part == "unet")
    assert found == expected


def test_text_keys_have_the_text_model_level_whatever_the_class_has(full):
    keys = {target.key for target in get("sdxl").targets(full["sdxl"]) if target.place == "text"}
    assert all(
        key.startswith(("lora_te1_text_model_encoder_layers_", "lora_te2_text_model_encoder_layers_")) for key in keys
    )


def test_block_index_of_each_side():
    paths = ("input_blocks_8_1", "middle_block_2_in_layers_2", "output_blocks_8_0", "out_2")
    assert [FAMILIES["sdxl"].network.block(path) for path in paths] == [9, 12, 21, None]
    assert [FAMILIES["sd15"].network.block(path) for path in paths] == [8, 12, 21, None]


def test_windows_are_joined_without_inner_ends():
    rows = torch.arange(2 * 77).reshape(2, 77, 1)
    assert joined(rows, 1).flatten().tolist() == [0, *range(1, 76), *range(78, 153), 153]
