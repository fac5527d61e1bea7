"""Starting a run: the run folder, the snapshot, the trainer's process, its end. The only part that writes."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launcher.check import machine, paths
from launcher.check.data import anchored, carried_files
from launcher.check.plan import Plan
from launcher.check.preset_defaults import trigger_word
from launcher.run import record
from launcher.run.child import Finished, run_child
from launcher.run.command import environment, launch_command, quoted
from launcher.run.failures import Failure, diagnose, last_error
from launcher.run.files import (
    secrets_of,
    write_bytes,
    write_text,
)
from launcher.run.remedies import consent_words, fix_command
from launcher.run.spill import SpillWatch
from schemas.blanking import without_secrets
from schemas.config import write as config_text
from schemas.files.own_word import WORDS
from schemas.files.run_folder import (
    CONFIG,
    LOG,
    RECORD,
    VALIDATION,
    last_step,
)
from schemas.files.run_lock import VARIABLE as LOCK_VARIABLE
from schemas.files.run_lock import hold_for_launcher
from schemas.files.saved_names import BESIDE
from schemas.files.textfile import CONFIG as LARGEST
from schemas.files.textfile import read_bytes
from schemas.files.writing import disk_advice, disk_fault
from schemas.problems import ConfigError, Problem, errors
from schemas.signals import INTERRUPTED, held_off
from schemas.terminal import pass_on, plain
from trainer.plan.listing import listing

FAILED = 3
PROBED = 2**20  # bytes that a start writes at most: config, record, snapshot, the user's file
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
            write(f"{plain(line)}\n".encode())
        return Ended(0, [])
    refuse_damaged(plan, say)
    plan = settled(plan)
    probe_writing(plan)
    with locked(plan) as token:
        in_the_way = paths.overwrite_problem(plan.checked.resolved)
        if in_the_way is not None and not plan.launch.machine_rank:  # another start was quicker
            raise ConfigError([in_the_way])
        if (paths.run_folder(plan.checked.resolved) / LOG).is_file() and not plan.config.overwrite:
            say("the earlier start ended before its first state: this one starts from the beginning")
        mode = "resume" if plan.config.resume else "launch"
        return start(plan, mode=mode, ready=prepare, write=write, say=say, terminal=terminal, token=token)


@contextmanager
def locked(plan: Plan) -> Iterator[str | None]:
    """The run folder is this launcher's: nothing is written or removed before. Gives the token for the trainer.

    ConfigError while another launcher or a trainer is at work there. Of several machines the first one holds it.
    """
    if plan.launch.machine_rank:
        yield None
        return
    lock, token = hold_for_launcher(paths.run_folder(plan.checked.resolved))
    try:
        yield token
    finally:
        lock.free()


def refuse_damaged(plan: Plan, say: Callable[[str], Any]) -> None:
    """ConfigError with every image that cannot be decoded whole, where a run would meet it hours later."""
    if plan.config.skip_image_check or plan.checked.scan is None:
        return
    from schemas.progress import Progress
    from trainer.dataset.files import CHECKING, damaged

    found = damaged(plan.checked.scan, Progress(CHECKING[0], hint=CHECKING[1], tell=say))
    if found:
        raise ConfigError([plan.checked.resolved.placed(problem) for problem in found])


def settled(plan: Plan) -> Plan:
    """With what the kept config must name: a seed, drawn here if there is none, and paths that hold from anywhere."""
    resolved = anchored(plan.checked.resolved)
    if plan.config.seed is None:
        resolved = resolved.change("seed", random.SystemRandom().randrange(2**32), "computed")
    command = launch_command(plan.launch, paths.run_folder(resolved) / plan.launch.config_name, resolved.config.trust)
    return replace(plan, command=command, checked=replace(plan.checked, resolved=resolved))


def probe_writing(plan: Plan) -> None:
    """ConfigError where the output folder cannot really be written; access rights and free room alone do not tell.

    What it has made until then is gone again.
    """
    folder = paths.output_dir(plan.checked.resolved)
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".kohyakit") as probe:
            probe.write(bytes(PROBED))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as fault:
        for parent in made:
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise _unwritable(plan, fault) from None


@contextmanager
def refused_when_full(plan: Plan) -> Iterator[None]:
    """Before the first step a disk that takes no more is a fault of the input: new files go again, nothing began."""
    folder, output = paths.run_folder(plan.checked.resolved), paths.output_dir(plan.checked.resolved)
    before = {*_files(folder), *_files(output)}
    try:
        yield
    except OSError as fault:
        with contextlib.suppress(OSError):
            for path in {*_files(folder), *_files(output)} - before:
                path.unlink()
            if not any(folder.iterdir()):
                folder.rmdir()
        raise _unwritable(plan, fault) from None


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []


def _unwritable(plan: Plan, fault: OSError) -> ConfigError:
    fix = "--set output_dir=PATH"
    if disk_fault(fault):
        fix = f"{disk_advice(fault)}, or {fix}"
    problem = Problem(
        code="not-writable",
        key="output_dir",
        got=str(paths.output_dir(plan.checked.resolved)),
        must=f"cannot be written: {fault.strerror}",
        fix=fix,
    )
    return ConfigError([plan.checked.resolved.placed(problem)])


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
    clear(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_config(plan)
    keep_source(plan)
    from launcher.run.snapshot import write_snapshot

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
    """Removes what an earlier run under this name left in its run folder, and nothing else.

    To be called under the lock, when that may be overwritten or never came to a state.
    """
    for path in folder.glob("state-*"):
        shutil.rmtree(path)
    for name in (LOG, VALIDATION, RECORD, CONFIG):
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
        from launcher.run.files import write_json
        from schemas.files.weights import read_header

        write_json(folder / "source.json", read_header(source).metadata)
        return
    data = read_bytes(source, limit=LARGEST, what="config file")
    secrets = secrets_of(resolved.config).values()
    text = data.decode("utf-8", "surrogateescape")
    blanked = without_secrets(text, secrets).encode("utf-8", "surrogateescape")
    write_bytes(folder / f"source{source.suffix or '.txt'}", blanked)


def start(
    plan: Plan,
    *,
    mode: str,
    ready: Callable[[Plan], None],
    write: Callable[[bytes], Any],
    say: Callable[[str], Any],
    terminal: bool = False,
    token: str | None = None,
) -> Ended:
    """Makes the run folder `ready`, runs the trainer in it, and records begin and end; `token` is of the lock held."""
    folder = paths.run_folder(plan.checked.resolved)
    with refused_when_full(plan):
        ready(plan)
        if not plan.launch.machine_rank:
            record.begin(folder, plan, mode=mode)
    variables = environment(plan.launch, os.environ)
    for name, secret in secrets_of(plan.config).items():
        variables.setdefault(SECRET_VARIABLES.get(name, name.upper()), secret)
    variables["KOHYAKIT_LAUNCHED"] = "1"
    if token is not None:
        variables[LOCK_VARIABLE] = token
    since = time.time() if mode == "launch" else 0.0
    before = _size(folder / LOG)
    try:
        cards = [gpu.memory for gpu in machine.this_machine().gpus if gpu.memory]
        spill = SpillWatch(folder / LOG, min(cards, default=None), say)

        def passed_on(data: bytes) -> None:
            write(data)
            spill.look()

        finished = run_child(plan.command, variables, passed_on, terminal=terminal)
    except KeyboardInterrupt:  # just before the child was there
        finished = Finished(INTERRUPTED, (), 1)
    with held_off():
        return report(plan, finished, say, since=since, trained=_size(folder / LOG) != before)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def report(
    plan: Plan, finished: Finished, say: Callable[[str], Any], *, since: float = 0.0, trained: bool = True
) -> Ended:
    """Says how the run ended, closes its record, and turns the trainer's exit code into the command's."""
    folder = paths.run_folder(plan.checked.resolved)
    code = finished.code
    outcome = code if code in (0, 1, INTERRUPTED) else FAILED
    if outcome == 1 and (last_error(finished.lines) or trained):
        outcome = FAILED  # Python itself ends with 1 too
    if not plan.launch.machine_rank:
        _close_record(folder, outcome, say)
    saved, step = record.saved_files(plan, since), last_step(folder)
    total = plan.steps.total if plan.steps else None
    if outcome == 0:
        say(f"done: {saved[0] if saved else folder}")
        for line in what_next(plan, saved):
            say(line)
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


def what_next(plan: Plan, saved: Sequence[Path]) -> Iterator[str]:
    """After a run: what it left, how to look at it, and the two ways on."""
    resolved = plan.checked.resolved
    folder = str(paths.run_folder(resolved))
    loras = [path for path in saved if path.is_file() and not path.stem.endswith(BESIDE)]
    if len(loras) > 1:
        yield f"    {len(loras)} saved in all, each as good a candidate as the last: compare them before you choose"
    yield f"    look at it:   {quoted(['kohyakit', 'report', folder])}"
    if plan.checked.scan is not None:
        own = [sample for sample in plan.checked.scan.samples if not sample.is_reg]
        word = trigger_word(plan.checked.scan, own)
        if word:
            yield f"    use it:       put the file into your program's LoRA folder, and {word!r} into the prompt"
    yield f"    train longer: {quoted(['kohyakit', 'resume', folder, '--epochs', '2'])}"


def _close_record(folder: Path, outcome: int, say: Callable[[str], Any]) -> None:
    """A record without its end is that of a run that was killed; how it really ended is said here in any case."""
    try:
        record.end(folder, outcome)
    except OSError as fault:
        say(f"warning: the end of this run is not in {folder / 'run.json'}: {fault.strerror}")


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
    pass_on(data)


def to_stderr(data: bytes) -> None:
    """The trainer's output where stdout belongs to one JSON document."""
    pass_on(data, err=True)
