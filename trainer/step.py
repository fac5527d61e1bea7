"""One training step: forward, loss, update. `Run` holds everything it needs, assembled once by `trainer.loop`."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from accelerate import Accelerator

from schemas import TrainConfig
from trainer.adapters import Adapter
from trainer.dataset.files import Scan
from trainer.families import Conditioning, Family, Models, NoiseProcess, Sizes, scaled
from trainer.input.batches import Batch
from trainer.input.cache import TextCache
from trainer.input.texts import TextStates
from trainer.learning.ema import Average
from trainer.learning.fused import FusedBackward
from trainer.learning.optimizers import (
    BuiltOptimizer,
)
from trainer.learning.preservation import marked, preserved
from trainer.plan.steps import Steps
from trainer.setup import (
    Caches,
    precision,
)
from trainer.watch.stopping import NotFinite

SMALLEST_SCALE = 1e-3  # of fp16's loss scaling, which begins at 65536: 26 steps in a row without a usable gradient


@dataclass
class Position:
    """Where a run stands: `step` optimizer steps done; `batch` batches of this process used up in `epoch` (from 1).

    `shift` is not 0 in an epoch begun on another number of processes: its batches are dealt out from there.
    """

    step: int = 0
    epoch: int = 1
    batch: int = 0
    shift: int = 0


@dataclass
class Run:
    """Everything a step needs, assembled once."""

    config: TrainConfig
    accelerator: Accelerator
    family: Family
    models: Models
    adapter: Adapter
    optimizer: BuiltOptimizer
    scheduler: Any
    scaler: torch.amp.GradScaler
    process: NoiseProcess
    texts: TextStates
    caches: Caches
    steps: Steps
    data: Scan
    at: Position
    fused: FusedBackward | None = None
    average: Average | None = None
    norms: dict[str, float] = field(default_factory=dict)  # of the newest step, for the trackers

    # -- one step ------------------------------------------------------------------------------------------------------

    def training_loss(self, batch: Batch) -> torch.Tensor:
        """The loss of one batch, to be differentiated; its random numbers follow from seed and position alone.

        The position counts the epoch's batches over all processes, so that no two draw the same (trap T27) and any
        number of processes draws what one would.
        """
        position = self.at.batch * self.steps.processes + self.accelerator.process_index + self.at.shift
        mixed = random.Random(f"{self.config.seed}/{self.at.epoch}/{position}").getrandbits(63)
        torch.manual_seed(mixed)
        random.seed(mixed)
        return self.batch_loss(batch, self.caches.texts)

    def batch_loss(self, batch: Batch, cached: TextCache | None, timestep: int | None = None) -> torch.Tensor:
        """The loss of one batch at drawn timesteps, or all at `timestep`."""
        noised = self.process.noised(self.latents(batch), timestep)
        with self.accelerator.autocast():
            conditioning = self.conditioning(batch, cached)
            sizes = batch.sizes.to(noised.latents.device)
            predicted = self.predict(noised.latents, noised.timesteps, conditioning, sizes)
            rows = marked(batch.attributes)
            if rows:
                target = preserved(noised, rows, self.adapter, self.predict, (conditioning, sizes))
                noised = replace(noised, target=target)
        weights, masks = batch.weights.to(predicted.device), batch.masks
        masks = None if masks is None else masks.to(predicted.device)
        return self.process.loss(predicted, noised, weights, masks)

    def predict(
        self, noisy: torch.Tensor, timesteps: torch.Tensor, conditioning: Conditioning, sizes: Sizes
    ) -> torch.Tensor:
        return self.family.predict(self.models.unet, noisy.to(self.unet_dtype), timesteps, conditioning, sizes)

    @property
    def unet_dtype(self) -> torch.dtype:
        return precision(self.config)

    def latents(self, batch: Batch) -> torch.Tensor:
        """Latents [B,C,h,w] of a batch as the network sees them."""
        device = self.accelerator.device
        if batch.latents is None:
            assert batch.pixels is not None
            latents = self.caches.encode(batch.pixels).to(device)
        else:
            latents = batch.latents.to(device, non_blocking=True)
        return scaled(latents, self.family.facts.latents)

    def conditioning(self, batch: Batch, cached: TextCache | None) -> Conditioning:
        device = self.accelerator.device
        if cached is not None:
            return cached.get(batch.samples).to(device, self.unet_dtype)
        return self.texts(batch.captions).to(device, self.unet_dtype)

    def rest_text_encoders_when_due(self) -> None:
        """stop_text_encoder_training: a function of the step alone, so that a resumed run does the same."""
        end = self.steps.text_encoder
        if end is not None and self.at.step >= end and self.texts.trained:
            self.adapter.rest_text_encoders()
            self.texts.trained = False

    def update(self, losses: list[torch.Tensor], *, stop: bool) -> tuple[float, bool]:
        """One optimizer step from the gradients at hand; (mean loss over processes, whether any was asked to stop)."""
        parameters = self.adapter.parameters()
        self.share_gradients(parameters)
        self.scaler.unscale_(self.optimizer.optimizer)
        norm = self.gradient_norm(parameters, losses[0].device)
        # All that the host must know comes over in one transfer, the only wait of a step.
        mine = torch.stack([torch.stack(losses).mean(), norm.float(), torch.tensor(float(stop), device=norm.device)])
        loss, length, stopping = self.accelerator.reduce(mine, "mean").tolist()
        if not math.isfinite(loss):
            raise NotFinite("loss", loss)
        if not math.isfinite(length) and not skipped_by(self.scaler):
            raise NotFinite("gradient norm", length)
        self.adapter.see_gradients()
        self.scaler.step(self.optimizer.optimizer)
        self.scaler.update()
        self.scheduler.step()
        self.optimizer.optimizer.zero_grad(set_to_none=True)
        self.norms = self.adapter.norms()
        if self.config.scale_weight_norms:
            scaled, mean, largest = self.adapter.apply_max_norm(self.config.scale_weight_norms)
            self.norms |= {"max_norm/keys_scaled": scaled, "max_norm/max_key_norm": largest, "norm/avg_key_norm": mean}
        if self.average:
            self.average.update()
        self.at.step += 1
        return loss, stopping > 0

    def gradient_norm(self, parameters: list[torch.nn.Parameter], device: torch.device) -> torch.Tensor:
        """The norm over all gradients, which are clipped to max_grad_norm where that is set."""
        if self.fused:
            return self.fused.norm(device)
        if self.config.max_grad_norm:
            return torch.nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norms = torch._foreach_norm(gradients) if gradients else [torch.zeros((), device=device)]
        return torch.linalg.vector_norm(torch.stack([norm.float() for norm in norms]))

    def share_gradients(self, parameters: list[torch.nn.Parameter]) -> None:
        """Every process gets the mean of all gradients, in one transfer; a module skipped here counts as zero."""
        if self.accelerator.num_processes == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = self.accelerator.reduce(torch.cat([gradient.flatten() for gradient in gradients]), "mean")
        for gradient, piece in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(piece.view_as(gradient))

    def rates(self) -> dict[str, float]:
        """Learning rate by group name; 0 where the whole group rests."""
        return {
            str(group.get("name", index)): float(group["lr"]) * any(weight.requires_grad for weight in group["params"])
            for index, group in enumerate(self.optimizer.optimizer.param_groups)
        }


def skipped_by(scaler: torch.amp.GradScaler) -> bool:
    """Whether fp16's scaler skips a step without usable gradients and goes on; at some scale it has to succeed."""
    return scaler.is_enabled() and scaler.get_scale() > SMALLEST_SCALE
