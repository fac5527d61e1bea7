"""Adapters: small trainable weights beside a frozen model, by the name of their kind (reference section 7)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

import trainer.adapters.alone  # noqa: F401  before anything imports peft
from schemas.network_args import SUPPORTED
from schemas.options import NetworkOptions
from schemas.problems import error
from trainer.adapters.adapter import Adapter, Loaded
from trainer.adapters.lora import Lora, attach_lora
from trainer.adapters.lora_variants import DyLora, LoraFa
from trainer.adapters.merge import merge_weights
from trainer.adapters.oft import attach_oft
from trainer.adapters.plugin import attach_plugin, import_plugin, is_plugin, merge_by_plugin

if TYPE_CHECKING:
    from trainer.families import Models, Target

__all__ = [
    "KINDS",
    "Adapter",
    "Loaded",
    "attach",
    "import_plugin",
    "is_plugin",
    "merge_by_plugin",
    "merge_weights",
]

KINDS = SUPPORTED
LORAS: dict[str, type[Lora]] = {kind.module: kind for kind in (Lora, DyLora, LoraFa)}


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
    should hear of stands in `.notes`. A module in `trust` is imported as a plug-in, which reads network_weights itself.
    ConfigError for a network module that is neither (`unsupported-network-module`), for bad network_args, and for
    weights that do not fit.
    """
    module = options.adapter
    if module in LORAS:
        return attach_lora(models, targets, options, weights, LORAS[module])
    if module == "networks.oft":
        return attach_oft(models, targets, options, weights)
    if module in KINDS:
        from trainer.adapters.lycoris import attach_lycoris, attach_product

        build = attach_lycoris if module == "lycoris.kohya" else attach_product
        return build(models, targets, options, weights)
    if any(module == name or module.startswith(f"{name}.") for name in trust):
        return attach_plugin(models, options, import_plugin(module))
    raise error("unsupported-network-module", f"must be one of {', '.join(KINDS)}", key="network_module", got=module,
                fix=f"set network_module to networks.lora, or trust {module}")  # fmt: skip
