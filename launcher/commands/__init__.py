"""What the commands share: their common options, one way to answer with JSON, one way to end on an error."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import click

from launcher.commands.examples import epilog
from schemas.problems import ConfigError, Problem, errors
from schemas.terminal import say, say_document, style

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout and nothing else.")
set_option = click.option("--set", "sets", multiple=True, metavar="K=V", help="Override one option; K= unsets it.")
from_option = click.option(
    "--from", "format_name", metavar="FORMAT", help="The file's format, if it is not recognised."
)
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


def command(name: str) -> Callable[[Callable[..., int | None]], click.Command]:
    """A click command whose function returns its exit code; it has --json, and its errors end as they should."""

    def wrap(function: Callable[..., int | None]) -> click.Command:
        @functools.wraps(function)
        def guarded(as_json: bool, **words: Any) -> None:
            sys.exit(_run(function, as_json, words))

        return click.command(name, context_settings=SETTINGS, epilog=epilog(name))(json_option(guarded))

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
    from launcher.run.files import blanked

    say_document(blanked(document))


BUNDLED_FROM = 4  # findings of one kind that are said as one
COLOURS = {"error": "red", "warning": "yellow", "note": "cyan"}


def tell(problems: Iterable[Problem], *, notes: bool = True, more: str = "--json lists them") -> None:
    """Findings as people read them, on stderr; `more` says what shows the notes, where they are left out."""
    from launcher.run.files import blanked

    problems = [
        replace(problem, got=blanked(problem.got), must=blanked(problem.must), fix=blanked(problem.fix))
        for problem in problems
    ]
    for problem in bundled(problems):
        if notes or problem.severity != "note":
            first, *rest = problem.lines()
            say(f"{style(problem.severity, colour=COLOURS[problem.severity])}: {first}", err=True)
            for line in rest:
                say(line, err=True)
    hidden = 0 if notes else sum(problem.severity == "note" for problem in problems)
    if hidden:
        say(f"({hidden} note{'' if hidden == 1 else 's'} more: {more})", err=True)


def bundled(problems: Iterable[Problem]) -> list[Problem]:
    """Findings that differ only in numbers within their key, value or line as one, with their count."""
    groups: dict[tuple[str, ...], list[Problem]] = {}
    for problem in problems:
        facts = (problem.severity, problem.code, problem.file, problem.key, problem.must)
        groups.setdefault(tuple(re.sub(r"\d+", "#", str(fact)) for fact in facts), []).append(problem)
    return [
        one
        for group in groups.values()
        for one in (
            group
            if len(group) < BUNDLED_FROM
            else [replace(group[0], must=f"{group[0].must}, and {len(group) - 1} more like it (--json has all)")]
        )
    ]


def stop_on_errors(problems: list[Problem]) -> None:
    """ConfigError with all findings when there is an error among them."""
    if errors(problems):
        raise ConfigError(problems)
