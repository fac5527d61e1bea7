"""What Kohya starts: the worked examples of GUI notes, section 6, made there by the GUI's own train function."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launcher.formats import kohya_gui
from launcher.formats.kohya_gui import Document

EXAMPLES: dict[str, Any] = json.loads(Path(__file__).with_name("kohya_gui_examples.json").read_text(encoding="utf-8"))


def form(**values: Any) -> kohya_gui.Form:
    return kohya_gui.load(Document({"optimizer": "AdamW8bit", **values}))


@pytest.mark.parametrize("name", EXAMPLES)
def test_toml_of_the_worked_examples(name: str) -> None:
    example = EXAMPLES[name]
    assert kohya_gui.gui_toml(kohya_gui.load(Document(example["form"])), example["pictures"]) == example["toml"]


@pytest.mark.parametrize("name", EXAMPLES)
def test_command_of_the_worked_examples(name: str) -> None:
    loaded = kohya_gui.load(Document(EXAMPLES[name]["form"]))
    assert kohya_gui.gui_command(loaded, "OUT/config_lora-STAMP.toml") == EXAMPLES[name]["command"].split()


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_draft_gives_the_same_toml(name: str) -> None:
    draft = kohya_gui.read(json.dumps(EXAMPLES[name]["form"]))
    assert kohya_gui.gui_toml(draft, EXAMPLES[name]["pictures"]) == EXAMPLES[name]["toml"]


def test_steps_count_regularisation_twice_and_divide_by_accumulation() -> None:
    loaded = form(epoch=3, train_batch_size=2, gradient_accumulation_steps=2, reg_data_dir="reg", max_train_steps=0)
    assert kohya_gui.gui_steps(loaded, 50) == 75  # ceil(50 / 2 / 2 * 3 * 2)


def test_dataset_config_turns_the_warmup_share_into_steps_and_computes_none() -> None:
    assert kohya_gui.gui_toml(form(dataset_config="d.toml", max_train_steps=200))["lr_warmup_steps"] == 20
    assert "max_train_steps" not in kohya_gui.gui_toml(form(dataset_config="d.toml", max_train_steps=0), 100)


def test_zeros_are_left_out_but_for_the_workers() -> None:
    toml = kohya_gui.gui_toml(form(max_grad_norm=0, prior_loss_weight=0.0, max_data_loader_n_workers=0))
    assert "max_grad_norm" not in toml
    assert "prior_loss_weight" not in toml
    assert toml["max_data_loader_n_workers"] == 0


def test_free_words_lie_between_the_launch_options_and_at_the_end() -> None:
    words = kohya_gui.gui_command(
        form(
            extra_accelerate_launch_args='--main_process_ip "10.0.0.1"',
            gpu_ids="0,1",
            multi_gpu=True,
            num_processes=2,
            additional_parameters='--optimizer_args "betas=(0.9,0.99)"',
        ),
        "c.toml",
        "/sd",
    )
    assert words[6:12] == ["--main_process_ip", "10.0.0.1", "--gpu_ids", "0,1", "--mixed_precision", "fp16"]
    assert words[-5:] == ["/sd/train_network.py", "--config_file", "c.toml", "--optimizer_args", "'betas=(0.9,0.99)'"]


@pytest.mark.parametrize(
    ("box", "script"),
    [("sdxl", "sdxl_train"), ("flux1_checkbox", "flux_train"), ("sd3_checkbox", "sd3_train"), ("v2", "train")],
)
def test_boxes_pick_the_script(box: str, script: str) -> None:
    assert f"{script}_network.py" in kohya_gui.gui_command(form(**{box: True}), "c.toml")


def test_chroma_keeps_a_zero_guidance_and_has_no_clip() -> None:
    toml = kohya_gui.gui_toml(form(flux1_checkbox=True, model_type="chroma", guidance_scale=0, clip_l="c"))
    assert (toml["guidance_scale"], toml["apply_t5_attn_mask"], "clip_l" in toml) == (0, True, False)
