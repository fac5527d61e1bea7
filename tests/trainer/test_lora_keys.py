from __future__ import annotations

import json

import pytest
import torch

from trainer.families import Target
from trainer.output.lora_file import load_weights, save_weights
from trainer.output.lora_keys import peft_settings, to_kohya

ATTN = "down_blocks.1.attentions.0.transformer_blocks.0.attn1"
UNET = Target("unet", f"{ATTN}.to_q", "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q", "linear",
              "transformer", 5)  # fmt: skip
OUT = Target("unet", f"{ATTN}.to_out.0", "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_out_0", "linear",
             "transformer", 5)  # fmt: skip
LAYER = "encoder.layers.0.self_attn"
TE1 = Target("te1", f"{LAYER}.q_proj", "lora_te1_text_model_encoder_layers_0_self_attn_q_proj", "linear", "text", None)
TE2 = Target("te2", f"text_model.{LAYER}.q_proj", "lora_te2_text_model_encoder_layers_0_self_attn_q_proj", "linear",
             "text", None)  # fmt: skip
TARGETS = [TE1, TE2, UNET, OUT]


@pytest.mark.parametrize(("name", "wanted"), [
    (f"{UNET.key}.lora_down.weight", f"{UNET.key}.lora_down.weight"),
    (f"lora_unet_{UNET.path.replace('.', '_')}.lora_up.weight", f"{UNET.key}.lora_up.weight"),
    (f"base_model.model.unet.{UNET.path}.lora_A.weight", f"{UNET.key}.lora_down.weight"),
    (f"base_model.model.{UNET.path}.lora_B.default.weight", f"{UNET.key}.lora_up.weight"),
    (f"unet.{UNET.path}.lora_A.weight", f"{UNET.key}.lora_down.weight"),
    (f"unet.{UNET.path}.lora.up.weight", f"{UNET.key}.lora_up.weight"),
    (f"unet.{ATTN}.processor.to_q_lora.down.weight", f"{UNET.key}.lora_down.weight"),
    (f"unet.{ATTN}.processor.to_out_lora.up.weight", f"{OUT.key}.lora_up.weight"),
    (f"text_encoder.text_model.{LAYER}.q_proj.lora_linear_layer.up.weight", f"{TE1.key}.lora_up.weight"),
    (f"text_encoder.{LAYER}.q_proj.lora_A.weight", f"{TE1.key}.lora_down.weight"),
    (f"text_encoder_2.text_model.{LAYER}.q_proj.lora_B.weight", f"{TE2.key}.lora_up.weight"),
    (f"text_encoder_2.text_model.{LAYER}.to_q_lora.up.weight", f"{TE2.key}.lora_up.weight"),
    (f"unet.{UNET.path}.alpha", f"{UNET.key}.alpha"),
    ("unet.nowhere.lora_A.weight", "unet.nowhere.lora_A.weight"),
    ("lora_unet_nowhere.alpha", "lora_unet_nowhere.alpha"),
])  # fmt: skip
def test_names(name, wanted):
    assert wanted in to_kohya({name: torch.zeros(2, 3)}, TARGETS)


def alpha(settings=None, **extra):
    tensors = {f"unet.{UNET.path}.lora_A.weight": torch.zeros(4, 3), **extra}
    return float(to_kohya(tensors, TARGETS, settings)[f"{UNET.key}.alpha"])


@pytest.mark.parametrize(("settings", "wanted"), [
    ({}, 4), ({"lora_alpha": 8}, 8), ({"unet.lora_alpha": 2, "lora_alpha": 8}, 2),
    ({"lora_alpha": 8, "use_rslora": True}, 16), ({"lora_alpha": 8, "alpha_pattern": {"to_q": 6}}, 6),
    ({"lora_alpha": 8, "alpha_pattern": {"to_k": 6}}, 8),
])  # fmt: skip
def test_alpha_comes_from_peft_settings_else_it_is_the_rank(settings, wanted):
    assert alpha(settings) == wanted


def test_alpha_in_the_file_wins():
    assert alpha({"lora_alpha": 8}, **{f"unet.{UNET.path}.alpha": torch.tensor(3.0)}) == 3


def test_settings_come_from_header_or_adapter_config():
    header = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 2})}
    assert peft_settings(header, json.dumps({"r": 4})) == {"r": 4, "unet.lora_alpha": 2}
    assert peft_settings({"lora_adapter_metadata": "damaged"}, None) == {}


def test_peft_folder_is_read_with_its_config(tmp_path):
    tensors = {f"base_model.model.{UNET.path}.lora_A.weight": torch.ones(4, 3)}
    save_weights(tmp_path / "adapter_model.safetensors", tensors, {})
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 16}))
    found = load_weights(tmp_path, TARGETS)
    assert float(found[f"{UNET.key}.alpha"]) == 16


def test_dora_magnitude_becomes_a_column():
    name = f"unet.{UNET.path}.lora_magnitude_vector.weight"
    assert to_kohya({name: torch.ones(5)}, TARGETS)[f"{UNET.key}.dora_scale"].shape == (5, 1)
