"""The command itself: start-up, help, exit codes, one JSON document."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from launcher.cli import COMMANDS, cli

HEAVY = ("torch", "accelerate", "diffusers", "transformers", "peft", "numpy", "rich", "jsonschema", "PIL")


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_help_loads_nothing_heavy() -> None:
    code = f"""
import sys
from launcher.cli import cli
try: cli(["--help"])
except SystemExit: pass
print([name for name in {HEAVY} + ("schemas", "launcher.check.plan") if name in sys.modules])"""
    assert python(code).splitlines()[-1] == "[]"


def test_plan_never_loads_torch(preset) -> None:
    code = f"""
import sys
from launcher.cli import cli
try: cli(["plan", {str(preset())!r}])
except SystemExit as end: print(end.code)
print([name for name in {HEAVY[:6]} if name in sys.modules])"""
    assert python(code).splitlines()[-2:] == ["0", "[]"]


def test_every_command_has_its_one_line(kohyakit) -> None:
    shown = kohyakit("--help").stdout
    assert all(f"  {name} " in shown for name in COMMANDS if name != "report")


@pytest.mark.parametrize(
    "name",
    [
        "validate",
        "plan",
        "launch",
        "train",
        "resume",
        "convert",
        "diff",
        "explain",
        "inspect",
        "presets",
        "schema",
        "demo",
        "dataset",
    ],
)
def test_help_of_every_command(kohyakit, name) -> None:
    found = kohyakit(name, "-h")
    assert found.exit_code == 0
    assert "Usage:" in found.stdout


def test_a_wrong_command_line_ends_with_2(kohyakit) -> None:
    assert kohyakit("plan").exit_code == 2
    assert kohyakit("plan", "x.json", "--no-such").exit_code == 2
    found = kohyakit("valdate", "x")
    assert (found.exit_code, "Did you mean validate?" in found.stderr) == (2, True)


@pytest.mark.parametrize("words", [(), ("dataset",)])
def test_a_group_alone_shows_its_help_and_no_error(kohyakit, words: tuple[str, ...]) -> None:
    found = kohyakit(*words)
    assert found.exit_code == 2
    assert "Commands:" in found.stderr
    assert found.stderr.count("Usage:") == 1
    assert "Error" not in found.stderr


def test_a_wrong_command_line_has_its_document_too(kohyakit) -> None:
    found = kohyakit("plan", "--json", "--no-such")
    assert (found.exit_code, json.loads(found.stdout)["problems"][0]["code"]) == (2, "usage")


def test_a_missing_file_ends_with_1(kohyakit, tmp_path: Path) -> None:
    found = kohyakit("plan", tmp_path / "no.json", "--json")
    assert found.exit_code == 1
    assert json.loads(found.stdout)["problems"][0]["code"] == "no-file"
    assert "no.json" in found.stderr


def test_a_preset_name_stands_for_its_file(kohyakit) -> None:
    found = json.loads(kohyakit("validate", "toy", "--json").stdout)["files"][0]
    assert (found["format"], found["kind"], found["family"]) == ("kohya-gui", "lora", "sd15")


def test_a_misspelt_preset_is_guessed(kohyakit) -> None:
    assert "toy" in kohyakit("plan", "toyy").stderr


def test_no_colour_without_a_terminal(kohyakit) -> None:
    assert "\x1b" not in kohyakit("validate", "toy").output


def test_train_is_launch() -> None:
    import click

    context = click.Context(cli)
    assert cli.get_command(context, "train") is cli.get_command(context, "launch")


def test_version(kohyakit) -> None:
    assert kohyakit("--version").stdout.startswith("kohyakit ")


def test_an_unknown_format_is_a_wrong_command_line(kohyakit) -> None:
    assert kohyakit("plan", "toy", "--from", "no-such").exit_code == 2


def test_every_command_shows_examples_that_its_own_parser_takes() -> None:
    from launcher.cli import cli
    from launcher.commands.examples import EXAMPLES

    context = click.Context(cli)
    group = cli.get_command(context, "dataset")
    assert isinstance(group, click.Group)
    found = {name: cli.get_command(context, name) for name in cli.list_commands(context) if name != "dataset"}
    found |= dict(group.commands)
    assert {"launch" if name == "train" else name for name in found} == set(EXAMPLES)
    for name, examples in EXAMPLES.items():
        shown = found[name].get_help(click.Context(found[name]))
        for line in examples:
            assert line in shown
            words = shlex.split(line.removeprefix("kohyakit ").removeprefix("dataset "))
            assert words[0] == name
            found[name].make_context(name, words[1:])


def test_help_of_schema_names_every_format() -> None:
    from launcher.commands.configs import schema
    from launcher.json_schemas import SCHEMAS

    assert all(name in schema.get_help(click.Context(schema)) for name in SCHEMAS)
