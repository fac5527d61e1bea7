"""What two configs train differently, whatever formats they are in and however they spell it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from launcher import formats
from launcher.check.resolve import Resolved
from schemas import options as o
from schemas import rules
from schemas.config import table, to_flat
from schemas.files.textfile import CONFIG, read_bytes
from schemas.problems import ConfigError

# These change where results go and what is shown, not what is trained.
BESIDE = (o.LoggingOptions, o.MetadataOptions, o.HubOptions, o.FileOptions, o.SavingOptions, o.StateOptions,
          o.SamplingOptions, o.DistributedOptions)  # fmt: skip


def compare(a: Resolved, b: Resolved) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(differences in training, other differences) as {"argument", "a", "b"}; secrets are left out."""
    one, other = trained(a), trained(b)
    found: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for name in one:
        untold = name == "family" and None in (one[name], other[name])
        idle = name == "learning_rate" and _same_rates(one, other)
        if one[name] != other[name] and not untold and not idle:
            option = table().get(name)
            beside = name == "prompts" if option is None else option.group in BESIDE
            found[beside].append({"argument": name, "a": _shown(one[name]), "b": _shown(other[name])})
    return found


def _same_rates(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether both parts learn alike, so that learning_rate itself means nothing (Adafactor's schedule reads it)."""
    adafactor = any("adafactor" in flat["optimizer_type"].lower() for flat in (one, other))
    parts = one["unet_lr"] == other["unet_lr"] and (
        one["text_encoder_lr"] == other["text_encoder_lr"] or one["network_train_unet_only"]
    )
    return bool(parts and not adafactor)


def trained(resolved: Resolved) -> dict[str, Any]:
    """Every argument as it trains, in one spelling; with `family`, `datasets`, `prompts`, the GUI's `epoch`."""
    from launcher.formats.kohya_gui.writer import same
    from schemas.optimizers import resolve

    config, _ = rules.effective(resolved.config)
    draft = resolved.draft
    flat = same(to_flat(config, defaults=True))
    flat["optimizer_type"] = resolve(config.optimizer_type) or flat["optimizer_type"]
    if draft.gui_steps is not None and not config.max_train_epochs:
        flat["max_train_steps"] = f"computed from the pictures, epoch {draft.gui_steps.epoch:g}"
    datasets = draft.datasets if draft.datasets is not None else _named_datasets(config.dataset_config)
    if datasets is not None:
        flat["dataset_config"] = None
    prompts = draft.prompts if draft.prompts is not None else _named_prompts(config.sample_prompts)
    if prompts is not None:
        flat["sample_prompts"] = None
    return {"family": draft.family, **flat, "datasets": datasets, "prompts": prompts and prompts.rstrip("\n")}


def _named_datasets(path: str | None) -> Any:
    """The content of a dataset file that a config names, None where it cannot be read."""
    if not path or not Path(path).is_file():
        return None
    try:
        return formats.read(path, format="dataset").datasets
    except ConfigError:
        return None


def _named_prompts(path: str | None) -> str | None:
    """The text of a plain prompt file, None where it cannot be read."""
    try:
        text = path and path.endswith(".txt")
        return formats.decode(read_bytes(path, limit=CONFIG, what="prompt file"))[0] if path and text else None
    except ConfigError:
        return None


def _shown(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
