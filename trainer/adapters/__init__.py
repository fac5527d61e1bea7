"""Adapters: small trainable weights beside a frozen model, by the name of their kind (reference section 7)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from schemas.options import NetworkOptions
from schemas.problems import error
from trainer.adapters.adapter import Adapter, Loaded
from trainer.adapters.lora import attach_lora
from trainer.adapters.merge import merge_weights

if TYPE_CHECKING:
    from trainer.families import Models, Target

__all__ = ["KINDS", "Adapter", "Loaded", "attach", "merge_weights"]

KINDS = ("lycoris.kohya", "networks.lora")


def attach(
    models: Models,
    targets: Sequence[Target],
    options: NetworkOptions,
    *,
    weights: Mapping[str, Tensor] | None = None,
    trust: tuple[str, ...] = (),
) -> Adapter:
    """Freeze the models and put the adapter that `options` ask for onto `targets`.

    `weights` (kohya keys) are loaded into it; with dim_from_weights they also give ranks and alphas. What the user
    should hear of stands in `.notes`. ConfigError for a network module that is not built in
    (`unsupported-network-module`), for bad network_args, and for weights that do not fit.
    """
    module = options.network_module or "networks.lora"
    if module == "networks.lora":
        return attach_lora(models, targets, options, weights)
    if module == "lycoris.kohya":
        from trainer.adapters.lycoris import attach_lycoris

        return attach_lycoris(models, targets, options, weights)
    must = f"must be one of {', '.join(KINDS)}"
    if module in trust:
        must += "; a trusted module cannot take their place"
    raise error("unsupported-network-module", must, key="network_module", got=module, fix=_instead(module))


def _instead(module: str) -> str:
    known = {
        "networks.dylora": "set network_module to lycoris.kohya with algo=dylora",
        "networks.oft": "set network_module to lycoris.kohya with algo=diag-oft",
        "networks.lora_fa": "set network_module to networks.lora",
        "locon.locon_kohya": "set network_module to lycoris.kohya",
    }
    return known.get(module, "set network_module to networks.lora")
