"""LoRA_Easy_Training_Scripts: its TOML (one table a panel) and its older flat JSON.

Facts: format notes section 4. Flattened by path, never by leaf name: network_args stands at three depths.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from launcher.formats import json_text, sd_scripts, toml_text
from launcher.formats.base import DraftBuilder, Fate, Setting
from launcher.formats.registry import Keys, Vocabulary
from schemas.config import table
from schemas.datasets import may_stand
from schemas.problems import Problem

# panels of other model families, there and in forks
OTHER_FAMILIES = {"flux_args": "flux", "sd3_args": "sd3", "anima_args": "anima", "lumina_args": "lumina"}
GUI_ONLY = ("tag_occurrence", "save_toml", "save_toml_location", "tag_file_location", "easy_name")
CUSTOM = {
    "came": "LoraEasyCustomOptimizer.came.CAME",
    "compass": "LoraEasyCustomOptimizer.compass.Compass",
    "lpfadamw": "LoraEasyCustomOptimizer.lpfadamw.LPFAdamW",
    "rmsprop": "LoraEasyCustomOptimizer.rmsprop.RMSProp",
}
FORK_KEYS = {"random_crop_padding_percent": "an option of one fork's trainer"}
DATASET_NAMES = {"train_batch_size": "batch_size"}
# the older JSON's names
OLD = {
    "base_model": "pretrained_model_name_or_path", "img_folder": "train_data_dir", "reg_img_folder": "reg_data_dir",
    "output_folder": "output_dir", "change_output_name": "output_name", "net_dim": "network_dim",
    "alpha": "network_alpha", "scheduler": "lr_scheduler", "cosine_restarts": "lr_scheduler_num_cycles",
    "scheduler_power": "lr_scheduler_power", "warmup_lr_ratio": "lr_warmup_steps",
    "num_workers": "max_data_loader_n_workers", "persistent_workers": "persistent_data_loader_workers",
    "batch_size": "train_batch_size", "num_epochs": "max_train_epochs", "max_steps": "max_train_steps",
    "train_resolution": "resolution", "min_bucket_resolution": "min_bucket_reso",
    "max_bucket_resolution": "max_bucket_reso", "buckets": "enable_bucket", "shuffle_captions": "shuffle_caption",
    "lora_model_for_resume": "network_weights", "load_previous_save_state": "resume",
    "unet_only": "network_train_unet_only", "text_only": "network_train_text_encoder_only", "test_seed": "seed",
    "gradient_acc_steps": "gradient_accumulation_steps", "save_as": "save_model_as",
    "max_clip_token_length": "max_token_length", "log_dir": "logging_dir", "no_meta": "no_metadata",
    "use_lion": "use_lion_optimizer",
}  # fmt: skip
OLD_GUI_ONLY = (
    "save_json_folder", "load_json_path", "json_load_skip_list", "multi_run_folder", "save_json_only",
    "tag_occurrence_txt_file", "sort_tag_occurrence_alphabetically",
)  # fmt: skip


def read(text: str, *, file: str | None = None, overrides: Mapping[str, Any] | None = None) -> DraftBuilder:
    """The draft of either form. `overrides` are ignored."""
    draft = DraftBuilder(format="easy-training", file=file)
    if text.lstrip().startswith("{"):
        _read_json(draft, text)
        return draft
    document = toml_text.parse(text, file)
    draft.problems, draft.lines = document.problems, document.lines
    values = document.values
    network: dict[str, Any] = {}
    dataset: dict[str, Any] = {}
    for panel, content in values.items():
        if panel in ("subsets", "train_mode"):
            continue
        if not isinstance(content, Mapping):
            sd_scripts.place(draft, panel, content, document.lines.get(panel))
            continue
        for name, value in _table(draft, panel, content, "args").items():
            _argument(draft, f"{panel}.args.{name}", panel, name, value, network)
        dataset |= _dataset_args(draft, panel, _table(draft, panel, content, "dataset_args"))
        for name in content:
            if name not in ("args", "dataset_args"):
                sd_scripts.unknown(draft, f"{panel}.{name}", name, document.lines.get(f"{panel}.{name}"))
    _mode(draft, values)
    _network(draft, network)
    _subsets(draft, values.get("subsets"), dataset)
    return draft


def _table(draft: DraftBuilder, panel: str, content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The table `name` of a panel; anything else there is a fault."""
    found = content.get(name) or {}
    if isinstance(found, Mapping):
        return found
    bad_table(draft, f"{panel}.{name}", found, f"[{panel}.{name}]")
    return {}


def bad_table(draft: DraftBuilder, path: str, got: Any, fix: str) -> None:
    """Reports something else where a table must stand."""
    place: dict[str, Any] = {"key": path, "file": draft.file, "line": draft.lines.get(path), "got": got}
    draft.keys[path] = Fate("no-effect", None, None, "is not a table")
    draft.problems.append(Problem(code="bad-value", must="must be a table", fix=f"write {fix}", **place))


def _argument(draft: DraftBuilder, path: str, panel: str, name: str, value: Any, network: dict[str, Any]) -> None:
    """One key of a panel's args, converted."""
    line = draft.lines.get(path)
    if name in GUI_ONLY:
        draft.keys[path] = Fate("gui-only", None, None, "for that tool's window only")
    elif name == "sdxl":
        draft.family = "sdxl" if value else draft.family
        draft.keys[path] = Fate("used", None, value, "the model family")
    elif name == "fa":
        network["fa"] = value
        draft.keys[path] = Fate("renamed", "network_module", "networks.lora_fa" if value else None)
    elif isinstance(value, Mapping) and name in ("network_args", "optimizer_args", "lr_scheduler_args"):
        items = [f"{key}={_text(one)}" for key, one in value.items() if one not in (None, "", [])]
        if name == "network_args":
            network |= value
        sd_scripts.place(draft, name, items, line, label=path)
        for key, one in value.items():
            draft.keys[f"{path}.{key}"] = Fate("used", name, _text(one))
    elif name == "warmup_ratio":
        sd_scripts.place(draft, "lr_warmup_steps", value, line, label=path)
    elif name == "optimizer_type" and str(value).lower() in CUSTOM:
        sd_scripts.place(draft, name, CUSTOM[str(value).lower()], line, label=path)
    elif panel in OTHER_FAMILIES and name not in table():
        draft.family = OTHER_FAMILIES[panel]
        draft.keys[path] = Fate("other-family", None, None, f"an argument for {draft.family}")
    else:
        sd_scripts.place(draft, name, _flag(value), line, label=path)


def _flag(value: Any) -> Any:
    return {"true": True, "false": False}.get(value.lower(), value) if isinstance(value, str) else value


def _text(value: Any) -> str:
    """A value of a nested table in the `name=value` form: true as True, arrays with commas."""
    if isinstance(value, (list, tuple)):
        return ",".join(str(one) for one in value)
    flag = _flag(value)
    return str(flag)


def _dataset_args(draft: DraftBuilder, panel: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """A panel's dataset_args: known to the trainer as arguments of the same name, and kept for the dataset file."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        path = f"{panel}.dataset_args.{name}"
        argument = "train_batch_size" if name == "batch_size" else name
        known = DATASET_NAMES.get(name, name)
        if argument in table():
            sd_scripts.place(draft, argument, value, draft.lines.get(path), label=path)
        else:
            sd_scripts.unknown(draft, path, name, draft.lines.get(path))
            continue
        if known in may_stand("dataset"):
            found[known] = value
    return found


def _mode(draft: DraftBuilder, values: Mapping[str, Any]) -> None:
    mode = values.get("train_mode")
    said = mode.get("train_mode") if isinstance(mode, Mapping) else mode
    if said is not None:
        draft.keys["train_mode.train_mode"] = Fate("used", None, said, "the kind of training")
    draft.kind = "textual-inversion" if said == "ti" else "lora"


def _network(draft: DraftBuilder, network: Mapping[str, Any]) -> None:
    """The module is never stored: it follows from the keys that are."""
    if "network_module" in draft.arguments:
        return
    module, why = "networks.lora", "the tool's choice without algo, unit and fa"
    if network.get("algo"):
        module, why = "lycoris.kohya", "algo is given"
    elif network.get("unit"):
        module, why = "networks.dylora", "unit is given"
    elif network.get("fa"):
        module, why = "networks.lora_fa", "fa is given"
    elif draft.family == "flux":
        module, why = "networks.lora_flux", "flux_args are given"
    draft.arguments["network_module"] = Setting(module, "computed", None)
    draft.problems.append(
        Problem(
            code="module-inferred",
            severity="note",
            key="network_module",
            got=module,
            must=f"is not stored in this format; {why}",
            file=draft.file,
        )
    )


def _subsets(draft: DraftBuilder, subsets: Any, dataset: Mapping[str, Any]) -> None:
    if not isinstance(subsets, list):
        return
    kept = []
    for place, subset in enumerate(subsets):
        if not isinstance(subset, Mapping):
            bad_table(draft, f"subsets.{place}", subset, "[[subsets]]")
            continue
        clean = {}
        for name, value in subset.items():
            path = f"subsets.{place}.{name}"
            if name == "name":
                draft.keys[path] = Fate("gui-only", None, None, "for that tool's window only")
            elif name in FORK_KEYS:
                draft.keys[path] = Fate("no-effect", None, None, FORK_KEYS[name])
            elif name in may_stand("subset"):
                draft.keys[path] = Fate("used", None, value)
                if value not in ("", None):
                    clean[name] = value
            else:
                sd_scripts.unknown(draft, path, name, draft.lines.get(path))
        kept.append(clean)
    draft.datasets = {"datasets": [{**dataset, "subsets": kept}]}


def _read_json(draft: DraftBuilder, text: str) -> None:
    """The JSON of early 2023."""
    values = json_text.parse(text, draft.file)
    lines = _json_lines(text)
    for name, value in values.items():
        draft.lines[name] = lines.get(name, 1)
        if name in OLD_GUI_ONLY:
            draft.keys[name] = Fate("gui-only", None, None, "for that tool's window only")
        elif name in OLD or name in table():
            sd_scripts.accept(draft, OLD.get(name, name), value, name, draft.lines[name])
        else:
            sd_scripts.unknown(draft, name, name, draft.lines[name])
    draft.arguments.setdefault("network_module", Setting("networks.lora", "default", None))


def _json_lines(text: str) -> dict[str, int]:
    """The line of each key of a flat JSON."""
    return {
        match[1]: number
        for number, line in enumerate(text.split("\n"), 1)
        for match in re.finditer(r'"(\w+)"\s*:', line)
    }


def vocabulary() -> Vocabulary:
    """What `explain` knows of the tool's old names."""
    return Vocabulary(OLD)


def documented() -> Keys:
    """The tool's keys, of both its ages, for the page of formats."""
    found = sd_scripts.documented()
    found.used |= {*OLD, "sdxl", "fa", "warmup_ratio", "batch_size", "train_mode", "subsets"}
    window = (*GUI_ONLY, *OLD_GUI_ONLY)
    found.idle |= dict.fromkeys(window, "for that tool's window only") | FORK_KEYS
    found.idle.pop("sdxl", None)
    return found
