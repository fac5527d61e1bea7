"""`accelerate launch -m trainer <sd-scripts arguments>`: read and check everything, then train.

Nothing heavy is imported before the input is known to be good. Exit codes: 0 done, 1 the input is wrong (nothing was
written), 3 the run failed, 130 interrupted with the state saved.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from schemas import ConfigError, Problem, TrainConfig, config, errors, own_word, pickles, rules, weights
from schemas.derive import add_flags
from trainer.dataset.checks import bucket_steps
from trainer.dataset.files import Scan, scan
from trainer.plan.adapt import adapt_to
from trainer.plan.adapter import misfits
from trainer.plan.listing import listing

FAILED, INTERRUPTED = 3, 130


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
        _refuse_consent(values, file, lines)
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


def _refuse_consent(values: dict[str, Any], file: str, lines: dict[str, int]) -> None:
    """A file may be a stranger's: it cannot allow code to run."""
    if values.get("trust"):
        raise ConfigError([Problem(code="needs-consent", key="trust", got=values["trust"], file=file,
                                   line=lines.get("trust"), must="is not a file's to give: only the command line can",
                                   fix="remove it and, if you agree, give --trust NAME")])  # fmt: skip


def prepare(read: TrainConfig) -> tuple[str, Scan, list[Problem]]:
    """The family of the base model and what is trained on; raises ConfigError with everything that is wrong."""
    problems = rules.check(read) + pickles.check(read)
    if errors(problems):
        raise ConfigError(problems)
    family = family_of(read)
    problems = [*rules.check(read, family), *misfits(read, family, read.pretrained_model_name_or_path)]
    found = scan(read)
    problems += [*found.problems, *bucket_steps(found.specs, read, family)]
    if errors(problems):
        raise ConfigError(problems)
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


def quiet() -> None:
    """Libraries' remarks on what is on purpose here stay out of the run's output."""
    for name in ("bitsandbytes", "diffusers", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a training; returns the exit code."""
    first = os.environ.get("RANK", "0") == "0"
    try:
        words = sys.argv[1:] if argv is None else list(argv)
        read, notes = read_arguments(words)
        if read.output_config:
            return write_config(read)
        family, found, problems = prepare(read)
        if first and not os.environ.get("KOHYAKIT_LAUNCHED"):
            for problem in [*notes, *problems]:
                print(f"{problem.severity}: {problem}", file=sys.stderr)
        if read.debug_dataset:
            for line in listing(found, read) if first else ():
                print(line)
            return 0
        quiet()
        import torch

        from trainer.loop import train

        packages = [name for name in ("bitsandbytes", "xformers") if importlib.util.find_spec(name)]
        read, changes = adapt_to(read, gpu=torch.cuda.is_available(), packages=packages)
        if first:
            for change in changes:
                print(f"adapted: {change.argument}: {change.before} -> {change.after}, {change.why}", flush=True)
        return INTERRUPTED if train(read, family, found).interrupted else 0
    except ConfigError as wrong:
        if not first:
            time.sleep(2)  # what the first process says too it has said by then, and its end has taken this one along
        for problem in wrong.problems:
            print(f"{problem.severity}: {process()}{problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as fault:
        if "trainer.connection" in sys.modules and sys.modules["trainer.connection"].lost_peer(fault):
            print(f"{process()}another process of this run has ended; its own message says why, without one it was "
                  "killed, often for want of memory", file=sys.stderr)  # fmt: skip
            return FAILED
        stopping = sys.modules.get("trainer.stopping")
        if stopping is not None and isinstance(fault, stopping.TrainingStopped):  # says all that there is to say
            print(traceback.format_exception_only(fault)[-1].rstrip(), file=sys.stderr)
            return FAILED
        traceback.print_exc()
        return FAILED


def process() -> str:
    """Which one of several is speaking."""
    return f"process {os.environ['RANK']}: " if os.environ.get("WORLD_SIZE", "1") != "1" else ""


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    if code == INTERRUPTED:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(code)
