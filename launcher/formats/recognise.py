"""Which format a text is, from its content alone."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from launcher.formats import toml_text
from schemas.config import table
from schemas.files.documents import parse_json
from schemas.problems import ConfigError, error

CIVITAI = ("unetLR", "textEncoderLR", "minSnrGamma", "targetSteps", "lrSchedulerNumCycles", "flipAugmentation")
AI_TOOLKIT_FORM = ("ecosystem", "lr", "networkDim", "networkAlpha", "trainTextEncoder", "textEncoderLr")
OLD_EASY = (
    "base_model",
    "img_folder",
    "net_dim",
    "output_folder",
    "change_output_name",
    "train_resolution",
    "num_epochs",
)
LORA_SCRIPTS = (
    "model_train_type", "lycoris_algo", "dylora_unit", "enable_preview", "positive_prompts", "network_args_custom",
    "optimizer_args_custom", "enable_block_weights", "enable_base_weight", "ui_custom_params", "randomly_choice_prompt",
    "sample_cfg", "prodigy_d0", "prodigy_d_coef", "lr_restart_cycles",
)  # fmt: skip
COLAB_SECTIONS = (
    "additional_network_arguments", "network_arguments", "optimizer_arguments", "training_arguments",
    "saving_arguments", "model_arguments", "dreambooth_arguments", "dataset_arguments",
)  # fmt: skip
EASY_PANELS = (
    "general_args", "network_args", "optimizer_args", "saving_args", "bucket_args", "noise_args", "sample_args",
    "logging_args", "extra_args", "flux_args", "textual_inversion_args",
)  # fmt: skip
GUI_SECTIONS = ("accelerate_launch", "folders", "basic", "advanced", "samples", "dataset_preparation", "wd14_caption")
JSON_KEY = re.compile(r"""["'\u201c\u201d]([A-Za-z_][\w ]*)["'\u201c\u201d]\s*:""")
WANTED = "known are Kohya GUI JSON, sd-scripts TOML or command line, dataset TOML, CivitAI JSON, LoRA files"


def recognise(text: str, file: str | None = None) -> str:
    """The name of the format of `text` (a key of FORMATS).

    ConfigError `other-tool` for the files of trainers that are not Kohya's, `unknown-format` for anything else.
    """
    from launcher.formats import command_line

    if command_line.is_command_line(text, file):
        return "sd-scripts"
    keys = set(JSON_KEY.findall(text))
    if sum(key in keys for key in CIVITAI) >= 2 or ({"ecosystem", "lr"} <= keys and "unetLR" not in keys):
        return "civitai"
    if (re.match(r"\s*[{\[]", text) and not re.match(r"\s*\[.*\]\s*(#.*)?\n", text)) or _suffix(file) == ".json":
        return _json(text, keys, file)
    if re.search(r"^\s*(job|config)\s*:\s*", text, re.M) and re.search(r"^\s*process\s*:", text, re.M):
        raise _other("an ai-toolkit YAML")
    return _toml(toml_text.parse(text, file).values)


def _suffix(file: str | None) -> str:
    return Path(file).suffix.lower() if file else ""


def _json(text: str, keys: set[str], file: str | None) -> str:
    if "kohyakit_snapshot" in keys:
        return "snapshot"
    if "__version" in keys and ("training_method" in keys or "model_type" in keys):
        raise _other("a OneTrainer config")
    try:
        document = parse_json(text)
    except ValueError:
        document = None
    if isinstance(document, list):
        raise error("unknown-format", f"is a JSON list, perhaps of prompts; {WANTED}", fix="choose a training config")
    if isinstance(document, Mapping) and isinstance(document.get("datasets"), list):
        return "dataset"
    if sum(key in keys for key in OLD_EASY) >= 3 and not keys & {"LoRA_type", "max_resolution"}:
        return "easy-training"
    if isinstance(document, Mapping):
        _not_of_others(document)
        if _is_arguments(document):
            return "sd-scripts"
    if sum(key in gui_keys() for key in keys) >= 2:
        return "kohya-gui"
    if document is None:
        from launcher.formats.kohya_gui.document import parse

        parse(text, file=file)  # says at which line and column it stops being JSON
    raise error(
        "unknown-format",
        f"is JSON of an unknown kind; {WANTED}",
        fix="choose a training config, or name its format with --from",
    )


# Keys that tell another program's JSON: (program, keys, how many of them).
OTHERS: tuple[tuple[str, tuple[str, ...], int], ...] = (
    ("a OneTrainer config", (
        "training_method", "base_model_name", "concept_file_name", "output_model_destination", "lora_rank",
        "weight_dtype", "train_dtype", "workspace_dir", "learning_rate_scheduler", "prior", "unet",
    ), 2),
    ("a SimpleTuner config", (
        "model_type", "model_family", "data_backend_config", "pretrained_transformer_model_name_or_path",
        "--model_type", "--model_family", "--data_backend_config", "--pretrained_model_name_or_path",
    ), 2),
    ("a ComfyUI workflow", ("last_node_id", "last_link_id", "nodes", "links"), 2),
    ("a package.json", ("dependencies", "devDependencies", "scripts", "name", "version"), 2),
    ("arguments of a diffusers training script", (
        "instance_data_dir", "instance_prompt", "class_prompt", "num_train_epochs", "checkpointing_steps", "report_to",
        "validation_prompt", "rank", "adam_beta1",
    ), 2),
    ("settings of a diffusers model", ("_class_name", "_diffusers_version"), 1),
)  # fmt: skip
FORM_ONLY = {"LoRA_type", "max_resolution", "optimizer", "epoch", "lr_warmup", "additional_parameters"}


def _not_of_others(document: Mapping[str, Any]) -> None:
    """ConfigError for JSON that another program writes."""
    if "job" in document and isinstance(document.get("config"), Mapping):
        raise _other("an ai-toolkit config")
    nodes = [node for node in document.values() if isinstance(node, Mapping)]
    if nodes and all("class_type" in node and "inputs" in node for node in nodes):
        raise _other("a ComfyUI workflow")
    if len(FORM_ONLY & set(document)) >= 2:
        return
    for what, names, wanted in OTHERS:
        if sum(name in document for name in names) >= wanted:
            raise _other(what)


def _is_arguments(document: Mapping[str, Any]) -> bool:
    """Whether JSON has sd-scripts' own argument names: some that the GUI's form lacks, none that only the form has."""
    from launcher.formats.kohya_gui.table import keys as form

    arguments = {name for name in document if name in table()}
    if any(name in form() and name not in table() for name in document):
        return False
    return len(arguments) >= 2 and any(name not in form() or not form()[name].current for name in arguments)


@cache
def gui_keys() -> frozenset[str]:
    """Key names of a Kohya GUI JSON: its own, and the arguments that it spells alike."""
    path = Path(__file__).parent / "kohya_gui" / "keys.json"
    own = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    names = own if isinstance(own, Mapping) else [row.get("key") or row.get("name") for row in own]
    return (
        frozenset(str(name) for name in names)
        | frozenset(table())
        | {"LoRA_type", "max_resolution", "optimizer", "epoch"}
    )


def _toml(values: Mapping[str, Any]) -> str:
    tables = {name: value for name, value in values.items() if isinstance(value, Mapping)}
    flat = {name for name in values if name not in tables} | {name for value in tables.values() for name in value}
    if "datasets" in values or ("general" in values and not flat & {"pretrained_model_name_or_path", "network_module"}):
        return _dataset(values)
    if "prompt" in tables or set(values) == {"prompts"}:
        raise error("unknown-format", f"is a prompt file; {WANTED}", fix="name it with --set sample_prompts=FILE")
    if "directory" in values or {"num_repeats", "path"} <= flat or _is_diffusion_pipe(values, tables):
        raise _other("a diffusion-pipe TOML")
    modules = [str(place.get("network_module", "")) for place in (values, *tables.values())]
    if any(module.startswith("musubi_tuner") for module in modules) or {"dit", "network_module"} <= flat:
        raise _other("a musubi-tuner config")
    if (
        "subsets" in values
        or "train_mode" in values
        or any("args" in tables.get(panel, {}) or "dataset_args" in tables.get(panel, {}) for panel in EASY_PANELS)
    ):
        return "easy-training"
    if len([name for name in GUI_SECTIONS if name in tables]) >= 3:
        return "kohya-gui"
    if flat & set(LORA_SCRIPTS) or ("metadata" in tables and "data" in tables and "train_type" in tables["metadata"]):
        return "lora-scripts"
    if len([name for name in COLAB_SECTIONS if name in tables]) >= 2:
        return "kohya-colab"
    if flat & set(table()):
        return "sd-scripts"
    raise error(
        "unknown-format",
        f"holds no known option; {WANTED}",
        fix="choose a training config, or name its format with --from",
    )


def _dataset(values: Mapping[str, Any]) -> str:
    datasets = values.get("datasets")
    entries = [entry for entry in datasets if isinstance(entry, Mapping)] if isinstance(datasets, list) else []
    musubi = (
        "image_directory",
        "cache_directory",
        "video_directory",
        "image_jsonl_file",
        "video_jsonl_file",
        "control_directory",
    )
    if any(key in entry for entry in entries for key in musubi) and not any("subsets" in entry for entry in entries):
        raise _other("a musubi-tuner dataset TOML")
    return "dataset"


def _is_diffusion_pipe(values: Mapping[str, Any], tables: Mapping[str, Any]) -> bool:
    model, optimizer = tables.get("model", {}), tables.get("optimizer", {})
    return bool({"transformer_path", "transformer_dtype", "ckpt_path", "diffusers_path"} & set(model)) or (
        "type" in optimizer and ("type" in model or "dataset" in values)
    )


def _other(what: str) -> ConfigError:
    return error("other-tool", f"is {what}, which belongs to another trainer", fix=f"choose a Kohya config; {WANTED}")
