"""From the header or the bare tensors of anybody's LoRA to a config that runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launcher.formats import read
from tests.launcher.conftest import safetensors

SD_BLOCKS = {
    **{f"down_blocks_{i}_attentions_{j}": 1 + 3 * i + j for i in range(3) for j in range(2)},
    "mid_block_attentions_0": 12,
    **{f"up_blocks_{i}_attentions_{j}": 13 + 3 * i + j for i in range(1, 4) for j in range(3)},
}
LAYERS = ("proj_in", "proj_out", "transformer_blocks_0_attn1_to_q", "transformer_blocks_0_attn2_to_k",
          "transformer_blocks_0_ff_net_0_proj", "transformer_blocks_0_ff_net_2")  # fmt: skip


def kohya(path: Path, ranks=lambda block: 4, text: int = 4, metadata=None, more: dict[str, Any] | None = None) -> Path:
    """An SD1.5 LoRA in kohya's keys: a rank for each U-Net block (0 leaves it out), one for the text encoder."""
    modules = {f"lora_unet_{name}_{layer}": ranks(block) for name, block in SD_BLOCKS.items() for layer in LAYERS}
    modules |= {f"lora_te_text_model_encoder_layers_{n}_self_attn_q_proj": text for n in range(2)}
    shapes: dict[str, tuple[int, ...]] = dict(more or {})
    values = {}
    for module, rank in modules.items():
        if rank:
            shapes |= {
                f"{module}.lora_down.weight": (rank, 768 if "attn2" in module or "_te_" in module else 8),
                f"{module}.lora_up.weight": (8, rank),
                f"{module}.alpha": (),
            }
            values[f"{module}.alpha"] = rank / 2
            values[f"{module}.lora_up.weight"] = 0.5
    return safetensors(path, shapes, values, metadata)


def arguments(path: Path) -> dict[str, Any]:
    return {name: setting.value for name, setting in read(path).arguments.items()}


def pairs(path: Path) -> dict[str, str]:
    return dict(word.split("=", 1) for word in arguments(path).get("network_args", ()))


def test_even_ranks_need_no_block_lists(tmp_path: Path) -> None:
    assert pairs(kohya(tmp_path / "a.safetensors")) == {}


def test_ranks_by_block_are_found(tmp_path: Path) -> None:
    found = pairs(kohya(tmp_path / "a.safetensors", ranks=lambda block: 8 if block < 12 else 2))
    assert found["block_dims"] == "0,8,8,0,8,8,0,8,8,0,0,0,2,0,0,0,2,2,2,2,2,2,2,2,2"
    assert found["block_alphas"].split(",")[1] == "4"
    assert arguments(tmp_path / "a.safetensors")["network_dim"] == 4


def test_blocks_left_out_get_rank_0(tmp_path: Path) -> None:
    found = pairs(kohya(tmp_path / "a.safetensors", ranks=lambda block: 0 if block < 5 else 4))
    assert found["block_dims"].split(",")[:7] == ["0", "0", "0", "0", "0", "4", "0"]


def test_convolutions_are_found(tmp_path: Path) -> None:
    conv = "lora_unet_down_blocks_0_resnets_0_conv1"
    more = {f"{conv}.lora_down.weight": (2, 8, 3, 3), f"{conv}.lora_up.weight": (8, 2, 1, 1)}
    assert pairs(kohya(tmp_path / "a.safetensors", more=more))["conv_dim"] == "2"


def test_a_resized_file_says_dynamic_and_its_tensors_tell(tmp_path: Path) -> None:
    said = {"ss_network_dim": "Dynamic", "ss_network_alpha": "Dynamic", "ss_network_module": "networks.lora"}
    found = arguments(kohya(tmp_path / "a.safetensors", metadata=said))
    assert (found["network_dim"], found["network_alpha"]) == (4, 2.0)


def test_tensors_win_over_a_wrong_header(tmp_path: Path) -> None:
    file = kohya(tmp_path / "a.safetensors", metadata={"ss_network_dim": "64", "ss_network_module": "networks.lora"})
    assert arguments(file)["network_dim"] == 4
    assert "header-and-tensors" in {problem.code for problem in read(file).problems}


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({".lokr_w1": (8, 8), ".lokr_w2_a": (40, 4), ".lokr_w2_b": (4, 40)}, {"algo=lokr", "factor=8"}),
        ({".hada_w1_a": (8, 4), ".hada_w1_b": (4, 8), ".hada_w2_a": (8, 4), ".hada_w2_b": (4, 8)}, {"algo=loha"}),
        (
            {".lora_down.weight": (4, 8), ".lora_up.weight": (8, 4), ".dora_scale": (1, 8)},
            {"algo=lora", "dora_wd=True"},
        ),
        ({".oft_blocks": (4, 2, 2)}, {"algo=diag-oft"}),
        ({".oft_blocks": (3, 4, 2, 2)}, {"algo=boft"}),
        ({".lokr_w1": (4, 4), ".lokr_w2": (80, 80)}, {"algo=lokr", "factor=4"}),
        ({".diff": (8, 8)}, {"algo=full"}),
    ],
)
def test_lycoris_is_told_by_its_tensors(tmp_path: Path, tensors, words) -> None:
    shapes = {f"lycoris_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q{end}": shape
              for end, shape in tensors.items()}  # fmt: skip
    found = arguments(safetensors(tmp_path / "a.safetensors", shapes))
    assert found["network_module"] == "lycoris.kohya"
    assert words <= set(found["network_args"])
    assert "preset=attn-only" in found["network_args"]


ONE_TRAINER = {
    "lora_rank": 4, "lora_alpha": 2.0, "learning_rate": 3e-4, "epochs": 7, "batch_size": 3, "resolution": "512",
    "learning_rate_scheduler": "COSINE", "learning_rate_warmup_steps": 20, "train_dtype": "BFLOAT_16",
    "gradient_checkpointing": "ON", "seed": 5, "offset_noise_weight": 0.0,
    "optimizer": {"optimizer": "PRODIGY", "weight_decay": 0.01, "beta1": 0.9, "beta2": 0.99},
    "unet": {"train": True, "learning_rate": None}, "text_encoder": {"train": False},
    "loss_weight_fn": "MIN_SNR_GAMMA", "loss_weight_strength": 5.0,
}  # fmt: skip


def test_one_trainer(tmp_path: Path) -> None:
    found = arguments(kohya(tmp_path / "a.safetensors", metadata={"ot_config": json.dumps(ONE_TRAINER)}))
    wanted = {
        "learning_rate": 3e-4, "max_train_epochs": 7, "train_batch_size": 3, "lr_scheduler": "cosine", "seed": 5,
        "lr_warmup_steps": 20, "mixed_precision": "bf16", "gradient_checkpointing": True, "optimizer_type": "Prodigy",
        "optimizer_args": ("weight_decay=0.01", "betas=(0.9,0.99)"), "network_train_unet_only": True,
        "min_snr_gamma": 5.0, "resolution": "512",
    }  # fmt: skip
    assert {name: found[name] for name in wanted} == wanted
    assert "noise_offset" not in found


def test_ai_toolkit(tmp_path: Path) -> None:
    said = {"software": '{"name": "ai-toolkit", "url": "u"}', "training_info": '{"step": 1500, "epoch": 9}'}
    file = kohya(tmp_path / "a.safetensors", metadata=said)
    assert arguments(file)["max_train_steps"] == 1500
    assert read(file).carry["trainer"] == "ai-toolkit"


def test_simple_tuner(tmp_path: Path) -> None:
    config = {"algo": "lokr", "linear_dim": 10000, "linear_alpha": 1, "factor": 16}
    start = "lycoris_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    shapes = {f"{start}.lokr_w1": (16, 16), f"{start}.lokr_w2": (20, 20)}
    file = safetensors(tmp_path / "a.safetensors", shapes, metadata={"lycoris_config": json.dumps(config)})
    found = arguments(file)
    assert (found["network_dim"], found["network_alpha"]) == (10000, 1.0)
    assert {"algo=lokr", "factor=16"} <= set(found["network_args"])


def peft(path: Path, metadata=None, start: str = "unet.") -> Path:
    module = f"{start}down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    shapes = {f"{module}.lora_A.weight": (8, 768), f"{module}.lora_B.weight": (320, 8)}
    return safetensors(path, shapes, {f"{module}.lora_B.weight": 0.1}, metadata)


def test_diffusers_keeps_alpha_in_its_header(tmp_path: Path) -> None:
    settings = {"unet.r": 8, "unet.lora_alpha": 16, "unet.lora_dropout": 0.1, "unet.use_dora": False}
    file = peft(tmp_path / "a.safetensors", {"lora_adapter_metadata": json.dumps(settings)})
    found = arguments(file)
    assert (found["network_dim"], found["network_alpha"], found["network_dropout"]) == (8, 16.0, 0.1)


def test_peft_keeps_them_beside_the_file(tmp_path: Path) -> None:
    settings = {"r": 8, "lora_alpha": 4, "use_rslora": True, "base_model_name_or_path": "a/b"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    found = arguments(peft(tmp_path / "adapter_model.safetensors", start="base_model.model."))
    assert found["network_alpha"] == pytest.approx(4 * 8**0.5)
    assert found["pretrained_model_name_or_path"] == "a/b"


def test_peft_without_settings_scales_by_one(tmp_path: Path) -> None:
    assert arguments(peft(tmp_path / "a.safetensors"))["network_alpha"] == 8


def test_datasets_of_a_dataset_config(tmp_path: Path) -> None:
    subset = {"shuffle_caption": True, "keep_tokens": 1, "num_repeats": 3}
    datasets = [{"resolution": [768, 512], "batch_size_per_device": 2, "enable_bucket": True, "subsets": [subset]}]
    found = arguments(kohya(tmp_path / "a.safetensors", metadata={"ss_datasets": json.dumps(datasets)}))
    assert (found["resolution"], found["train_batch_size"], found["keep_tokens"]) == ("768,512", 2, 1)


def test_warmup_of_a_constant_schedule_is_left_out(tmp_path: Path) -> None:
    said = {"ss_lr_scheduler": "constant", "ss_lr_warmup_steps": "100"}
    assert "lr_warmup_steps" not in arguments(kohya(tmp_path / "a.safetensors", metadata=said))


@pytest.mark.parametrize("damage", ["{", "[]", "null", '{"lora_rank": "x", "optimizer": 3, "unet": 1}', "[" * 5000])
def test_damaged_headers_are_survived(tmp_path: Path, damage) -> None:
    names = ("ot_config", "lycoris_config", "lora_adapter_metadata", "ss_datasets", "training_info", "software",
             "ss_network_args", "ss_dataset_dirs", "ss_optimizer", "ss_resolution")  # fmt: skip
    file = kohya(tmp_path / "a.safetensors", metadata=dict.fromkeys(names, damage))
    assert arguments(file)["network_dim"] == 4


@pytest.mark.parametrize("target", ["kohya-gui", "sd-scripts"])
def test_a_recovered_config_launches(kohyakit, trainer, preset, tmp_path: Path, target) -> None:
    stated = {
        "ss_network_module": "networks.lora", "ss_network_dim": "4", "ss_network_alpha": "2.0", "ss_seed": "3",
        "ss_learning_rate": "0.0001", "ss_optimizer": "torch.optim.adamw.AdamW(weight_decay=0.1)",
        "ss_max_train_steps": "6", "ss_resolution": "(64, 64)", "ss_batch_size_per_device": "2",
        "ss_lr_scheduler": "cosine", "ss_lr_warmup_steps": "1", "ss_sd_model_name": "gone.safetensors",
        "ss_output_name": "frog", "ss_vae_name": "gone.vae.pt", "ss_mixed_precision": "no",
        "ss_text_encoder_lr": "5e-5",
        "ss_base_model_version": "sd_v1", "ss_unet_lr": "1e-4",
    }  # fmt: skip
    file, out = kohya(tmp_path / "theirs.safetensors", metadata=stated), tmp_path / "found.json"
    out = out if target == "kohya-gui" else tmp_path / "found.toml"
    assert kohyakit("inspect", file, "--to", target, "-o", out).exit_code == 0
    assert kohyakit("validate", out).exit_code == 0
    needs = json.loads(preset().read_text())
    here = {name: needs[name] for name in ("pretrained_model_name_or_path", "train_data_dir", "output_dir")}
    here |= {"caption_extension": ".txt"}
    words = [word for name, value in here.items() for word in ("--set", f"{name}={value}")]
    planned = json.loads(kohyakit("plan", out, *words, "--json").stdout)
    assert planned["arguments"]["network_alpha"]["value"] == 2.0
    assert planned["arguments"]["max_train_steps"]["value"] == 6
    assert planned["arguments"]["seed"]["value"] == 3
    found = kohyakit("launch", out, *words)
    assert found.exit_code == 0, found.output


def test_the_output_is_not_replaced_unasked(kohyakit, lora, tmp_path: Path) -> None:
    out = tmp_path / "mine.json"
    out.write_text("mine")
    assert kohyakit("inspect", lora(), "--to", "kohya-gui", "-o", out).exit_code == 1
    assert out.read_text() == "mine"


def test_pictures_and_unknowns_are_listed(kohyakit, tmp_path: Path) -> None:
    said = {"ss_dataset_dirs": json.dumps({"10_frog": {"n_repeats": 10, "img_count": 20}})}
    file = kohya(tmp_path / "a.safetensors", metadata=said)
    document = json.loads(kohyakit("inspect", file, "--json").stdout)
    assert document["data"] == [{"folder": "10_frog", "repeats": 10, "pictures": 20, "regularisation": False}]
    assert "learning_rate" in document["unknown"]
    assert "network_dim" not in document["unknown"]


def test_a_lora_can_be_compared_with_a_preset(kohyakit, preset, tmp_path: Path) -> None:
    file = kohya(tmp_path / "a.safetensors", metadata={"ss_learning_rate": "0.5"})
    document = json.loads(kohyakit("diff", file, preset(), "--json").stdout)
    rows = {row["argument"]: row for row in document["differences"]}
    assert rows["learning_rate"]["a"] == 0.5
