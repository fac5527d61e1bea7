"""`accelerate launch -m trainer <sd-scripts arguments>`: read and check everything, then train.

Nothing heavy is imported before the input is known to be good. Exit codes: 0 done, 1 the input is wrong (nothing was
written), 3 the run failed, 130 interrupted with the state saved.
"""

from __future__ import annotations

if __name__ == "__main__":
    from trainer.watch.early import leave_on_signals

    leave_on_signals()

import argparse
import atexit
import importlib.util
import logging
import os
import sys
import time
import traceback
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from schemas import (
    ConfigError,
    Problem,
    TrainConfig,
    config,
    errors,
    rules,
)
from schemas.derive import add_flags
from schemas.files import (
    own_word,
    pickles,
    places,
    weights,
)
from schemas.files.resuming import state_meant
from schemas.files.run_lock import in_use
from schemas.files.writing import disk_advice, disk_fault, disk_words
from schemas.rules import names
from schemas.signals import outlast_terminal
from schemas.terminal import say
from trainer.dataset.checks import bucket_steps
from trainer.dataset.files import Scan, scan, told_now_and_then
from trainer.dataset.prompts import read_prompts
from trainer.output.run_folder import RunFolder
from trainer.plan.adapt import adapt_to
from trainer.plan.adapter import misfits
from trainer.plan.listing import listing
from trainer.watch.early import EARLY, INTERRUPTED
from trainer.watch.signals import StopRequest, deaf

FAILED = 3


def read_arguments(argv: Sequence[str]) -> tuple[TrainConfig, list[Problem]]:
    """The config of a command line: --config_file first, the command line over it, as the reference reads them."""
    parser = argparse.ArgumentParser(prog="trainer", description="Trains a LoRA for SD1.5 or SDXL.")
    add_flags(parser)
    typed = vars(parser.parse_args(argv))
    values: dict[str, Any] = {}
    file = typed.get("config_file")
    if file and not typed.get("output_config"):  # with that, it is the file to be written
        file = file if file.endswith(".toml") else f"{file}.toml"
        values, lines = config.read_values(file)
        _refuse_consent(values, typed, file, lines)
    else:
        lines = {}
    values.update(typed)
    read, notes = config.from_flat(values, file=file, lines=lines)
    read, filled = with_own_word(read, values, typed)
    read, _ = rules.effective(read)
    return read, [*(note for note in notes if note.key not in typed), *filled]  # on a command line everything is text


def with_own_word(
    read: TrainConfig, values: Collection[str], typed: Collection[str]
) -> tuple[TrainConfig, list[Problem]]:
    """The config with what the base model says of itself where `values` are silent; ConfigError where they disagree.

    The launcher has done so for the runs that it starts.
    """
    if os.environ.get("KOHYAKIT_LAUNCHED") or read.output_config:
        return read, []
    model = read.pretrained_model_name_or_path
    try:
        word = own_word.own_word(str(model))
    except ConfigError:
        return read, []  # said when the checkpoint itself is looked at
    taken, found = own_word.settle(word, read, values, typed)
    found += own_word.other_input(word, model)
    if errors(found):
        raise ConfigError(errors(found))
    return replace(read, **taken), found  # type: ignore[arg-type]


def _refuse_consent(values: dict[str, Any], typed: dict[str, Any], file: str, lines: dict[str, int]) -> None:
    """A file may be a stranger's: it cannot allow code to run, nor choose a system folder to write to."""
    found = []
    if values.get("trust"):
        found.append(Problem(code="needs-consent", key="trust", got=values["trust"], file=file,
                             line=lines.get("trust"), must="is not a file's to give: only the command line can",
                             fix="remove it and, if you agree, give --trust NAME"))  # fmt: skip
    if not os.environ.get("KOHYAKIT_LAUNCHED"):  # the launcher has asked, and passes on what it was given
        inner = {name: value for name, value in values.items() if name not in typed and name in config.table()}
        known, _ = config.from_flat({**inner, "trust": ()}, file=file, lines=lines)
        for name, value in names.written_places(known):
            why = places.protected(value) if name not in typed.get("trust", ()) and name in inner else None
            if why is not None:
                found.append(Problem(code="needs-consent", key=name, got=value, file=file, line=lines.get(name),
                                     must=f"--{name} writes into a place that {why}",
                                     fix=f"remove it, or if you agree: --trust {name}"))  # fmt: skip
    if found:
        raise ConfigError(found)


def prepare(read: TrainConfig) -> tuple[str, Scan, list[Problem]]:
    """The family of the base model and what is trained on; raises ConfigError with everything that is wrong."""
    problems = [*rules.check(read), *pickles.check(read), *names.irregular(read)]
    if errors(problems):
        raise ConfigError(problems)
    family = family_of(read)
    problems = [*rules.check(read, family), *misfits(read, family, read.pretrained_model_name_or_path)]
    # The launcher has decoded them all; of several processes one is enough.
    alone = os.environ.get("RANK", "0") == "0" and not os.environ.get("KOHYAKIT_LAUNCHED")
    verify = alone and not read.skip_image_check and not read.debug_dataset
    found = scan(read, verify=told_now_and_then(say) if verify else False)
    problems += [*found.problems, *bucket_steps(found.specs, read, family)]
    if read.sample_prompts:
        read_prompts(read.sample_prompts)  # raises what is wrong with them, long before the first preview
    if errors(problems):
        raise ConfigError(problems)
    # Early; what counts is looked at again under the lock.
    run = RunFolder.of(read).path
    busy = in_use(run) if os.environ.get("RANK", "0") == "0" and not read.debug_dataset else None
    if busy is not None:
        raise busy
    if read.resume and not read.resume_from_huggingface:
        state_meant(Path(read.resume), run, contents=False)
    return family, found, problems


def family_of(read: TrainConfig) -> str:
    """sd15, sd2 or sdxl, from the checkpoint itself; anything else is refused by name."""
    model = str(read.pretrained_model_name_or_path)
    family = weights.checkpoint_family(model)
    if family == "unknown" and not model.endswith(".safetensors"):
        family = "sd2" if read.v2 else "sd15"  # a pickle's tensors are only seen on loading, which checks again
    place: dict[str, Any] = {"key": "pretrained_model_name_or_path", "got": model}
    if family not in ("sd15", "sd2", "sdxl"):
        raise ConfigError(
            [
                Problem(
                    code="unsupported-family",
                    must=f"is a {family} model; this trainer knows sd15, sd2 and sdxl",
                    fix="give a Stable Diffusion 1.5, 2.x or SDXL checkpoint",
                    **place,
                )
            ]
        )
    if read.v2 != (family == "sd2"):
        raise ConfigError(
            [
                Problem(
                    code="family-mismatch",
                    must=f"is a {family} model, but v2 is {str(read.v2).lower()}",
                    fix=f"--v2 {'off' if read.v2 else 'on'}, or another checkpoint",
                    **place,
                )
            ]
        )
    return family


def write_config(read: TrainConfig) -> int:
    """--output_config: the options as TOML at --config_file."""
    if not read.config_file:
        raise ConfigError([Problem(code="no-file", key="output_config", must="needs config_file, the file to write")])
    target = Path(read.config_file if read.config_file.endswith(".toml") else f"{read.config_file}.toml")
    if target.exists():
        raise ConfigError([Problem(code="file-exists", key="config_file", got=str(target), must="must not exist yet")])
    target.write_text(config.write(replace(read, output_config=False, trust=())), encoding="utf-8")
    return 0


class Spoken(logging.Handler):
    """Our own parts' remarks leave through the door to the terminal too."""

    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage(), err=True)


def quiet() -> None:
    """Libraries' remarks on what is on purpose here stay out of the run's output."""
    for name in ("bitsandbytes", "diffusers", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("trainer").addHandler(Spoken())


def main(argv: Sequence[str] | None = None, stop: StopRequest | None = None) -> int:
    """Runs a training; returns the exit code."""
    first = os.environ.get("RANK", "0") == "0"
    stop = stop or StopRequest(begun=False)
    try:
        words = sys.argv[1:] if argv is None else list(argv)
        read, notes = read_arguments(words)
        if read.output_config:
            return write_config(read)
        family, found, problems = prepare(read)
        if first and not os.environ.get("KOHYAKIT_LAUNCHED"):
            for problem in [*notes, *problems]:
                tell(problem)
        if read.debug_dataset:
            for line in listing(found, read) if first else ():
                say(line)
            return 0
        quiet()
        import torch

        from trainer.loop import train

        packages = [name for name in ("bitsandbytes", "xformers") if importlib.util.find_spec(name)]
        read, changes = adapt_to(read, gpu=torch.cuda.is_available(), packages=packages)
        if first:
            for change in changes:
                say(f"adapted: {change.argument}: {change.before} -> {change.after}, {change.why}")
        stop.begin()
        return INTERRUPTED if train(read, family, found, stop).interrupted else 0
    except ConfigError as wrong:
        if not first:
            time.sleep(2)  # what the first process says too it has said by then, and its end has taken this one along
        for problem in wrong.problems:
            tell(problem)
        return 1
    except KeyboardInterrupt:
        if first:
            say(interrupted(stop), err=True)
        return INTERRUPTED
    except Exception as fault:
        return failed(fault, stop)


def interrupted(stop: StopRequest) -> str:
    """What an interrupt that saved nothing is called."""
    return "stopped at once; what was saved before is whole" if stop.saves else EARLY


def failed(fault: Exception, stop: StopRequest) -> int:
    """Says why the run failed, in full only where nothing is known about it; the exit code."""
    if "trainer.watch.connection" in sys.modules and sys.modules["trainer.watch.connection"].lost_peer(fault):
        if stop.asked:  # the others were asked too
            return INTERRUPTED
        say(f"{process()}another process of this run has ended; its own message says why, without one it was "
            "killed, often for want of memory", err=True)  # fmt: skip
        return FAILED
    stopping = sys.modules.get("trainer.watch.stopping")
    if stopping is not None and isinstance(fault, stopping.TrainingStopped):  # says all that there is to say
        told(traceback.format_exception_only(fault)[-1])
        return FAILED
    disk = disk_fault(fault)
    if disk is not None:
        say(f"trainer.watch.stopping.TrainingStopped: {process()}{disk_words(disk)}. What was saved before is whole. "
            f"{disk_advice(disk).capitalize()}, then start it again", err=True)  # fmt: skip
        return FAILED
    told(traceback.format_exc())
    return FAILED


def tell(problem: Problem) -> None:
    """A finding on stderr, with the process that has it."""
    first, *rest = problem.lines()
    for line in (f"{problem.severity}: {process()}{first}", *rest):
        say(line, err=True)


def told(text: str) -> None:
    """A message of several lines, such as Python's own, on stderr."""
    for line in text.rstrip().split("\n"):
        say(line, err=True)


def process() -> str:
    """Which one of several is speaking."""
    return f"process {os.environ['RANK']}: " if os.environ.get("WORLD_SIZE", "1") != "1" else ""


def run() -> None:
    """The process: deaf once its outcome is known, and able to outlast its terminal and the launcher."""
    outlast_terminal()
    sys.unraisablehook = _unraisable
    with StopRequest(begun=False) as stop:
        try:
            code = main(stop=stop)
        except KeyboardInterrupt:
            code = INTERRUPTED
        deaf()
    deaf()
    if code == INTERRUPTED:  # Python itself may end with SIGINT instead, see launcher/__main__.py
        atexit._run_exitfuncs()
        os._exit(code)
    sys.exit(code)


def _unraisable(fault: Any) -> None:
    """An interrupt that met a finaliser is remembered by the StopRequest; a full disk has been told."""
    if not isinstance(fault.exc_value, KeyboardInterrupt) and disk_fault(fault.exc_value) is None:
        sys.__unraisablehook__(fault)


if __name__ == "__main__":
    run()
