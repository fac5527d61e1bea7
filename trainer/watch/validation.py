"""The loss on pictures kept aside (reference section 15): fixed timesteps, fixed noise, nothing random in the data."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from schemas import TrainConfig
from trainer.dataset.order import assign
from trainer.input.batches import BatchLoader
from trainer.output.previews import undisturbed
from trainer.watch.report import Measured, Progress, StepLog

if TYPE_CHECKING:
    from trainer.loop import Run


@dataclass
class Validation:
    """Measures the held-out loss when it is due."""

    loader: BatchLoader
    config: TrainConfig

    @classmethod
    def of(cls, run: Run) -> Validation | None:
        """None where no pictures are kept aside."""
        held = run.caches.held
        if held is None:
            return None
        assignment = assign(held.scan, run.config)
        seed = run.config.seed if run.config.validation_seed is None else run.config.validation_seed
        loader = BatchLoader(held.scan, assignment, run.config, seed=int(seed or 0), cache=held.latents)
        return cls(loader, run.config)

    def due_at_step(self, step: int) -> bool:
        return bool(self.config.validate_every_n_steps) and step % int(self.config.validate_every_n_steps or 1) == 0

    def due_at_epoch(self, epoch: int) -> bool:
        """Every epoch, or every n-th, beside what validate_every_n_steps asks for (reference section 15)."""
        return epoch % (self.config.validate_every_n_epochs or 1) == 0

    def due_at_end(self, step: int, epoch: int) -> list[str]:
        """What the one measurement at the end of an epoch is for: "step", "epoch", both, or nothing."""
        due = {"step": self.due_at_step(step), "epoch": self.due_at_epoch(epoch)}
        return [when for when, asked in due.items() if asked]

    def timesteps(self) -> list[int]:
        """The four inner ones of six even points from min_timestep to max_timestep."""
        low = self.config.min_timestep or 0
        high = 1000 if self.config.max_timestep is None else self.config.max_timestep
        return [low + (high - low) * number // 5 for number in range(1, 5)]

    @torch.no_grad()
    def measure(self, run: Run, due: Sequence[str], progress: Progress, log: StepLog | None = None) -> float:
        """The mean loss over the held-out batches and timesteps; a fresh mean each time (trap T46).

        It is measured and told once, and goes to the curves of all that it is due for: "step", "epoch".
        """
        assert run.caches.held is not None
        seed = int((self.config.seed if self.config.validation_seed is None else self.config.validation_seed) or 0)
        losses: list[torch.Tensor] = []
        with run.optimizer.averaged(), undisturbed([run.models.unet, *run.models.text_encoders]):
            for batch in itertools.islice(self.loader.epoch(1), self.config.max_validation_steps):
                for timestep in self.timesteps():
                    torch.manual_seed(seed)
                    random.seed(seed)
                    losses.append(run.batch_loss(batch, run.caches.held.texts, timestep))
        mean = float(torch.stack(losses).mean())
        progress.say(f"validation: loss {mean:.4f} at step {run.at.step}")
        if log:
            log.measured(Measured(run.at.step, run.at.epoch, mean))
        curves = {"average": mean, "divergence": mean - progress.average}
        tags = {f"loss/validation/{when}_{name}": value for when in due for name, value in curves.items()}
        run.accelerator.log(tags, step=run.at.step)
        return mean
