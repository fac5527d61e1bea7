from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from schemas import ConfigError, TrainConfig
from schemas.files.weights import checkpoint_family
from trainer.families import get
from trainer.families.base_model import locate


def load(place, family="sd15", dtype=torch.float32, **options):
    return get(family).load(TrainConfig(pretrained_model_name_or_path=str(place), **options), dtype=dtype)


def same(left, right):
    state = right.state_dict()
    return all(torch.equal(value, state[path]) for path, value in left.state_dict().items())


@pytest.fixture(scope="module")
def folders(tiny, tmp_path_factory):
    """The tiny models as diffusers folders."""
    root = tmp_path_factory.mktemp("folders")
    for family in ("sd15", "sdxl"):
        models = tiny[family][1]
        modules = {"unet": models.unet, "vae": models.vae}
        modules |= dict(zip(("text_encoder", "text_encoder_2"), models.text_encoders, strict=False))
        for name, module in modules.items():
            module.save_pretrained(root / family / name)
    return root


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_a_diffusers_folder_gives_the_same_models(folders, tiny, family):
    models, expected = load(folders / family, family), tiny[family][1]
    assert same(models.unet, expected.unet)
    assert same(models.vae, expected.vae)
    assert all(same(*pair) for pair in zip(models.text_encoders, expected.text_encoders, strict=True))
    assert not any(p.requires_grad for p in models.unet.parameters())


def test_an_older_folder_whose_text_encoder_has_the_text_model_level(folders, tiny, tmp_path):
    (tmp_path / "m").mkdir()
    for name in ("unet", "vae", "text_encoder"):
        (tmp_path / "m" / name).mkdir()
        for file in (folders / "sd15" / name).iterdir():
            (tmp_path / "m" / name / file.name).write_bytes(file.read_bytes())
    file = tmp_path / "m" / "text_encoder" / "model.safetensors"
    bare = {name.removeprefix("text_model."): value for name, value in load_file(file).items()}
    save_file({f"text_model.{name}": value for name, value in bare.items()}, file, metadata={"format": "pt"})
    assert same(load(tmp_path / "m").text_encoders[0], tiny["sd15"][1].text_encoders[0])


def test_the_fp16_variant_is_used_when_there_is_nothing_else(folders, tmp_path):
    unet = tmp_path / "m" / "unet"
    unet.parent.mkdir()
    for name in ("vae", "text_encoder"):
        (unet.parent / name).symlink_to(folders / "sd15" / name)
    unet.mkdir()
    (unet / "config.json").write_bytes((folders / "sd15" / "unet" / "config.json").read_bytes())
    halves = load_file(folders / "sd15" / "unet" / "diffusion_pytorch_model.safetensors")
    halves = {name: value.half() for name, value in halves.items()}
    save_file(halves, unet / "diffusion_pytorch_model.fp16.safetensors")
    assert torch.equal(load(unet.parent).unet.conv_in.weight, halves["conv_in.weight"].float())


def test_a_folder_of_another_family_is_refused(folders):
    with pytest.raises(ConfigError, match="sdxl"):
        load(folders / "sdxl", "sd15")


def test_a_folder_with_a_part_missing_is_refused(folders, tmp_path):
    (tmp_path / "unet").symlink_to(folders / "sd15" / "unet")
    with pytest.raises(ConfigError, match="text_encoder"):
        load(tmp_path)


def test_families_of_folders(folders, tmp_path):
    assert checkpoint_family(folders / "sd15") == "sd15"
    assert checkpoint_family(folders / "sdxl") == "sdxl"
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    assert checkpoint_family(tmp_path) == "flux"


@pytest.fixture
def other_vae(checkpoints, folders, tmp_path):
    """The SDXL model's VAE in every form that VAEs come in."""
    stored = load_file(checkpoints["sdxl"])
    start = "first_stage_model."
    save_file({n.removeprefix(start): v for n, v in stored.items() if n.startswith(start)}, tmp_path / "a.safetensors")
    folder = folders / "sdxl" / "vae"
    torch.save(load_file(folder / "diffusion_pytorch_model.safetensors"), tmp_path / "vae.bin")
    return {
        "whole checkpoint": checkpoints["sdxl"],
        "vae file": tmp_path / "a.safetensors",
        "folder": folder,
        "model folder": folder.parent,
        "diffusers file": folder / "diffusion_pytorch_model.safetensors",
        "pickled": tmp_path / "vae.bin",
    }


@pytest.mark.parametrize(
    "kind", ["whole checkpoint", "vae file", "folder", "model folder", "diffusers file", "pickled"]
)
def test_the_vae_can_be_replaced(checkpoints, other_vae, tiny, kind):
    found = load(checkpoints["sd15"], vae=str(other_vae[kind])).vae
    assert same(found, tiny["sdxl"][1].vae)
    assert not same(found, tiny["sd15"][1].vae)


def test_an_old_diffusers_vae_file(checkpoints, folders, tiny, tmp_path):
    renamed = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(folders / "sd15" / "vae" / "diffusion_pytorch_model.safetensors")
    for new, old in renamed.items():
        tensors = {name.replace(f"attentions.0.{new}.", f"attentions.0.{old}."): v for name, v in tensors.items()}
    save_file(tensors, tmp_path / "vae.safetensors")
    assert same(load(checkpoints["sdxl"], "sdxl", vae=str(tmp_path / "vae.safetensors")).vae, tiny["sd15"][1].vae)


def test_the_vae_stays_float32_with_no_half_vae(checkpoints):
    models = load(checkpoints["sd15"], dtype=torch.bfloat16, no_half_vae=True)
    assert (models.vae.dtype, models.unet.dtype) == (torch.float32, torch.bfloat16)
    assert load(checkpoints["sd15"], dtype=torch.bfloat16).vae.dtype == torch.bfloat16


def test_a_relative_link_is_followed(checkpoints, tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "m.safetensors").write_bytes(checkpoints["sd15"].read_bytes())
    (tmp_path / "real" / "step.safetensors").symlink_to("m.safetensors")
    (tmp_path / "model.safetensors").symlink_to("real/step.safetensors")
    assert load(tmp_path / "model.safetensors").family == "sd15"


@pytest.mark.parametrize("place", ["missing.safetensors", "no/such/folder", "./model", "someone/uncached-model", None])
def test_a_model_that_is_not_here_is_refused_with_advice(place):
    with pytest.raises(ConfigError) as caught:
        locate(place, "pretrained_model_name_or_path")
    problem = caught.value.problems[0]
    assert (problem.code, problem.key) == ("no-file", "pretrained_model_name_or_path")
    assert problem.fix
