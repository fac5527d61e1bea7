"""validate, convert, diff, presets, schema: parse words, call one function, print, exit code."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from launcher.commands import (
    command,
    file_argument,
    from_option,
    print_json,
    set_option,
    tell,
    trust_option,
    with_trust,
)
from launcher.commands.offers import files_and_presets, preset_names, schema_names
from schemas.files.textfile import CONFIG, read_text
from schemas.problems import ConfigError, Problem, errors
from schemas.terminal import say, say_file, style


class Writable(click.Choice[str]):
    """The formats that can be written, looked up when they are needed."""

    def __init__(self) -> None:
        super().__init__(())

    @property
    def choices(self) -> tuple[str, ...]:
        from launcher.formats.registry import having

        return tuple(having("writer"))

    @choices.setter
    def choices(self, given: Sequence[str]) -> None:
        """click's own constructor has nothing to add."""


@command("validate")
@click.argument("files", nargs=-1, required=True, metavar="FILE...", shell_complete=files_and_presets)
@set_option
@from_option
@trust_option
@click.option("--keys", is_flag=True, help="Show every key, also those that simply count.")
@click.option("--format", "form", type=click.Choice(["sarif", "github"]),
              help="For code scanning (SARIF on stdout), or as annotations of a GitHub workflow.")  # fmt: skip
def validate(
    files: tuple[str, ...],
    sets: tuple[str, ...],
    format_name: str | None,
    trust: tuple[str, ...],
    keys: bool,
    form: str | None,
    as_json: bool,
) -> int:
    """Format, every problem, and what becomes of every key. Needs neither the images nor the model."""
    from launcher.check import show
    from launcher.check.preflight import check_file
    from launcher.check.resolve import UsageError, resolve, split_sets
    from schemas.blanking import without_secrets

    if form and as_json:
        raise UsageError("--format and --json exclude each other")
    given, documents, good = with_trust(split_sets(sets), trust), [], True
    for file in files:
        try:
            checked = check_file(resolve(file, given, format=format_name))
        except ConfigError as fault:
            good = False
            documents.append(_unreadable(file, format_name, fault.problems))
            tell([] if form else fault.problems)
            continue
        good = good and checked.ok
        documents.append(checked.as_json(file))
        if as_json or form:
            tell(errors(checked.problems) if as_json else [])
            continue
        for line in show.verdict_lines(checked, keys=keys):
            say(without_secrets(line))
        tell(checked.problems, notes=keys, more="--keys shows them", named=str(checked.resolved.draft.file))
    if as_json:
        print_json({"files": documents})
    if form:
        _annotate(documents, form)
    return 0 if good else 1


def _annotate(documents: list[dict[str, Any]], form: str) -> None:
    """The findings as another tool reads them."""
    from importlib import metadata

    from launcher.check.annotations import github, sarif
    from schemas.blanking import blanked

    documents = blanked(documents)
    if form == "sarif":
        try:
            version = metadata.version("kohyakit")
        except metadata.PackageNotFoundError:
            version = "0"
        print_json(sarif(documents, version))
        return
    for line in github(documents):
        say(line)


def _unreadable(file: str, format_name: str | None, problems: list[Problem]) -> dict[str, Any]:
    return {
        "file": file,
        "format": format_name,
        "family": None,
        "kind": None,
        "ok": False,
        "problems": [problem.as_json() for problem in problems],
        "keys": {},
    }


@command("convert")
@file_argument
@click.option("--to", "target", required=True, type=Writable(), help="The format to write.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="The file to write; stdout if not given."
)
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
@set_option
@from_option
def convert(
    file: str,
    target: str,
    output: Path | None,
    overwrite: bool,
    sets: tuple[str, ...],
    format_name: str | None,
    as_json: bool,
) -> int:
    """FILE in another format. What the target cannot say is listed, never dropped silently."""
    from launcher.about.convert import convert as converted
    from launcher.check.resolve import resolve, split_sets
    from schemas.blanking import without_secrets

    resolved = resolve(file, split_sets(sets), format=format_name)
    if errors(list(resolved.problems)):
        raise ConfigError(resolved.problems)
    found = converted(resolved, target, beside=output)
    text = without_secrets(found.text)
    files = places(output, text, {ending: without_secrets(more) for ending, more in found.beside.items()})
    write_files(files, overwrite)
    for entry in found.lost:
        say(f"{style('lost', colour='yellow')}: {without_secrets(entry)}", err=True)
    if as_json:
        print_json(
            {
                "format": target,
                "from": resolved.draft.format,
                "family": resolved.draft.family,
                "text": text,
                "files": [str(path) for path in files],
                "lost": found.lost,
                "problems": [problem.as_json() for problem in resolved.problems],
            }
        )
    elif output is None:
        say_file(text)
    else:
        say("wrote " + ", ".join(str(path) for path in files))
    return 0


def places(output: Path | None, text: str, beside: dict[str, str]) -> dict[Path, str]:
    """The files to write: `output`, and those beside it by their endings; none without `output`."""
    if output is None:
        return {}
    return {output: text, **{output.with_name(f"{output.stem}{ending}"): more for ending, more in beside.items()}}


def write_files(files: dict[Path, str], overwrite: bool) -> None:
    """All or nothing is checked before the first is written."""
    from launcher.run.files import write_text

    problems = []
    for path in files:
        if path.exists() and not overwrite:
            problems.append(
                Problem(code="file-exists", must="exists already", file=str(path), fix="--overwrite, or another name")
            )
        elif not path.absolute().parent.is_dir():
            problems.append(
                Problem(
                    code="no-folder", must="is in a folder that does not exist", file=str(path), fix="make it first"
                )
            )
    if problems:
        raise ConfigError(problems)
    for path, text in files.items():
        try:
            write_text(path, text)
        except OSError as fault:
            raise ConfigError(
                [Problem(code="not-writable", must=f"cannot be written: {fault.strerror}", file=str(path))]
            ) from None


@command("diff")
@click.argument("a", shell_complete=files_and_presets)
@click.argument("b", shell_complete=files_and_presets)
@click.option(
    "--all", "everything", is_flag=True, help="Also what does not touch the training: names, saves, previews, logs."
)
def diff(a: str, b: str, everything: bool, as_json: bool) -> int:
    """What configs A and B train differently; any formats, LoRA files included."""
    from launcher.about.diff import as_json as as_json_of
    from launcher.about.diff import compare
    from launcher.check import show
    from launcher.check.resolve import resolve
    from schemas.blanking import without_secrets

    training, beside = compare(resolve(a), resolve(b))
    if as_json:
        print_json(as_json_of(a, b, training, beside))
        return 0
    for line in show.difference_lines([*training, *(beside if everything else [])], a, b):
        say(without_secrets(line))
    if beside and not everything:
        say(f"({len(beside)} more that do not touch the training: --all)")
    return 0


@command("presets")
@click.argument("name", required=False, shell_complete=preset_names)
def presets(name: str | None, as_json: bool) -> int:
    """List the shipped presets, or show the one of that NAME."""
    from launcher.check.resolve import preset_path, resolve, table_of_presets

    if name is None:
        rows = table_of_presets()
        if as_json:
            print_json({"presets": rows})
        for row in [] if as_json else rows:
            say(f"{row['name']:<24} {row['family'] or '':<6} {row['about']}")
        return 0
    path = preset_path(name)
    if path is None:
        resolve(name)  # says what there is
        raise ConfigError(
            [Problem(code="no-file", must="is no shipped preset", file=name, fix="kohyakit presets lists them")]
        )
    text = read_text(path, limit=CONFIG, what="preset")
    if as_json:
        print_json(
            {
                "name": path.stem,
                "file": str(path),
                "text": text,
                "preset": json.loads(text) if path.suffix == ".json" else None,
            }
        )
    else:
        say_file(text if text.endswith("\n") else f"{text}\n")
    return 0


@command("schema")
@click.argument("name", metavar="FORMAT", shell_complete=schema_names)
def schema(name: str, as_json: bool) -> int:
    """Print the JSON Schema of FORMAT: kohya-gui, snapshot, sd-scripts, dataset or civitai.

    It is JSON with and without --json.
    """
    from launcher.check.resolve import UsageError
    from launcher.formats.json_schemas import schema_of
    from launcher.formats.registry import having
    from schemas.problems import nearest

    known = having("schema")
    if name not in known:
        guess = nearest(name, known)
        raise UsageError(f"{name}: must be one of {', '.join(known)}" + (f"; did you mean {guess}?" if guess else ""))
    print_json(schema_of(name))
    return 0
