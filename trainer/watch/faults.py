"""A loss or gradient that is no number: which data is behind it, and the weights from before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from accelerate.utils import gather_object

from schemas.files.run_folder import judge
from trainer.input.batches import Batch
from trainer.output import states
from trainer.watch.remarks import Remarks
from trainer.watch.stopping import NotFinite, TrainingStopped, likely_causes

if TYPE_CHECKING:
    from trainer.loop import Run
    from trainer.output.results import Results


def stopped(
    run: Run, fault: NotFinite, batches: Sequence[Batch], results: Results, remarks: Remarks
) -> TrainingStopped:
    """The end of a run at this step: why, in words and in run.json, with the last good weights saved.

    All processes call it; `batches` are those of this process since the last step.
    """
    step = run.at.step + 1
    found = list(dict.fromkeys(gather_object(found_causes(run, batches))))
    blown = not found and any(gather_object([fault.what == "loss" and overgrown(run, batches)]))
    if blown:
        rates = ", ".join(f"{name} {rate:.3g}" for name, rate in run.rates().items())
        found = [f"the LoRA has grown until the model overflows: lower the learning rate (last {rates})"]
    causes = found or likely_causes(run.config)
    remarks.stopped(step, str(fault), causes, certain=bool(found))
    if results.main and (blown or not finite(run.adapter.parameters())):
        go_back(run, results)
    because = f"{'cause' if found else 'likely causes'}: {'; '.join(causes)}"
    return results.rescued(run, TrainingStopped(f"step {step}: {fault}; {because}"))


@torch.no_grad()
def overgrown(run: Run, batches: Sequence[Batch]) -> bool:
    """Whether the very same data gives numbers as soon as the adapter is switched off."""
    with run.adapter.switched_off():
        return all(bool(run.training_loss(batch).isfinite()) for batch in batches)


@torch.no_grad()
def found_causes(run: Run, batches: Sequence[Batch]) -> list[str]:
    """What of the data at hand is no number, by name; empty where the fault lies elsewhere."""
    found = []
    for batch in batches:
        good = _rows(run.latents(batch) if batch.latents is None else batch.latents)
        found += [_latents(run, batch, index) for index, fine in zip(batch.samples, good, strict=True) if not fine]
        if run.caches.texts is not None:
            good = _rows(run.caches.texts.get(batch.samples).hidden)
            found += [_texts(run, index) for index, fine in zip(batch.samples, good, strict=True) if not fine]
    return found


def _rows(values: torch.Tensor) -> list[bool]:
    return [bool(row.isfinite().all()) for row in values]


def _latents(run: Run, batch: Batch, index: int) -> str:
    picture = run.data.samples[index].path
    if batch.latents is None:
        half = next(run.models.vae.parameters()).dtype != torch.float32
        cure = "set no_half_vae" if half else "use another VAE"
        return f"the VAE makes no numbers of {picture}: {cure}"
    file = run.caches.latents.file(index) if run.caches.latents else None
    if file is None:
        return f"the latents of {picture} are no numbers: set no_half_vae, or use another VAE"
    return f"the cache file {file} holds values that are no numbers: delete it, it is made again"


def _texts(run: Run, index: int) -> str:
    picture = run.data.samples[index].path
    if not run.config.cache_text_encoder_outputs_to_disk:
        return f"the text encoder makes no numbers of the caption of {picture}: leave fp16 for bf16"
    return f"the text outputs cached beside {picture} ({picture.stem}_te_outputs.npz) are no numbers: delete the file"


def finite(weights: Sequence[torch.Tensor]) -> bool:
    return all(bool(weight.isfinite().all()) for weight in weights)


def go_back(run: Run, results: Results) -> None:
    """The weights of the newest state that are numbers; there always is one of the start."""
    for folder in reversed(states.states_in(results.folder.path)):
        if not judge(folder, contents=True, only=("adapter.safetensors",)).whole:
            continue
        run.at.step = int(states.load_state(folder, {"adapter": run.adapter})["step"])
        if finite(run.adapter.parameters()):
            return
