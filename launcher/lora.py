"""What a LoRA file says about itself, and whether its numbers are sound. Reads bytes, needs neither torch nor numpy."""

from __future__ import annotations

import hashlib
import json
import mmap
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.formats.base import Draft
from launcher.formats.foreign_header import trainer_of
from schemas import lora_names
from schemas.config import table, to_flat
from schemas.finite import PIECE, WIDTHS, finite
from schemas.weights import Header, TensorInfo, lora_facts, module_of, read_header

DOWN = ("lora_down.weight", "lora_A.weight", "lora_A.default.weight", "lora.down.weight", "hada_w1_b", "lokr_w2_b")
# the half of each module that starts at zero
UP = ("lora_up.weight", "lora_B.weight", "lora_B.default.weight", "lora.up.weight", "hada_w2_a", "lokr_w2_b",
      "lokr_w2", "oft_blocks", "oft_diag", ".diff", "b2.weight")  # fmt: skip


@dataclass(frozen=True)
class Health:
    """Tensors with NaN or infinite numbers, tensors of zeros only, and how many modules have left their start."""

    not_finite: list[str]
    zero: list[str]
    moved: int
    modules: int

    @property
    def ok(self) -> bool:
        return not self.not_finite and (self.moved > 0 or self.modules == 0)

    def as_json(self) -> dict[str, Any]:
        """The `health` of `inspect --json`."""
        return {
            "ok": self.ok,
            "finite": not self.not_finite,
            "not_finite": self.not_finite,
            "zero_tensors": len(self.zero),
            "moved_modules": self.moved,
            "modules": self.modules,
        }


def health(header: Header) -> Health:
    """Looks at every number of the file. A module has moved when the half that starts at zero is not zero any more."""
    not_finite, zero, ups, moved = [], [], 0, 0
    with header.path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for name, info in header.tensors.items():
            if info.dtype not in WIDTHS:
                continue
            sound, nothing = True, True
            for start in range(info.start, info.end, PIECE):
                raw = data[start : min(start + PIECE, info.end)]
                sound, nothing = sound and finite(raw, info.dtype), nothing and all_zero(raw, info.dtype)
            if not sound:
                not_finite.append(name)
            if nothing:
                zero.append(name)
            if name.endswith(UP):
                ups += 1
                moved += not nothing
    return Health(not_finite, zero, moved, ups)


def all_zero(raw: bytes, dtype: str) -> bool:
    """Whether all floats are 0 or -0."""
    width = WIDTHS[dtype]
    sign = raw[width - 1 :: width]
    return set(sign) <= {0, 0x80} and raw.count(0) == len(raw) - len(sign) + sign.count(0)


def describe(path: str) -> dict[str, Any]:
    """The document of `inspect --json`, without the recovered config."""
    header, facts = read_header(path), lora_facts(path)
    ranks = Counter(_rank(name, info) for name, info in header.tensors.items() if name.endswith(DOWN))
    alphas = _alphas(header)
    return {
        "file": path,
        "size": header.size,
        "family": facts.family,
        "algo": facts.algo,
        "style": facts.style,
        "dim": facts.dim,
        "alpha": facts.alpha,
        "conv_dim": facts.conv_dim,
        "conv_alpha": facts.conv_alpha,
        "ranks": {str(rank): count for rank, count in sorted(ranks.items())},
        "alphas": {f"{alpha:g}": count for alpha, count in sorted(alphas.items())},
        "modules": facts.modules,
        "parts": parts(header),
        "dtypes": dict(Counter(info.dtype for info in header.tensors.values())),
        "hashes": hashes(header),
        "health": health(header).as_json(),
        "trained_by": trainer_of(header.metadata),
        "data": pictures(header.metadata),
        "metadata": {name: _shown(name, text) for name, text in sorted(header.metadata.items())},
    }


def _rank(name: str, info: TensorInfo) -> int:
    return info.shape[0] if info.shape else 0


def _alphas(header: Header) -> Counter[float]:
    from schemas.weights import read_scalar

    return Counter(read_scalar(header, name) for name in header.tensors if name.endswith(".alpha"))


def parts(header: Header) -> dict[str, int]:
    """Adapted modules by part of the model."""
    modules = {module for name in header.tensors if (module := module_of(name))}
    counts = Counter(meant.part for meant in map(lora_names.module, modules))
    return {part: counts[part] for part in ("te", "te1", "te2", "unet") if counts[part]}


def pictures(metadata: Mapping[str, str]) -> list[dict[str, Any]]:
    """The folders it was trained on, as ss_dataset_dirs tells: name, repeats, number of pictures."""
    found = []
    for key, is_reg in (("ss_dataset_dirs", False), ("ss_reg_dataset_dirs", True)):
        folders = _shown(key, metadata.get(key, ""))
        for name, facts in folders.items() if isinstance(folders, dict) else ():
            facts = facts if isinstance(facts, dict) else {}
            counts = {"repeats": facts.get("n_repeats"), "pictures": facts.get("img_count")}
            found.append({"folder": name, **counts, "regularisation": is_reg})
    return found


def hashes(header: Header) -> dict[str, Any]:
    """SHA-256 of the file and of its tensor data (the sshs form), against what the header states."""
    start = min((info.start for info in header.tensors.values()), default=header.size)
    file, data = hashlib.sha256(), hashlib.sha256()
    with header.path.open("rb") as stream:
        file.update(stream.read(start))
        while piece := stream.read(PIECE):
            file.update(piece)
            data.update(piece)
    whole, tensors = file.hexdigest(), data.hexdigest()
    stated = header.metadata.get("sshs_model_hash")
    return {
        "sha256": whole,
        "autov2": whole[:10].upper(),
        "model_hash": tensors,
        "stated_model_hash": stated,
        "model_hash_matches": None if stated is None else stated == tensors,
    }


def _shown(name: str, text: str) -> Any:
    """Header text, as JSON where it is JSON."""
    from launcher.files import without_secrets

    text = without_secrets(text)
    if text[:1] in "{[":
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text


def recovered(draft: Draft, config: Any) -> dict[str, dict[str, Any]]:
    """Every argument with its value and how it is known: stated (in the header), inferred (from tensors), unknown."""
    unknown = set(draft.carry.get("unknown", ()))
    flat = to_flat(config, defaults=True)
    found = {}
    for name in table():
        if name not in flat:
            continue
        setting = draft.arguments.get(name)
        known = (
            "unknown"
            if setting is None and name in unknown
            else "inferred"
            if setting is not None and setting.origin == "computed"
            else "stated"
        )
        found[name] = {"value": None if known == "unknown" else flat[name], "known": known}
    return found


HEADER_FACTS = (
    "ss_sd_model_name", "ss_base_model_version", "ss_num_train_images", "ss_steps", "ss_epoch", "ss_learning_rate",
    "ss_unet_lr", "ss_text_encoder_lr", "ss_optimizer", "ss_lr_scheduler", "ss_training_comment",
)  # fmt: skip


def lines(facts: Mapping[str, Any]) -> Iterator[str]:
    """The same for people."""
    kind = f"{facts['algo']} for {facts['family']}, keys of {facts['style']} style"
    by = f", trained by {facts['trained_by']}" if facts["trained_by"] else ""
    yield f"{Path(facts['file']).name}: {kind}, {facts['size'] / 2**20:.1f} MiB{by}"
    conv = f", conv rank {facts['conv_dim']}, conv alpha {facts['conv_alpha']}" if facts["conv_dim"] else ""
    yield f"  rank {facts['dim']}, alpha {facts['alpha']}{conv}"
    yield f"  {facts['modules']} modules: " + ", ".join(f"{count} in {part}" for part, count in facts["parts"].items())
    yield "  " + ", ".join(f"{count} tensors {dtype}" for dtype, count in facts["dtypes"].items())
    hashed = facts["hashes"]
    states = {None: "", True: " (as its header states)", False: " (its header states another)"}
    yield f"  sha256  {hashed['sha256']}"
    yield f"  weights {hashed['model_hash']}{states[hashed['model_hash_matches']]}"
    yield _health_line(facts["health"])
    for folder in facts["data"]:
        kind = "regularisation" if folder["regularisation"] else "pictures"
        yield f"  {kind:<20} {folder['folder']}: {folder['pictures']} x {folder['repeats']} repeats"
    for name in HEADER_FACTS:
        if facts["metadata"].get(name) not in (None, "None", ""):
            yield f"  {name.removeprefix('ss_'):<20} {facts['metadata'][name]}"


def _health_line(sound: Mapping[str, Any]) -> str:
    finite = "all numbers finite" if sound["finite"] else f"not finite in {len(sound['not_finite'])} tensors"
    moved = f"{sound['moved_modules']} of {sound['modules']} modules have moved from their start"
    return f"  {'sound' if sound['ok'] else 'NOT sound'}: {finite}, {moved}"
