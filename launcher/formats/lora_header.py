"""A LoRA file as a config: `kohyakit_config` in its header where present, else its trainer's facts, else its tensors.

Facts: reference section 12. Each argument's origin is `file` when stated, `computed` when inferred from tensors;
`carry["unknown"]` names those that the file says nothing about.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

from launcher.formats import foreign_header
from launcher.formats.base import Draft, Fate, Setting
from schemas.config import BadValue, read_value, table
from schemas.files.documents import parse_json
from schemas.files.lora_shape import AdapterShape, adapter_shape
from schemas.files.weights import (
    Header,
    LoraFacts,
    lora_facts,
    read_header,
)
from schemas.optimizers import OPTIMIZERS, TORCH
from schemas.problems import Problem

# ss_ key -> argument, where the name is not ss_ + argument
OTHER_NAMES = {
    "ss_batch_size_per_device": "train_batch_size",
    "ss_sd_model_name": "pretrained_model_name_or_path",
    "ss_vae_name": "vae",
    "ss_debiased_estimation": "debiased_estimation_loss",
    "ss_reso": "resolution",
}
# network modules of the past -> today's with the same layers
OLD_MODULES = {"locon.locon_kohya": "networks.lora", "lycoris.locon_kohya": "lycoris.kohya"}
# argument -> its name in ss_datasets, whose entries stand for a dataset_config
DATASET = {
    "resolution": "resolution", "train_batch_size": "batch_size_per_device", "enable_bucket": "enable_bucket",
    "min_bucket_reso": "min_bucket_reso", "max_bucket_reso": "max_bucket_reso",
}  # fmt: skip
SUBSET = (
    "shuffle_caption", "keep_tokens", "keep_tokens_separator", "secondary_separator", "enable_wildcard", "color_aug",
    "flip_aug", "random_crop", "caption_prefix", "caption_suffix",
)  # fmt: skip
SAVED = {"F32": "float", "F16": "fp16", "BF16": "bf16"}


def read(text: str, *, file: str | None = None, overrides: Mapping[str, Any] | None = None) -> Draft:
    """The draft of the file at `file`; its text is not used: a .safetensors is not text."""
    return read_file(file or text, overrides=overrides)


def read_file(file: str, *, overrides: Mapping[str, Any] | None = None) -> Draft:
    """The draft of a LoRA file; ConfigError when it is none. `overrides` are ignored: it has no keys of its own."""
    facts, header = lora_facts(file), read_header(file)
    draft = Draft(format="lora", file=file, family=facts.family if facts.family != "unknown" else None)
    stated = facts.metadata.get("kohyakit_config")
    config = _own_config(stated, draft) if stated else None
    if config is not None:
        _take_own(draft, config)
    else:
        _take_ss(draft, facts.metadata)
        _take_datasets(draft, facts.metadata.get("ss_datasets"))
        for name, value, key in foreign_header.facts(facts.metadata, file):
            if name not in draft.arguments:
                _set(draft, name, value, key)
        _reconcile(draft)
    _infer(draft, facts, header, complete=config is not None)
    for key in facts.metadata:
        draft.keys.setdefault(key, Fate("no-effect", None, None, "a fact about the run, not a setting"))
    draft.carry["unknown"] = [name for name in table() if name not in draft.arguments] if config is None else []
    draft.carry["weights"] = file
    draft.carry["trainer"] = foreign_header.trainer_of(facts.metadata)
    return draft


def _own_config(text: str, draft: Draft) -> Mapping[str, Any] | None:
    try:
        found = parse_json(text)
    except ValueError:
        found = None
    if isinstance(found, Mapping):
        return found
    draft.problems.append(
        Problem(
            code="bad-header",
            severity="warning",
            key="kohyakit_config",
            must="is damaged; the ss_ facts are read instead",
            file=draft.file,
        )
    )
    return None


def _take_own(draft: Draft, config: Mapping[str, Any]) -> None:
    draft.keys["kohyakit_config"] = Fate("used", None, None, "the whole configuration of the run")
    for name, value in config.items():
        if name in table():
            _set(draft, name, value, "kohyakit_config")
        else:
            draft.problems.append(
                Problem(
                    code="unknown-key",
                    severity="warning",
                    key=name,
                    must="is an option of another version and is passed over",
                    file=draft.file,
                )
            )


def _take_ss(draft: Draft, metadata: Mapping[str, str]) -> None:
    options = table()
    for key, text in metadata.items():
        name = OTHER_NAMES.get(key, key.removeprefix("ss_"))
        if not key.startswith("ss_") or name not in options:
            continue
        if text in ("None", "", "null"):
            draft.keys[key] = Fate("no-effect", name, None, "not set")
            continue
        if text == "Dynamic":
            draft.keys[key] = Fate("no-effect", name, None, "the file was resized; its tensors tell")
            continue
        if name == "vae":
            _note(draft, "name-only", key, text, "only the VAE's name is kept, so it is left out", "--set vae=PATH")
            draft.keys[key] = Fate("no-effect", name, None, "only its name is kept; give the path with --set")
            continue
        _set(draft, name, _value(name, text), key)
    _optimizer(draft, metadata.get("ss_optimizer"))
    version = metadata.get("ss_base_model_version", "")
    if version.endswith("_v"):
        _set(draft, "v_parameterization", True, "ss_base_model_version")
    elif version:
        draft.keys["ss_base_model_version"] = Fate("used", None, version, "the model family")
    for key in ("ss_dataset_dirs", "ss_reg_dataset_dirs", "ss_datasets"):
        if metadata.get(key):
            draft.carry[key] = metadata[key]
    if metadata.get("ss_num_epochs", "").isdigit() and not {"max_train_steps", "max_train_epochs"} & set(
        draft.arguments
    ):
        _set(draft, "max_train_epochs", metadata["ss_num_epochs"], "ss_num_epochs")


def _take_datasets(draft: Draft, text: str | None) -> None:
    """What all datasets of an ss_datasets list have in common, where nothing else states it."""
    datasets = [entry for entry in _json(text, list) if isinstance(entry, Mapping)]
    subsets = [subset for entry in datasets for subset in entry.get("subsets") or () if isinstance(subset, Mapping)]
    places = [(name, key, datasets) for name, key in DATASET.items()] + [(name, name, subsets) for name in SUBSET]
    for name, key, entries in places:
        found = {json.dumps(entry[key]) for entry in entries if entry.get(key) is not None}
        if len(found) == 1 and name not in draft.arguments:
            value = parse_json(found.pop())
            _set(draft, name, _value(name, str(value)) if name == "resolution" else value, "ss_datasets")
        elif len(found) > 1:
            said = f"its datasets differ in {name}, which is left open"
            _note(draft, "datasets-differ", "ss_datasets", sorted(found), said, f"--set {name}=VALUE")


def _reconcile(draft: Draft) -> None:
    """Statements that were without effect in their time, and would be refused today."""
    module = draft.arguments.get("network_module")
    if module is not None and module.value in OLD_MODULES:
        draft.arguments["network_module"] = Setting(OLD_MODULES[module.value], "file", module.key)
    shape = draft.arguments.get("lr_scheduler", Setting("constant")).value
    warmup = draft.arguments.get("lr_warmup_steps")
    if warmup is not None and warmup.value and str(shape) in ("constant", "adafactor"):
        said = f"the schedule {shape} had no warmup; it is left out"
        _note(draft, "warmup-without-use", warmup.key, warmup.value, said, None)
        draft.keys[warmup.key or ""] = Fate("no-effect", "lr_warmup_steps", 0, said)
        del draft.arguments["lr_warmup_steps"]


def _note(draft: Draft, code: str, key: str | None, got: Any, must: str, fix: str | None) -> None:
    draft.problems.append(Problem(code=code, severity="warning", key=key, got=got, must=must, fix=fix, file=draft.file))


def _json(text: str | None, kind: type) -> Any:
    try:
        found = parse_json(text or "")
    except ValueError:
        found = None
    return found if isinstance(found, kind) else kind()


def _set(draft: Draft, name: str, value: Any, key: str) -> None:
    option = table()[name]
    try:
        read, _ = read_value(option, value)
    except BadValue as bad:
        draft.problems.append(
            Problem(
                code="bad-value", severity="warning", key=key, got=value, must=f"{bad}; passed over", file=draft.file
            )
        )
        draft.keys[key] = Fate("unknown", name, None, str(bad))
        return
    draft.arguments[name] = Setting(read, "file", key)
    if key != "kohyakit_config":
        shown = list(read) if isinstance(read, tuple) else read
        why = "only the name is kept; give the path with --set" if name == "pretrained_model_name_or_path" else None
        draft.keys[key] = Fate("used" if key == f"ss_{name}" else "renamed", name, shown, why)


def _value(name: str, text: str) -> Any:
    """An ss_ text (str() of the Python value, section 12) as the argument's value."""
    if name == "network_args":
        given = _json(text, dict)
        return [f"{key}={value}" for key, value in given.items() if value not in (None, "None")] if given else text
    if name == "resolution":
        return ",".join(re.findall(r"\d+", text))
    if table()[name].many and text[:1] in "[(":
        try:
            return list(ast.literal_eval(text[:10000]))
        except (ValueError, SyntaxError, TypeError):
            return text
    return text


def _optimizer(draft: Draft, text: str | None) -> None:
    """ss_optimizer is `module.Class` or `module.Class(k=v,k2=v2)`."""
    match = re.fullmatch(r"([\w.]+)(?:\((.*)\))?", text or "", re.S)
    if not match:
        return
    name = match[1].rpartition(".")[2]
    package = match[1].partition(".")[0]
    known = {path: short for short, path in OPTIMIZERS.items() if short != "SGDNesterov"}
    folded = {short.lower(): short for path, short in known.items() if path.startswith(f"{package}.")}
    short = folded.get(name.lower()) or (name if package == "torch" and name in TORCH else match[1])
    _set(draft, "optimizer_type", short, "ss_optimizer")
    if match[2]:
        items = [item.strip() for item in re.split(r",\s*(?=[A-Za-z_]\w*=)", match[2]) if item.strip()]
        _set(draft, "optimizer_args", items, "ss_optimizer")
        draft.keys["ss_optimizer"] = Fate("renamed", "optimizer_type", f"{short} {' '.join(items)}")


def _infer(draft: Draft, facts: LoraFacts, header: Header, *, complete: bool) -> None:
    """What the tensors show and the header does not say. A `complete` header is only compared with them."""
    shape = adapter_shape(header, facts)
    for said in shape.doubts:
        _note(draft, "shape-unclear", None, None, said, "compare the ranks of `kohyakit inspect --json`")
    _compare(draft, shape)
    if complete:
        return
    found: dict[str, Any] = {
        "network_dim": shape.dim,
        "network_alpha": shape.alpha if shape.alpha is not None else shape.dim,
        "network_train_unet_only": (facts.unet and not facts.text_encoder) or None,
        "network_train_text_encoder_only": (facts.text_encoder and not facts.unet) or None,
        "v2": facts.family == "sd2" or None,
        "save_precision": _precision(header),
    }
    if "network_module" not in draft.arguments:
        found["network_module"] = shape.module
        found["network_args"] = shape.network_args or None
    elif "network_args" not in draft.arguments and draft.arguments["network_module"].value == shape.module:
        found["network_args"] = shape.network_args or None
    elif "network_args" in draft.arguments:
        _complete_args(draft, shape)
    for name, value in found.items():
        if value is not None and name not in draft.arguments:
            draft.arguments[name] = Setting(value, "computed", None)


def _compare(draft: Draft, shape: AdapterShape) -> None:
    """A rank or alpha stated otherwise than the tensors have it: they are what `network_weights` must fit."""
    for name, shown in (("network_dim", shape.dim), ("network_alpha", shape.alpha)):
        stated = draft.arguments.get(name)
        if stated is None or shown is None or shape.module != "networks.lora" or not stated.value:
            continue
        if float(stated.value) != float(shown):
            said = f"the header states {stated.value:g}, the tensors have {shown:g}, which is taken"
            _note(draft, "header-and-tensors", stated.key, stated.value, said, None)
            draft.arguments[name] = Setting(shown, "computed", stated.key)


def _complete_args(draft: Draft, shape: AdapterShape) -> None:
    """Stated network_args of another trainer leave out what the tensors show, such as the preset."""
    stated = draft.arguments["network_args"]
    names = {word.partition("=")[0] for word in stated.value}
    if (stated.key or "").startswith("ss_") or draft.arguments["network_module"].value != shape.module:
        return
    more = tuple(word for word in shape.network_args if word.partition("=")[0] not in names)
    draft.arguments["network_args"] = Setting((*stated.value, *more), "file", stated.key)


def _precision(header: Header) -> str | None:
    """save_precision where all weights have one number format."""
    found = {info.dtype for name, info in header.tensors.items() if not name.endswith(".alpha")}
    return SAVED.get(found.pop()) if len(found) == 1 else None
