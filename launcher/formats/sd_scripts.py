"""The training TOML of sd-scripts (`--config_file`): flat or with sections, which mean nothing. Names are arguments.

Facts: format notes sections 1, 9, 10.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from launcher.formats import toml_text
from launcher.formats.base import DraftBuilder, Fate, Kind, Setting, Status
from launcher.formats.kohya_gui.table import keys as gui_keys
from launcher.formats.registry import Keys
from schemas.config import BadValue, flatten, read_value, table
from schemas.problems import Problem

# keys that a Kohya GUI leaves in its run files and no LoRA trainer reads
LEFTOVERS: dict[str, str] = {
    "epoch": "the GUI's own count, from which it computes max_train_steps",
    "noise_offset_type": "the GUI's own choice; the values it leads to stand beside it",
    "mem_eff_save": "no LoRA trainer reads it",
    "lowvram": "no trainer reads it",
    "learning_rate_te": "LoRA training has text_encoder_lr",
    "learning_rate_te1": "LoRA training has text_encoder_lr",
    "learning_rate_te2": "LoRA training has text_encoder_lr",
    "no_token_padding": "not an argument of LoRA training",
    "extra_accelerate_launch_args": "the GUI's own",
    "additional_parameters": "the GUI's own",
    "bucket_reso": "no trainer reads it",
    "logging_level": "no trainer reads it",
    "sdxl": "the checkpoint decides it",
    "sdxl_no_half_vae": "the GUI's own; the argument is no_half_vae",
    "sdxl_cache_text_encoder_outputs": "the GUI's own; the argument is cache_text_encoder_outputs",
    "max_train_step": "no trainer reads it",
    "num_cpu_threads_per_process": "an option of accelerate launch, which reads no such file",
    "train_inpainting": "newer trainers mask the pictures with it; here the whole picture is learnt",
    # of a fork whose trainer compared with negative samples
    "enable_contrastive": "an option of one fork's trainer",
    "negative_sampling_method": "an option of one fork's trainer",
    "noise_strength": "an option of one fork's trainer",
    "contrastive_weight": "an option of one fork's trainer",
    "contrastive_warmup_steps": "an option of one fork's trainer",
}
# leftovers whose absence changes what is trained: said aloud when they are on
MISSED = ("train_inpainting", "enable_contrastive")
# arguments of the reference's trainers for other families and kinds of training
FAMILY_KEYS: dict[str, tuple[str, ...]] = {
    "flux": (
        "ae", "clip_l", "t5xxl", "guidance_scale", "discrete_flow_shift", "model_prediction_type", "sigmoid_scale",
        "timestep_sampling", "blocks_to_swap", "single_blocks_to_swap", "double_blocks_to_swap", "apply_t5_attn_mask",
        "t5xxl_max_token_length", "t5xxl_lr", "t5xxl_device", "t5xxl_dtype", "split_mode", "train_blocks", "split_qkv",
        "train_t5xxl", "weighting_scheme", "logit_mean", "logit_std", "mode_scale", "flux1_checkbox",
    ),
    "sd3": (
        "clip_g", "pos_emb_random_crop_rate", "clip_l_dropout_rate", "clip_g_dropout_rate", "t5_dropout_rate",
        "training_shift", "enable_scaled_pos_embed", "save_clip", "save_t5xxl",
    ),
}  # fmt: skip
KIND_KEYS: dict[str, Kind] = {
    "token_string": "textual-inversion",
    "init_word": "textual-inversion",
    "num_vectors_per_token": "textual-inversion",
    "use_object_template": "textual-inversion",
    "use_style_template": "textual-inversion",
    "train_text_encoder": "finetune",
    "diffusers_xformers": "finetune",
    "block_lr": "finetune",
}
RENAMED = {
    "lr_restart_cycles": "lr_scheduler_num_cycles",
    "batch_size": "train_batch_size",
    "num_repeats": "dataset_repeats",
}
MODULE_FAMILIES = {
    "lora_flux": "flux",
    "oft_flux": "flux",
    "lora_sd3": "sd3",
    "lora_lumina": "lumina",
    "lora_anima": "anima",
    "lora_hunyuan": "hunyuan",
}
MOST_ITEMS = 1000
ON_WORDS = ("xformers", "sdpa", "on", "yes")
OFF_WORDS = ("none", "no", "off")


def read(text: str, *, file: str | None = None, overrides: Mapping[str, Any] | None = None) -> DraftBuilder:
    """The draft of a training TOML. `overrides` are ignored: this format has no keys of its own."""
    document = _document(text, file)
    draft = DraftBuilder(format="sd-scripts", file=file, problems=document.problems)
    for name, value in document.values.items():
        if isinstance(value, Mapping):
            for inner, deep in value.items():
                place(draft, inner, deep, document.lines.get(f"{name}.{inner}"))
        else:
            place(draft, name, value, document.lines.get(name))
    draft.family, draft.kind = family_and_kind(draft)
    draft.document = flatten(document.values)
    return draft


def _document(text: str, file: str | None) -> Any:
    """TOML, or the same arguments as a JSON object."""
    if not text.lstrip().startswith("{"):
        return toml_text.parse(text, file)
    from launcher.formats.kohya_gui.document import parse

    found = parse(text, file=file)
    return toml_text.Document(found.values, found.lines, list(found.problems))


def place(draft: DraftBuilder, key: str, value: Any, line: int | None = None, *, label: str | None = None) -> None:
    """Files one key: as argument, as leftover, or as unknown. `label` is its name in the file where that differs."""
    label = label or key
    if line is not None:
        draft.lines[label] = line
    if isinstance(value, Mapping):
        draft.keys[label] = Fate("unknown", None, None, "a table inside a section is not read by sd-scripts")
        draft.problems.append(
            Problem(
                code="nested-table",
                severity="warning",
                must="is a table inside a section, which sd-scripts does not read",
                key=label,
                file=draft.file,
                line=line,
                fix="move its keys to the top",
            )
        )
        return
    name = RENAMED.get(key, key)
    if key == "$schema":
        draft.keys[label] = Fate("gui-only", None, None, "tells editors the schema")
    elif name == "dynamo_backend" and value == "no":
        draft.keys[label] = Fate("no-effect", name, None, "no is accelerate's word for not compiling")
    elif name in table():
        accept(draft, name, value, label, line)
    elif key in LEFTOVERS:
        if key == "sdxl" and value is True:
            draft.carry["sdxl"] = True
        draft.keys[label] = Fate("no-effect", None, None, LEFTOVERS[key])
        if key in MISSED and value not in (False, "", 0, None):
            place: dict[str, Any] = {"key": label, "file": draft.file, "line": line, "got": value}
            must = f"has no effect: {LEFTOVERS[key]}"
            draft.problems.append(Problem(code="no-effect", severity="warning", must=must, **place))
    elif (family := family_of(key)) is not None:
        draft.keys[label] = Fate("other-family", None, None, f"an argument for {family}")
    elif key in KIND_KEYS:
        draft.keys[label] = Fate("no-effect", None, None, f"an argument of {KIND_KEYS[key]} training")
    else:
        unknown(draft, label, key, line)


def family_of(key: str) -> str | None:
    """The families whose trainer knows an argument that the one here does not."""
    for family, names in FAMILY_KEYS.items():
        if key in names:
            return family
    found = dict.fromkeys(
        family for one in gui_keys().values() if key in (one.name, one.argument) for family in one.only
    )
    return " and ".join(found) or None


def unknown(draft: DraftBuilder, label: str, key: str, line: int | None) -> None:
    """Reports a key that nobody knows, with the nearest name."""
    guess = draft.guess(key, table())
    draft.keys[label] = Fate("unknown", None, None, f"did you mean {guess}?" if guess else "no trainer reads it")
    draft.problems.append(
        Problem(
            code="unknown-key",
            severity="warning",
            must="is not a known option and is passed over",
            key=label,
            file=draft.file,
            line=line,
            fix=f"did you mean {guess}?" if guess else f"remove {label}",
        )
    )


def accept(draft: DraftBuilder, name: str, value: Any, label: str, line: int | None) -> None:
    """Files an argument's value, read as the reference reads it; an unreadable one is left for `resolve` to refuse."""
    option = table()[name]
    name, value, said = _lenient(name, value)
    if isinstance(value, (list, tuple)) and len(value) > MOST_ITEMS:
        place: dict[str, Any] = {"key": label, "file": draft.file, "line": line}
        must = f"must be a list of at most {MOST_ITEMS} entries (it has {len(value)})"
        draft.problems.append(Problem(code="bad-value", must=must, fix=f"shorten {label}", **place))
        draft.keys[label] = Fate("no-effect", name, None, "its value cannot be read")
        return
    if said:
        draft.problems.append(
            Problem(code="unusual-value", severity="warning", must=said, key=label, file=draft.file, line=line)
        )
    shown: Any = value
    try:
        value, note = read_value(table()[name], value)
        shown = list(value) if isinstance(value, tuple) else value
        if note:
            draft.problems.append(
                Problem(code="unusual-spelling", severity="note", must=note, key=label, file=draft.file, line=line)
            )
    except BadValue:
        pass
    status: Status = "used" if name == label.rpartition(".")[2] else "renamed"
    draft.arguments[name] = Setting(value, "file", label)
    draft.keys[label] = Fate(status, name, "***" if option.secret and value else shown)


def _lenient(name: str, value: Any) -> tuple[str, Any, str | None]:
    """(argument, value, what was odd): spellings found in shared files."""
    option = table()[name]
    word = value.strip().lower() if isinstance(value, str) else None
    if option.kind is bool and word:
        if name == "xformers" and word in ("sdpa", "mem_eff_attn"):
            return word, True, f"read as {word}"
        if word in ON_WORDS or word == name:
            return name, True, "any text turns a flag on; write true"
        if word in OFF_WORDS or word in ("false", "0"):
            return name, False, f"{value!r} is read as off, although sd-scripts would turn the option on; write false"
    if option.many and isinstance(value, str):
        said = "is one text where sd-scripts wants a list; read as its items" if value.strip() else None
        return name, split_pairs(value), said
    if name == "save_precision" and word in ("fp32", "float32"):
        return name, "float", f"{value} is read as float, the word that sd-scripts knows"
    if option.marks.get("ratio") and isinstance(value, float) and value > 1 and value.is_integer():
        return (
            name,
            int(value),
            f"{value} is read as {int(value)} steps; sd-scripts takes a decimal as a share of the run",
        )
    if name == "vae_batch_size" and value in (0, "0") and value is not False:
        return name, 1, "0 is read as 1: one picture at a time"
    if name == "max_token_length" and str(value) == "255":
        return name, 225, "255 is not a length that sd-scripts knows; read as 225"
    return name, value, None


def split_pairs(text: str) -> list[str]:
    """The `name=value` items of one text, separated by blanks or by commas that a `name=` follows."""
    text = re.sub(r",\s*(?=[A-Za-z_]\w*\s*=)", "\n", text.strip())
    items = [part for chunk in text.split("\n") for part in re.split(r"\s+(?=[A-Za-z_]\w*\s*=)", chunk)]
    if len(items) == 1 and "=" not in text:
        items = text.split()
    return [item.strip().strip("\"'") for item in items if item.strip()]


def family_and_kind(draft: DraftBuilder) -> tuple[str | None, Kind]:
    """What the keys themselves say of model family and kind of training; None where only the checkpoint can tell."""
    given = {name: setting.value for name, setting in draft.arguments.items()}
    module = str(given.get("network_module") or "")
    family = next((one for part, one in MODULE_FAMILIES.items() if part in module), None)
    for one in ("sd3", "flux"):
        telling = [key for key in ("clip_g", "ae", "t5xxl") if key in FAMILY_KEYS[one] and key in draft.keys]
        family = family or (one if telling else None)
    if family is None and (given.get("cache_text_encoder_outputs") or given.get("cache_text_encoder_outputs_to_disk")):
        family = "sdxl"
    if family is None and ("sdxl" in draft.carry or given.get("disable_mmap_load_safetensors")):
        family = "sdxl"
    if family is None and given.get("v2") is True:
        family = "sd2"
    kind: Kind = "lora"
    if not module and not given.get("network_dim"):
        named = [KIND_KEYS[key] for key in draft.keys if key in KIND_KEYS]
        if named:
            kind = named[0]
        elif given.get("in_json") and "learning_rate_te" in draft.keys:
            kind = "finetune"
        elif (
            "stop_text_encoder_training" in draft.keys
            or "no_token_padding" in draft.keys
            or "learning_rate_te" in draft.keys
        ):
            kind = "dreambooth"
    return family, kind


def write(arguments: Mapping[str, Any]) -> str:
    """A flat TOML of `arguments` (sd-scripts names), sorted; unset ones and secrets are left out."""
    import toml

    options = table()
    kept = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in sorted(arguments.items())
        if value is not None and not (name in options and options[name].secret)
    }
    return toml.dumps(kept)


def documented() -> Keys:
    """The TOML's keys for the page of formats."""
    found = Keys.arguments(name for name, option in table().items() if not option.kit)
    found.idle |= {name: f"for {family} only" for family, names in FAMILY_KEYS.items() for name in names}
    found.idle |= {name: f"for {kind} training only" for name, kind in KIND_KEYS.items()}
    found.idle |= LEFTOVERS
    found.used |= RENAMED.keys()
    return found
