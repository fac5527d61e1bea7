"""Work on LoRA files: merge, resize, convert. `trainer.output.lora_work` does it for `kohyakit lora`.

Module by module: what is finished goes to a temporary file on the disk, so that memory holds one module at a time.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar

import torch
from torch import Tensor

from schemas.files.lora_kinds import PLAIN_SUMS, kind_of, not_linear
from schemas.problems import ConfigError, error
from trainer.adapters.oft import LORA_PREFIX, PREFIX
from trainer.output import low_rank
from trainer.output.lora_headers import renewed
from trainer.output.lora_source import LoraSource, target_kinds
from trainer.output.low_rank import Factors
from trainer.output.streaming import DTYPES, Entry, write_streamed

Item = TypeVar("Item")
Watch = Callable[[Sequence[Any], str], Iterable[Any]]
SAVED = {"float": "F32", "fp16": "F16", "bf16": "BF16"}
SAID = {"F64": "float64", **{stored: name for name, stored in SAVED.items()}}


def quietly(items: Sequence[Any], label: str) -> Iterable[Any]:
    """No progress."""
    return items


class Spool:
    """Finished tensors on the disk beside the file to be, until its header is known."""

    def __init__(self, beside: Path, dtype: str) -> None:
        folder = next(parent for parent in beside.absolute().parents if parent.is_dir())
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - lives as long as its entries
        self.dtype = dtype
        self.entries: list[Entry] = []

    def add(self, name: str, tensor: Tensor, dtype: str | None = None) -> None:
        """Keep a tensor in the spool's dtype, or as it is with `dtype`; ConfigError where a number does not fit."""
        kept = dtype or ("F32" if name.endswith(".alpha") else self.dtype)  # a scale is to be exact
        stored = tensor.detach().cpu().to(DTYPES[kept]).contiguous()
        if stored.is_floating_point() and not torch.isfinite(stored.float()).all():
            must = f"has numbers too large for {SAID.get(kept, kept)}"
            raise error("not-finite", must, key=name, fix="--dtype float")
        place = self._file.seek(0, 2)
        raw: Any = stored.reshape(-1).view(torch.uint8).numpy()
        self._file.write(memoryview(raw))
        shape, size = tuple(stored.shape), len(raw)  # the entry must not hold the tensor
        self.entries.append(Entry(name, kept, shape, lambda: self._get(place, size, kept, shape)))

    def _get(self, place: int, size: int, dtype: str, shape: tuple[int, ...]) -> Tensor:
        raw = torch.empty(size, dtype=torch.uint8)
        view: Any = raw.numpy()
        self._file.seek(place)
        self._file.readinto(view)  # type: ignore[attr-defined]
        return raw.view(DTYPES[dtype]).reshape(shape)


@dataclass
class Made:
    """What a tool has made: for people and for `--json`."""

    file: str
    did: str
    dtype: str
    modules: int
    ranks: dict[str, int] = field(default_factory=dict)  # rank -> modules
    kept_share: dict[str, float] | None = None  # of the Frobenius norm: lowest, mean, whole
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return {"ok": True, **vars(self), "problems": []}


@dataclass
class Tally:
    """Ranks and kept shares of the modules so far."""

    ranks: Counter[int] = field(default_factory=Counter)
    linear: Counter[int] = field(default_factory=Counter)
    wide: Counter[int] = field(default_factory=Counter)
    shares: list[float] = field(default_factory=list)
    kept: float = 0.0
    whole: float = 0.0

    def add(self, parts: low_rank.Parts, rank: int) -> None:
        share = low_rank.share(parts, rank)
        self.shares.append(share)
        self.kept += (share * parts.norm) ** 2
        self.whole += parts.norm**2
        self.count(rank, parts.kernel)

    def count(self, rank: int, kernel: tuple[int, ...]) -> None:
        self.ranks[rank] += 1
        (self.wide if kernel[1:] not in ((), (1, 1)) else self.linear)[rank] += 1

    def shown(self) -> dict[str, float] | None:
        if not self.shares:
            return None
        whole = (self.kept / self.whole) ** 0.5 if self.whole else 1.0
        mean = sum(self.shares) / len(self.shares)
        return {"lowest": min(self.shares), "mean": mean, "whole": whole}


def made_of(path: Path, did: str, spool: Spool, tally: Tally, modules: int, notes: list[str]) -> Made:
    ranks = {str(rank): count for rank, count in sorted(tally.ranks.items())}
    return Made(str(path), did, SAID.get(spool.dtype, spool.dtype), modules, ranks, tally.shown(), notes)


# -- resize ------------------------------------------------------------------------------------------------------------


def resize(
    source: LoraSource, path: Path, *, rank: int | None, keep: float | None, dtype: str | None, watch: Watch = quietly
) -> Made:
    """The nearest LoRA of a lower rank, or of the least ranks that keep a share of each module's Frobenius norm.

    A LoHa, LoKr or full difference becomes a LoRA; a DoRA keeps its magnitudes. ConfigError `no-low-rank` for kinds
    that have no ΔW of their own.
    """
    spool, tally, notes = Spool(path, dtype or source.dtype), Tally(), list[str]()
    became: Counter[str] = Counter()
    for key in watch(list(source.modules), "resizing"):
        kind, own = kind_of(source.endings(key)), source.own(key)
        keep_sums(spool, key, [(1.0, own)])
        if kind.name in ("norm", "bias"):
            continue
        if not (kind.low or kind.additive):
            raise refused("no-low-rank", source, key, kind.name, "it has no ΔW to be cut; merge --into MODEL takes it")
        term: Factors | Tensor = low_rank.factors(own) if kind.low else of_kind(key, own, source.family)
        if not kind.low:
            became[kind.name] += 1
        parts = low_rank.decompose([(1.0, term)], None if keep is not None else rank)
        chosen = low_rank.rank_for(parts, rank=rank, keep=keep)
        tally.add(parts, chosen)
        scale = term.scale if isinstance(term, Factors) and term.scale > 0 else 1.0
        for tail, tensor in low_rank.lora_of(parts, chosen, scale).items():
            spool.add(f"{key}.{tail}", tensor)
        if "dora_scale" in own:
            spool.add(f"{key}.dora_scale", own["dora_scale"])
    notes += [f"{count} modules of the kind {name} became LoRA" for name, count in became.items()]
    if any("dora_scale" in tails for tails in source.modules.values()):
        notes.append("a DoRA: its directions were cut, its magnitudes are as trained")
    wish = {"rank": rank} if keep is None else {"keep": keep, "rank": rank}
    metadata = renewed([source], "resize", tally, wish, lora=bool(became))
    write_streamed(path, spool.entries, metadata)
    return made_of(path, "resize", spool, tally, len(source.modules), notes)


def of_kind(key: str, own: Mapping[str, Tensor], family: str) -> Tensor:
    """ΔW of a LoHa, LoKr or full difference, of the shape of the base weight."""
    whole = low_rank.matrix(key, own)
    target = target_kinds(family).get(key)
    if target is not None and target.kind == "conv1x1" and whole.dim() == 2:
        return whole[..., None, None]
    return whole


def keep_sums(spool: Spool, key: str, terms: Sequence[tuple[float, Mapping[str, Tensor]]]) -> None:
    """Differences of norms and biases, which are added as they are."""
    for tail in PLAIN_SUMS:
        found = [weight * own[tail].float() for weight, own in terms if tail in own]
        if found:
            spool.add(f"{key}.{tail}", torch.stack(found).sum(0))


def refused(code: str, source: LoraSource, key: str, kind: str, why: str) -> ConfigError:
    return error(code, f"{key} is {kind}: {why}", file=str(source.path))


# -- merge -------------------------------------------------------------------------------------------------------------


def merge(
    sources: Sequence[tuple[LoraSource, float]], path: Path, *, rank: int | None, dtype: str | None,
    watch: Watch = quietly,
) -> Made:  # fmt: skip
    """One LoRA that does what all do together at their weights: exactly, factors side by side, or nearest of `rank`.

    ConfigError `not-mergeable`, which names the first module, for kinds that have no sum, or none without `rank`.
    """
    widest = next(one for one in ("F64", "F32", "BF16", "F16") if one in {source.dtype for source, _ in sources})
    mixed = {source.dtype for source, _ in sources} == {"F16", "BF16"}  # neither holds the other
    spool, tally = Spool(path, dtype or ("F32" if mixed else widest)), Tally()
    keys = list(dict.fromkeys(key for source, _ in sources for key in source.modules))
    changed = False
    for key in watch(keys, "merging"):
        having = [(source, weight) for source, weight in sources if key in source.modules]
        kinds = [kind_of(source.endings(key)) for source, _ in having]
        owns = [(weight, source.own(key)) for source, weight in having]
        for (source, _), kind in zip(having, kinds, strict=True):
            if not kind.additive:
                fix = "--into MODEL merges it into a checkpoint"
                raise refused("not-mergeable", source, key, kind.name, f"{not_linear(kind)}; {fix}")
            if rank is None and kind.name in ("LoHa", "LoKr"):
                raise refused(
                    "not-mergeable", source, key, kind.name, "a sum of such is no such; --rank 32 makes a LoRA"
                )
        keep_sums(spool, key, owns)
        made, parts = summed(key, list(zip(owns, kinds, strict=True)), rank, having)
        for tail, tensor in made.items():
            spool.add(f"{key}.{tail}", tensor)
        if "lora_down.weight" in made:
            count = made["lora_down.weight"].shape[0]
            kernel = tuple(made["lora_down.weight"].shape[1:])
            tally.add(parts, count) if parts is not None else tally.count(count, kernel)
            changed = changed or any(not kind.low for kind in kinds)
    files = [source for source, _ in sources]
    how = {"weights": [weight for _, weight in sources], "rank": rank}
    metadata = renewed(files, "merge", tally, how, lora=changed)
    write_streamed(path, spool.entries, metadata)
    return made_of(path, "merge", spool, tally, len(keys), [])


def summed(
    key: str, given: Sequence[tuple[tuple[float, Mapping[str, Tensor]], Any]], rank: int | None,
    having: Sequence[tuple[LoraSource, float]],
) -> tuple[dict[str, Tensor], low_rank.Parts | None]:  # fmt: skip
    """(tensors by ending, decomposition where one was made) of Σ weight · ΔW of one module."""
    family = having[0][0].family
    terms: list[tuple[float, Factors | Tensor]] = []
    for (weight, own), kind in given:
        if kind.name not in ("norm", "bias"):
            terms.append((weight, low_rank.factors(own) if kind.low else of_kind(key, own, family)))
    if not terms:
        return {}, None
    columns = {term.kernel if isinstance(term, Factors) else tuple(term.shape[1:]) for _, term in terms}
    rows = {len(term.up) if isinstance(term, Factors) else len(term) for _, term in terms}
    if len(rows) > 1 or len({tuple(size for size in one if size != 1) for one in columns}) > 1:
        must = f"{key} has another width in {having[0][0].path} than in {having[-1][0].path}"
        raise error("wrong-family", must, fix="merge files of one base model's family")
    if rank is not None:
        parts = low_rank.decompose(terms, rank)
        return low_rank.lora_of(parts, low_rank.rank_for(parts, rank=rank, keep=None), 1.0), parts
    if all(isinstance(term, Factors) for _, term in terms):
        return low_rank.joined([(weight, term) for weight, term in terms if isinstance(term, Factors)]), None
    if all(isinstance(term, Tensor) for _, term in terms):
        whole = [weight * low_rank.dense(term) for weight, term in terms]
        return {"diff": torch.stack(whole).sum(0)}, None
    raise refused(
        "not-mergeable", having[0][0], key, "a LoRA here and a full difference there", "--rank 32 makes a LoRA"
    )


# -- convert -----------------------------------------------------------------------------------------------------------


def to_kohya(source: LoraSource, path: Path, *, dtype: str | None, watch: Watch = quietly) -> Made:
    """The same adapter under kohya's names, alpha written out."""
    spool = Spool(path, dtype or source.dtype)
    tally, notes = Tally(), list[str]()
    for key in watch(list(source.modules), "converting"):
        for tail, tensor in source.own(key).items():
            kept = None if tensor.is_floating_point() else str(source.header.tensors[source.modules[key][tail]].dtype)
            spool.add(f"{key}.{tail}", tensor, kept)
            if tail == "lora_down.weight":
                tally.count(tensor.shape[0], tuple(tensor.shape[1:]))
    if source.strange:
        notes.append(f"{len(source.strange)} tensors of no known module were left out, such as {source.strange[0]}")
    write_streamed(path, spool.entries, renewed([source], "convert", tally, {"to": "kohya"}, lora=False))
    return made_of(path, "convert", spool, tally, len(source.modules), notes)


def to_diffusers(
    source: LoraSource, path: Path, *, dtype: str | None, peft: bool, watch: Watch = quietly
) -> Made:  # fmt: skip
    """As diffusers keeps it (one file) or, with `peft`, as peft does (a folder, in it one for each part of the model).

    ConfigError `no-such-form` for kinds that neither knows.
    """
    from trainer.output.lora_keys import to_peft
    from trainer.output.peft_folders import write_peft

    targets = target_kinds(source.family)
    spool, tally = Spool(path, dtype or source.dtype), Tally()
    outline: dict[str, Tensor] = {}  # shapes and alphas alone: the settings follow from them
    for key in watch(list(source.modules), "converting"):
        kind, own = kind_of(source.endings(key)), source.own(key)
        magnitude = own.get("dora_scale")
        on_input = magnitude is not None and kind.low and magnitude.shape[0] != own["lora_up.weight"].shape[0]
        if not kind.low or key not in targets or on_input or any(tail in own for tail in PLAIN_SUMS):
            name = "a DoRA with wd_on_output=False" if on_input else kind.name
            must = "diffusers and peft have no form for it" if key in targets else "no module of this name is known"
            raise refused("no-such-form", source, key, name, f"{must}; lora resize makes a LoRA of a LoHa or LoKr")
        if "lora_mid.weight" in own:
            own = {**low_rank.joined([(1.0, low_rank.factors(own))])}
        tensors, _ = to_peft({f"{key}.{tail}": tensor for tail, tensor in own.items()}, targets)
        for name, tensor in tensors.items():
            spool.add(name, tensor)
        outline |= {
            f"{key}.{tail}": tensor if tail == "alpha" else torch.empty(tensor.shape, device="meta")
            for tail, tensor in own.items()
        }
        tally.count(own["lora_down.weight"].shape[0], tuple(own["lora_down.weight"].shape[1:]))
    settings = to_peft(outline, targets)[1]
    metadata = renewed([source], "convert", tally, {"to": "peft" if peft else "diffusers"}, lora=False)
    if peft:
        write_peft(path, spool.entries, settings, metadata, {one.key: one for one in targets.values()})
    else:
        said = {"format": "pt", "lora_adapter_metadata": json.dumps(settings)}
        write_streamed(path, spool.entries, {**metadata, **said})
    return made_of(path, "convert", spool, tally, len(source.modules), [])


def as_lora(key: str) -> str:
    """OFT files have a prefix of their own."""
    return LORA_PREFIX + key.removeprefix(PREFIX) if key.startswith(PREFIX) else key


def watched(items: Iterable[Item], label: str, say: Callable[[str], None]) -> Iterator[Item]:
    """The items, with a bar on a terminal and a line now and then elsewhere."""
    import sys
    import time

    from rich.console import Console
    from rich.progress import track

    listed = list(items)
    if sys.stderr.isatty():
        yield from track(listed, label, console=Console(stderr=True), transient=True)
        return
    last = time.monotonic()
    for number, item in enumerate(listed, 1):
        yield item
        if time.monotonic() - last > 15:
            last = time.monotonic()
            say(f"{label}: {number} of {len(listed)}")
