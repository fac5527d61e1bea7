"""lora-scripts (SD-Trainer): the front end's own flat TOML, its presets, and its older sectioned files.

Facts: format notes section 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from launcher.formats import sd_scripts, toml_text
from launcher.formats.base import DraftBuilder, Fate, Kind, Setting
from launcher.formats.registry import Keys
from schemas.problems import Problem

TYPES: dict[str, tuple[str | None, Kind]] = {
    "sd-lora": (None, "lora"),
    "sdxl-lora": ("sdxl", "lora"),
    "sd-dreambooth": (None, "dreambooth"),
    "sdxl-finetune": ("sdxl", "finetune"),
    "sd3-lora": ("sd3", "lora"),
    "flux-lora": ("flux", "lora"),
    "flux-finetune": ("flux", "finetune"),
    "lora-basic": (None, "lora"),
}
# front-end key -> name inside network_args
LYCORIS = {
    "lycoris_algo": "algo",
    "conv_dim": "conv_dim",
    "conv_alpha": "conv_alpha",
    "dropout": "dropout",
    "lokr_factor": "factor",
    "train_norm": "train_norm",
}
BLOCKS = ("down_lr_weight", "mid_lr_weight", "up_lr_weight", "block_lr_zero_threshold")
PREVIEW = ("sample_prompts", "sample_sampler", "sample_every_n_epochs")
PROMPT = {
    "negative_prompts": "n",
    "sample_width": "w",
    "sample_height": "h",
    "sample_cfg": "l",
    "sample_seed": "d",
    "sample_steps": "s",
}
DROPPED_EMPTY = (
    "vae", "reg_data_dir", "network_weights", "noise_offset", "multires_noise_iterations", "multires_noise_discount",
    "caption_dropout_rate", "network_dropout", "scale_weight_norms", "gpu_ids",
)  # fmt: skip
SD_ONLY = (
    "v2",
    "v_parameterization",
    "scale_v_pred_loss_like_noise_pred",
    "clip_skip",
    "learning_rate_te",
    "stop_text_encoder_training",
)
SWITCHES = {
    "enable_block_weights": BLOCKS,
    "enable_base_weight": ("base_weights", "base_weights_multiplier"),
    "enable_preview": PREVIEW,
}
RATES = ("learning_rate", "unet_lr", "text_encoder_lr")
OWN = (
    *LYCORIS, *BLOCKS, *SWITCHES, *PROMPT, "dylora_unit", "positive_prompts", "randomly_choice_prompt", "prompt_file",
    "network_args_custom",
    "optimizer_args_custom", "prodigy_d0", "prodigy_d_coef", "ui_custom_params", "model_train_type", "gpu_ids",
)  # fmt: skip


def read(text: str, *, file: str | None = None, overrides: Mapping[str, Any] | None = None) -> DraftBuilder:
    """The draft of any of that tool's TOMLs. `overrides` are keys of the front end laid over it."""
    document = toml_text.parse(text, file)
    draft = DraftBuilder(format="lora-scripts", file=file, problems=document.problems, lines=document.lines)
    values = _flat(draft, document.values)
    values |= dict(overrides or {})
    values |= _custom(draft, values)
    train_type = str(values.get("model_train_type") or "")
    family, kind = TYPES.get(train_type, (None, "lora"))
    plain: dict[str, Any] = {}
    for name, value in values.items():
        if not _own(draft, name, value, values) and not _dropped(draft, name, value, values, family):
            plain[name] = value
    _lists(draft, values, plain)
    for name, value in plain.items():
        sd_scripts.place(draft, name, _clean(name, value), document.lines.get(name))
    _rates(draft, values)
    _prompt(draft, values)
    said_family, said_kind = sd_scripts.family_and_kind(draft)
    draft.family, draft.kind = family or said_family, kind if train_type else said_kind
    return draft


def _flat(draft: DraftBuilder, values: Mapping[str, Any]) -> dict[str, Any]:
    """Sections merged; of a preset, [metadata] names the kind and [data] holds the keys."""
    if isinstance(values.get("metadata"), Mapping) and isinstance(values.get("data"), Mapping):
        for name in values["metadata"]:
            draft.keys[f"metadata.{name}"] = Fate("gui-only", None, None, "about the preset")
        return {"model_train_type": values["metadata"].get("train_type", ""), **values["data"]}
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat.update(value if isinstance(value, Mapping) else {name: value})
    return flat


def _custom(draft: DraftBuilder, values: Mapping[str, Any]) -> dict[str, Any]:
    """ui_custom_params is TOML text laid over everything."""
    text = values.get("ui_custom_params")
    if not isinstance(text, str) or not text.strip():
        return {}
    inner = toml_text.parse(text, draft.file)
    draft.problems += inner.problems
    return inner.values


def _own(draft: DraftBuilder, name: str, value: Any, values: Mapping[str, Any]) -> bool:
    """Files a key that only the front end knows; whether it was one."""
    if name not in OWN:
        return False
    network = {**LYCORIS, **{block: block for block in BLOCKS}, "dylora_unit": "unit", "network_args_custom": ""}
    if name in network:
        draft.keys[name] = Fate("renamed", "network_args", value)
    elif name in ("optimizer_args_custom", "prodigy_d0", "prodigy_d_coef"):
        draft.keys[name] = Fate("renamed", "optimizer_args", value)
    elif name in (*PROMPT, "positive_prompts", "prompt_file", "randomly_choice_prompt"):
        draft.keys[name] = Fate("renamed", "sample_prompts", value)
    elif name == "gpu_ids":
        draft.keys[name] = Fate("gui-only", None, None, "which GPUs; give --gpu-ids")
    elif name == "model_train_type":
        draft.keys[name] = Fate("used", None, value, "the kind of training")
    else:
        draft.keys[name] = Fate("gui-only", None, value, "a switch of the front end")
    return True


def _dropped(draft: DraftBuilder, name: str, value: Any, values: Mapping[str, Any], family: str | None) -> bool:
    """Whether the front end leaves a key out on the way to the trainer."""
    why = None
    off = next((switch for switch, names in SWITCHES.items() if name in names and values.get(switch) is False), None)
    if name in DROPPED_EMPTY and value in (0, "", 0.0, "0"):
        why = "0 or empty is off"
    elif family == "sdxl" and name in SD_ONLY:
        why = "left out for SDXL"
    elif off:
        why = f"{off} is off"
    if why:
        draft.keys[name] = Fate("no-effect", name, None, why)
    return why is not None


def _clean(name: str, value: Any) -> Any:
    """Multi-line text of list options as a list; paths with forward slashes."""
    if name in ("base_weights", "base_weights_multiplier") and isinstance(value, str):
        return [line.strip() for line in value.split("\n") if line.strip()]
    if name.endswith(("_dir", "_path", "vae", "_weights", "_prompts", "_config")) and isinstance(value, str):
        return value.replace("\\", "/")
    return value


def _lists(draft: DraftBuilder, values: Mapping[str, Any], plain: dict[str, Any]) -> None:
    """network_args and optimizer_args as the front end puts them together."""
    module = values.get("network_module")
    network = _items(plain.get("network_args"))
    if module == "lycoris.kohya":
        pairs = {inner: values[name] for name, inner in LYCORIS.items() if values.get(name) not in (None, "")}
        network += [f"{name}={value}" for name, value in pairs.items() if value is not False]
    if module == "networks.dylora" and values.get("dylora_unit"):
        network.append(f"unit={values['dylora_unit']}")
    if values.get("enable_block_weights"):
        network += [f"{name}={values[name]}" for name in BLOCKS if values.get(name) not in (None, "")]
    network += _items(values.get("network_args_custom"))
    optimizer = _items(plain.get("optimizer_args"))
    kind = str(values.get("optimizer_type") or "")
    if not optimizer and kind in ("DAdaptation", "DAdaptAdam"):
        optimizer = ["decouple=True", "weight_decay=0.01"]
    elif not optimizer and kind.lower() == "prodigy":
        optimizer = [
            "decouple=True",
            "weight_decay=0.01",
            "use_bias_correction=True",
            f"d_coef={values.get('prodigy_d_coef') or '2.0'}",
        ]
        optimizer += ["safeguard_warmup=True"] if values.get("lr_warmup_steps") else []
        optimizer += [f"d0={values['prodigy_d0']}"] if values.get("prodigy_d0") else []
    optimizer += _items(values.get("optimizer_args_custom"))
    for name, items in (("network_args", network), ("optimizer_args", optimizer)):
        if items:
            plain[name] = items


def _items(value: Any) -> list[str]:
    if isinstance(value, str):
        return sd_scripts.split_pairs(value)
    return [str(item) for item in value] if isinstance(value, (list, tuple)) else []


def _rates(draft: DraftBuilder, values: Mapping[str, Any]) -> None:
    """Unreadable rates are 0 in the front end; with DAdapt the three rates are 1."""
    adapt = str(values.get("optimizer_type") or "").lower().startswith("dadapt")
    for name in RATES:
        setting = draft.arguments.get(name)
        if setting is None or not (adapt or _unreadable(setting.value)):
            continue
        value = 1.0 if adapt else 0.0
        draft.problems.append(
            Problem(
                code="rate-replaced",
                severity="warning",
                key=name,
                got=setting.value,
                file=draft.file,
                line=draft.lines.get(name),
                must=f"trains as {value} there: {'DAdapt optimizers want 1' if adapt else 'it is no number'}",
            )
        )
        draft.arguments[name] = Setting((value,) if name == "text_encoder_lr" else value, "file", name)
        draft.keys[name] = Fate("used", name, value)


def _unreadable(value: Any) -> bool:
    texts = value if isinstance(value, (list, tuple)) else [value]
    try:
        [float(text) for text in texts]
    except (TypeError, ValueError):
        return True
    return False


def _prompt(draft: DraftBuilder, values: Mapping[str, Any]) -> None:
    """The front end's preview fields as one prompt line; a prompt_file goes first."""
    if values.get("enable_preview") is False:
        return
    if values.get("prompt_file"):
        draft.arguments["sample_prompts"] = Setting(
            str(values["prompt_file"]).replace("\\", "/"), "file", "prompt_file"
        )
    elif values.get("positive_prompts"):
        options = [
            f"--{letter} {values[name]}" for name, letter in PROMPT.items() if values.get(name) not in (None, "")
        ]
        draft.prompts = " ".join([str(values["positive_prompts"]), *options])


def documented() -> Keys:
    """The tool's keys for the page of formats."""
    found = sd_scripts.documented()
    found.used |= {*OWN} - {"gpu_ids"}
    found.idle["gpu_ids"] = "not an argument: --gpu-ids chooses"
    return found
