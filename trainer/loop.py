"""The training run, top to bottom. Parts do the work; only this module knows them all."""

from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from schemas import ConfigError, Problem, TrainConfig
from trainer.adapters import Adapter, attach, is_plugin
from trainer.dataset.files import Scan
from trainer.dataset.order import assign, batches_per_epoch
from trainer.families import Conditioning, Family, Models, Sizes, get
from trainer.input.batches import Batch, BatchLoader
from trainer.input.cache import TextCache
from trainer.input.texts import TextStates
from trainer.learning import objective
from trainer.learning.ema import Average
from trainer.learning.fused import FusedBackward, can_fuse
from trainer.learning.optimizers import (
    BuiltOptimizer,
    build_optimizer,
    build_scheduler,
    check_rates,
)
from trainer.learning.preservation import marked, preserved
from trainer.output.lora_file import load_weights
from trainer.output.results import Results
from trainer.output.run_folder import RunFolder
from trainer.plan import marks
from trainer.plan.steps import Steps, count
from trainer.setup import (
    Caches,
    drawn_seed,
    fill_caches,
    load_models,
    make_accelerator,
    make_scaler,
    precision,
    ready_models,
)
from trainer.watch.faults import stopped
from trainer.watch.remarks import (
    Movement,
    Remarks,
    empty_captions,
    resting_text_encoder,
)
from trainer.watch.report import (
    Pace,
    Progress,
    Record,
    StepLog,
    log_epoch,
    memory_in_use,
)
from trainer.watch.signals import StopRequest
from trainer.watch.stopping import NotFinite
from trainer.watch.validation import Validation

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


@dataclass(frozen=True)
class Outcome:
    """How a run ended, and the weights it left, newest last."""

    step: int
    interrupted: bool
    files: list[Path]


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
    schedule: objective.Schedule
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
        latents = self.latents(batch)
        noise = objective.draw_noise(latents, self.config)
        timesteps = objective.draw_timesteps(len(latents), self.config, latents.device)
        if timestep is not None:
            timesteps = torch.full_like(timesteps, timestep)
        noisy = objective.add_noise(latents, noise, timesteps, self.schedule, self.config)
        wanted = objective.target(latents, noise, timesteps, self.schedule)
        with self.accelerator.autocast():
            conditioning = self.conditioning(batch, cached)
            sizes = batch.sizes.to(latents.device)
            predicted = self.predict(noisy, timesteps, conditioning, sizes)
            rows = marked(batch.attributes)
            if rows:
                wanted = preserved(wanted, rows, self.adapter, self.predict, noisy, timesteps, (conditioning, sizes))
        weights, masks = batch.weights.to(latents.device), batch.masks
        masks = None if masks is None else masks.to(latents.device)
        return objective.loss(predicted, wanted, timesteps, weights, masks, self.config, self.schedule)

    def predict(
        self, noisy: torch.Tensor, timesteps: torch.Tensor, conditioning: Conditioning, sizes: Sizes
    ) -> torch.Tensor:
        return self.family.predict(self.models.unet, noisy.to(self.unet_dtype), timesteps, conditioning, sizes)

    @property
    def unet_dtype(self) -> torch.dtype:
        return precision(self.config)

    def latents(self, batch: Batch) -> torch.Tensor:
        device = self.accelerator.device
        if batch.latents is None:
            assert batch.pixels is not None
            return self.caches.encode(batch.pixels).to(device) * self.family.latent_scale
        return batch.latents.to(device, non_blocking=True) * self.family.latent_scale

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


def first_position(config: TrainConfig, steps: Steps) -> Position:
    """Step 0, or what initial_step or initial_epoch say, the data before it skipped (the reference miscounts it)."""
    step = config.initial_step or (max(config.initial_epoch or 1, 1) - 1) * steps.updates_per_epoch
    if step >= steps.total:
        raise ConfigError([Problem(code="nothing-left", key="initial_step", got=step,
                                   must=f"must be below the length of the run, {steps.total} steps",
                                   fix="raise max_train_steps or max_train_epochs")])  # fmt: skip
    epoch, within = divmod(step, steps.updates_per_epoch)
    return Position(step, epoch + 1, within * config.gradient_accumulation_steps)


def fused_backward(run: Run, progress: Progress) -> FusedBackward | None:
    """The hooks of fused_backward_pass where they change no number; says why there are none otherwise."""
    if not run.config.fused_backward_pass:
        return None
    obstacle = can_fuse(run.config, run.steps.processes)
    if obstacle:
        progress.say(f"note: fused_backward_pass has no effect: {obstacle}")
        return None
    return FusedBackward(run.optimizer.optimizer)


def train(config: TrainConfig, family_name: str, found: Scan, stop: StopRequest | None = None) -> Outcome:
    """Trains on the pictures `found` and leaves the LoRA, its copies, previews, states and log in output_dir.

    ConfigError where something only the models can show is wrong; TrainingStopped when the run cannot go on, with the
    last good weights saved.
    """
    # Who takes part, and where the results go.
    accelerator = make_accelerator(config)
    config = drawn_seed(config, accelerator)
    folder = RunFolder.of(config)

    # How long it is.
    assignment = assign(found, config)
    steps = count(config, batches_per_epoch(assignment), accelerator.num_processes)
    results = Results(folder, config, steps, accelerator)
    results.prepare(found)
    progress = Progress(steps.total, config, shown=accelerator.is_main_process, window=steps.updates_per_epoch)

    # What is trained: frozen models, cached data, the adapter on top.
    family = get(family_name)
    models = load_models(family, config, accelerator, progress.say)
    caches = fill_caches(found, config, family, models, accelerator, progress.say)
    targets = family.targets(models)
    weights = None
    if config.network_weights and not is_plugin(config.network_module):  # plug-ins read their own files
        weights = load_weights(Path(config.network_weights), targets, family_name, trust=config.trust)
    adapter = attach(models, targets, config, weights=weights, trust=config.trust)
    ready_models(models, adapter, config, accelerator, caches)
    for note in adapter.notes:
        progress.say(f"{note.severity}: {note}", note.severity)

    # How it learns.
    groups = adapter.groups(config)
    if not groups:
        raise ConfigError([Problem(code="nothing-to-train", key="learning_rate", must="every rate is 0",
                                   fix="set unet_lr or text_encoder_lr above 0")])  # fmt: skip
    check_rates(groups, config)
    optimizer = build_optimizer(groups, config)
    scheduler = build_scheduler(optimizer.optimizer, config, steps)
    scaler = make_scaler(config, accelerator.device)
    trains_text = any(not str(group["name"]).startswith("unet") for group in groups)
    texts = TextStates(models, family, config, trained=trains_text)
    schedule = objective.noise_schedule(config.zero_terminal_snr, config.v_parameterization).to(accelerator.device)
    run = Run(config, accelerator, family, models, adapter, optimizer, scheduler, scaler, schedule, texts, caches,
              steps, found, Position())  # fmt: skip
    run.average = Average.of(adapter, config)
    results.describe(run, found, assignment)
    if results.resumed:
        run.at = Position(**results.load_state(run))
        progress.say(f"resumed at step {run.at.step} of {steps.total} (epoch {run.at.epoch}) from {results.resumed}")
    else:
        run.at = first_position(config, steps)
    run.fused = fused_backward(run, progress)
    remarks = Remarks(folder.path, progress.say, main=accelerator.is_main_process)
    remarks.add(empty_captions(found))
    remarks.add(resting_text_encoder(adapter))

    loader = BatchLoader(found, assignment, config, seed=int(config.seed or 0), processes=steps.processes,
                         rank=accelerator.process_index, cache=caches.latents, max_train_steps=steps.total)  # fmt: skip
    step_log = StepLog(folder.log, keep_until=results.logged) if accelerator.is_main_process else None
    try:
        with (stop or StopRequest()).saving() as stop, results.told_when_full(run):
            results.begin(run)
            interrupted = run_epochs(run, loader, results, progress, step_log, stop, remarks)
            if not interrupted:
                results.finish(run)
    finally:
        progress.close()
        if step_log:
            step_log.close()
    accelerator.end_training()
    return Outcome(run.at.step, interrupted, results.files)


def run_epochs(
    run: Run, loader: BatchLoader, results: Results, progress: Progress, step_log: StepLog | None, stop: StopRequest,
    remarks: Remarks,
) -> bool:  # fmt: skip
    """Steps until the end, with previews and saves at the marks; True when it was asked to stop and has saved."""
    validation, movement = Validation.of(run), Movement(run.optimizer.optimizer, run.at.step, run.steps.total)
    at, steps, config, pace = run.at, run.steps, run.config, Pace(run.config, run.family.name, run.steps.processes)
    progress.begin(at.step)
    if marks.previews_at_start(config) and at.step == 0 and at.batch == 0:
        results.preview(run, epoch=0)
    run.adapter.train()
    run.optimizer.train_mode()
    while at.step < steps.total:
        run.adapter.begin_epoch()
        losses: list[torch.Tensor] = []
        batches: list[Batch] = []
        stopping, began = False, time.perf_counter()
        for batch in loader.epoch(at.epoch, start=at.batch, step=at.step, shift=at.shift):
            # ---------------------------------------------------------------------------------------- one step
            run.rest_text_encoders_when_due()
            run.adapter.begin_step()
            loss = run.training_loss(batch)
            run.scaler.scale(loss / config.gradient_accumulation_steps).backward()
            losses.append(loss.detach())
            batches.append(batch)
            at.batch += 1
            if at.batch % config.gradient_accumulation_steps and at.batch < steps.batches_per_epoch:
                continue
            rates = run.rates()
            try:
                mean, stopping = run.update(losses, stop=stop.asked)
            except NotFinite as fault:
                raise stopped(run, fault, batches, results, remarks) from None
            # -------------------------------------------------------------------------------------------------
            record = Record(at.step, at.epoch, mean, rates, memory=memory_in_use(), **pace.step(batches, began))
            progress.step(record)
            remarks.add(movement.look(at.step), at.step)
            if step_log:
                step_log.write(record)
                results.draw_curves(run, record, progress.average)
            if marks.previews_at_step(config, at.step):
                results.preview(run)
            if marks.saves_at_step(config, at.step):
                results.save(run, marks.step_save(config, at.step, at.epoch))
            if stopping or at.step == steps.total:
                break
            if validation and at.batch < steps.batches_per_epoch and validation.due_at_step(at.step):
                validation.measure(run, ["step"], progress, step_log)
            results.keep_state_when_due(run)
            losses, batches, began = [], [], time.perf_counter()
        if at.batch == steps.batches_per_epoch or at.step == steps.total:
            if validation and (due := validation.due_at_end(at.step, at.epoch)):
                validation.measure(run, due, progress, step_log)
            log_epoch(run.accelerator.trackers, progress.average, at.epoch, at.step)
            end_epoch(run, results)
        if stopping and at.step < steps.total:
            results.save_interrupted(run)
            run.accelerator.wait_for_everyone()  # torchrun ends the others when one has ended
            return True
    return False


def end_epoch(run: Run, results: Results) -> None:
    """Saves and previews of the epoch that ends here; then the next one begins."""
    at, steps, config = run.at, run.steps, run.config
    if marks.saves_at_epoch(config, at.epoch, steps.epochs):
        results.save(run, marks.epoch_save(config, at.epoch, steps))
    if marks.previews_at_epoch(config, at.epoch):
        results.preview(run, epoch=at.epoch)
    at.epoch, at.batch, at.shift = at.epoch + 1, 0, 0
