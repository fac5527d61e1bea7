"""What the shell is offered for the words of a command: files and presets, options and their choices, formats."""

from __future__ import annotations

import os

import click
from click.shell_completion import CompletionItem


def files_and_presets(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The shipped presets by name, and files."""
    from launcher.check.resolve import presets

    named = [CompletionItem(path.stem) for path in presets() if incomplete and path.stem.startswith(incomplete)]
    return named if named and not os.path.exists(incomplete) else [CompletionItem(incomplete, type="file")]


def files(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Files and folders."""
    return [CompletionItem(incomplete, type="file")]


def preset_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The shipped presets."""
    from launcher.check.resolve import presets

    return [CompletionItem(path.stem) for path in presets() if path.stem.startswith(incomplete)]


def assignments(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of options with their `=`, and the choices behind it."""
    from schemas.config import table

    name, equals, value = incomplete.partition("=")
    if not equals:
        return [CompletionItem(f"{one}=", help=option.doc) for one, option in table().items() if one.startswith(name)]
    option = table().get(name)
    choices = ("true", "false") if option and option.kind is bool else option.choices if option else ()
    return [CompletionItem(f"{name}={one}") for one in choices or () if str(one).startswith(value)]


def option_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of options, for `explain`."""
    from schemas.config import table

    return [CompletionItem(name, help=option.doc) for name, option in table().items() if name.startswith(incomplete)]


def schema_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Formats that have a JSON Schema."""
    from launcher.formats.registry import having

    return [CompletionItem(name) for name in having("schema") if name.startswith(incomplete)]


def format_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Formats that a file may have."""
    from launcher.formats import FORMATS

    return [CompletionItem(name) for name in FORMATS if name.startswith(incomplete)]
