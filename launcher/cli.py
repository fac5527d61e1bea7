"""The command `kohyakit`: names, one line each, and where each lives. Imports nothing but click until one is chosen."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("launcher.commands.runs", "The whole job on toy data: no download, no GPU, a few minutes."),
    "validate": ("launcher.commands.configs", "What is wrong with training files, and what becomes of every key."),
    "plan": ("launcher.commands.runs", "The dry run: data, steps, saves, memory, command. Writes nothing."),
    "launch": ("launcher.commands.runs", "Validate, plan, and train."),
    "train": ("launcher.commands.runs", "The same as launch."),
    "resume": ("launcher.commands.runs", "Go on with a run exactly, or start a new one from its LoRA."),
    "convert": ("launcher.commands.configs", "Any format to another; what cannot be said there is listed."),
    "diff": ("launcher.commands.configs", "What two configs train differently."),
    "explain": ("launcher.commands.explain", "One option: meaning, defaults, names, traps."),
    "inspect": ("launcher.commands.lora", "What a LoRA file says about itself."),
    "presets": ("launcher.commands.configs", "List or show the shipped presets."),
    "dataset": ("launcher.commands.dataset", "From a folder of photos to a training folder."),
    "report": ("launcher.commands.report", "One page of a run: curves, previews, settings."),
    "schema": ("launcher.commands.configs", "Print the JSON Schema of a format."),
}
ALIASES = {"train": "launch"}


class Interrupted(click.ClickException):
    """A command was asked to stop; click itself would add a blank line."""


class Commands(click.Group):
    """Loads a command's module when it is called, so that --help and errors are quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name in COMMANDS if _shipped(COMMANDS[name][0])]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        found = getattr(importlib.import_module(COMMANDS[cmd_name][0]), ALIASES.get(cmd_name, cmd_name))
        return found if isinstance(found, click.Command) else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as fault:
            from schemas.problems import nearest

            guess = nearest(args[0], self.list_commands(ctx))
            raise click.UsageError(f"{fault.message}{f' Did you mean {guess}?' if guess else ''}", ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx)])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Interrupted("interrupted") from None

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> Any:
        """Exit codes: 2 the command line is wrong, 130 interrupted; --json gets its document even then."""
        words = list(sys.argv[1:] if args is None else args)
        if os.environ.get("NO_COLOR"):
            extra["color"] = False
        extra["standalone_mode"] = False
        try:
            try:
                code = super().main(words, *rest, **extra)
            except SystemExit as end:
                code = end.code
            sys.stdout.flush()  # what cannot be written shows now, not in the interpreter's last moments
        except click.UsageError as fault:
            from schemas.terminal import plain, say_document

            if "--json" in words:
                must = plain(fault.format_message())
                problem = {
                    "severity": "error",
                    "code": "usage",
                    "key": None,
                    "line": None,
                    "got": None,
                    "must": must,
                    "fix": None,
                }
                say_document({"ok": False, "problems": [problem]})
            _show(fault, words)
            code = 2
        except (Interrupted, click.Abort, KeyboardInterrupt):
            code = _interrupted("--json" in words)
        except click.ClickException as fault:
            from schemas.terminal import say

            say(f"Error: {fault.format_message()}", err=True)
            code = 1
        except BrokenPipeError:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - the reader has left; nothing more can be said to it
            code = 1
        except OSError as fault:  # what a command writes, or the file that its output goes to
            code = _disk(fault)
        sys.exit(code if isinstance(code, int) else 0)


def _interrupted(as_json: bool) -> int:
    """One line; what was being written is gone, what was there is whole."""
    from schemas.signals import INTERRUPTED, held_off
    from schemas.terminal import say, say_document

    with held_off():
        say("interrupted", err=True)
        if as_json:
            say_document({"ok": False, "interrupted": True, "problems": []})
    return INTERRUPTED


def _disk(fault: OSError) -> int:
    """A disk that takes no more, or anything else that the system refuses a file."""
    from schemas.files.writing import disk_advice, disk_fault, disk_words
    from schemas.terminal import say, style

    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - what is still in its buffer would fail again at the end
    fix = f". {disk_advice(fault).capitalize()} and try again" if disk_fault(fault) else ""
    say(f"{style('error', colour='red')}: {disk_words(fault)}{fix}", err=True)
    return 1


def _shipped(module: str) -> bool:
    from pathlib import Path

    return (Path(__file__).parent.parent / (module.replace(".", "/") + ".py")).is_file()


def _show(fault: click.UsageError, words: Sequence[str]) -> None:
    """As click shows it, with what was typed on one line: an argument may come out of a stranger's file or name."""
    from schemas.terminal import plain, say

    if isinstance(fault, getattr(click.exceptions, "NoArgsIsHelpError", ())):  # nothing was asked for: what there is
        for line in fault.format_message().split("\n"):
            say(line, err=True)
        return
    for line in fault.ctx.get_usage().split("\n") if fault.ctx else ():
        say(line, err=True)
    if fault.ctx and fault.ctx.command.get_help_option(fault.ctx) is not None:
        say(f"Try '{fault.ctx.command_path} {fault.ctx.help_option_names[0]}' for help.", err=True)
    if fault.ctx:
        say(err=True)
    message = fault.format_message()
    for word in words:
        message = message.replace(word, plain(word)) if plain(word) != word else message
    for line in f"Error: {message}".split("\n"):
        say(line, err=True)


def _version(ctx: click.Context) -> None:
    from importlib import metadata

    from schemas.terminal import say

    try:
        number = metadata.version("kohyakit")
    except metadata.PackageNotFoundError:
        number = "(a checkout that is not installed)"
    say(f"kohyakit {number}")
    ctx.exit()


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, help="Show the version and exit.",
              callback=lambda ctx, option, given: _version(ctx) if given else None)  # fmt: skip
def cli() -> None:
    """Train LoRAs for Stable Diffusion from any Kohya file."""


def main() -> None:
    """Entry point of the console script."""
    from schemas.signals import interruptible

    with interruptible():
        cli()
