"""What several processes make of a run: one against many in numbers, and the same pictures seen in fewer steps."""

from __future__ import annotations

from dataclasses import dataclass, replace

from launcher.check.preflight import Checked
from schemas.config import TrainConfig
from schemas.problems import Problem
from trainer.plan.steps import Steps

# Counted in steps; each then comes at the same number of pictures seen.
IN_STEPS = ("max_train_steps", "lr_warmup_steps", "lr_decay_steps", "save_every_n_steps", "save_last_n_steps",
            "save_last_n_steps_state", "sample_every_n_steps", "validate_every_n_steps")  # fmt: skip


@dataclass(frozen=True)
class Load:
    """A run on so many processes."""

    processes: int
    device_batch: int  # pictures of one process in one forward pass
    global_batch: int  # pictures behind one step
    steps: int
    samples: int  # pictures seen over the whole run, repeats counted
    learning_rate: float


def load_of(checked: Checked, steps: Steps) -> Load:
    """The numbers of a plan; `samples` is exact, bucket by bucket."""
    config = checked.resolved.config
    batch = max((spec.batch_size for spec in checked.scan.specs), default=1) if checked.scan else 1
    behind_one = batch * config.gradient_accumulation_steps * steps.processes
    seen = samples_seen(checked, steps)
    return Load(steps.processes, batch, behind_one, steps.total, seen, _rate(config))


def _rate(config: TrainConfig) -> float:
    return config.learning_rate if config.unet_lr is None else config.unet_lr


def samples_seen(checked: Checked, steps: Steps) -> int:
    """Pictures that go through the model until the last step, on all processes together."""
    from trainer.dataset.order import epoch_batches, shard

    if checked.assignment is None:
        return 0
    config, total = checked.resolved.config, 0
    whole: int | None = None
    for epoch in range(1, steps.epochs + 1):
        left = steps.total - (epoch - 1) * steps.updates_per_epoch
        if left >= steps.updates_per_epoch and whole is not None:
            total += whole
            continue
        batches = epoch_batches(checked.assignment, config.seed or 0, epoch)
        used = left * config.gradient_accumulation_steps
        shares = [shard(batches, steps.processes, rank)[:used] for rank in range(steps.processes)]
        count = sum(len(one.samples) for share in shares for one in share)
        whole = count if left >= steps.updates_per_epoch else whole
        total += count
    return total


def keep_samples(checked: Checked, processes: int) -> tuple[Checked, list[Problem]]:
    """Everything that is counted in steps divided by the processes, so that as many pictures are seen as with one."""
    if processes == 1:
        return checked, []
    resolved, notes = checked.resolved, []
    for name in IN_STEPS:
        before = getattr(resolved.config, name)
        by_epochs = name == "max_train_steps" and resolved.config.max_train_epochs is not None
        if not isinstance(before, int) or not before or by_epochs:
            continue  # shares of the run and epochs need no change
        after = max(1, -(-before // processes))
        resolved = resolved.change(name, after, "computed")
        must = f"is {after} on {processes} processes, so that as many pictures are seen as with one"
        problem = Problem(code="samples-kept", severity="note", key=name, got=before, must=must)
        notes.append(replace(resolved.placed(problem), line=None))
    return replace(checked, resolved=resolved), notes
