"""A form JSON to the Draft: arguments as Kohya would have sent them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from launcher.formats.base import Draft, GuiSteps
from launcher.formats.kohya_gui import defaults, keys, read

WHOLE = {"LoRA_type": "Standard", "optimizer": "AdamW8bit", "max_train_steps": 100, "lr_warmup": 0}


def draft(overrides: dict[str, Any] | None = None, **values: Any) -> Draft:
    return read(json.dumps({**WHOLE, **values}), overrides=overrides)


def value(found: Draft, name: str) -> Any:
    return found.arguments[name].value if name in found.arguments else None


def codes(found: Draft, severity: str | None = None) -> set[str]:
    return {problem.code for problem in found.problems if severity in (None, problem.severity)}


def test_missing_keys_have_the_forms_default_and_say_so() -> None:
    found = draft(network_dim=16)
    assert (value(found, "network_dim"), found.arguments["network_dim"].origin) == (16, "file")
    assert (value(found, "max_bucket_reso"), found.arguments["max_bucket_reso"].origin) == (2048, "default")
    assert found.arguments["network_dim"].key == "network_dim"
    assert found.arguments["max_bucket_reso"].key is None


def test_null_is_missing() -> None:
    assert value(draft(caption_extension=None), "caption_extension") == ".txt"


@pytest.mark.parametrize(
    ("key", "argument", "given"),
    [
        ("max_resolution", "resolution", "640,640"),
        ("optimizer", "optimizer_type", "Lion"),
        ("pretrained_model_name_or_path", "pretrained_model_name_or_path", "m.safetensors"),
    ],
)
def test_keys_with_another_argument(key: str, argument: str, given: str) -> None:
    found = draft(**{key: given})
    assert (value(found, argument), found.arguments[argument].key) == (given, key)


def test_arguments_can_be_read_by_the_trainer() -> None:
    from schemas.config import from_flat

    config, notes = from_flat({name: setting.value for name, setting in draft(sdxl=True).arguments.items()})
    assert (config.resolution, config.max_token_length, notes) == ("512,512", None, [])


@pytest.mark.parametrize(
    ("text", "unet", "expected"),
    [
        (1e-4, 2e-4, {"text_encoder_lr": (1e-4, 1e-4), "unet_lr": 2e-4}),
        (0, 2e-4, {"network_train_unet_only": True, "unet_lr": 2e-4}),
        (1e-4, 0, {"network_train_text_encoder_only": True, "text_encoder_lr": (1e-4, 1e-4)}),
        (0, 0, {}),
    ],
)
def test_rates_decide_what_is_trained(text: float, unet: float, expected: dict[str, Any]) -> None:
    found = draft(text_encoder_lr=text, unet_lr=unet)
    names = ("text_encoder_lr", "unet_lr", "network_train_unet_only", "network_train_text_encoder_only")
    assert {name: value(found, name) for name in names if name in found.arguments} == expected


def test_second_encoder_rate() -> None:
    assert value(draft(text_encoder_lr=1e-4, t5xxl_lr=3e-4), "text_encoder_lr") == (1e-4, 3e-4)
    assert "no-text-encoder-lr" in codes(draft(text_encoder_lr=0, t5xxl_lr=3e-4), "error")


def test_no_rate_at_all_is_refused() -> None:
    found = draft(text_encoder_lr=0, unet_lr=0, learning_rate=0)
    assert "no-learning-rate" in codes(found, "error")


@pytest.mark.parametrize("given", [0, "", "0"])
def test_steps_of_zero_are_computed(given: Any) -> None:
    found = draft(max_train_steps=given, epoch=7)
    assert (found.gui_steps, "max_train_steps" in found.arguments) == (GuiSteps(7), False)


def test_missing_steps_are_todays_with_a_warning_that_names_the_way_out() -> None:
    found = read('{"LoRA_type": "Standard", "lr_warmup": 0}')
    warning = next(problem for problem in found.problems if problem.code == "steps-not-in-file")
    assert (found.gui_steps, value(found, "max_train_steps")) == (None, 1600)
    assert "--set max_train_steps=0" in (warning.fix or "")


def test_set_to_zero_computes() -> None:
    assert read('{"LoRA_type": "Standard"}', overrides={"max_train_steps": "0"}).gui_steps == GuiSteps(1)


def test_epochs_beat_steps() -> None:
    found = draft(max_train_steps="", max_train_epochs="10")
    assert (found.gui_steps, value(found, "max_train_epochs")) == (None, 10)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"lr_warmup": 10}, 0.1),
        ({"lr_warmup": 10, "lr_warmup_steps": 50}, 50),
        ({"lr_warmup": 0}, None),
        ({"lr_warmup": 100}, 1.0),
        ({"lr_warmup": 10, "dataset_config": "d.toml"}, 10),
        ({"lr_warmup": 10, "lr_scheduler": "constant"}, None),
    ],
)
def test_warmup(values: dict[str, Any], expected: float | None) -> None:
    assert value(draft(**values), "lr_warmup_steps") == expected


def test_a_whole_warmup_of_unknown_length_stays_a_share() -> None:
    share = value(draft(lr_warmup=100, max_train_steps=0), "lr_warmup_steps")
    assert (share, type(share)) == (1.0, float)


def test_missing_warmup_is_ten_per_cent_with_a_warning() -> None:
    assert "warmup-not-in-file" in codes(read('{"LoRA_type": "Standard", "max_train_steps": 9}'), "warning")


@pytest.mark.parametrize(("given", "name"), [("xformers", "xformers"), (True, "xformers"), ("sdpa", "sdpa")])
def test_attention(given: Any, name: str) -> None:
    assert value(draft(xformers=given), name) is True


@pytest.mark.parametrize("given", [False, "none", ""])
def test_no_attention(given: Any) -> None:
    assert not {"xformers", "sdpa"} & draft(xformers=given).arguments.keys()


def test_only_one_noise_group_counts() -> None:
    noise = {"noise_offset": 0.05, "multires_noise_iterations": 6, "multires_noise_discount": 0.2}
    assert "multires_noise_iterations" not in draft(**noise).arguments
    assert "noise_offset" not in draft(**noise, noise_offset_type="Multires").arguments


def test_sdxl_keys_need_the_box() -> None:
    assert "no_half_vae" not in draft(sdxl_no_half_vae=True).arguments
    assert value(draft(sdxl_no_half_vae=True, sdxl=True), "no_half_vae") is True


def test_optimizer_arguments_lose_their_quotes() -> None:
    found = draft(optimizer_args='"d0=1e-5" "betas=0.9,0.99"')
    assert value(found, "optimizer_args") == ("d0=1e-5", "betas=0.9,0.99")


@pytest.mark.parametrize("text", ["a=1  b=2", " a=1", "a=1 ", "a = 1", "a"])
def test_argument_text_that_kohya_refuses(text: str) -> None:
    assert "bad-arguments-text" in codes(draft(optimizer_args=text), "error")


def test_additional_parameters_win_and_are_told() -> None:
    found = draft(additional_parameters='--max_grad_norm=0 --lr_scheduler_args "T_max=9" "eta_min=0"')
    assert (value(found, "max_grad_norm"), value(found, "lr_scheduler_args")) == (0.0, ("T_max=9", "eta_min=0"))
    assert found.arguments["max_grad_norm"].key == "additional_parameters"
    assert "overridden" in codes(found, "note")


def test_prompts_are_carried_as_text() -> None:
    found = draft(sample_prompts="a cat --w 512\n", sample_every_n_epochs=1)
    assert (found.prompts, value(found, "sample_every_n_epochs")) == ("a cat --w 512\n", 1)


def test_without_prompts_there_are_no_previews() -> None:
    found = draft(sample_prompts="# none\n", sample_every_n_epochs=1)
    assert (found.prompts, value(found, "sample_every_n_epochs")) == (None, None)


def test_prompts_can_be_a_file_of_the_free_words() -> None:
    found = draft(sample_prompts="a cat", additional_parameters="--sample_prompts p.txt")
    assert (found.prompts, value(found, "sample_prompts")) == (None, "p.txt")


def test_launch_words() -> None:
    extra = '--main_process_ip "10.0.0.1" --same_network'
    found = draft(num_processes=2, multi_gpu=True, extra_accelerate_launch_args=extra)
    assert (found.accelerate["num_processes"], found.accelerate["multi_gpu"]) == (2, True)
    assert (found.accelerate["main_process_ip"], found.accelerate["same_network"]) == ("10.0.0.1", True)


@pytest.mark.parametrize(
    ("box", "family"),
    [("v2", "sd2"), ("sdxl", "sdxl"), ("flux1_checkbox", "flux"), ("sd3_checkbox", "sd3"), ("flip_aug", "sd15")],
)
def test_family_by_boxes(box: str, family: str) -> None:
    assert draft(**{box: True, "LoRA_type": "Flux1" if box.startswith("flux") else "Standard"}).family == family


def test_a_named_model_sets_a_missing_box() -> None:
    found = draft(pretrained_model_name_or_path="stabilityai/stable-diffusion-xl-base-1.0")
    assert found.family == "sdxl"


def test_a_named_velocity_model_sets_both_boxes() -> None:
    found = draft(pretrained_model_name_or_path="stabilityai/stable-diffusion-2-1")
    assert (found.family, value(found, "v2"), value(found, "v_parameterization")) == ("sd2", True, True)


def test_a_lycoris_preset_that_kohya_refuses_is_told() -> None:
    assert "lycoris-preset" in codes(draft(LyCORIS_preset="unet-only"), "warning")
    assert "lycoris-preset" not in codes(draft(LyCORIS_preset="my.toml"))


def test_a_box_against_the_named_model_is_told() -> None:
    found = draft(pretrained_model_name_or_path="runwayml/stable-diffusion-v1-5", sdxl=True)
    assert "model-and-boxes" in codes(found, "warning")


def test_arguments_of_other_families_are_carried() -> None:
    found = draft(flux1_checkbox=True, LoRA_type="Flux1", guidance_scale=1.0, ae="ae.sft")
    assert found.carry["arguments"]["ae"] == "ae.sft"
    assert "other-family" in codes(found, "warning")


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ({"token_string": "zxc", "init_word": "*"}, "textual-inversion"),
        ({"train_dir": "d", "image_folder": "i"}, "finetune"),
        ({"learning_rate_te": 1e-5}, "dreambooth"),
        ({"network_dim": 4}, "lora"),
        ({"LoRA_type": "Standard", "learning_rate_te": 1e-5}, "lora"),
        ({}, "lora"),
    ],
)
def test_presets_of_other_tabs(values: dict[str, Any], kind: str) -> None:
    found = read(json.dumps(values))
    assert found.kind == kind
    assert ("not-a-lora-preset" in codes(found, "error")) == (kind != "lora")


def test_a_whole_form_without_lora_keys_is_dreambooth() -> None:
    network = {name for name, key in keys().items() if key.role == "network"}
    others = {name: value for name, value in defaults().items() if name not in network}
    for name in ("LoRA_type", "network_dim", "network_alpha", "unet_lr"):
        del others[name]
    assert read(json.dumps(others)).kind == "dreambooth"


def test_leco_presets_are_no_lora_presets() -> None:
    assert "not-a-lora-preset" in codes(read('{"max_denoising_steps": 40, "network_dim": 4}'), "error")


@pytest.mark.parametrize(
    ("family", "kind", "good"),
    [("sdxl", "Kohya LoHa", True), ("v2", "Kohya LoHa", False), ("flux1_checkbox", "Standard", False),
     ("flux1_checkbox", "LyCORIS/LoKr", True), ("sdxl", "Flux1", False)],
)  # fmt: skip
def test_types_that_kohya_refuses_for_a_model(family: str, kind: str, good: bool) -> None:
    assert ("lora-type-family" not in codes(draft(**{family: True, "LoRA_type": kind}), "error")) == good


def test_bad_values_have_line_and_key() -> None:
    found = read('{\n"LoRA_type": "Standard",\n"network_dim": "wide",\n"epoch": [2]\n}')
    bad = {(problem.key, problem.line) for problem in found.problems if problem.code == "bad-value"}
    assert bad == {("network_dim", 3), ("epoch", 4)}


def test_choices_of_the_trainer_are_checked() -> None:
    assert "bad-value" in codes(draft(mixed_precision="fp64"), "error")
    assert "bad-value" in codes(draft(loss_type="l3"), "error")


def test_secrets_reach_the_trainer_and_nothing_else() -> None:
    token = "hf_" + "a" * 20
    found = draft(
        huggingface_token=token, wandb_api_key="k" * 12, training_comment=token, vae=token, network_dim=token,
        additional_parameters=f"--wandb_api_key={token} --huggingface_token {token} --oops {token}",
    )  # fmt: skip
    assert value(found, "huggingface_token") == token
    shown = "".join(map(str, [*found.problems, *found.keys.values(), found.carry]))
    assert token not in shown
    assert "k" * 12 not in shown


def test_repeated_keys_and_schema_key() -> None:
    found = read('{"$schema": "s", "network_dim": 4,\n"network_dim": 8, "LoRA_type": "Standard"}')
    assert (value(found, "network_dim"), found.keys["$schema"].status) == (8, "gui-only")
    assert "duplicate-key" in codes(found, "warning")


def test_overrides_are_typed_over_the_file() -> None:
    found = draft({"LoRA_type": "LyCORIS/LoHa", "sdxl": "true", "xformers": "sdpa"}, sdxl=False)
    assert (found.family, value(found, "network_module"), value(found, "sdpa")) == ("sdxl", "lycoris.kohya", True)
    assert found.arguments["network_module"].origin == "--set"
    assert found.keys["LoRA_type"].status == "used"
    assert read("{}", overrides={"no_such": "1"}).keys["no_such"].status == "unknown"
