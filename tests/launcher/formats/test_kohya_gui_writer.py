"""Arguments to a form JSON and back."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from launcher.formats.kohya_gui import defaults, dumps, read, write
from launcher.formats.kohya_gui.writer import same
from schemas.config import Option, from_flat, table, to_flat

FORM = {"LoRA_type": "Standard", "optimizer": "AdamW8bit", "max_train_steps": 100, "lr_warmup": 5}


def effective(arguments: dict[str, Any]) -> dict[str, Any]:
    return to_flat(from_flat(arguments)[0], defaults=True)


def back(document: dict[str, Any]) -> dict[str, Any]:
    found = read(dumps(document))
    assert [str(problem) for problem in found.problems if problem.severity == "error"] == []
    return effective({name: setting.value for name, setting in found.arguments.items()})


def test_every_key_of_the_form_and_no_other_is_written() -> None:
    document, lost = write({}, family="sd15")
    assert (set(document), lost) == (set(defaults()), [])


def test_the_text_is_as_kohya_writes_it() -> None:
    assert dumps({"b": "é", "a": 1}) == '{\n  "a": 1,\n  "b": "\\u00e9"\n}\n'


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"max_grad_norm": 0.0}, "--max_grad_norm=0"),
        ({"lr_warmup_steps": 0.125}, "--lr_warmup_steps=0.125"),
        ({"lr_warmup_steps": 0.25, "lr_scheduler": "cosine"}, ""),
        ({"lr_warmup_steps": 0.25}, "--lr_warmup_steps=0.25"),
        ({"lr_warmup_steps": 30, "lr_scheduler": "cosine"}, ""),
        ({"zero_terminal_snr": True}, "--zero_terminal_snr"),
        ({"caption_dropout_rate": 0.1, "noise_offset": 0.05}, ""),
        ({"noise_offset": 0.05, "multires_noise_iterations": 6}, "--multires_noise_iterations=6"),
        ({"sdpa": True, "xformers": True}, "--sdpa"),
        ({"no_half_vae": True}, "--no_half_vae"),
        ({"network_module": "networks.lora", "network_args": ("conv_dim=8", "conv_alpha=4")}, ""),
        ({"network_module": "networks.oft"}, "--network_module=networks.oft"),
        ({"network_args": ("oops=1",)}, "--network_args oops=1"),
        ({"unet_lr": 1e-4, "text_encoder_lr": (5e-5,), "learning_rate": 1e-4}, ""),
        ({"unet_lr": 1e-4, "network_train_unet_only": True}, ""),
        ({"unet_lr": 0.0, "text_encoder_lr": (5e-5,), "learning_rate": 1e-4}, "--unet_lr=0"),
        ({"save_model_as": "pt"}, "--save_model_as=pt"),
    ],
)
def test_what_the_form_cannot_say_goes_into_its_free_words(arguments: dict[str, Any], words: str) -> None:
    document, lost = write(arguments, family="sd15")
    assert (document["additional_parameters"], lost) == (words, [])
    assert same(back(document)) == same(effective(arguments))


def test_what_nothing_can_say_is_listed() -> None:
    document, lost = write({"metadata_trigger_phrase": "two words", "no_such_argument": 3}, family="sd15")
    assert [entry.split(" = ")[0] for entry in lost] == ["no_such_argument", "metadata_trigger_phrase"]
    assert "two words" not in dumps(document)


def test_secrets_are_never_written() -> None:
    document, lost = write({"wandb_api_key": "k" * 12}, family="sd15", carry={"form": {"huggingface_token": "t" * 9}})
    assert lost == ["wandb_api_key = ***: secrets are never written"]
    assert "k" * 12 not in dumps(document)
    assert document["huggingface_token"] == ""


def test_prompts_and_launch_words() -> None:
    words = {"num_processes": 2, "machine_rank": 1, "main_process_ip": "10.0.0.1", "cpu": False}
    document, _ = write({}, family="sdxl", accelerate=words, prompts="a cat\n")
    assert (document["sample_prompts"], document["num_processes"], document["sdxl"]) == ("a cat\n", 2, True)
    assert document["extra_accelerate_launch_args"] == "--machine_rank=1 --main_process_ip=10.0.0.1"


def test_carried_values_come_back_and_further_keys_are_written() -> None:
    found = read(json.dumps({**FORM, "guidance_scale": 1.0, "conv_dim": 9}))
    arguments = {name: setting.value for name, setting in found.arguments.items()}
    document, _ = write(arguments, family="sd15", carry={**found.carry, "extra": {"$schema": "s"}})
    assert (document["guidance_scale"], document["conv_dim"], document["$schema"]) == (1.0, 9, "s")


def test_steps_that_the_form_computes_stay_so() -> None:
    found = read(json.dumps({**FORM, "max_train_steps": 0, "epoch": 5}))
    arguments = {name: setting.value for name, setting in found.arguments.items()}
    document, _ = write(arguments, family="sd15", carry=found.carry)
    assert read(dumps(document)).gui_steps == found.gui_steps
    assert write({**arguments, "max_train_steps": 70}, family="sd15", carry=found.carry)[0]["max_train_steps"] == 70


def test_flux_arguments_find_their_keys() -> None:
    document, lost = write({"ae": "ae.sft", "network_module": "networks.lora_flux"}, family="flux")
    assert (document["ae"], document["LoRA_type"], lost) == ("ae.sft", "Flux1", [])


PRESETS: dict[str, dict[str, Any]] = {
    "oldest": {"use_8bit_adam": True, "network_dim": 128, "lora_network_weights": "", "xformers": True, "epoch": "1",
               "learning_rate": "0.0001", "text_encoder_lr": "5e-5", "unet_lr": "0.0001", "caption_extention": ".txt"},
    "lokr": {**FORM, "LoRA_type": "LyCORIS/LoKr", "factor": 6, "conv_dim": 100000, "network_dim": 100000,
             "optimizer": "Prodigy", "optimizer_args": '"d0=1e-5" "decouple=True"',
             "additional_parameters": '--lr_scheduler_type "CosineAnnealingLR" --lr_scheduler_args "T_max=1000"'},
    "ia3": {**FORM, "LoRA_type": "LyCORIS/iA3", "train_on_input": False},
    "unet-only": {**FORM, "sdxl": True, "sdxl_no_half_vae": True, "additional_parameters": "--network_train_unet_only"},
    "text-only": {**FORM, "unet_lr": 0, "text_encoder_lr": 1e-4},
    "blocks": {**FORM, "block_dims": "2,4", "down_lr_weight": "0,1", "loraplus_lr_ratio": 16},
    "multires": {**FORM, "noise_offset_type": "Multires", "multires_noise_iterations": 8, "noise_offset": 0.05},
    "prompts": {**FORM, "sample_prompts": "a\nb", "sample_every_n_steps": 25, "wandb_run_name": "w", "log_with": "all"},
}  # fmt: skip


@pytest.mark.parametrize("with_carry", [True, False])
@pytest.mark.parametrize("name", PRESETS)
def test_presets_come_back(name: str, with_carry: bool) -> None:
    found = read(json.dumps(PRESETS[name]))
    arguments = {name: setting.value for name, setting in found.arguments.items()}
    carry = found.carry if with_carry else {}
    document, lost = write(
        arguments, family=found.family or "", carry=carry, accelerate=found.accelerate, prompts=found.prompts
    )
    again = read(dumps(document))
    assert lost == []
    assert (again.family, again.accelerate, again.prompts) == (found.family, found.accelerate, found.prompts)
    assert same(back(document)) == same(effective(arguments))


def drawn(option: Option, dice: random.Random) -> Any:
    """A value the option takes."""
    low, high = option.marks.get("ge", option.marks.get("gt", 0)), option.marks.get("le", 9)
    if option.choices:
        return dice.choice(option.choices)
    if option.kind is bool:
        return dice.random() < 0.5
    if option.kind is int:
        return dice.randint(int(low) + ("gt" in option.marks), int(max(high, low + 5)))
    if option.kind is str:
        return ("a=1", "b=0.5,0.9") if option.many else "text"
    number = dice.choice([low if "ge" in option.marks else 0.25, min(high, 0.375)])
    return (number, 0.2) if option.many else number


@pytest.mark.parametrize("seed", range(40))
def test_drawn_arguments_come_back_or_are_listed(seed: int) -> None:
    dice = random.Random(seed)
    names = [name for name, option in table().items() if not option.secret and not option.kit]
    arguments = {name: drawn(table()[name], dice) for name in dice.sample(names, dice.choice([1, 8, 60]))}
    document, lost = write(arguments, family="sdxl")
    want, got = same(effective(arguments)), same(back(document))
    listed = {entry.split(" = ")[0] for entry in lost} | {"config_file", "output_config"}
    assert {name for name in want if want[name] != got[name]} <= listed
    assert len(lost) <= 2
