"""--print-command: what starts the trainer without the launcher, in words that can be run as they are printed."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

from launcher.check import paths
from launcher.check.data import anchored, carried_files
from launcher.check.plan import Plan
from launcher.run.command import launch_words, quoted
from launcher.run.files import secrets_of
from schemas.derive import typed_words
from schemas.files.textfile import CONFIG, read_text
from schemas.problems import ConfigError, error
from schemas.terminal import shell_word, shell_words


@dataclass(frozen=True)
class Printed:
    """`line` for a shell, `words` for a program, which has to write `files` first; `notes` are for people."""

    line: str
    words: list[str]
    files: dict[str, str]
    notes: list[str]


def printed_command(plan: Plan) -> Printed:
    """Every argument on the command line: the run folder's config.toml is not there before a launch.

    Prompts and datasets that the user's file carries are files to the trainer: the line writes them before it starts.
    """
    from launcher.run.launch import SECRET_VARIABLES

    resolved = anchored(plan.checked.resolved)  # the line may be run from another folder
    words = [sys.executable, "-m", "accelerate.commands.launch", *launch_words(plan.launch)]
    words += ["-m", "trainer", *typed_words(resolved.config)]
    folder = os.path.abspath(paths.run_folder(resolved))
    files = {os.path.join(folder, name): text for name, text in carried_files(resolved).items()}
    missing = {file: text for file, text in files.items() if not _holds(file, text)}
    if missing and sys.platform == "win32":
        must = f"carries what the trainer reads from files of its own: {', '.join(sorted(missing))}"
        fix = "kohyakit convert FILE --to sd-scripts -o OUT.toml, then print the command of OUT.toml"
        raise error("carried-files", f"{must}; one line cannot write those", file=resolved.draft.file, fix=fix)
    before = [f"mkdir -p {shell_word(folder)}"] if missing else []
    before += [f"{_printing(text)} > {shell_word(file)}" for file, text in missing.items()]
    notes = [
        f"note: {name} is not printed: set {SECRET_VARIABLES.get(name, name.upper())} in the environment"
        for name in secrets_of(resolved.config)
    ]
    problem = None if resolved.config.resume else paths.overwrite_problem(resolved)
    if problem is not None:
        notes.append(f"warning: the trainer refuses this command while results are in the way: {problem}")
    return Printed(" && ".join([*before, quoted(words)]), words, missing, notes)


def _printing(text: str) -> str:
    """The words that print a text, line by line, so that the command itself stays one line."""
    return shell_words(["printf", "%s\\n", *text.removesuffix("\n").split("\n")])


def _holds(file: str, text: str) -> bool:
    try:
        return read_text(file, limit=CONFIG, what="file of a run") == text
    except ConfigError:
        return False
