"""What two configs train differently, whatever formats they are in and however they spell it."""

from __future__ import annotations

from typing import Any

from launcher.resolve import Resolved
from schemas import options as o
from schemas import rules
from schemas.config import table, to_flat

# These change where results go and what is shown, not what is trained.
BESIDE = (o.LoggingOptions, o.MetadataOptions, o.HubOptions, o.FileOptions, o.SavingOptions, o.StateOptions,
          o.SamplingOptions, o.DistributedOptions)  # fmt: skip


def compare(a: Resolved, b: Resolved) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(differences in training, other differences) as {"argument", "a", "b"}; secrets are left out."""
    one, other = trained(a), trained(b)
    found: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for name in one:
        untold = name == "family" and None in (one[name], other[name])
        if one[name] != other[name] and not untold:
            option = table().get(name)
            beside = option is not None and (option.group in BESIDE or option.marks.get("kit", False))
            found[beside].append({"argument": name, "a": _shown(one[name]), "b": _shown(other[name])})
    return found


def trained(resolved: Resolved) -> dict[str, Any]:
    """Every argument as it trains, in one spelling; `family`, `datasets` and the GUI's `epoch` are compared too."""
    from launcher.formats.kohya_gui.writer import same

    config, _ = rules.effective(resolved.config)
    draft = resolved.draft
    flat = same(to_flat(config, defaults=True))
    flat["optimizer_type"] = rules.optimizers.resolve(config.optimizer_type) or flat["optimizer_type"]
    if draft.gui_steps is not None and not config.max_train_epochs:
        flat["max_train_steps"] = f"computed from the pictures, epoch {draft.gui_steps.epoch:g}"
    return {"family": draft.family, **flat, "datasets": draft.datasets}


def _shown(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
