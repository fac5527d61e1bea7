from __future__ import annotations

import json
import logging
import struct

import pytest
import torch
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from safetensors.torch import load_file, save_file

from schemas import ConfigError, TrainConfig
from trainer.families import architecture, get, single_file


def rewritten(source, target, change, metadata=None):
    """A copy of a checkpoint whose tensors went through `change(dict)`."""
    tensors = dict(load_file(source))
    save_file(change(tensors) or tensors, target, metadata=metadata)
    return target


def load(file, family="sd15", dtype=torch.float32, **options):
    return get(family).load(TrainConfig(pretrained_model_name_or_path=str(file), **options), dtype=dtype)


def same(left, right):
    state = right.state_dict()
    return all(torch.equal(value, state[path]) for path, value in left.state_dict().items())


@pytest.mark.parametrize("family", ["sd15", "sd2", "sdxl"])
def test_unet_and_vae_are_placed_as_diffusers_places_them(checkpoints, tiny, family):
    stored, models = load_file(checkpoints[family]), tiny[family][1]
    unet = convert_ldm_unet_checkpoint(dict(stored), dict(models.unet.config))
    assert all(torch.equal(value, unet[path]) for path, value in models.unet.state_dict().items())
    vae = convert_ldm_vae_checkpoint(dict(stored), dict(models.vae.config))
    assert all(torch.equal(value, vae[path]) for path, value in models.vae.state_dict().items())


@pytest.mark.parametrize(
    ("family", "place", "prefix"),
    [("sd2", 0, "cond_stage_model.model."), ("sdxl", 1, "conditioner.embedders.1.model.")],
)
def test_open_clip_is_placed_as_diffusers_places_it(checkpoints, tiny, family, place, prefix):
    encoder = tiny[family][1].text_encoders[place]
    converted = convert_open_clip_checkpoint(encoder, load_file(checkpoints[family]), prefix)
    bare = {path.removeprefix("text_model."): value for path, value in converted.items()}
    for path, value in encoder.state_dict().items():  # diffusers converts SD2's last layer too
        assert torch.equal(value, bare[path.removeprefix("text_model.")])


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_export_is_the_inverse_of_loading(checkpoints, tiny, family):
    models, stored = tiny[family][1], load_file(checkpoints[family])
    modules = {"unet": models.unet, "vae": models.vae}
    modules |= dict(zip(("text_encoder", "text_encoder_2"), models.text_encoders, strict=False))
    exported = single_file.export(modules, family)
    assert exported.keys() == stored.keys()
    assert all(torch.equal(value, stored[name]) for name, value in exported.items())


@pytest.mark.parametrize("family", ["sd15", "sd2", "sdxl"])
def test_full_size_shapes_give_the_shipped_architecture(family):
    full = architecture.shipped(family)
    shapes = {}
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        if name in full:
            part = single_file.Part(name, full[name], single_file.names_of(name, full[name], family))
            for path, tensor in part.build().state_dict().items():
                stored = part.names(path)
                shapes[stored.name] = stored.shape(tuple(tensor.shape))
    if family == "sd2":  # the file holds the 24th layer, which is left out
        shapes["cond_stage_model.model.transformer.resblocks.23.ln_1.weight"] = (1024,)
    checkpoint = type("Names", (), {"shapes": shapes, "file": "x", "metadata": {}})()
    for part in single_file.parts(checkpoint, family):
        for key, value in part.config.items():
            expected = full[part.name].get(key, value)
            assert value == expected or value == [expected] * len(value), key


def test_sd2_leaves_the_last_text_layer_out(checkpoints, tiny):
    stored = load_file(checkpoints["sd2"])
    assert "cond_stage_model.model.transformer.resblocks.2.ln_1.weight" in stored
    encoder = tiny["sd2"][1].text_encoders[0]
    assert encoder.config.num_hidden_layers == 2
    assert torch.equal(encoder.final_layer_norm.weight, stored["cond_stage_model.model.ln_final.weight"])


def test_text_encoder_without_the_text_model_level(checkpoints, tiny, tmp_path):
    def drop_level(tensors):
        return {name.replace("transformer.text_model.", "transformer."): value for name, value in tensors.items()}

    models = load(rewritten(checkpoints["sd15"], tmp_path / "m.safetensors", drop_level))
    assert same(models.text_encoders[0], tiny["sd15"][1].text_encoders[0])


@pytest.mark.parametrize("name", ["m.ckpt", "m.pt"])
def test_pickled_checkpoint(checkpoints, tiny, tmp_path, name):
    torch.save({"state_dict": load_file(checkpoints["sd15"]), "global_step": 3}, tmp_path / name)
    assert same(load(tmp_path / name).unet, tiny["sd15"][1].unet)


def test_pickled_code_is_refused(tmp_path):
    torch.save({"state_dict": print}, tmp_path / "m.ckpt")
    with pytest.raises(ConfigError, match=r"m\.ckpt: holds more than tensors"):
        load(tmp_path / "m.ckpt")


def test_a_trusted_checkpoint_may_hold_its_trainers_settings(checkpoints, tiny, tmp_path):
    document = {"state_dict": load_file(checkpoints["sd15"]), "callbacks": tmp_path}
    torch.save(document, tmp_path / "old model.ckpt")
    with pytest.raises(ConfigError, match=r"--trust 'old model\.ckpt'"):
        load(tmp_path / "old model.ckpt")
    assert same(load(tmp_path / "old model.ckpt", trust=("old model.ckpt",)).unet, tiny["sd15"][1].unet)


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("whole", [False, True])
def test_half_and_fp8_files_are_cast(checkpoints, tmp_path, stored, whole):
    file = rewritten(
        checkpoints["sdxl"],
        tmp_path / "m.safetensors",
        lambda all: {name: value.to(stored) for name, value in all.items()},
    )
    models = load(file, "sdxl", torch.bfloat16, disable_mmap_load_safetensors=whole)
    first = load_file(file)["model.diffusion_model.input_blocks.0.0.weight"]
    assert torch.equal(models.unet.conv_in.weight, first.to(torch.bfloat16))
    assert {p.dtype for m in (models.unet, *models.text_encoders) for p in m.parameters()} == {torch.bfloat16}


def test_reading_whole_gives_the_same_as_mapping(checkpoints, tiny):
    models = load(checkpoints["sdxl"], "sdxl", disable_mmap_load_safetensors=True)
    assert same(models.unet, tiny["sdxl"][1].unet)
    assert same(models.text_encoders[1], tiny["sdxl"][1].text_encoders[1])


def test_weights_changed_in_memory_do_not_reach_the_file(checkpoints):
    before = checkpoints["sd15"].read_bytes()
    models = load(checkpoints["sd15"])
    with torch.no_grad():
        for parameter in models.unet.parameters():
            parameter.add_(1)
    assert checkpoints["sd15"].read_bytes() == before


def test_models_come_frozen_in_eval_mode_and_with_real_buffers(tiny):
    for models in (tiny["sd15"][1], tiny["sdxl"][1]):
        for module in (models.unet, models.vae, *models.text_encoders):
            assert not module.training
            assert not any(p.requires_grad for p in module.parameters())
            assert not any(t.is_meta for t in (*module.parameters(), *module.buffers()))


def test_missing_and_misshapen_tensors_are_named_together(checkpoints, tmp_path):
    gone, bent = "model.diffusion_model.time_embed.0.weight", "first_stage_model.post_quant_conv.bias"

    def spoil(tensors):
        del tensors[gone]
        tensors[bent] = torch.zeros(3)

    with pytest.raises(ConfigError) as caught:
        load(rewritten(checkpoints["sd15"], tmp_path / "m.safetensors", spoil))
    assert {(problem.key, problem.code) for problem in caught.value.problems} == {
        (gone, "missing-tensor"),
        (bent, "wrong-shape"),
    }


@pytest.mark.parametrize(("file", "family"), [("sdxl", "sd15"), ("sd15", "sdxl"), ("sd15", "sd2"), ("sd2", "sd15")])
def test_a_checkpoint_of_another_family_is_refused(checkpoints, file, family):
    with pytest.raises(ConfigError) as caught:
        load(checkpoints[file], family)
    assert (caught.value.problems[0].code, caught.value.problems[0].got) == ("wrong-family", file)


def test_an_inpainting_model_is_refused(checkpoints, tmp_path):
    def widen(tensors):
        tensors["model.diffusion_model.input_blocks.0.0.weight"] = torch.zeros(32, 9, 3, 3)

    with pytest.raises(ConfigError, match="9 input channels"):
        load(rewritten(checkpoints["sd15"], tmp_path / "m.safetensors", widen))


def test_scaled_fp8_is_refused(checkpoints, tmp_path):
    with pytest.raises(ConfigError, match="scaled fp8"):
        load(
            rewritten(
                checkpoints["sd15"],
                tmp_path / "m.safetensors",
                lambda tensors: tensors | {"scaled_fp8": torch.zeros(2)},
            )
        )


def test_integer_weights_are_refused(checkpoints, tmp_path):
    name = "model.diffusion_model.out.2.bias"
    file = rewritten(
        checkpoints["sd15"], tmp_path / "m.safetensors", lambda tensors: tensors | {name: tensors[name].to(torch.int8)}
    )
    with pytest.raises(ConfigError, match="I8"):
        load(file)


def test_unused_unet_tensors_are_reported(checkpoints, tmp_path, caplog):
    extra = {"model.diffusion_model.extra.weight": torch.zeros(2)}
    with caplog.at_level(logging.WARNING):
        load(rewritten(checkpoints["sd15"], tmp_path / "m.safetensors", lambda tensors: tensors | extra))
    assert "model.diffusion_model.extra.weight" in caplog.text


def test_the_checkpoint_may_state_what_shapes_cannot_tell(checkpoints, tmp_path):
    config = json.dumps({"unet": {"attention_head_dim": 2}})
    file = rewritten(checkpoints["sd15"], tmp_path / "m.safetensors", lambda _: None, {"kohyakit_config": config})
    assert load(file).unet.config.attention_head_dim == 2


def test_heads_follow_the_documented_rule(tiny):
    assert tiny["sd15"][1].unet.config.attention_head_dim == 8
    assert tiny["sdxl"][1].unet.config.attention_head_dim == [1, 1, 1]
    assert [architecture.heads(width) for width in (32, 64, 96, 640, 1280)] == [1, 1, 1, 10, 20]


def test_a_header_that_is_not_padded_can_be_read(checkpoints, tiny, tmp_path):
    raw = checkpoints["sd15"].read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = raw[8 : 8 + length].rstrip()
    header += b" " * (1 - len(header) % 2)  # an odd length, so that no tensor is aligned
    file = tmp_path / "m.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header + raw[8 + length :])
    assert same(load(file).unet, tiny["sd15"][1].unet)
