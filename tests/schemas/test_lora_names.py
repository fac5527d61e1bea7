"""One module of the model, in every spelling that files of adapters use."""

from __future__ import annotations

import pytest

from schemas.files.lora_names import Module, module, split

LDM = "output_blocks.5.1.transformer_blocks.0.attn1.to_q"
DIFFUSERS = "up_blocks.1.attentions.2.transformer_blocks.0.attn1.to_q"
TEXT = "text_model.encoder.layers.3.self_attn.q_proj"


def flat(path: str) -> str:
    return path.replace(".", "_")


@pytest.mark.parametrize("name", [
    f"lora_unet_{flat(LDM)}.lora_down.weight", f"lora_unet_{flat(DIFFUSERS)}.lora_down.weight",
    f"unet.{LDM}.lora_down.weight", f"diffusion_model.{LDM}.lora_A.weight", f"diffusion_model.{LDM}.lora_down.weight",
    f"model.diffusion_model.{LDM}.lora_down.weight", f"unet.{DIFFUSERS}.lora_A.weight",
    f"base_model.model.unet.{DIFFUSERS}.lora_A.default.weight", f"base_model.model.{DIFFUSERS}.lora_A.weight",
    f"unet.{DIFFUSERS}.lora.down.weight", f"unet.{DIFFUSERS}_lora.down.weight",
    "unet.up_blocks.1.attentions.2.transformer_blocks.0.attn1.processor.to_q_lora.down.weight",
    f"lora_prior_unet_{flat(DIFFUSERS)}.lora_down.weight", f"lora_transformer_{flat(DIFFUSERS)}.lora_down.weight",
    f"lycoris_{flat(DIFFUSERS)}.lora_down.weight",
])  # fmt: skip
def test_a_layer_of_the_unet(name: str) -> None:
    found = split(name)
    assert found is not None
    assert found[1:] == ("lora", "lora_down.weight")
    assert module(found[0]) == Module("unet", flat(LDM))


@pytest.mark.parametrize(("start", "part"), [
    ("lora_te_", "te"), ("text_encoder.", "te"), ("", "te"), ("lora_te1_", "te1"), ("clip_l.", "te1"), ("te1.", "te1"),
    ("text_encoders.clip_l.transformer.", "te1"), ("conditioner.embedders.0.transformer.", "te1"),
    ("lora_te2_", "te2"), ("text_encoder_2.", "te2"), ("clip_g.", "te2"), ("text_encoders.clip_g.transformer.", "te2"),
    ("base_model.model.text_encoder.", "te"),
])  # fmt: skip
def test_a_layer_of_a_text_encoder(start: str, part: str) -> None:
    assert module(start + (flat(TEXT) if start.endswith("_") else TEXT)).part == part
    assert module(start + TEXT).path == "encoder_layers_3_self_attn_q_proj"


@pytest.mark.parametrize(("diffusers", "ldm"), [
    ("down_blocks.1.resnets.0.conv1", "input_blocks.4.0.in_layers.2"),
    ("down_blocks.0.downsamplers.0.conv", "input_blocks.3.0.op"),
    ("mid_block.resnets.1.time_emb_proj", "middle_block.2.emb_layers.1"),
    ("mid_block.attentions.0.proj_in", "middle_block.1.proj_in"),
    ("up_blocks.0.upsamplers.0.conv", "output_blocks.2.1.conv"),
    ("up_blocks.1.upsamplers.0.conv", "output_blocks.5.2.conv"),
    ("up_blocks.2.resnets.2.conv_shortcut", "output_blocks.8.0.skip_connection"),
    ("time_embedding.linear_1", "time_embed.0"),
])  # fmt: skip
def test_both_layouts_mean_one_module(diffusers: str, ldm: str) -> None:
    assert module(f"unet.{diffusers}") == module(f"diffusion_model.{ldm}")


@pytest.mark.parametrize("name", ["model.diffusion_model.out.2.weight", "cond_stage_model.x.bias", "alphabet"])
def test_other_tensors_are_no_adapters(name: str) -> None:
    assert split(name) is None
