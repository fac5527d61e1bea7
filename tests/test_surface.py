"""What others build on, frozen: options, commands with their flags, exit codes. It cannot change unnoticed.

Where a change is meant: `RENEW=1 pytest tests/test_surface.py`, and look at the difference.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from launcher.cli import COMMANDS, cli
from schemas.config import table

GOLDEN = Path(__file__).parent / "golden" / "surface.json"


def options() -> dict[str, str]:
    """Name -> type and default."""
    return {
        name: f"{getattr(option.kind, '__name__', option.kind)} = {option.default!r}"
        for name, option in table().items()
    }


def commands() -> dict[str, list[str]]:
    """Every command, those of groups with the group before them, and its words."""
    found: dict[str, list[str]] = {}

    def visit(name: str, command: click.Command) -> None:
        if isinstance(command, click.Group):
            context = click.Context(command)
            for one in command.list_commands(context):
                inner = command.get_command(context, one)
                assert inner is not None
                visit(f"{name} {one}".strip(), inner)
            return
        found[name] = sorted(
            " ".join(sorted([*parameter.opts, *parameter.secondary_opts]))
            if isinstance(parameter, click.Option)
            else str(parameter.name).upper()
            for parameter in command.params
        )

    context = click.Context(cli)
    for name in sorted(COMMANDS):
        command = cli.get_command(context, name)
        assert command is not None
        visit(name, command)
    return found


def test_options_and_commands_are_the_frozen_ones() -> None:
    surface: dict[str, Any] = {"options": options(), "commands": commands()}
    if os.environ.get("RENEW"):
        GOLDEN.write_text(json.dumps(surface, indent=1) + "\n", encoding="utf-8")
    frozen = json.loads(GOLDEN.read_text(encoding="utf-8"))
    for part in ("options", "commands"):
        assert surface[part] == frozen[part], "if this is meant: RENEW=1 pytest tests/test_surface.py"


def test_the_contract_of_commands_is_met() -> None:
    """Those that a user's scripts may call; more may come, none may go."""
    asked = (
        "demo", "validate", "plan", "launch", "train", "resume", "convert", "diff", "explain", "inspect", "presets",
        "dataset prepare", "dataset check", "dataset caption", "dataset pack", "dataset tags", "dataset mask", "report",
        "schema", "ui", "compare", "lora merge", "lora resize", "lora extract", "lora convert", "queue add",
        "queue list", "queue run", "queue pause", "queue remove", "sweep", "completion",
    )  # fmt: skip
    assert sorted(set(asked) - commands().keys()) == []
