"""What a run leaves on disk: weights with their header, copies and their rotation, states, previews, curves."""

from __future__ import annotations

import glob
import os
import random
import re
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from schemas import ConfigError, TrainConfig
from schemas.files.resuming import (
    Choice,
    kept_config,
    not_on_resume,
    state_meant,
)
from schemas.files.run_folder import State
from schemas.files.run_folder import states_in as all_states_in
from schemas.files.run_lock import Lock, hold_for_trainer
from schemas.files.writing import disk_advice, disk_fault, disk_words
from schemas.terminal import say, shell_words
from trainer.adapters import is_plugin
from trainer.dataset.files import Scan
from trainer.dataset.order import Assignment, batches_per_epoch
from trainer.dataset.prompts import Prompt, read_prompts
from trainer.output import states
from trainer.output.hub import HubState, Uploads, remove_fetched
from trainer.output.lora_file import ema_copy, model_hashes, peft_copy, save_peft_copy, save_weights
from trainer.output.metadata import BaseFile, DatasetFacts, RunFacts, build_metadata
from trainer.output.previews import Preview, show_in_wandb, write_previews
from trainer.output.read_back import UnsoundFile, untouched
from trainer.output.resuming import data_mark, going_on
from trainer.output.run_folder import RunFolder
from trainer.plan import marks
from trainer.plan.remaining import nothing_left
from trainer.plan.steps import Steps
from trainer.watch.report import Record
from trainer.watch.stopping import TrainingStopped, size_in_bytes

if TYPE_CHECKING:
    from trainer.loop import Run

# A state is kept after a minute, then whenever the run has become twice as long, and every ten minutes from then on:
# a killed run loses at most half of what it has done and never more than ten minutes.
SOONEST, LATEST = 60.0, 600.0
SHARE = 50.0  # writing states takes at most one part in so many of the time
SAVED_AS = {"float": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Results:
    """Writes for the main process, and nothing for the others."""

    def __init__(self, folder: RunFolder, config: TrainConfig, steps: Steps, accelerator: Accelerator) -> None:
        self.folder, self.config, self.steps, self.accelerator = folder, config, steps, accelerator
        self.main = accelerator.is_main_process
        self.files: list[Path] = []
        self.prompts: list[Prompt] = read_prompts(str(config.sample_prompts)) if self._previews() else []
        self.resumed: Path | None = None  # the state that this start goes on from
        self.uploads: Uploads | None = None
        self.logged = 0  # the records of the log that belong to it
        self._lock: Lock | None = None
        self._own = False  # whether that state is one of this run folder
        self._marks: dict[str, Any] = {}
        self._began = self._state_due = time.monotonic()
        self._facts: RunFacts | None = None
        self._hashing: list[Future[tuple[str, str]]] = []
        self._named: states.Named | None = None

    def _previews(self) -> bool:
        return bool(self.config.sample_prompts) and bool(marks.previews(self.config, self.steps))

    def prepare(self, found: Scan) -> None:
        """The run folder, swept; `resumed` is known on every process then.

        ConfigError when an earlier run's results stand where this one's would, or another trainer is at work here.
        """
        pids = gather_object([os.getpid()])
        chosen = [self._open(found, pids) if self.main else None]
        broadcast_object_list(chosen)
        self.resumed = chosen[0]

    def _open(self, found: Scan, pids: list[int]) -> Path | None:
        """The state to go on from, read and compared under the lock; nothing of the run is removed or written yet."""
        self._lock, before = hold_for_trainer(self.folder.path, pids)
        try:
            return self._chosen(found, before)
        except ConfigError:
            self._free_lock()
            raise

    def _free_lock(self) -> None:
        if self._lock is not None:
            self._lock.free()

    def _chosen(self, found: Scan, before: list[int]) -> Path | None:
        config, folder = self.config, self.folder
        remote = HubState(config) if config.resume_from_huggingface else None
        asked = Path(config.resume) if config.resume and not remote else None
        self._own = asked is not None and folder.path.resolve() in (asked.resolve(), asked.resolve().parent)
        if not (self._own or config.overwrite):
            self._refuse_overwriting(all_states_in(folder.path))
        if remote:
            remote.check()
        if config.huggingface_repo_id:
            self.uploads = Uploads(config, folder.path)
            self.uploads.check()
        states.sweep_states(folder.path)
        folder.sweep((sample.path for sample in found.samples), before)
        if remote:
            return remote.fetch(folder.path)
        choice = state_meant(asked, folder.path) if asked else Choice(None)
        if choice.state is not None:
            self._refuse_another_run(choice.state)
        elif self._own and not config.overwrite:
            self._refuse_overwriting([])  # complete already
        for line in choice.said:
            say(line)
        return choice.state.path if choice.state else None

    def _refuse_another_run(self, state: State) -> None:
        """ConfigError for options that would make it another run than the state's, and where nothing is left of it."""
        before = kept_config(state.path)
        problems = list(not_on_resume(before, self.config, state.path.parent)) if before else []
        done = nothing_left(self.config, self.steps, state, own=self._own)
        if problems or done:
            raise ConfigError([*problems, *([done] if done else [])])

    def _drop_past(self, last: int) -> None:
        """Removes the states of a past that is being replaced, as are its records in the log."""
        for state in all_states_in(self.folder.path):
            if state.step > last:
                states.remove_state(state.path)

    def _refuse_overwriting(self, there: list[State]) -> None:
        names = [save.file for save in marks.saves(self.config, self.steps)]
        self.folder.refuse_overwriting(names, [state.path for state in there if state.step > 0])

    def describe(self, run: Run, found: Scan, assignment: Assignment) -> None:
        """What the header of every file of this run will say; the base model is hashed meanwhile."""
        self._marks = {
            "seed": self.config.seed, "processes": self.steps.processes, "batches": batches_per_epoch(assignment),
            "data": data_mark(found),
        }  # fmt: skip
        if not self.main:
            return
        config, optimizer = self.config, run.optimizer
        self._facts = RunFacts(
            config=config,
            family=run.family.metadata(config),
            datasets=DatasetFacts.of(found, assignment),
            batches_per_epoch=self.steps.batches_per_epoch,
            epochs=self.steps.epochs,
            total_steps=self.steps.total,
            processes=self.steps.processes,
            optimizer=f"{optimizer.name}({optimizer.args})" if optimizer.args else optimizer.name,
            session_id=random.SystemRandom().getrandbits(32),
            started_at=time.time(),
            num_validation_images=len(found.validation),
        )
        if not config.no_metadata:
            places = [Path(place) for place in (config.pretrained_model_name_or_path, config.vae) if place]
            workers = ThreadPoolExecutor(1)
            self._hashing = [workers.submit(model_hashes, place) for place in places]
            workers.shutdown(wait=False)

    def metadata(self, epoch: int, step: int) -> dict[str, str]:
        """The header of a file saved now."""
        assert self._facts is not None
        files = [Path(place) for place in (self.config.pretrained_model_name_or_path, self.config.vae) if place]
        base: list[BaseFile | None] = [
            BaseFile.of(str(file), hashes.result() if file.exists() else None)
            for file, hashes in zip(files, self._hashing, strict=False)
        ]
        model, vae = [*base, None, None][:2]
        facts = replace(self._facts, model=model, vae=vae)
        return build_metadata(facts, steps=step, epoch=epoch, finished_at=time.time())

    # -- weights -------------------------------------------------------------------------------------------------------

    def save(self, run: Run, moment: marks.Save) -> None:
        """A copy of the weights and the state of this moment; then what rotation drops.

        The state comes last of all that a resume from it would not do again.
        """
        if not self.main:
            return
        # Of a copy within an epoch the reference's header tells the epochs done before it.
        self.write_weights(run, moment.file, moment.epoch - (moment.when == "step"))
        for name in moment.removes:
            if not name.endswith("-state"):
                (self.folder.output / name).unlink(missing_ok=True)
                for copy in (peft_copy, ema_copy):
                    copy(self.folder.output / name).unlink(missing_ok=True)
        self.save_state(run, moment.state_name if moment.state else None)
        self._rotate_states(moment)

    def finish(self, run: Run) -> None:
        """The final weights first, then the last state if wanted; the safety state has done its work."""
        if not self.main:
            return
        end = marks.end_save(self.config, self.steps)
        self.write_weights(run, end.file, end.epoch)
        if end.state:
            self.save_state(run, end.state_name)
        self._drop_unnamed()
        remove_fetched(self.folder.path)
        self._finish_uploads()
        self._free_lock()

    def write_weights(self, run: Run, name: str, epoch: int) -> None:
        path = self.folder.output / name
        dtype = SAVED_AS.get(self.config.save_precision or "")
        metadata, save_as = self.metadata(epoch, run.at.step), self.config.save_model_as
        modules = None if is_plugin(self.config.network_module) else run.adapter.targets
        written = [path]
        try:
            with run.optimizer.averaged():  # schedule-free optimizers keep those weights apart
                weights = run.adapter.state_dict()
                save_weights(path, weights, metadata, save_as=save_as, dtype=dtype, modules=modules)
                if self.config.save_peft:
                    written.append(save_peft_copy(path, weights, run.adapter.targets, dtype))
            if run.average:
                written.append(ema_copy(path))
                if metadata:
                    metadata |= {"kohyakit_ema_decay": f"{run.average.decay:g}"}
                with run.average.applied():
                    means, place = run.adapter.state_dict(), written[-1]
                    save_weights(place, means, metadata, save_as=save_as, dtype=dtype, modules=modules)
        except UnsoundFile as fault:
            raise self._unsound(run, path, fault) from fault
        self.files.append(path)
        if untouched(weights) and run.at.step > self.steps.warmup and any(run.rates().values()):
            say(f"warning: {name} changes nothing yet: it is still 0 after {run.at.step} steps")
        if self.uploads:
            for file in written:
                self.uploads.send(file)

    def _unsound(self, run: Run, path: Path, fault: UnsoundFile) -> TrainingStopped:
        """What was written is not kept; the state of this moment is, unless its weights are the trouble."""
        if fault.weights:
            self.save_state(run)
        kept = states.newest_state(self.folder.path)
        step = _progress(kept)["step"] if kept else 0
        return TrainingStopped(
            f"{path.name} was written and not kept: {fault}. An older file of that name is as it was; the training "
            f"state of step {step} is whole. Go on with: kohyakit resume {self.folder.path}"
        )

    def _finish_uploads(self) -> None:
        if self.uploads:
            self.uploads.close()

    @contextmanager
    def told_when_full(self, run: Run) -> Iterator[None]:
        """A full disk ends the run with what is needed and how to go on; all that was saved before is whole."""
        try:
            yield
        except (OSError, RuntimeError) as fault:
            self._finish_uploads()
            disk = disk_fault(fault)
            if disk is None:
                raise
            weights, state = size_in_bytes(run.adapter.state_dict()), self._state_bytes(run)
            kept = states.newest_state(self.folder.path)
            step = _progress(kept)["step"] if kept else 0
            way_on = f"go on with: kohyakit resume {self.folder.path}" if kept else "start it again"
            raise TrainingStopped(
                f"{disk_words(disk)}: {_free(self.folder.output)} are left in {self.folder.output}; a LoRA takes "
                f"{megabytes(weights)}, a training state {megabytes(state)}. What was saved before is whole, up to "
                f"step {step}. {disk_advice(disk).capitalize()}, then {way_on}"
            ) from fault

    # -- states --------------------------------------------------------------------------------------------------------

    def state_folder(self, step: int) -> Path:
        return self.folder.path / f"state-{step:08d}"

    def begin(self, run: Run) -> None:
        """From here on there always is a state to go on from."""
        self._began = time.monotonic()
        self._state_due = self._began + SOONEST
        if self.main and self.resumed is None:
            self._drop_past(-1)
            self.folder.open(self.config)
            self.save_state(run)

    def save_state(self, run: Run, name: str | None = None) -> None:
        """The state of this moment. One with a `name` (the reference's) stays, of the others only the newest."""
        if not self.main:
            return
        began, folder = time.monotonic(), self.state_folder(run.at.step)
        _sync(self.folder.log)  # the state must not know more than the log
        progress = {**asdict(run.at), **self._marks, "saves": [name] if name else []}
        if states.is_whole(folder):  # the same step: only its place in the run has another name
            progress["saves"] = list(dict.fromkeys([*self._kept().of(folder), *progress["saves"]]))
            states.write_progress(folder, progress)
        else:
            states.save_state(folder, self.parts(run), progress)
        self._kept().add(folder, progress["saves"])
        if name and self.uploads and self.config.save_state_to_huggingface:
            self.uploads.send(folder, name)
        self._drop_unnamed(but=folder)
        now = time.monotonic()
        self._state_due = now + max(min(max(now - self._began, SOONEST), LATEST), (now - began) * SHARE)

    def keep_state_when_due(self, run: Run) -> None:
        """A state for the case of a kill; without room for it the run goes on."""
        if not self.main or time.monotonic() <= self._state_due:
            return
        try:
            self.save_state(run)
        except (OSError, RuntimeError) as fault:
            if disk_fault(fault) is None:
                raise
            self._state_due = time.monotonic() + LATEST
            say(f"warning: no room for a training state: it takes {megabytes(self._state_bytes(run))}, "
                f"{_free(self.folder.path)} are left in {self.folder.path}")  # fmt: skip

    def _kept(self) -> states.Named:
        """The states of this run, as soon as those of a past that is replaced are gone."""
        if self._named is None:
            self._named = states.Named(self.folder.path)
        return self._named

    def _drop_unnamed(self, but: Path | None = None) -> None:
        for state in [state for state in self._kept().nameless if state != but]:
            self._drop(state)

    def _rotate_states(self, moment: marks.Save) -> None:
        """A state may stand for a step and for an epoch: it goes with its last name."""
        for state in self._kept().under(moment.removes):
            left = [name for name in self._kept().of(state) if name not in moment.removes]
            if not left:
                self._drop(state)
            elif (progress := states.read_progress(state)) is not None:
                states.write_progress(state, {**progress, "saves": left})
                self._kept().add(state, left)

    def _drop(self, state: Path) -> None:
        states.remove_state(state)
        self._kept().forget(state)

    def load_state(self, run: Run) -> dict[str, int]:
        """Puts everything back where it was; the position to go on from."""
        assert self.resumed is not None
        progress = states.load_state(self.resumed, self.parts(run), verified=True)  # in `_open`
        self.logged = progress["step"]
        position, notes = going_on(progress, self._marks, self.steps, self.config)
        set_rates(run.scheduler, position["step"])
        if self.main:
            self._drop_past(progress["step"] if self._own else -1)
            self.folder.open(self.config)
            for note in notes:
                say(note)
            for moment in marks.saves(self.config, self.steps):
                if moment.step == position["step"]:  # the kill may have come before its rotation
                    self._rotate_states(moment)
        return position

    @staticmethod
    def parts(run: Run) -> dict[str, Any]:
        parts = {"adapter": run.adapter, "optimizer": run.optimizer.optimizer, "scheduler": run.scheduler,
                 "scaler": run.scaler}  # fmt: skip
        return {**parts, "ema": run.average} if run.average else parts

    def _state_bytes(self, run: Run) -> int:
        return size_in_bytes([run.adapter.exact_state(), run.optimizer.optimizer.state_dict()])

    def save_interrupted(self, run: Run) -> None:
        """Weights and state of an asked stop."""
        if not self.main:
            return
        self.write_weights(run, marks.step_name(self.config, run.at.step), run.at.epoch - 1)
        self.save_state(run)
        self._finish_uploads()
        self._free_lock()
        say(f"stopped at step {run.at.step} of {self.steps.total}; saved {self.files[-1]}")
        say(f"go on with: {shell_words(['kohyakit', 'resume', str(self.folder.path)])}")

    def rescued(self, run: Run, fault: TrainingStopped) -> TrainingStopped:
        """The fault, with the name of the last good weights, which are saved."""
        if not self.main:
            return fault
        try:
            self.write_weights(run, marks.step_name(self.config, run.at.step), run.at.epoch - 1)
            saved = f"the weights of step {run.at.step} are in {self.files[-1]}"
        except TrainingStopped as unsound:
            saved = str(unsound)
        return TrainingStopped(f"{fault}; {saved}")

    # -- pictures and curves -------------------------------------------------------------------------------------------

    def preview(self, run: Run, epoch: int | None = None) -> None:
        """Pictures of the prompt file into sample/, shared out over the processes; training is not disturbed."""
        if not self.prompts:
            return
        stamp = time.strftime("%Y%m%d%H%M%S")
        planned = [
            Preview(index, prompt, self.folder.samples / marks.preview_name(
                self.config, index=index, step=run.at.step, time=stamp, epoch=epoch, seed=prompt.seed))
            for index, prompt in enumerate(self.prompts)
        ]  # fmt: skip
        mine = planned[self.accelerator.process_index :: self.accelerator.num_processes]
        average = run.average.applied() if run.average and self.config.ema_previews else nullcontext()
        with run.optimizer.averaged(), average, torch.no_grad(), run.accelerator.autocast():
            write_previews(run.models, run.family, mine, self.config, device=run.accelerator.device)
        made: list[Preview] = gather_object(mine)
        if self.main:
            if self.resumed:
                self._drop_twins([preview.path for preview in made])
            show_in_wandb(run.accelerator.trackers, made)

    def _drop_twins(self, made: list[Path]) -> None:
        """Previews that a killed start made at the same mark: their names differ by the time alone."""
        for path in made:
            start = re.match(r".*_\d\d_(?=\d{14})", path.name)
            for other in path.parent.glob(f"{glob.escape(start[0] if start else path.name)}*.png"):
                if other not in made:
                    other.unlink()

    def draw_curves(self, run: Run, record: Record, average: float) -> None:
        """The reference's tags (section 14)."""
        values = {"loss/current": record.loss, "loss/average": average}
        values |= {f"lr/{name}": rate for name, rate in record.lr.items()}
        for group in run.optimizer.optimizer.param_groups:
            if "d" in group:  # D-Adaptation and Prodigy find their own step size
                values[f"lr/d*lr/{group.get('name', 0)}"] = group["d"] * group["lr"]
        values |= run.norms
        run.accelerator.log(values, step=record.step)


def set_rates(scheduler: Any, step: int) -> None:
    """The rates of `step` by the schedule of this start: the state's are those of the length that the run had then."""
    if isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
        bases = zip(scheduler.lr_lambdas, scheduler.base_lrs, strict=True)
        scheduler.last_epoch, scheduler._last_lr = step, [base * factor(step) for factor, base in bases]
        for group, rate in zip(scheduler.optimizer.param_groups, scheduler._last_lr, strict=True):
            group["lr"] = rate


def _progress(state: Path) -> dict[str, Any]:
    return states.read_progress(state) or {"step": -1}


def _sync(path: Path) -> None:
    if path.is_file():
        with path.open("rb") as stream:
            os.fsync(stream.fileno())


def _free(folder: Path) -> str:
    return megabytes(shutil.disk_usage(folder).free)


def megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
