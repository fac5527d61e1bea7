"""What a run leaves on disk: weights with their header, copies and their rotation, states, previews, curves."""

from __future__ import annotations

import random
import re
import shutil
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator

from schemas import TrainConfig
from trainer import checkpoint
from trainer.dataset.files import Scan
from trainer.dataset.order import Assignment
from trainer.dataset.prompts import Prompt, read_prompts
from trainer.plan import marks
from trainer.plan.steps import Steps
from trainer.report import Record
from trainer.run_folder import RunFolder
from trainer.sampling import write_previews
from trainer.stopping import TrainingStopped

if TYPE_CHECKING:
    from trainer.loop import Run

STATE_SECONDS = 600.0  # a state is kept at least this often, so that a killed run loses minutes, not hours
SAVED_AS = {"float": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Results:
    """Writes for the main process, and nothing for the others."""

    def __init__(self, folder: RunFolder, config: TrainConfig, steps: Steps, accelerator: Accelerator) -> None:
        self.folder, self.config, self.steps, self.accelerator = folder, config, steps, accelerator
        self.main = accelerator.is_main_process
        self.files: list[Path] = []
        self.prompts: list[Prompt] = read_prompts(str(config.sample_prompts)) if self._previews() else []
        self._state_due = time.monotonic() + STATE_SECONDS
        self._facts: checkpoint.RunFacts | None = None
        self._hashing: list[Future[tuple[str, str]]] = []

    def _previews(self) -> bool:
        return bool(self.config.sample_prompts) and bool(marks.previews(self.config, self.steps))

    def prepare(self) -> None:
        """The run folder; ConfigError when an earlier run's results stand where this one's would."""
        if not self.main:
            return
        if not (self.config.resume or self.config.overwrite):
            self.folder.refuse_overwriting(save.file for save in marks.saves(self.config, self.steps))
        self.folder.open(self.config)

    def describe(self, run: Run, found: Scan, assignment: Assignment) -> None:
        """What the header of every file of this run will say; the base model is hashed meanwhile."""
        if not self.main:
            return
        config, optimizer = self.config, run.optimizer
        self._facts = checkpoint.RunFacts(
            config=config,
            family=run.family.metadata(config),
            datasets=checkpoint.DatasetFacts.of(found, assignment),
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
            self._hashing = [workers.submit(checkpoint.model_hashes, place) for place in places]
            workers.shutdown(wait=False)

    def metadata(self, epoch: int, step: int) -> dict[str, str]:
        """The header of a file saved now."""
        assert self._facts is not None
        files = [Path(place) for place in (self.config.pretrained_model_name_or_path, self.config.vae) if place]
        base: list[checkpoint.BaseFile | None] = [
            checkpoint.BaseFile.of(str(file), hashes.result() if file.exists() else None)
            for file, hashes in zip(files, self._hashing, strict=False)
        ]
        model, vae = [*base, None, None][:2]
        facts = replace(self._facts, model=model, vae=vae)
        return checkpoint.build_metadata(facts, steps=step, epoch=epoch, finished_at=time.time())

    # -- weights -------------------------------------------------------------------------------------------------------

    def save(self, run: Run, moment: marks.Save) -> None:
        """A copy of the weights and, under save_state, its state; then what rotation drops."""
        if not self.main:
            return
        self.write_weights(run, moment.file, moment.epoch)
        self.save_state(run, keep=moment.state)
        for name in moment.removes:
            if name.endswith("-state"):
                shutil.rmtree(self.state_folder(self._state_step(name)), ignore_errors=True)
            else:
                (self.folder.output / name).unlink(missing_ok=True)

    def finish(self, run: Run) -> None:
        """The final weights first, then the last state if wanted; the safety state has done its work."""
        if not self.main:
            return
        end = marks.end_save(self.config, self.steps)
        self.write_weights(run, end.file, end.epoch)
        if end.state:
            self.save_state(run, keep=True)
        if not self.config.save_state:
            for state in self.states():
                if not (end.state and state == self.state_folder(run.at.step)):
                    shutil.rmtree(state, ignore_errors=True)

    def write_weights(self, run: Run, name: str, epoch: int) -> None:
        run.optimizer.eval_mode()  # schedule-free optimizers keep the averaged weights apart
        path = self.folder.output / name
        dtype = SAVED_AS.get(self.config.save_precision or "")
        metadata, save_as = self.metadata(epoch, run.at.step), self.config.save_model_as
        checkpoint.save_weights(path, run.adapter.state_dict(), metadata, save_as=save_as, dtype=dtype)
        run.optimizer.train_mode()
        self.files.append(path)

    # -- states --------------------------------------------------------------------------------------------------------

    def state_folder(self, step: int) -> Path:
        return self.folder.path / f"state-{step:08d}"

    def states(self) -> list[Path]:
        return sorted(self.folder.path.glob("state-[0-9]*"))

    def _state_step(self, name: str) -> int:
        """The step of a state that the reference would name so."""
        found = re.search(r"-(step)?(\d+)-state$", name)
        if found is None:
            return self.steps.total
        number = int(found[2])
        return number if found[1] else self.steps.epoch_end(number)

    def save_state(self, run: Run, *, keep: bool = False) -> None:
        """The state of this moment; without save_state only the newest one stays."""
        if not self.main:
            return
        folder = self.state_folder(run.at.step)
        progress = {**asdict(run.at), "seed": run.config.seed, "processes": run.steps.processes}
        checkpoint.save_state(folder, self.parts(run), progress)
        if not (keep or self.config.save_state):
            for older in self.states():
                if older != folder:
                    shutil.rmtree(older, ignore_errors=True)
        self._state_due = time.monotonic() + STATE_SECONDS

    def keep_state_when_due(self, run: Run) -> None:
        if time.monotonic() > self._state_due:
            self.save_state(run)

    def load_state(self, run: Run, folder: Path) -> dict[str, int]:
        """Puts everything back where it was; the position to go on from."""
        progress = checkpoint.load_state(folder, self.parts(run))
        if progress["processes"] != run.steps.processes:
            # The same pictures are left, cut differently over the processes.
            progress["batch"] = progress["batch"] * progress["processes"] // run.steps.processes
        return {name: int(progress[name]) for name in ("step", "epoch", "batch")}

    @staticmethod
    def parts(run: Run) -> dict[str, Any]:
        return {"adapter": run.adapter, "optimizer": run.optimizer.optimizer, "scheduler": run.scheduler,
                "scaler": run.scaler}  # fmt: skip

    def save_interrupted(self, run: Run) -> None:
        """Weights and state of an asked stop."""
        if not self.main:
            return
        self.save_state(run)
        self.write_weights(run, marks.step_name(self.config, run.at.step), run.at.epoch)
        print(f"stopped at step {run.at.step} of {self.steps.total}; saved {self.files[-1]}\n"
              f"go on with: kohyakit resume {self.folder.path}", flush=True)  # fmt: skip

    def rescued(self, run: Run, fault: TrainingStopped) -> TrainingStopped:
        """The fault, with the name of the last good weights, which are saved."""
        if not self.main:
            return fault
        self.write_weights(run, marks.step_name(self.config, run.at.step), run.at.epoch)
        saved = f"the weights of step {run.at.step} are in {self.files[-1]}"
        return TrainingStopped(f"step {run.at.step + 1}: {fault}; {saved}")

    # -- pictures and curves -------------------------------------------------------------------------------------------

    def preview(self, run: Run, mark: str) -> None:
        """Pictures of the prompt file into sample/, without disturbing the training."""
        if not (self.main and self.prompts):
            return
        run.optimizer.eval_mode()
        with torch.no_grad(), run.accelerator.autocast():
            write_previews(run.models, run.family, self.prompts, self.config, mark=mark, folder=self.folder.samples,
                           device=run.accelerator.device)  # fmt: skip
        run.optimizer.train_mode()

    def draw_curves(self, run: Run, record: Record, average: float) -> None:
        """The reference's tags (section 14)."""
        values = {"loss/current": record.loss, "loss/average": average}
        values |= {f"lr/{name}": rate for name, rate in record.lr.items()}
        for group in run.optimizer.optimizer.param_groups:
            if "d" in group:  # D-Adaptation and Prodigy find their own step size
                values[f"lr/d*lr/{group.get('name', 0)}"] = group["d"] * group["lr"]
        run.accelerator.log(values, step=record.step)
