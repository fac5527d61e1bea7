"""The command that goes on after a failure, with what mends its cause."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from launcher.check import paths
from launcher.check.machine import Machine
from launcher.check.plan import Plan, largest_bucket
from launcher.run import record
from launcher.run.command import quoted
from launcher.run.failures import Failure
from schemas.config import TrainConfig, read_value, table
from schemas.files.run_folder import last_step

ROOM = 0.9  # of the card: other programs and the allocator's gaps take the rest


def fix_command(failure: Failure, plan: Plan, machine: Machine) -> str | None:
    """Resume where the change allows it, else a new run from the saved weights, else from the start; None if no use."""
    kind = failure.kind
    if kind is not None and not kind.again:
        return None
    words = dict(changes(failure, plan, machine))
    resolved = plan.checked.resolved
    run = paths.run_folder(resolved)
    command = ["kohyakit", "resume", str(run)]
    if not all(table()[name].resumable for name in words) or record.newest_state(run) is None:
        step, total = last_step(run) or 0, plan.steps.total if plan.steps else 0
        if _has_weights(run.parent, run.stem) and 0 < step < total:
            command += ["--steps", str(total - step)]
        elif resolved.draft.file is None:
            return None
        else:
            command = ["kohyakit", "launch", resolved.draft.file, "--overwrite"]
            words = {**resolved.sets, **words}
    for name, value in words.items():
        command += ["--set", f"{name}={value}"]
    return quoted([*command, *consent_words(plan)] if command[1] == "resume" else command)


def consent_words(plan: Plan) -> list[str]:
    """--trust NAME for every name this run was given: a run folder cannot give it."""
    return [word for name in plan.config.trust for word in ("--trust", name)]


def _has_weights(folder: Path, name: str) -> bool:
    return any(folder.glob(f"{name}*.safetensors"))


def changes(failure: Failure, plan: Plan, machine: Machine) -> Iterator[tuple[str, str]]:
    """The --set words (name, value) that mend a failure and change something in this plan."""
    kind, config = failure.kind, plan.config
    if kind is None:
        return
    if kind.fits:
        yield from _smaller(plan, machine)
    elif kind.name == "nan":
        yield from _calmer(config, plan.family)
    for word in kind.sets if kind.name != "nan" else ():
        name, _, value = word.partition("=")
        if getattr(config, name) != read_value(table()[name], value)[0] and (name, value) != _still_plain(config):
            yield name, value


def _still_plain(config: TrainConfig) -> tuple[str, str] | None:
    """A 32-bit optimizer stays as it is where another option asks for the 8-bit one."""
    return ("optimizer_type", "AdamW") if "8bit" not in config.optimizer_type.lower() else None


def _smaller(plan: Plan, machine: Machine) -> Iterator[tuple[str, str]]:
    """What the memory plan would change to stay well below both the card's memory and the estimate that was wrong."""
    from trainer.plan import memory

    if plan.family is None or plan.memory is None:
        return
    cards = [gpu.memory for gpu in machine.gpus if gpu.memory]
    target = min([ROOM * plan.memory.device_bytes, *(ROOM * card for card in cards)])
    shape = memory.shape_of(plan.family, plan.config.pretrained_model_name_or_path)
    bucket = largest_bucket(plan.checked)
    for change in memory.fit(plan.config, plan.family, bucket, target / memory.GIB, shape=shape):
        after = str(change.after).lower() if isinstance(change.after, bool) else str(change.after)
        yield change.argument, after


def _calmer(config: TrainConfig, family: str | None) -> Iterator[tuple[str, str]]:
    """A tenth of the learning rates; SDXL's VAE in 32 bit."""
    yield "learning_rate", f"{config.learning_rate / 10:g}"
    if config.unet_lr:
        yield "unet_lr", f"{config.unet_lr / 10:g}"
    if config.text_encoder_lr:
        yield "text_encoder_lr", " ".join(f"{rate / 10:g}" for rate in config.text_encoder_lr)
    if family == "sdxl" and config.mixed_precision == "fp16" and not config.no_half_vae:
        yield "no_half_vae", "true"
