"""What a user should hear of a run that goes on all the same: said once, and kept in run.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from schemas.files.run_folder import RECORD, read_record
from trainer.adapters import Adapter
from trainer.dataset.captions import fixed
from trainer.dataset.files import Sample, Scan
from trainer.dataset.spec import SubsetSpec
from trainer.output.run_folder import write_text

ENOUGH = 50  # steps after which weights that learn must have moved
FEWEST = 10  # a shorter run says nothing about that
WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Remark:
    """`code` is a stable name; `text` is what was seen, `fix` what to do."""

    code: str
    text: str
    fix: str


class Remarks:
    """Says remarks and keeps them in the `remarks` of run.json, where the launcher has made one."""

    def __init__(self, folder: Path, say: Callable[[str, str], Any], *, main: bool) -> None:
        self.record, self.say, self.main = folder / RECORD, say, main

    def add(self, remark: Remark | None, step: int = 0) -> None:
        """A warning on the console, and in run.json unless an earlier start has left the same; None says nothing."""
        if remark is None or not self.main:
            return
        self.say(f"warning: {remark.text}\n    fix: {remark.fix}", "warning")

        def noted(record: dict[str, Any]) -> None:
            kept = record.setdefault("remarks", [])
            if remark.code not in [other.get("code") for other in kept]:
                kept.append({**asdict(remark), "step": step})

        self._change(noted)

    def stopped(self, step: int, what: str, causes: Sequence[str], *, certain: bool) -> None:
        """Why the run ends at `step`, in the entry of this start."""

        def noted(record: dict[str, Any]) -> None:
            if record.get("starts"):
                record["starts"][-1]["cause"] = {"step": step, "what": what, "causes": [*causes], "certain": certain}

        if self.main:
            self._change(noted)

    def _change(self, change: Callable[[dict[str, Any]], None]) -> None:
        record = read_record(self.record.parent)
        if record:
            change(record)
            write_text(self.record, json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def empty_captions(found: Scan) -> Remark | None:
    """Where no training picture has a text, nothing is learned that a prompt could call up."""
    samples = [sample for sample in found.samples if not sample.is_reg]
    if any(fixed(sample.caption, _certain(found, sample)).strip() for sample in samples):
        return None
    return Remark(
        "captions-empty",
        f"the captions of all {len(samples)} images are empty: what is learned answers to no word",
        "write captions beside the pictures (kohyakit dataset caption), check caption_extension, and "
        "caption_dropout_rate",
    )


def _certain(found: Scan, sample: Sample) -> SubsetSpec:
    """The subset's settings with chance left out, unless that drops every caption."""
    subset = found.subset(sample)
    always = subset.caption_dropout_rate >= 1 or subset.caption_dropout_every_n_epochs == 1
    return replace(subset, caption_dropout_rate=float(always), caption_dropout_every_n_epochs=0)


def resting_text_encoder(adapter: Adapter) -> Remark | None:
    """Text encoders that are part of the LoRA, but whose rate is 0: they are saved as they began."""
    parts: dict[str, bool] = {}
    for name, weight in adapter.named_parameters():
        target = adapter.targets.get(name.partition(".")[0])
        if target is not None and target.part != "unet":
            parts[target.part] = parts.get(target.part, False) or weight.requires_grad
    resting = [part for part, trained in parts.items() if not trained]
    if not resting:
        return None
    return Remark(
        "text-encoder-unused",
        f"the text encoder ({', '.join(resting)}) is part of the LoRA but does not learn: its rate is 0",
        "set network_train_unet_only to leave it out, or text_encoder_lr above 0 to train it",
    )


class Movement:
    """Whether weights change while they are trained, by parameter group."""

    def __init__(self, optimizer: torch.optim.Optimizer, first: int, total: int) -> None:
        self.optimizer = optimizer
        self.first, self.due = first, min(first + ENOUGH, total)
        self._before = self._marks() if self.due - first >= FEWEST else {}

    @torch.no_grad()
    def _marks(self) -> dict[str, Tensor]:
        """A sum over the bits of each weight: equal weights have equal sums, others hardly ever."""
        return {
            str(group.get("name", number)): torch.stack([
                weight.detach().view(WHOLE[weight.element_size()]).sum() for weight in group["params"]
            ])
            for number, group in enumerate(self.optimizer.param_groups)
            if any(weight.requires_grad for weight in group["params"])  # the others rest, as was asked for
        }  # fmt: skip

    def look(self, step: int) -> Remark | None:
        """What has not moved by `step`; asked once, when enough steps are done."""
        if step != self.due or not self._before:
            return None
        now, count = self._marks(), step - self.first
        still = [name for name, before in self._before.items() if name in now and torch.equal(before, now[name])]
        self._before = {}
        if not still:
            return None
        rates = ", ".join(f"{float(group['lr']):.3g}" for group in self.optimizer.param_groups)
        if len(still) == len(now):
            return Remark(
                "weights-not-moved",
                f"the weights have not moved in {count} steps (rates now: {rates})",
                "raise learning_rate, look at lr_warmup_steps, and leave full_bf16 and full_fp16 out, where small "
                "steps are rounded away",
            )
        if all(name.startswith("textencoder") for name in still):
            return Remark(
                "text-encoder-unused",
                f"the text encoder ({', '.join(still)}) has not learned in {count} steps: no gradient has moved it",
                "raise text_encoder_lr, or set network_train_unet_only to leave it out",
            )
        return Remark(
            "weights-not-moved",
            f"some weights have not moved in {count} steps: {', '.join(still)} (rates now: {rates})",
            "raise their rate (unet_lr, block lr weights), or leave them out",
        )
