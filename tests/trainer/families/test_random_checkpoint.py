from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.random_checkpoint import main
from schemas.files.weights import checkpoint_family, read_header
from trainer.families import NAMES
from trainer.families.random_checkpoint import spread, write


@pytest.mark.parametrize("family", NAMES)
def test_the_command_writes_a_checkpoint_of_the_family(tmp_path, family):
    file = tmp_path / "m.safetensors"
    assert main(["--family", family, "--tiny", "--dtype", "bf16", str(file)]) == 0
    assert checkpoint_family(file) == family
    assert {info.dtype for info in read_header(file).tensors.values()} == {"BF16"}
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


def test_a_seed_gives_the_same_bytes(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write(tmp_path / name, "sd15", tiny=True, seed=seed)
    first, second, third = ((tmp_path / name).read_bytes() for name in "abc")
    assert first == second
    assert first != third


def test_norms_are_the_identity_and_weights_keep_their_size(tmp_path):
    write(tmp_path / "m.safetensors", "sdxl", tiny=True, dtype="fp32")
    stored = load_file(tmp_path / "m.safetensors")
    start = "model.diffusion_model.input_blocks.4.1."
    assert torch.equal(stored[f"{start}norm.weight"], torch.ones(64))
    assert torch.equal(stored[f"{start}norm.bias"], torch.zeros(64))
    assert stored[f"{start}proj_in.weight"].std().item() == pytest.approx(64**-0.5, rel=0.1)


@pytest.mark.parametrize(
    ("family", "name", "shape"),
    [
        ("sd15", "model.diffusion_model.input_blocks.1.1.proj_in.weight", (320, 320, 1, 1)),
        ("sd15", "cond_stage_model.transformer.text_model.encoder.layers.11.mlp.fc1.weight", (3072, 768)),
        ("sd15", "first_stage_model.encoder.mid.attn_1.q.weight", (512, 512, 1, 1)),
        ("sd15", "first_stage_model.decoder.up.3.upsample.conv.weight", (512, 512, 3, 3)),
        ("sd2", "cond_stage_model.model.transformer.resblocks.23.attn.in_proj_weight", (3072, 1024)),
        ("sdxl", "model.diffusion_model.input_blocks.7.1.transformer_blocks.9.attn2.to_k.weight", (1280, 2048)),
        ("sdxl", "model.diffusion_model.output_blocks.2.2.conv.weight", (1280, 1280, 3, 3)),
        ("sdxl", "conditioner.embedders.1.model.transformer.resblocks.31.attn.in_proj_bias", (3840,)),
        ("sdxl", "conditioner.embedders.1.model.text_projection", (1280, 1280)),
    ],
)
def test_full_size_names_and_shapes(family, name, shape):
    assert spread(family)[name][0] == shape
