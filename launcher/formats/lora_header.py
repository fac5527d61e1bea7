"""A LoRA file as a config: `kohyakit_config` in its header where present, else the ss_* facts, else its tensors.

Facts: reference section 12. Each argument's origin is `file` when stated, `computed` when inferred from tensors;
`carry["unknown"]` names those that the file says nothing about.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

from launcher.formats.base import Draft, Fate, Setting
from schemas.config import BadValue, read_value, table
from schemas.problems import Problem
from schemas.rules.optimizers import OPTIMIZERS, TORCH
from schemas.weights import LoraFacts, lora_facts

# ss_ key -> argument, where the name is not ss_ + argument
OTHER_NAMES = {
    "ss_batch_size_per_device": "train_batch_size",
    "ss_sd_model_name": "pretrained_model_name_or_path",
    "ss_vae_name": "vae",
    "ss_debiased_estimation": "debiased_estimation_loss",
}
NAMES_ONLY = ("pretrained_model_name_or_path", "vae")


def read(text: str, *, file: str | None = None, overrides: Mapping[str, Any] | None = None) -> Draft:
    """The draft of the file at `file`; its text is not used: a .safetensors is not text."""
    return read_file(file or text, overrides=overrides)


def read_file(file: str, *, overrides: Mapping[str, Any] | None = None) -> Draft:
    """The draft of a LoRA file; ConfigError when it is none. `overrides` are ignored: it has no keys of its own."""
    facts = lora_facts(file)
    draft = Draft(format="lora", file=file, family=facts.family if facts.family != "unknown" else None)
    stated = facts.metadata.get("kohyakit_config")
    config = _own_config(stated, draft) if stated else None
    if config is not None:
        _take_own(draft, config)
    else:
        _take_ss(draft, facts.metadata)
    _infer(draft, facts)
    for key in facts.metadata:
        draft.keys.setdefault(key, Fate("no-effect", None, None, "a fact about the run, not a setting"))
    draft.carry["unknown"] = [name for name in table() if name not in draft.arguments] if config is None else []
    draft.carry["weights"] = file
    return draft


def _own_config(text: str, draft: Draft) -> Mapping[str, Any] | None:
    try:
        found = json.loads(text)
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
        why = "only the name is kept; give the path with --set" if name in NAMES_ONLY else None
        draft.keys[key] = Fate("used" if key == f"ss_{name}" else "renamed", name, shown, why)


def _value(name: str, text: str) -> Any:
    """An ss_ text (str() of the Python value, section 12) as the argument's value."""
    if name == "network_args":
        try:
            given = json.loads(text)
        except ValueError:
            return text
        return [f"{key}={value}" for key, value in given.items()] if isinstance(given, Mapping) else text
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


def _infer(draft: Draft, facts: LoraFacts) -> None:
    """What the tensors show and the header does not say."""
    shape = {"network_dim": facts.dim, "network_alpha": facts.alpha}
    for name, value in shape.items():
        if value is not None and name not in draft.arguments:
            draft.arguments[name] = Setting(value, "computed", None)
    if "network_module" not in draft.arguments:
        module = "lycoris.kohya" if facts.style == "lycoris" or facts.algo != "lora" else "networks.lora"
        draft.arguments["network_module"] = Setting(module, "computed", None)
        pairs = {
            "algo": facts.algo if module == "lycoris.kohya" else None,
            "conv_dim": facts.conv_dim,
            "conv_alpha": facts.conv_alpha,
        }
        found = tuple(f"{name}={value}" for name, value in pairs.items() if value is not None)
        if found and "network_args" not in draft.arguments:
            draft.arguments["network_args"] = Setting(found, "computed", None)
    trained = {
        "network_train_unet_only": facts.unet and not facts.text_encoder,
        "network_train_text_encoder_only": facts.text_encoder and not facts.unet,
    }
    for name, holds in trained.items():
        if holds and name not in draft.arguments:
            draft.arguments[name] = Setting(True, "computed", None)
