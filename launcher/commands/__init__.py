"""What the commands share: their common options, one way to answer with JSON, one way to end on an error."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

import click

from launcher.commands.examples import epilog
from launcher.commands.offers import assignments, files_and_presets, format_names
from schemas.problems import ConfigError, Problem
from schemas.terminal import say, say_document

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout and nothing else.")
set_option = click.option(
    "--set",
    "sets",
    multiple=True,
    metavar="K=V",
    shell_complete=assignments,
    help="Override one option; K= unsets it.",
)
from_option = click.option(
    "--from",
    "format_name",
    metavar="FORMAT",
    shell_complete=format_names,
    help="The file's format, if it is not recognised.",
)
file_argument = click.argument("file", shell_complete=files_and_presets)
trust_option = click.option(
    "--trust",
    multiple=True,
    metavar="NAME",
    help="A module or class outside the allow-list, or a pickled weight file, that may run its code.",
)


def with_trust(sets: dict[str, str], trust: Iterable[str]) -> dict[str, str]:
    """The --set words with the names that --trust gave."""
    names = " ".join(trust)
    return {**sets, "trust": f"{sets.get('trust', '')} {names}".strip()} if names else sets


def command(name: str, group: str = "") -> Callable[[Callable[..., int | None]], click.Command]:
    """A click command whose function returns its exit code; it has --json, and its errors end as they should.

    Its examples stand under its name, with its `group` before it where it has one.
    """

    def wrap(function: Callable[..., int | None]) -> click.Command:
        @functools.wraps(function)
        def guarded(as_json: bool, **words: Any) -> None:
            sys.exit(_run(function, as_json, words))

        examples = epilog(f"{group} {name}".strip())
        return click.command(name, context_settings=SETTINGS, epilog=examples)(json_option(guarded))

    return wrap


def _run(function: Callable[..., int | None], as_json: bool, words: dict[str, Any]) -> int:
    from launcher.check.resolve import UsageError

    try:
        return function(as_json=as_json, **words) or 0
    except UsageError as fault:
        refuse([Problem(code="usage", must=str(fault))], as_json)
        return 2
    except ConfigError as fault:
        refuse(fault.problems, as_json)
        return 1
    except BrokenPipeError:
        raise  # the reader of our output has left
    except OSError as fault:
        refuse([of_the_system(fault)], as_json)
        return 1


def of_the_system(fault: OSError) -> Problem:
    """What the system says of a file or folder that a command line names."""
    file = str(fault.filename) if fault.filename is not None else None
    must, fix = f"cannot be used: {fault.strerror or fault}", "check the path, its rights and the room on the disk"
    return Problem(code="not-usable", must=must, file=file, fix=fix)


def refuse(problems: Iterable[Problem], as_json: bool, **document: Any) -> None:
    """The findings on stderr and, with --json, in the one document on stdout."""
    problems = list(problems)
    if as_json:
        print_json({**document, "ok": False, "problems": [problem.as_json() for problem in problems]})
    tell(problems, notes=False)


def print_json(document: Any) -> None:
    """The one document, without anything that looks like a secret."""
    from schemas.blanking import blanked

    say_document(blanked(document))


def tell(problems: Iterable[Problem], *, notes: bool = True, more: str = "--json lists them", named: str = "") -> None:
    """Findings as people read them, on stderr, with their number behind them.

    more: what shows the notes, where they are left out. named: the file whose name has just been said on stdout.
    """
    problems = list(problems)
    shown = [problem for problem in problems if notes or problem.severity != "note"]
    describe(shown, named)
    if len(problems) > 1 or len(shown) < len(problems):
        count(problems, "" if notes else more)


def describe(problems: Iterable[Problem], named: str = "", *, named_here: bool = False) -> None:
    """Findings on stderr, without their number; `named_here`: the file's name stands above on stderr itself."""
    from launcher.formats import read_source
    from schemas import diagnostics

    above = named if named and (named_here or _one_screen()) else None
    for line in diagnostics.report(diagnostics.together(problems), source=read_source, named=above):
        say(line, err=True)


def count(problems: Iterable[Problem], more: str = "", *, verdict: str = "") -> None:
    """How many findings there are, on stderr."""
    from schemas import diagnostics

    say(verdict + diagnostics.counts(problems, hidden=more), err=True)


def _one_screen() -> bool:
    """Whether stdout and stderr go to the same place, so that a name said on one need not be said on the other."""
    try:
        one, other = os.fstat(sys.stdout.fileno()), os.fstat(sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):
        return False
    return (one.st_dev, one.st_ino, one.st_rdev) == (other.st_dev, other.st_ino, other.st_rdev)
