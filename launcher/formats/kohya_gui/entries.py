"""From the form to what Kohya starts: the trainer's TOML, the launch words, the whole command."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from launcher.formats.base import Draft, DraftBuilder
from launcher.formats.kohya_gui.form import Form
from launcher.formats.kohya_gui.networks import module_of, pairs_of, words_of
from launcher.formats.kohya_gui.table import defaults, keys, unset

SCRIPTS = {
    "sd": "train_network.py",
    "sdxl": "sdxl_train_network.py",
    "flux": "flux_train_network.py",
    "sd3": "sd3_train_network.py",
    "hunyuan-image": "hunyuan_image_train_network.py",
    "anima": "anima_train_network.py",
    "lumina": "lumina_train_network.py",
}
# Entries the form writes although the LoRA trainers know no such argument.
IDLE_ENTRIES = ("epoch", "noise_offset_type", "mem_eff_save", "single_blocks_to_swap", "double_blocks_to_swap")
NOISE = {
    "Original": ("noise_offset", "noise_offset_random_strength", "adaptive_noise_scale"),
    "Multires": ("multires_noise_iterations", "multires_noise_discount"),
}
LISTS = ("optimizer_args", "lr_scheduler_args")
WHOLE = ("min_bucket_reso", "persistent_data_loader_workers")
SPECIAL = {
    "LoRA_type", "max_train_steps", "epoch", "lr_warmup", "lr_warmup_steps", "text_encoder_lr", "unet_lr", "t5xxl_lr",
    "xformers", "sample_prompts", "wandb_run_name", "model_type", "show_timesteps_resolution", *LISTS,
    *NOISE["Original"], *NOISE["Multires"],
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One argument as the form means it, before zeros are left out, and the form's key behind it."""

    value: Any
    key: str


def entries(form: Form) -> dict[str, Entry]:
    """Every argument by name, zeros included; `max_train_steps` is missing where it has to be computed."""
    family, values = form.family, form.values
    found: dict[str, Entry] = {}
    for name, key in keys().items():
        if key.role != "argument" or not key.current or name in SPECIAL or not key.counts_for(family):
            continue
        value = int(values[name] or 0) if name in WHOLE else values[name]
        found[key.argument or name] = Entry(value, name)
    for name in NOISE.get(values["noise_offset_type"], ()):
        found[name] = Entry(values[name], name)
    if unset(values["noise_offset"]):
        found.pop("adaptive_noise_scale", None)
    for name in LISTS:
        found[name] = Entry(str(values[name]).replace('"', "").split(), name)
    found["xformers"] = Entry(values["xformers"] == "xformers", "xformers")
    found["sdpa"] = Entry(values["xformers"] == "sdpa", "xformers")
    name = values["wandb_run_name"]
    found["wandb_run_name"] = Entry(name or values["output_name"], "wandb_run_name" if name else "output_name")
    for name in ("epoch", "noise_offset_type", "dynamo_backend"):
        found[name] = Entry(values[name], name)
    found |= _network(form) | _rates(form) | _length(form)
    _narrow(form, found)
    return found


def _network(form: Form) -> dict[str, Entry]:
    words = words_of(pairs_of(form.values, form.family))
    return {
        "network_module": Entry(module_of(form.values, form.family), "LoRA_type"),
        "network_args": Entry(words, "LoRA_type"),
    }


def _rates(form: Form) -> dict[str, Entry]:
    """Which part learns, and how fast (the form's table of three rates)."""
    text, unet, second = (form[name] or 0 for name in ("text_encoder_lr", "unet_lr", "t5xxl_lr"))
    found = {"unet_lr": Entry(unet, "unet_lr")}
    if text > 0:
        found["text_encoder_lr"] = Entry([text, second if second > 0 else text], "text_encoder_lr")
    if form.family == "hunyuan-image" or (text == 0 and unet != 0):
        found["network_train_unet_only"] = Entry(True, "text_encoder_lr")
    elif text != 0 and unet == 0:
        found["network_train_text_encoder_only"] = Entry(True, "unet_lr")
    return found


def _length(form: Form) -> dict[str, Entry]:
    """Steps and warmup; a warmup in per cent stays a share, which the trainer multiplies by the steps."""
    found: dict[str, Entry] = {}
    steps = form["max_train_steps"] or 0
    if steps:
        found["max_train_steps"] = Entry(steps, "max_train_steps")
    if (form["lr_warmup_steps"] or 0) > 0:
        found["lr_warmup_steps"] = Entry(int(form["lr_warmup_steps"]), "lr_warmup_steps")
    else:
        per_cent = form["lr_warmup"] or 0
        whole = bool(form["dataset_config"]) and steps > 0
        found["lr_warmup_steps"] = Entry(round(per_cent * steps / 100) if whole else per_cent / 100, "lr_warmup")
    return found


def _narrow(form: Form, found: dict[str, Entry]) -> None:
    """What single families add and leave out."""
    family = form.family
    if family == "flux" and form["model_type"] == "chroma":
        found["model_type"] = Entry("chroma", "model_type")
        found["apply_t5_attn_mask"] = Entry(True, "model_type")
        found.pop("clip_l", None)
    if found.get("attn_mode") and found["attn_mode"].value == "torch":
        del found["attn_mode"]
    if not form["anima_compile"]:
        for name in [name for name in found if name.startswith("compile")]:
            del found[name]
    elif found.get("compile_dynamic") and found["compile_dynamic"].value == "auto":
        del found["compile_dynamic"]
    if found.get("show_timesteps") and found["show_timesteps"].value:
        found["show_timesteps_resolution"] = Entry(form["show_timesteps_resolution"], "show_timesteps_resolution")


def gui_steps(form: Form, pictures: int) -> int:
    """max_train_steps as the form computes it; `pictures` is the sum of repeats x images over the folders."""
    batch, parts = form["train_batch_size"] or 1, form["gradient_accumulation_steps"] or 1
    return math.ceil(pictures / batch / parts * (form["epoch"] or 0) * (2 if form["reg_data_dir"] else 1))


def form_of(source: Form | Draft | DraftBuilder) -> Form:
    """The loaded form, also that behind a draft (without its secrets)."""
    return source if isinstance(source, Form) else Form({**defaults(), **source.carry.get("form", {})})


def gui_toml(source: Form | Draft | DraftBuilder, pictures: int | None = None) -> dict[str, Any]:
    """The TOML that Kohya writes for the trainer, sorted by name.

    `pictures`: sum of repeats x images, needed where max_train_steps is 0 and no dataset_config is given.
    """
    form = form_of(source)
    found = {name: entry.value for name, entry in entries(form).items()}
    if "max_train_steps" not in found and not form["dataset_config"] and pictures is not None:
        found["max_train_steps"] = gui_steps(form, pictures)
    found["sample_prompts"] = f"{form['output_dir']}/sample/prompt.txt"
    kept = {name: value for name, value in found.items() if isinstance(value, list) or not unset(value)}
    kept["max_data_loader_n_workers"] = form["max_data_loader_n_workers"]
    if kept.get("model_type") == "chroma":
        kept["guidance_scale"] = form["guidance_scale"]
    return dict(sorted(kept.items()))


def launch_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `accelerate launch` in the form's order; True stands for a bare flag."""
    found: dict[str, Any] = {}
    for name in ("dynamo_backend", "dynamo_mode"):
        if values[name]:
            found[name] = values[name]
    for name in ("dynamo_use_fullgraph", "dynamo_use_dynamic"):
        if values[name]:
            found[name] = True
    found["extra"] = None  # stands for the place of the free words
    if values["gpu_ids"]:
        found["gpu_ids"] = values["gpu_ids"]
    if (values["main_process_port"] or 0) > 0:
        found["main_process_port"] = int(values["main_process_port"])
    if values["mixed_precision"]:
        found["mixed_precision"] = values["mixed_precision"]
    if values["multi_gpu"]:
        found["multi_gpu"] = True
    for name in ("num_processes", "num_machines", "num_cpu_threads_per_process"):
        if (values[name] or 0) > 0:
            found[name] = int(values[name])
    return found


def free_words(text: str) -> list[str]:
    """Free text of the form as words: double quotes vanish, blanks separate."""
    return str(text).replace('"', "").split()


def gui_command(source: Form | Draft | DraftBuilder, config_file: str, scripts: str = "") -> list[str]:
    """The command Kohya starts. `scripts` is the sd-scripts folder; free words are shell-quoted, as Kohya does."""
    form = form_of(source)
    words = ["accelerate", "launch"]
    for name, value in launch_options(form.values).items():
        if name == "extra":
            words += [shlex.quote(word) for word in free_words(form["extra_accelerate_launch_args"])]
        else:
            words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    script = SCRIPTS[form.family]
    words.append(f"{scripts.rstrip('/')}/{script}" if scripts else script)
    words += ["--config_file", config_file]
    return words + [shlex.quote(word) for word in free_words(form["additional_parameters"])]
