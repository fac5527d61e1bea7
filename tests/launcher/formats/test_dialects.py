"""The smaller dialects: dataset files, LoRA_Easy_Training_Scripts, lora-scripts, kohya-colab."""

from __future__ import annotations

import json
from typing import Any

from launcher.formats import dataset_toml, easy_training, kohya_colab, lora_scripts
from launcher.formats.base import Draft


def values(draft: Draft) -> dict[str, Any]:
    return {name: setting.value for name, setting in draft.arguments.items()}


DATASET = """[general]
shuffle_caption = true
[[datasets]]
resolution = 512
[[datasets.subsets]]
image_dir = 'a'
num_repeat = 3
validation_split = 0.1
"""


def test_dataset_keys_and_misplaced_ones() -> None:
    draft = dataset_toml.read(DATASET)
    assert draft.keys["datasets.0.subsets.0.image_dir"].status == "used"
    assert [(p.key, p.line, p.fix) for p in draft.problems] == [
        ("datasets.0.subsets.0.num_repeat", 7, "did you mean num_repeats?"),
        ("datasets.0.subsets.0.validation_split", 8, "move it to a dataset"),
    ]
    assert draft.datasets is not None


def test_dataset_json_and_missing_subsets() -> None:
    draft = dataset_toml.read(json.dumps({"datasets": [{"resolution": 512}]}))
    assert [problem.code for problem in draft.problems] == ["no-subsets"]


def test_dataset_round_trip() -> None:
    document = {"datasets": [{"resolution": [512, 768], "subsets": [{"image_dir": "a", "num_repeats": 2}]}]}
    assert dataset_toml.read(dataset_toml.write(document)).datasets == document


EASY = """[[subsets]]
name = "mine"
image_dir = "a"
num_repeats = 2
[train_mode]
train_mode = "lora"
[general_args.args]
sdxl = true
max_train_epochs = 4
[general_args.dataset_args]
resolution = 1024
batch_size = 2
[network_args.args]
network_dim = 8
[network_args.args.network_args]
algo = "lokr"
down_lr_weight = [1, 0.5]
use_tucker = "true"
[optimizer_args.args]
optimizer_type = "came"
warmup_ratio = 0.1
[optimizer_args.args.optimizer_args]
weight_decay = 0.1
betas = "0.9,0.99"
[saving_args.args]
tag_occurrence = true
[noise_args]
"""


def test_easy_training_panels() -> None:
    draft = easy_training.read(EASY)
    assert values(draft) == {
        "max_train_epochs": 4,
        "resolution": "1024",
        "train_batch_size": 2,
        "network_dim": 8,
        "network_args": ("algo=lokr", "down_lr_weight=1,0.5", "use_tucker=True"),
        "network_module": "lycoris.kohya",
        "optimizer_type": "LoraEasyCustomOptimizer.came.CAME",
        "lr_warmup_steps": 0.1,
        "optimizer_args": ("weight_decay=0.1", "betas=0.9,0.99"),
    }
    assert draft.datasets == {
        "datasets": [{"resolution": 1024, "batch_size": 2, "subsets": [{"image_dir": "a", "num_repeats": 2}]}]
    }
    assert (draft.family, draft.lines["network_args.args.network_dim"]) == ("sdxl", 14)
    assert draft.keys["saving_args.args.tag_occurrence"].status == "gui-only"


def test_easy_training_modules_follow_from_keys() -> None:
    assert values(easy_training.read("[network_args.args]\nfa = true\n"))["network_module"] == "networks.lora_fa"
    assert values(easy_training.read("[network_args.args]\nnetwork_dim = 8\n"))["network_module"] == "networks.lora"


def test_easy_training_panels_of_other_families() -> None:
    draft = easy_training.read('[flux_args.args]\nae = "x"\n')
    assert (draft.family, draft.arguments["network_module"].value) == ("flux", "networks.lora_flux")
    assert draft.keys["flux_args.args.ae"].status == "other-family"


def test_easy_training_json_of_2023() -> None:
    draft = easy_training.read(
        json.dumps(
            {
                "base_model": "m",
                "net_dim": 8,
                "alpha": 4,
                "warmup_lr_ratio": 0.1,
                "use_lion": True,
                "load_json_path": "x",
            }
        )
    )
    assert values(draft) == {
        "pretrained_model_name_or_path": "m",
        "network_dim": 8,
        "network_alpha": 4,
        "lr_warmup_steps": 0.1,
        "use_lion_optimizer": True,
        "network_module": "networks.lora",
    }


FRONT_END = """model_train_type = "sdxl-lora"
network_module = "lycoris.kohya"
lycoris_algo = "loha"
conv_dim = 4
train_norm = false
clip_skip = 2
unet_lr = "1e-4"
learning_rate = "abc"
optimizer_type = "Prodigy"
prodigy_d_coef = "0.8"
network_args_custom = ["use_scalar=True"]
noise_offset = 0
enable_preview = true
positive_prompts = "a cat"
negative_prompts = "bad"
sample_width = 512
ui_custom_params = "seed = 5"
output_dir = './a\\b'
"""


def test_lora_scripts_front_end() -> None:
    draft = lora_scripts.read(FRONT_END)
    assert values(draft) == {
        "network_module": "lycoris.kohya",
        "unet_lr": 1e-4,
        "learning_rate": 0.0,
        "optimizer_type": "Prodigy",
        "seed": 5,
        "output_dir": "./a/b",
        "network_args": ("algo=loha", "conv_dim=4", "use_scalar=True"),
        "optimizer_args": ("decouple=True", "weight_decay=0.01", "use_bias_correction=True", "d_coef=0.8"),
    }
    assert (draft.family, draft.prompts) == ("sdxl", "a cat --n bad --w 512")
    assert [draft.keys[name].status for name in ("clip_skip", "noise_offset")] == ["no-effect", "no-effect"]


def test_lora_scripts_switches() -> None:
    draft = lora_scripts.read(
        'enable_preview = false\nsample_prompts = "x.txt"\nenable_base_weight = true\nbase_weights = "a\\nb"\n'
    )
    assert values(draft) == {"base_weights": ("a", "b")}


def test_lora_scripts_preset_and_dadapt() -> None:
    draft = lora_scripts.read(
        '[metadata]\nname = "n"\ntrain_type = "sd-lora"\n[data]\noptimizer_type = "DAdaptation"\nunet_lr = 1e-4\n'
    )
    assert values(draft) == {
        "optimizer_type": "DAdaptation",
        "unet_lr": 1.0,
        "optimizer_args": ("decouple=True", "weight_decay=0.01"),
    }


def test_kohya_colab_is_sd_scripts_in_sections() -> None:
    draft = kohya_colab.read("[network_arguments]\nnetwork_dim = 8\n[training_arguments]\nwandb_api_key = 'k'\n")
    assert (draft.format, draft.arguments["network_dim"].value, draft.keys["wandb_api_key"].value) == (
        "kohya-colab",
        8,
        "***",
    )
