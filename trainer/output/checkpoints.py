"""Checkpoints and LoRAs: a LoRA added to a checkpoint's weights, and the difference of two checkpoints as a LoRA."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from schemas import TrainConfig
from schemas.files.lora_kinds import PLAIN_SUMS
from schemas.files.weights import Header, checkpoint_family, read_header
from schemas.problems import error
from trainer.adapters.adapter import find_modules
from trainer.adapters.merge import difference
from trainer.families import Models, Target, get, single_file
from trainer.families.ldm_keys import Stored
from trainer.output import low_rank
from trainer.output.lora_headers import HISTORY, history
from trainer.output.lora_source import LoraSource, all_targets
from trainer.output.lora_tools import SAID, Made, Spool, Tally, Watch, as_lora, made_of, quietly
from trainer.output.metadata import last_name, version
from trainer.output.streaming import SPEC_HASH, WEBUI_HASHES, Entry, read_tensor, write_streamed


@dataclass(frozen=True)
class Spot:
    """Where a module's weight or bias lies within a checkpoint."""

    target: Target
    stored: Stored
    attribute: str  # "weight" or "bias"


class Base:
    """A single-file checkpoint: its model without weights, its targets, and where their tensors are stored."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header: Header = read_header(path)
        self.family = checkpoint_family(path)
        file = single_file.SafetensorsFile(path, mapped=False)
        parts = {part.name: part for part in single_file.parts(file, self.family, with_vae=False)}
        single_file.check(file, list(parts.values()))
        built = {name: part.build() for name, part in parts.items()}
        encoders = tuple(built[name] for name in ("text_encoder", "text_encoder_2") if name in built)
        self.models = Models(self.family, built["unet"], nn.Identity(), encoders, ())
        self.targets = all_targets(self.models)
        self.modules: dict[str, Any] = find_modules(self.models, self.targets)
        names = {"unet": "unet", "te": "text_encoder", "te1": "text_encoder", "te2": "text_encoder_2"}
        self.spots: dict[str, list[Spot]] = {}
        for target in self.targets:
            for attribute in ("weight", "bias"):
                if getattr(self.modules[target.key], attribute, None) is not None:
                    stored = parts[names[target.part]].names(f"{target.path}.{attribute}")  # type: ignore[index]
                    self.spots.setdefault(stored.name, []).append(Spot(target, stored, attribute))

    def place(self, spot: Spot, whole: Tensor) -> Tensor:
        """The part of a stored tensor that is the module's, as the module has it; a view where that is possible."""
        shape = tuple(getattr(self.modules[spot.target.key], spot.attribute).shape)
        if spot.stored.form == "third":
            rows = shape[0]
            return whole[spot.stored.third * rows : (spot.stored.third + 1) * rows]
        return whole.T if spot.stored.form == "transposed" else whole.reshape(shape)


# -- into a checkpoint -------------------------------------------------------------------------------------------------


def merge_into(
    base: Base, sources: Sequence[tuple[LoraSource, float]], path: Path, *, watch: Watch = quietly
) -> Made:  # fmt: skip
    """The checkpoint with every LoRA added at its weight, in its own number formats; each counts from the base weights.

    ConfigError `wrong-family` where a file matches no module of it.
    """
    keys = [{as_lora(key): key for key in source.modules} for source, _ in sources]
    notes, used = [], set[str]()
    known = {target.key for target in base.targets}
    for (source, _), own in zip(sources, keys, strict=True):
        strange = [key for key in own if key not in known]
        if len(strange) == len(own):
            raise error("wrong-family", f"matches no module of {base.path.name}", file=str(source.path),
                        fix=f"use a LoRA for {base.family}")  # fmt: skip
        if strange or source.strange:
            count, first = len(strange) + len(source.strange), (strange + source.strange)[0]
            notes.append(f"{source.path.name}: {count} modules are not in the checkpoint, such as {first}")
        used |= set(own) & known

    def changed(name: str) -> Tensor:
        whole = read_tensor(base.header, name)
        spots = [spot for spot in base.spots.get(name, ()) if spot.target.key in used]
        if not spots or not whole.is_floating_point():
            return whole
        wide = whole.float()
        for spot in spots:
            part = base.place(spot, wide)
            delta = torch.zeros(part.shape)
            for (source, weight), own in zip(sources, keys, strict=True):
                if spot.target.key in own:
                    delta += _added(base, spot, part, source.own(own[spot.target.key]), weight)
            part += delta
        return wide.to(whole.dtype)

    tensors = sorted(base.header.tensors.items(), key=lambda item: item[1].start)
    entries = [Entry(name, info.dtype, info.shape, functools.partial(changed, name)) for name, info in tensors]
    metadata = _merged_header(base, sources)
    hashes = [name for name in (*WEBUI_HASHES, SPEC_HASH) if name in base.header.metadata]
    write_streamed(path, entries, metadata, hashes=hashes, watch=lambda all_: watch(list(all_), "writing"))
    dtypes = sorted({info.dtype for info in base.header.tensors.values()})
    return Made(str(path), "merge", ", ".join(SAID.get(one, one) for one in dtypes), len(used), notes=notes)


def _added(base: Base, spot: Spot, part: Tensor, own: Mapping[str, Tensor], weight: float) -> Tensor:
    """weight · ΔW (or Δbias) in float32 for a part of the base's weights."""
    if spot.attribute == "bias":
        tail = next((tail for tail in ("diff_b", "b_norm") if tail in own), None)
        return torch.zeros(part.shape) if tail is None else weight * own[tail].float().view_as(part)
    if not own.keys() - {*PLAIN_SUMS, "alpha"} and "w_norm" not in own:
        return torch.zeros(part.shape)
    module = copy.deepcopy(base.modules[spot.target.key])
    module.weight = nn.Parameter(part.clone(), requires_grad=False)
    if getattr(module, "bias", None) is not None:
        module.bias = nn.Parameter(torch.zeros(module.bias.shape), requires_grad=False)
    key = spot.target.key
    with torch.no_grad():
        return difference(key, module, {f"{key}.{tail}": tensor for tail, tensor in own.items()}, weight).view_as(part)


def _merged_header(base: Base, sources: Sequence[tuple[LoraSource, float]]) -> dict[str, str]:
    header = dict(base.header.metadata)
    files = [{"file": last_name(str(source.path)), "sha256": source.header.metadata.get("sshs_model_hash")}
             for source, _ in sources]  # fmt: skip
    how = {"into": last_name(str(base.path)), "weights": [weight for _, weight in sources]}
    header[HISTORY] = history(header, "merge", files, how)
    merged = [last_name(str(base.path)), *(str(entry["file"]) for entry in files)]
    header["modelspec.merged_from"] = ", ".join(merged)
    return header


# -- the difference of two checkpoints ---------------------------------------------------------------------------------


def extract(
    tuned: Base, base: Base, path: Path, *, rank: int, conv_rank: int | None, dtype: str | None, watch: Watch = quietly
) -> Made:  # fmt: skip
    """The LoRA of that rank nearest to what `tuned` has learnt beyond `base`; modules that are alike are left out.

    `conv_rank` is that of 3x3 convolutions, 0 leaves them out. ConfigError `no-difference` where all modules are alike.
    """
    spool, tally, notes = Spool(path, dtype or "F16"), Tally(), list[str]()
    left = dict[str, float]()
    keys = _lora_keys(base)
    places = [(name, spot) for name, spots in base.spots.items() for spot in spots if spot.attribute == "weight"]
    kohya = [(name, spot) for name, spot in places if spot.target.key in keys]
    for name, spot in watch(kohya, "extracting"):
        delta = _difference(tuned, base, name, spot)
        if not bool(delta.any()):
            continue
        wide = spot.target.kind == "conv3x3"
        most = (rank if conv_rank is None else conv_rank) if wide else rank
        if most == 0:
            left[name] = float(delta.abs().max())
            continue
        parts = low_rank.decompose([(1.0, delta)], most)
        chosen = low_rank.rank_for(parts, rank=most, keep=None)
        tally.add(parts, chosen)
        for tail, tensor in low_rank.lora_of(parts, chosen, 1.0).items():
            spool.add(f"{spot.target.key}.{tail}", tensor)
    if not spool.entries:
        raise error("no-difference", "has the same weights as BASE in every module that a LoRA can change",
                    file=str(tuned.path), fix="name the tuned checkpoint first, its base second")  # fmt: skip
    notes += _beyond(tuned, base, {name for name, _ in kohya}, left)
    metadata = _extracted_header(tuned, base, tally, rank)
    write_streamed(path, spool.entries, metadata)
    return made_of(path, "extract", spool, tally, sum(tally.ranks.values()), notes)


def _lora_keys(base: Base) -> set[str]:
    from trainer.families import get

    return {target.key for target in get(base.family).targets(base.models)}


def _difference(tuned: Base, base: Base, name: str, spot: Spot) -> Tensor:
    one, other = (read_tensor(each.header, name) for each in (tuned, base))
    found: Tensor = tuned.place(spot, one.float()) - base.place(spot, other.float())
    if not torch.isfinite(found).all():
        raise error("not-finite", "holds NaN or Inf", key=name, file=str(tuned.path), fix="use a sound checkpoint")
    return found


def _beyond(tuned: Base, base: Base, covered: set[str], left: dict[str, float]) -> list[str]:
    """What a LoRA cannot hold: changed norms, biases, ends of the U-Net, the VAE."""
    changed = list(left)
    for name, info in base.header.tensors.items():
        if name in covered:
            continue
        theirs = tuned.header.tensors.get(name)
        if theirs is None or theirs.shape != info.shape:
            changed.append(name)
        elif info.dtype.startswith(("F", "BF")):
            same = torch.equal(read_tensor(tuned.header, name).float(), read_tensor(base.header, name).float())
            changed += [] if same else [name]
    if not changed:
        return []
    return [f"{len(changed)} changed tensors are not in it (norms, biases, ends, VAE), such as {changed[0]}"]


def _extracted_header(tuned: Base, base: Base, tally: Tally, rank: int) -> dict[str, str]:
    wide = tally.wide.most_common(1)[0][0] if tally.wide else None
    files = [{"file": last_name(str(one.path)), "sha256": one.header.metadata.get("sshs_model_hash")}
             for one in (tuned, base)]  # fmt: skip
    mixed, says = len(tally.linear) > 1, get(base.family).metadata(TrainConfig())
    return {
        "ss_base_model_version": says["ss_base_model_version"],
        "ss_network_module": "networks.lora",
        "ss_network_dim": "Dynamic" if mixed else str(rank),
        "ss_network_alpha": "Dynamic" if mixed else str(float(rank)),
        "ss_network_args": f'{{"conv_dim": "{wide}", "conv_alpha": "{wide}"}}' if wide else "{}",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": says["modelspec.architecture"],
        "modelspec.title": tuned.path.stem,
        "modelspec.implementation_version": f"kohyakit/{version()}",
        HISTORY: history({}, "extract", files, {"rank": rank}),
    }
