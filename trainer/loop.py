"""The training run, top to bottom: the order of things. Parts do the work; a step is in `trainer.step`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from schemas import ConfigError, Problem, TrainConfig
from trainer.adapters import attach, is_plugin
from trainer.dataset.files import Scan
from trainer.dataset.order import assign, batches_per_epoch
from trainer.families import get
from trainer.input.batches import Batch, BatchLoader
from trainer.input.texts import TextStates
from trainer.learning.ema import Average
from trainer.learning.fused import FusedBackward, can_fuse
from trainer.learning.optimizers import (
    build_optimizer,
    build_scheduler,
    check_rates,
)
from trainer.output.lora_file import load_weights
from trainer.output.results import Results
from trainer.output.run_folder import RunFolder
from trainer.plan import marks
from trainer.plan.steps import Steps, count
from trainer.setup import (
    drawn_seed,
    fill_caches,
    load_models,
    make_accelerator,
    make_scaler,
    ready_models,
)
from trainer.step import Position, Run
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


@dataclass(frozen=True)
class Outcome:
    """How a run ended, and the weights it left, newest last."""

    step: int
    interrupted: bool
    files: list[Path]


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
    process = family.noise_process(config, accelerator.device)
    run = Run(config, accelerator, family, models, adapter, optimizer, scheduler, scaler, process, texts, caches,
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
    at, steps, config = run.at, run.steps, run.config
    pace = Pace(config, run.family.facts.name, steps.processes)
    progress.begin(at.step)
    if marks.previews_at_start(config) and at.step == 0 and at.batch == 0:
        results.preview(run, epoch=0)
    run.adapter.train()
    run.optimizer.train_mode()
    while at.step < steps.total:
        run.adapter.begin_epoch()
        losses, batches = list[torch.Tensor](), list[Batch]()
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
