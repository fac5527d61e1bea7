"""Effective arguments -> a whole form JSON that Kohya and we load with the same result."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from launcher.formats.kohya_gui.checks import FAMILY_TYPES, TYPE_FAMILIES
from launcher.formats.kohya_gui.document import Document
from launcher.formats.kohya_gui.entries import LISTS, NOISE, SPECIAL
from launcher.formats.kohya_gui.form import BOXES
from launcher.formats.kohya_gui.networks import LORAPLUS, TYPES, as_mapping, key_of, telling, type_for
from launcher.formats.kohya_gui.parameters import is_flag, pairs_problem
from launcher.formats.kohya_gui.reader import read_document
from launcher.formats.kohya_gui.table import Key, defaults, hidden, keys, read_key, unset
from schemas.argument import whole_of
from schemas.config import TrainConfig, from_flat, to_flat
from schemas.config import table as options

PLAIN_WORD = re.compile(r"[\w@%+=:,./-]+", re.ASCII)  # what Kohya's quoting leaves alone
NOT_TRAINING = ("config_file", "output_config", "overwrite", "trust")
DEFAULT_DIM = 4  # the trainer's rank where network_dim is unset


def write(
    arguments: Mapping[str, Any],
    *,
    family: str,
    carry: Mapping[str, Any] | None = None,
    accelerate: Mapping[str, Any] | None = None,
    prompts: str | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """(form JSON with every key of the form, what it cannot say as "name = value: why").

    `arguments`: effective arguments by sd-scripts name; a missing one has the trainer's default. `carry`: of a Draft
    of this format (`form`: values that no argument stands for), with `extra`: further keys, written as they are.
    What the form itself cannot say goes into additional_parameters. Secrets are never written.
    """
    config, lost = _config(arguments)
    want = to_flat(config, defaults=True, secrets=False)
    values = _start(carry or {})
    _boxes(values, family, want)
    _plain(values, want, "sd" if family in ("sd15", "sd2") else family)
    _network(values, want, "sd" if family in ("sd15", "sd2") else family)
    _rates(values, want)
    _length(values, want, computed="max_train_steps" not in arguments)
    _rest(values, want, prompts)
    _launch(values, accelerate or {})
    lost += _foreign(values, arguments, family)
    words, unsaid = _missing(want, _effective(values), prompts)
    values["additional_parameters"] = " ".join(words)
    still, more = _missing(want, _effective(values), prompts)
    lost += dict.fromkeys([*unsaid, *more, *(f"{word}: the form overrules it" for word in still)])
    return {**values, **(carry or {}).get("extra", {})}, lost


def dumps(document: Mapping[str, Any]) -> str:
    """The text as Kohya writes it: sorted, indented by two, ASCII."""
    return json.dumps(document, indent=2, sort_keys=True) + "\n"


def _config(arguments: Mapping[str, Any]) -> tuple[TrainConfig, list[str]]:
    known = {name: value for name, value in arguments.items() if name in options()}
    lost = [
        f"{name} = ***: secrets are never written" for name, value in known.items() if options()[name].secret and value
    ]
    config, _ = from_flat({name: value for name, value in known.items() if not options()[name].secret})
    return config, lost


def _start(carry: Mapping[str, Any]) -> dict[str, Any]:
    """The form's defaults under those carried values that it could hold."""
    values = defaults()
    for name, value in carry.get("form", {}).items():
        key = keys().get(name)
        if name in values and key is not None and not key.secret and read_key(key, value).severity != "error":
            values[name] = value
    values |= {"additional_parameters": "", "extra_accelerate_launch_args": "", "train_inpainting": False}
    values |= {"stop_text_encoder_training": 0, "model_list": "custom"}
    return values


def _boxes(values: dict[str, Any], family: str, want: Mapping[str, Any]) -> None:
    for box, name in BOXES:
        values[box] = name == family
    values["v2"] = want["v2"]


def _plain(values: dict[str, Any], want: Mapping[str, Any], family: str) -> None:
    """Keys that hold one argument as it is."""
    for name, key in keys().items():
        if key.role == "argument" and name in values and name not in SPECIAL and key.counts_for(family):
            if (key.argument or name) in want:
                values[name] = _as_form(key, want[key.argument or name])
    values["optimizer"] = values["optimizer"] or ("AdamW" if not _old_optimizer(want) else "")
    values["max_token_length"] = want["max_token_length"] or 75
    values["network_dim"] = want["network_dim"] or (0 if want["dim_from_weights"] else DEFAULT_DIM)
    values["bucket_reso_steps"] = want["bucket_reso_steps"]


def _old_optimizer(want: Mapping[str, Any]) -> bool:
    return bool(want["use_8bit_adam"] or want["use_lion_optimizer"])


def _as_form(key: Key, value: Any) -> Any:
    if key.type == "bool":
        return bool(value)
    if key.numeric:
        return value or 0
    return "" if value is None or value is False else str(value)


def _network(values: dict[str, Any], want: Mapping[str, Any], family: str) -> None:
    """LoRA_type and its keys, as far as the form has them."""
    given = as_mapping(want["network_args"])
    kind = type_for(want["network_module"] or "networks.lora", given, family) or "Standard"
    if kind not in FAMILY_TYPES.get(family, {kind}) or family not in TYPE_FAMILIES.get(kind, {family}):
        kind = "Standard"
    values["LoRA_type"] = kind
    row = TYPES[kind]
    for name in dict.fromkeys((*row.always, *row.given, *LORAPLUS)):
        key = keys().get(key_of(name))
        if name in ("algo", "train_blocks") or key is None:
            continue
        values[key.name] = _argument(key, given[name]) if name in given else _silent(name, want, values, row.module)


def _argument(key: Key, text: str) -> Any:
    if key.type == "bool":
        return text.lower() in ("true", "1")
    if key.numeric and (number := whole_of(text)) is not None:
        return number
    reading = read_key(key, text, words=True)
    return reading.value if reading.severity != "error" else key.default


def _silent(name: str, want: Mapping[str, Any], values: Mapping[str, Any], module: str) -> Any:
    """What the form must hold for an argument that is not given."""
    if name == "preset":
        return "full"
    if module == "lycoris.kohya" and name in ("conv_dim", "conv_alpha"):
        return values["network_dim"] if name == "conv_dim" else want["network_alpha"]
    if name in ("factor", "conv_alpha", "unit", "block_size"):
        return -1 if name == "factor" else 1
    key = keys()[key_of(name)]
    return False if key.type == "bool" else 0 if key.numeric else ""


def _rates(values: dict[str, Any], want: Mapping[str, Any]) -> None:
    """The three rates, so that the form's table of zeros trains the same parts."""
    rate, text, unet = want["learning_rate"], list(want["text_encoder_lr"]), want["unet_lr"]
    unet_only, text_only = want["network_train_unet_only"], want["network_train_text_encoder_only"]
    plain = not text and unet is None and not unet_only and not text_only and rate
    values["learning_rate"] = rate
    values["text_encoder_lr"] = 0 if plain or (unet_only and not text) else (text or [rate])[0] or rate or 1e-4
    values["t5xxl_lr"] = text[1] if len(text) > 1 and text[1] != text[0] and values["text_encoder_lr"] else 0
    values["unet_lr"] = 0 if plain or (text_only and not unet_only and unet is None) else unet or rate or 1e-4


def _length(values: dict[str, Any], want: Mapping[str, Any], *, computed: bool) -> None:
    """Steps, epochs, warmup; carried steps of 0 (the form computes them) stay where no others are given."""
    if not (computed and unset(values["max_train_steps"])):
        values["max_train_steps"] = want["max_train_steps"]
    if want["max_train_epochs"]:
        values["epoch"] = want["max_train_epochs"]
    warmup = want["lr_warmup_steps"]
    per_cent = round(warmup * 100) if isinstance(warmup, float) else 0
    values["lr_warmup"] = per_cent if per_cent / 100 == warmup else 0
    values["lr_warmup_steps"] = warmup if isinstance(warmup, int) else 0


def _rest(values: dict[str, Any], want: Mapping[str, Any], prompts: str | None) -> None:
    """Attention, noise, lists, prompts, names."""
    values["xformers"] = "xformers" if want["xformers"] else "sdpa" if want["sdpa"] else "none"
    multires = want["multires_noise_iterations"] and not want["noise_offset"]
    kind = "Multires" if multires else "Original"
    values["noise_offset_type"] = kind
    for name in NOISE[kind]:
        values[name] = _as_form(keys()[name], want[name])
    for name in NOISE["Original" if multires else "Multires"]:
        values[name] = keys()[name].default
    if not 0 <= values["noise_offset"] <= 1:
        values["noise_offset"] = 0
    for name in LISTS:
        text = " ".join(want[name])
        fair = all(len(item.split()) == 1 and '"' not in item for item in want[name]) and not pairs_problem(text)
        values[name] = text if fair else ""
    values["sample_prompts"] = prompts or ""
    values["resume_from_huggingface"] = values["resume_from_huggingface"] if want["resume"] else ""
    name = want["wandb_run_name"]
    values["wandb_run_name"] = "" if name in (None, want["output_name"]) else name


def _launch(values: dict[str, Any], accelerate: Mapping[str, Any]) -> None:
    """Launch words: into the form's own keys, else into the free text."""
    free = []
    for name, value in accelerate.items():
        key = keys().get(name)
        if key is not None and key.role == "launch":
            reading = read_key(key, value) if value is not None else None
            values[name] = reading.value if reading and reading.severity != "error" else key.default
        elif value not in (None, False, 0, "") and name != "mixed_precision":
            free.append(f"--{name}" if value is True else f"--{name}={value}")
    values["extra_accelerate_launch_args"] = " ".join(word for word in free if PLAIN_WORD.fullmatch(word))


def _foreign(values: dict[str, Any], arguments: Mapping[str, Any], family: str) -> list[str]:
    """Arguments of other model families: into their key of the form where it has one."""
    known = {
        key.argument: name
        for name, key in keys().items()
        if key.role == "argument" and family in key.only and key.current
    }
    lost = []
    for name, value in arguments.items():
        if name in options():
            continue
        if name in known:
            values[known[name]] = value
        else:
            lost.append(f"{name} = {hidden(name, value)}: the form has no key for it")
    return lost


def _effective(values: Mapping[str, Any]) -> dict[str, Any]:
    draft = read_document(Document(dict(values)))
    config, _ = from_flat({name: setting.value for name, setting in draft.arguments.items()})
    return to_flat(config, defaults=True, secrets=False)


def _missing(want: Mapping[str, Any], got: Mapping[str, Any], prompts: str | None) -> tuple[list[str], list[str]]:
    """(words that make up the difference, what no word can say)."""
    wanted, found = same(want), same(got)
    words: list[str] = []
    lost: list[str] = []
    for name, value in want.items():
        if wanted[name] == found[name] or name in NOT_TRAINING or (name == "sample_prompts" and prompts is not None):
            continue
        if name == "unet_lr" and value is None:
            value = want["learning_rate"]
        shown = f"{name} = {hidden(name, value)}"
        option = options()[name]
        items = [_text(item) for item in value] if option.many else [_text(value)]
        if value is None or value is False:
            lost.append(f"{shown}: the form always sends {name} = {hidden(name, got[name])}")
        elif not all(PLAIN_WORD.fullmatch(item) for item in items) or (option.many and any(map(is_flag, items))):
            lost.append(f"{shown}: Kohya breaks such a value apart in additional_parameters")
        elif option.many:
            words += [f"--{name}", *items]
        else:
            words.append(f"--{name}" if option.kind is bool else f"--{name}={items[0]}")
    return words, lost


def _text(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def same(flat: Mapping[str, Any]) -> dict[str, Any]:
    """`flat` with different spellings of one meaning made equal, for comparing."""
    found = dict(flat)
    rate, text = flat["learning_rate"], tuple(flat["text_encoder_lr"]) or (flat["learning_rate"],)
    found["text_encoder_lr"] = text[:1] if len(set(text)) == 1 else text
    found["unet_lr"] = rate if flat["unet_lr"] is None else flat["unet_lr"]
    found["network_module"] = flat["network_module"] or "networks.lora"
    found["network_dim"] = flat["network_dim"] or (None if flat["dim_from_weights"] else DEFAULT_DIM)
    arguments = telling(flat["network_args"])
    if found["network_module"] == "networks.lora" and "conv_dim" in arguments:
        arguments.setdefault("conv_alpha", "1")
    found["network_args"] = arguments
    found["optimizer_type"] = flat["optimizer_type"] or "AdamW"
    if flat["max_train_epochs"]:
        found["max_train_steps"] = None
    if not flat["torch_compile"]:
        found["dynamo_backend"] = None
    if flat["log_with"] not in ("wandb", "all"):
        found["wandb_run_name"] = None
    if not flat["resume"]:
        found["resume_from_huggingface"] = None
    found["clip_skip"] = None if flat["clip_skip"] == 1 else flat["clip_skip"]
    found["max_timestep"] = None if flat["max_timestep"] == 1000 else flat["max_timestep"]
    return {
        name: None if isinstance(value, (int, float)) and not value and options()[name].default is None else value
        for name, value in found.items()
    }
