"""Where a run saves and makes previews, and under which names (reference sections 11.1 and 13).

The plan and the loop both ask this module, so they cannot differ.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from schemas.config import TrainConfig
from trainer.plan.steps import Steps

When = Literal["step", "epoch", "end"]


@dataclass(frozen=True)
class Save:
    """One moment of saving: `file` is written into output_dir, with its state if `state`, then `removes` are deleted.

    `removes` names files and state folders that this run has written before.
    """

    step: int
    epoch: int
    when: When
    file: str
    state: bool
    removes: tuple[str, ...] = ()

    @property
    def state_name(self) -> str:
        """The reference's name for the state folder that belongs to `file`."""
        return self.file.rpartition(".")[0] + "-state"

    @property
    def written(self) -> tuple[str, ...]:
        """Everything that this moment writes, the state before the model."""
        return (self.state_name, self.file) if self.state else (self.file,)


def epoch_base(config: TrainConfig, epoch: int) -> str:
    return f"{config.output_name or 'epoch'}-{epoch:06d}"


def step_base(config: TrainConfig, step: int) -> str:
    return f"{config.output_name or 'at'}-step{step:08d}"


def last_base(config: TrainConfig) -> str:
    return config.output_name or "last"


def epoch_name(config: TrainConfig, epoch: int) -> str:
    """Model file of the end of epoch `epoch`, counted from 1."""
    return f"{epoch_base(config, epoch)}.{config.save_model_as}"


def epoch_state_name(config: TrainConfig, epoch: int) -> str:
    return f"{epoch_base(config, epoch)}-state"


def step_name(config: TrainConfig, step: int) -> str:
    """Model file after update `step`, counted from 1."""
    return f"{step_base(config, step)}.{config.save_model_as}"


def step_state_name(config: TrainConfig, step: int) -> str:
    return f"{step_base(config, step)}-state"


def last_name(config: TrainConfig) -> str:
    """Model file of the end of training; it is never removed."""
    return f"{last_base(config)}.{config.save_model_as}"


def preview_name(
    config: TrainConfig, *, index: int, step: int, time: str, epoch: int | None = None, seed: int | None = None
) -> str:
    """PNG of prompt `index` (from 0) in output_dir/sample, named by `epoch` if made at an epoch's end, else by `step`.

    Previews before the first update belong to epoch 0. `time` is the local time as YYYYmmddHHMMSS.
    """
    moment = f"{step:06d}" if epoch is None else f"e{epoch:06d}"
    words = [config.output_name, moment, f"{index:02d}", time, None if seed is None else str(seed)]
    return "_".join(word for word in words if word) + ".png"


@dataclass(frozen=True)
class PreviewName:
    """What a preview's name says: `number` is an epoch if `at_epoch`, else a step; `time` is YYYYmmddHHMMSS."""

    at_epoch: bool
    number: int
    index: int
    time: str


def read_preview_name(output_name: str | None, file: str) -> PreviewName | None:
    """The inverse of `preview_name`; None for any other file."""
    start = f"{re.escape(output_name)}_" if output_name else ""
    found = re.fullmatch(rf"{start}(e?)(\d{{6,}})_(\d{{2,}})_(\d{{14}})(_\d+)?\.png", file)
    return PreviewName(bool(found[1]), int(found[2]), int(found[3]), found[4]) if found else None


def save_period(config: TrainConfig, epochs: int) -> int | None:
    """Epochs between two epoch saves: save_n_epoch_ratio r means max(1, epochs // r) and wins."""
    if config.save_n_epoch_ratio:
        return max(1, epochs // config.save_n_epoch_ratio)
    return config.save_every_n_epochs or None


def saves_at_step(config: TrainConfig, step: int) -> bool:
    """Whether a copy is saved after update `step` (from 1), after the previews of that update."""
    return bool(config.save_every_n_steps) and step > 0 and step % (config.save_every_n_steps or 1) == 0


def saves_at_epoch(config: TrainConfig, epoch: int, epochs: int) -> bool:
    """Whether a copy is saved at the end of epoch `epoch` (from 1); the last epoch gives only the final file.

    save_last_n_epochs 0 makes the reference delete each copy as soon as it is written: nothing is saved then.
    """
    period = save_period(config, epochs)
    if not period or epoch % period or not 0 < epoch < epochs:
        return False
    return config.save_last_n_epochs != 0 or bool(config.save_state and config.save_last_n_epochs_state)


def saves_at_end(config: TrainConfig) -> bool:
    """Whether a state is written at the end of training; the model always is."""
    return config.save_state or config.save_state_on_train_end


def step_save(config: TrainConfig, step: int, epoch: int) -> Save:
    """The save after update `step`."""
    period = config.save_every_n_steps or 1

    def outdated(keep: int | None) -> int:
        return 0 if keep is None else max(0, (step - keep - 1) // period * period)

    model = outdated(config.save_last_n_steps)
    state = outdated(config.save_last_n_steps_state or config.save_last_n_steps)
    removes = [step_state_name(config, state)] if state and config.save_state else []
    removes += [step_name(config, model)] if model else []
    return Save(step, epoch, "step", step_name(config, step), config.save_state, tuple(removes))


def epoch_save(config: TrainConfig, epoch: int, steps: Steps) -> Save:
    """The save at the end of epoch `epoch`."""
    period = save_period(config, steps.epochs) or 1

    def outdated(keep: int | None) -> int:
        return 0 if keep is None else max(0, epoch - period * keep)

    model = outdated(config.save_last_n_epochs)
    state = outdated(config.save_last_n_epochs_state or config.save_last_n_epochs)
    removes = [epoch_state_name(config, state)] if state and config.save_state else []
    removes += [epoch_name(config, model)] if model else []
    return Save(steps.epoch_end(epoch), epoch, "epoch", epoch_name(config, epoch), config.save_state, tuple(removes))


def end_save(config: TrainConfig, steps: Steps) -> Save:
    """The save at the end of training."""
    return Save(steps.total, steps.epochs, "end", last_name(config), saves_at_end(config))


def saves(config: TrainConfig, steps: Steps) -> list[Save]:
    """Every save of the run in the order in which they happen."""
    period = save_period(config, steps.epochs) or steps.epochs
    at_steps = _multiples(config.save_every_n_steps, steps.total)
    found = [step_save(config, step, steps.epoch_of(step)) for step in at_steps if saves_at_step(config, step)]
    at_epochs = _multiples(period, steps.epochs)
    found += [epoch_save(config, epoch, steps) for epoch in at_epochs if saves_at_epoch(config, epoch, steps.epochs)]
    found.sort(key=lambda save: save.step)  # where both fall on one update, the step's comes first
    return [*found, end_save(config, steps)]


def previews_at_start(config: TrainConfig) -> bool:
    """Whether previews are made before the first update; they are named as epoch 0."""
    return config.sample_at_first


def previews_at_step(config: TrainConfig, step: int) -> bool:
    """Whether previews are made after update `step` (from 1); sample_every_n_epochs switches these off."""
    if _positive(config.sample_every_n_epochs):
        return False
    period = _positive(config.sample_every_n_steps)
    return period > 0 and step > 0 and step % period == 0


def previews_at_epoch(config: TrainConfig, epoch: int) -> bool:
    """Whether previews are made at the end of epoch `epoch` (from 1), a last shortened one included."""
    period = _positive(config.sample_every_n_epochs)
    return period > 0 and epoch > 0 and epoch % period == 0


def previews(config: TrainConfig, steps: Steps) -> list[int]:
    """The updates after which previews are made; 0 is before the first."""
    steps_asked = _multiples(config.sample_every_n_steps, steps.total)
    at_steps = {step for step in steps_asked if previews_at_step(config, step)}
    epochs_asked = _multiples(config.sample_every_n_epochs, steps.epochs)
    at_epochs = {steps.epoch_end(epoch) for epoch in epochs_asked if previews_at_epoch(config, epoch)}
    return sorted(at_steps | at_epochs | ({0} if previews_at_start(config) else set()))


def _multiples(period: int | None, last: int) -> range:
    """`period`, twice it and so on up to `last`; nothing without a period."""
    each = _positive(period)
    return range(each, last + 1, each) if each else range(0)


def _positive(value: int | None) -> int:
    return max(0, value or 0)
