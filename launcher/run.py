"""Starting a run: the run folder, the snapshot, the trainer's process, its end. The only part that writes."""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launcher import machine, paths, record
from launcher.child import INTERRUPTED, Finished, run_child
from launcher.command import environment, launch_command, quoted
from launcher.data import anchored, carried_files
from launcher.failures import Failure, diagnose, last_error
from launcher.files import secrets_of, without_secrets, write_bytes, write_text
from launcher.plan import Plan
from launcher.remedies import consent_words, fix_command
from launcher.spill import SpillWatch
from schemas.config import write as config_text
from schemas.own_word import WORDS
from schemas.problems import ConfigError, Problem, errors
from trainer.plan.listing import listing

FAILED = 3
SECRET_VARIABLES = {"wandb_api_key": "WANDB_API_KEY", "huggingface_token": "HF_TOKEN"}


@dataclass(frozen=True)
class Ended:
    """How a run ended: exit code of the command, what was saved, and why it failed."""

    code: int
    saved: list[Path]
    last_step: int | None = None
    failure: Failure | None = None
    fix: str | None = None
    refused: bool = False


def launch(plan: Plan, *, write: Callable[[bytes], Any], say: Callable[[str], Any], terminal: bool = False) -> Ended:
    """Writes the run folder and trains; with debug_dataset it only shows the data, and writes nothing.

    ConfigError, with nothing written, when the plan has errors.
    """
    wrong = errors(plan.problems)
    if wrong:
        raise ConfigError(wrong)
    if plan.config.debug_dataset and plan.checked.scan:
        for line in listing(plan.checked.scan, plan.config):
            write(f"{line}\n".encode())
        return Ended(0, [])
    plan = settled(plan)
    probe_writing(plan)
    prepare(plan)
    return start(plan, mode="launch", write=write, say=say, terminal=terminal)


def settled(plan: Plan) -> Plan:
    """With what the kept config must name: a seed, drawn here if there is none, and paths that hold from anywhere."""
    resolved = anchored(plan.checked.resolved)
    if plan.config.seed is None:
        resolved = resolved.change("seed", random.SystemRandom().randrange(2**32), "computed")
    command = launch_command(plan.launch, paths.run_folder(resolved) / plan.launch.config_name, resolved.config.trust)
    return replace(plan, command=command, checked=replace(plan.checked, resolved=resolved))


def probe_writing(plan: Plan) -> None:
    """ConfigError where the output folder cannot really be written; access rights alone do not tell."""
    folder = paths.output_dir(plan.checked.resolved)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".kohyakit"):
            pass
    except OSError as fault:
        problem = Problem(
            code="not-writable",
            key="output_dir",
            got=str(folder),
            must=f"cannot be written: {fault.strerror}",
            fix="--set output_dir=PATH",
        )
        raise ConfigError([plan.checked.resolved.placed(problem)]) from None


def prepare(plan: Plan) -> None:
    """Everything that a run leaves before its first step: config, source, carried files, record, snapshot.

    Of several machines the first one does it; the others, which may share its disk, write only what they start from.
    """
    resolved = plan.checked.resolved
    folder = paths.run_folder(resolved)
    if plan.launch.machine_rank:
        folder.mkdir(parents=True, exist_ok=True)
        write_config(plan)
        return
    if resolved.config.overwrite:
        clear(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_config(plan)
    keep_source(plan)
    from launcher.snapshot import write_snapshot

    write_snapshot(plan)


def write_config(plan: Plan) -> None:
    """The trainer's input, with the files that the user's file carries."""
    resolved = plan.checked.resolved
    folder = paths.run_folder(resolved)
    for name, text in carried_files(resolved).items():
        write_text(folder / name, text)
    insisted = [name for name in WORDS if name in resolved.settings]  # what the base model would say otherwise
    text = config_text(replace(resolved.config, trust=()), insisted)  # consent is no file's to give
    write_text(folder / plan.launch.config_name, text)


def clear(folder: Path) -> None:
    """Removes what an earlier run under this name left in its run folder, and nothing else."""
    for path in folder.glob("state-*"):
        shutil.rmtree(path)
    for name in ("log.jsonl", "run.json", "config.toml"):
        (folder / name).unlink(missing_ok=True)
    for path in folder.glob("source.*"):
        path.unlink()


def keep_source(plan: Plan) -> None:
    """The user's file byte for byte, secrets blanked; of a LoRA file only its header's text."""
    resolved = plan.checked.resolved
    if resolved.draft.file is None or not Path(resolved.draft.file).is_file():
        return
    source, folder = Path(resolved.draft.file), paths.run_folder(resolved)
    if source.suffix == ".safetensors":
        from launcher.files import write_json
        from schemas.weights import read_header

        write_json(folder / "source.json", read_header(source).metadata)
        return
    data = source.read_bytes()
    secrets = secrets_of(resolved.config).values()
    text = data.decode("utf-8", "surrogateescape")
    blanked = without_secrets(text, secrets).encode("utf-8", "surrogateescape")
    write_bytes(folder / f"source{source.suffix or '.txt'}", blanked)


def start(
    plan: Plan, *, mode: str, write: Callable[[bytes], Any], say: Callable[[str], Any], terminal: bool = False
) -> Ended:
    """Runs the trainer in the run folder as it stands, and records begin and end."""
    folder = paths.run_folder(plan.checked.resolved)
    if not plan.launch.machine_rank:
        record.begin(folder, plan, mode=mode)
    variables = environment(plan.launch, os.environ)
    for name, secret in secrets_of(plan.config).items():
        variables.setdefault(SECRET_VARIABLES.get(name, name.upper()), secret)
    variables["KOHYAKIT_LAUNCHED"] = "1"
    since = time.time() if mode == "launch" else 0.0
    cards = [gpu.memory for gpu in machine.this_machine().gpus if gpu.memory]
    spill = SpillWatch(folder / "log.jsonl", min(cards, default=None), say)

    def passed_on(data: bytes) -> None:
        write(data)
        spill.look()

    finished = run_child(plan.command, variables, passed_on, terminal=terminal)
    return report(plan, finished, say, since=since)


def report(plan: Plan, finished: Finished, say: Callable[[str], Any], *, since: float = 0.0) -> Ended:
    """Says how the run ended, closes its record, and turns the trainer's exit code into the command's."""
    folder = paths.run_folder(plan.checked.resolved)
    code = finished.code
    outcome = code if code in (0, 1, INTERRUPTED) else FAILED
    if outcome == 1 and (last_error(finished.lines) or record.last_step(folder) is not None):
        outcome = FAILED  # Python itself ends with 1 too
    if not plan.launch.machine_rank:
        record.end(folder, outcome)
    saved, step = record.saved_files(plan, since), record.last_step(folder)
    total = plan.steps.total if plan.steps else None
    if outcome == 0:
        say(f"done: {saved[0] if saved else folder}")
        return Ended(0, saved, step)
    if outcome == INTERRUPTED:
        say(f"interrupted at step {step or 0} of {total}{_lost(folder, step)}")
        failure = None
    elif outcome == 1:
        say("the trainer refused the input; nothing was trained")
        return Ended(1, saved, step, refused=True)
    else:
        failure = diagnose(finished.lines, code)
        say(f"the run failed at step {step or 0} of {total}: {failure.cause}")
        if failure.advice:
            say(f"    try: {failure.advice}")
        if failure.keys:
            say(f"    options: {', '.join(failure.keys)}")
    say("saved so far: " + (", ".join(str(path) for path in saved) or "nothing"))
    fix = _way_on(plan, failure, finished.lines, say)
    return Ended(outcome, saved, step, failure, fix)


def _lost(folder: Path, step: int | None) -> str:
    """Where going on starts, if a second signal cut the run off before it could save."""
    state = record.newest_state(folder)
    if state is None:
        return ", before there was anything to go on from"
    kept = int(state.name[6:])
    return f", which was not saved: going on starts again at step {kept}" if step is not None and kept < step else ""


def _way_on(plan: Plan, failure: Failure | None, lines: Sequence[str], say: Callable[[str], Any]) -> str | None:
    """The command to go on with, said unless the trainer has said the same."""
    folder = paths.run_folder(plan.checked.resolved)
    if failure is not None:
        fix = fix_command(failure, plan, machine.this_machine())
    else:
        words = ["kohyakit", "resume", str(folder), *consent_words(plan)]
        fix = quoted(words) if record.newest_state(folder) else None
    if fix is not None and not any(fix in line for line in lines[-20:]):
        say(f"go on with: {fix}")
    return fix


def to_stdout(data: bytes) -> None:
    """The trainer's output, unchanged."""
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def to_stderr(data: bytes) -> None:
    """The trainer's output where stdout belongs to one JSON document."""
    sys.stderr.buffer.write(data)
    sys.stderr.buffer.flush()
