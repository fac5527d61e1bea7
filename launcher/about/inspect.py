"""What a LoRA file says about itself, and whether its numbers are sound. Reads bytes, needs neither torch nor numpy."""

from __future__ import annotations

import hashlib
import mmap
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.formats.base import Draft
from launcher.formats.foreign_header import trainer_of
from schemas import interop
from schemas.config import table, to_flat
from schemas.families import FAMILIES
from schemas.files import lora_names
from schemas.files.documents import parse_json
from schemas.files.finite import PIECE, WIDTHS, finite
from schemas.files.textfile import open_regular
from schemas.files.weights import (
    EXTRAS,
    Header,
    LoraFacts,
    lora_facts,
    module_of,
    module_ranks,
    read_header,
)

if TYPE_CHECKING:
    from launcher.check.resolve import Resolved


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
    """Looks at every number of the file. A module has moved when a product of its factors is not zero any more."""
    not_finite, zero = [], []
    products: dict[str, dict[str, bool]] = {}
    with (
        open_regular(header.path, what="weights file") as stream,
        mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
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
            module, product = module_of(name), _product(name)
            if module and product is not None:
                both = products.setdefault(module, {})
                both[product] = both.get(product, True) and not nothing
    return Health(not_finite, zero, sum(any(both.values()) for both in products.values()), len(products))


def _product(name: str) -> str | None:
    """Which of a module's summands a tensor is a factor of: weight or bias, GLoRA's a or b; None for scales."""
    if name.endswith((*EXTRAS, ".on_input")):
        return None
    for ending, summand in ((".diff_b", "bias"), (".b_norm", "bias"), (".a1.weight", "a"), (".a2.weight", "a")):
        if name.endswith(ending):
            return summand
    return "weight"


def all_zero(raw: bytes, dtype: str) -> bool:
    """Whether all floats are 0 or -0."""
    width = WIDTHS[dtype]
    sign = raw[width - 1 :: width]
    return set(sign) <= {0, 0x80} and raw.count(0) == len(raw) - len(sign) + sign.count(0)


def describe(path: str) -> dict[str, Any]:
    """The document of `inspect --json`, without the recovered config."""
    header, facts = read_header(path), lora_facts(path)
    ranks = Counter(module_ranks({name: info.shape for name, info in header.tensors.items()}).values())
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
        "programs": programs(header, facts),
        "trained_by": trainer_of(header.metadata),
        "data": pictures(header.metadata),
        "metadata": {name: _shown(name, text) for name, text in sorted(header.metadata.items())},
    }


def programs(header: Header, facts: LoraFacts) -> dict[str, dict[str, str]]:
    """program -> how it reads this file, where that was measured: {"reads", "how"}."""
    family = facts.family if facts.family in FAMILIES else None
    found = interop.readings(interop.kinds_of_file(header, facts), family)
    return {program: {"reads": one.verdict, "how": one.how} for program, one in found.items()}


def _alphas(header: Header) -> Counter[float]:
    from schemas.files.weights import read_scalars

    return Counter(read_scalars(header, [name for name in header.tensors if name.endswith(".alpha")]).values())


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
    with open_regular(header.path, what="weights file") as stream:
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
    from schemas.blanking import without_secrets

    text = without_secrets(text)
    if text[:1] in "{[":
        try:
            return parse_json(text)
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


def document(path: str, resolved: Resolved) -> dict[str, Any]:
    """The document of `inspect --json`; `resolved` is the config read from the same file."""
    config = recovered(resolved.draft, resolved.config)
    unknown = [name for name, entry in config.items() if entry["known"] == "unknown"]
    problems = [problem.as_json() for problem in resolved.problems]
    return {**describe(path), "config": config, "unknown": unknown, "problems": problems}


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
    rank = "no rank" if facts["dim"] is None else f"rank {facts['dim']}, alpha {facts['alpha']}"
    yield f"  {rank}{conv}"
    yield f"  {facts['modules']} modules: " + ", ".join(f"{count} in {part}" for part, count in facts["parts"].items())
    yield "  " + ", ".join(f"{count} tensors {dtype}" for dtype, count in facts["dtypes"].items())
    hashed = facts["hashes"]
    states = {None: "", True: " (as its header states)", False: " (its header states another)"}
    yield f"  sha256  {hashed['sha256']}"
    yield f"  weights {hashed['model_hash']}{states[hashed['model_hash_matches']]}"
    yield _health_line(facts["health"])
    read = {name: interop.Reading(one["reads"], one["how"]) for name, one in facts["programs"].items()}
    for sentence in interop.sentences(read):
        yield f"  {sentence}"
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
