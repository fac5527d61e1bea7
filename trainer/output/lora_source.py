"""A LoRA file opened for work on its modules: kohya's names for any spelling, tensors read module by module."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from schemas.files.textfile import CONFIG, read_text
from schemas.files.weights import (
    Header,
    lora_facts,
    lora_file,
    read_header,
)
from schemas.problems import error
from trainer.output.lora_keys import alpha_of, kohya_names, peft_settings
from trainer.output.streaming import read_tensor

if TYPE_CHECKING:
    from trainer.families import Models, Target

WRITTEN = ("lora_", "oft_")  # how kohya's names begin


class LoraSource:
    """A LoRA file: `modules` maps kohya's key to {ending: name in the file}; `strange` are tensors of no module."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = lora_file(path)
        self.header: Header = read_header(self.file)
        self.facts = lora_facts(self.file)
        self.family = self.facts.family
        beside = self.file.with_name("adapter_config.json")
        config = read_text(beside, limit=CONFIG, what="adapter config") if beside.is_file() else None
        self.settings = peft_settings(self.header.metadata, config)
        self.modules: dict[str, dict[str, str]] = {}
        self.dotted: dict[str, tuple[str, str]] = {}
        self.strange: list[str] = []
        names = list(self.header.tensors)
        native = all(name.startswith(WRITTEN) for name in names)
        places = None if native else kohya_names(names, targets_of(self.family))
        for name in names:
            key, _, tail = name.partition(".")
            place = places[name] if places else None
            if place is not None and place.key:
                key, tail = place.key, place.tail
                if place.dotted is not None:
                    self.dotted[key] = place.dotted
            elif not name.startswith(WRITTEN):
                self.strange.append(name)
                continue
            self.modules.setdefault(key, {})[tail] = name

    @property
    def dtype(self) -> str:
        """The widest number format of its weights; alpha is a number by itself."""
        weights = (name for own in self.modules.values() for tail, name in own.items() if tail != "alpha")
        widths = {self.header.tensors[name].dtype for name in weights}
        return next((dtype for dtype in ("F64", "F32", "BF16", "F16") if dtype in widths), "F32")

    def own(self, key: str) -> dict[str, Tensor]:
        """ending -> tensor of one module, alpha from peft's settings where the file has none."""
        found = {tail: read_tensor(self.header, name) for tail, name in self.modules[key].items()}
        magnitude = found.get("dora_scale")
        if magnitude is not None and not self.modules[key]["dora_scale"].endswith(".dora_scale"):
            found["dora_scale"] = magnitude.reshape(-1, *[1] * max(magnitude.dim() - 1, 1))  # as kohya shapes it
        down = found.get("lora_down.weight")
        if down is not None and "alpha" not in found:
            rank = down.shape[0]
            said = alpha_of(*self.dotted[key], rank, self.settings) if key in self.dotted else float(rank)
            found["alpha"] = torch.tensor(said)
        for tail, tensor in found.items():
            if tensor.is_floating_point() and not torch.isfinite(tensor.float()).all():
                raise error("not-finite", "holds NaN or Inf", key=self.modules[key].get(tail, tail),
                            file=str(self.file), fix="use a file whose training ended well")  # fmt: skip
        return found

    def endings(self, key: str) -> set[str]:
        return set(self.modules[key])


@functools.cache
def skeleton(family: str) -> Models:
    """The full-size model of a family without weights."""
    from schemas.families import FAMILIES
    from trainer.families import Models, architecture, single_file

    if family not in FAMILIES:
        fix = "use a LoRA of Stable Diffusion 1.5, 2.x or XL, or one with kohya's names"
        raise error("unknown-family", "is of a family whose names are not known here", got=family, fix=fix)
    configs = architecture.shipped(family)
    names = [name for name in ("unet", "text_encoder", "text_encoder_2") if name in configs]
    built = [single_file.Part(name, configs[name], lambda path: path).build() for name in names]  # type: ignore[arg-type,return-value]
    return Models(family, built[0], nn.Identity(), tuple(built[1:]), ())


@functools.cache
def targets_of(family: str) -> tuple[Target, ...]:
    """Every module that an adapter of the family can change, those of LyCORIS alone included."""
    models = skeleton(family)
    return tuple(all_targets(models))


def all_targets(models: Models) -> list[Target]:
    """The targets of loaded or empty models, LyCORIS' own behind kohya's."""
    from trainer.adapters.lycoris_targets import extra_targets
    from trainer.families import get

    known = get(models.family).targets(models)
    keys = {target.key for target in known}
    return [*known, *(one for one in extra_targets(models, known).values() if one.key not in keys)]


def target_kinds(family: str) -> Mapping[str, Any]:
    """kohya key -> target; empty for a family that is not known."""
    from schemas.families import FAMILIES

    return {target.key: target for target in targets_of(family)} if family in FAMILIES else {}
