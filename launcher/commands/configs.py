"""validate, convert, diff, presets, schema: parse words, call one function, print, exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from launcher.commands import command, from_option, print_json, set_option, tell, trust_option, with_trust
from schemas.files.textfile import CONFIG, read_text
from schemas.problems import ConfigError, Problem, errors
from schemas.terminal import say, say_file, style

FORMATS = ("kohya-gui", "sd-scripts", "civitai", "args", "snapshot")


@command("validate")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@set_option
@from_option
@trust_option
@click.option("--keys", is_flag=True, help="Show every key, also those that simply count.")
def validate(
    files: tuple[str, ...],
    sets: tuple[str, ...],
    format_name: str | None,
    trust: tuple[str, ...],
    keys: bool,
    as_json: bool,
) -> int:
    """Format, every problem, and what becomes of every key. Needs neither the images nor the model."""
    from launcher.check import show
    from launcher.check.preflight import check_file
    from launcher.check.resolve import resolve, split_sets
    from launcher.run.files import without_secrets

    given, documents, good = with_trust(split_sets(sets), trust), [], True
    for file in files:
        try:
            checked = check_file(resolve(file, given, format=format_name))
        except ConfigError as fault:
            good = False
            documents.append(_unreadable(file, format_name, fault.problems))
            tell(fault.problems)
            continue
        good = good and checked.ok
        draft = checked.resolved.draft
        documents.append(
            {
                "file": file,
                "format": draft.format,
                "family": checked.family,
                "kind": draft.kind,
                "ok": checked.ok,
                "problems": [problem.as_json() for problem in checked.problems],
                "keys": {name: fate.as_json() for name, fate in draft.keys.items()},
            }
        )
        if as_json:
            tell(errors(checked.problems))
            continue
        for line in show.verdict_lines(checked, keys=keys):
            say(without_secrets(line))
        tell(checked.problems, notes=keys, more="--keys shows them")
    if as_json:
        print_json({"files": documents})
    return 0 if good else 1


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
@click.argument("file")
@click.option("--to", "target", required=True, type=click.Choice(FORMATS), help="The format to write.")
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
    from launcher.run.files import without_secrets

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
@click.argument("a")
@click.argument("b")
@click.option(
    "--all", "everything", is_flag=True, help="Also what does not touch the training: names, saves, previews, logs."
)
def diff(a: str, b: str, everything: bool, as_json: bool) -> int:
    """What configs A and B train differently; any formats, LoRA files included."""
    from launcher.about.diff import compare
    from launcher.check import show
    from launcher.check.resolve import resolve
    from launcher.run.files import without_secrets

    training, beside = compare(resolve(a), resolve(b))
    if as_json:
        print_json({"a": a, "b": b, "same": not training, "differences": training, "other": beside})
        return 0
    for line in show.difference_lines([*training, *(beside if everything else [])], a, b):
        say(without_secrets(line))
    if beside and not everything:
        say(f"({len(beside)} more that do not touch the training: --all)")
    return 0


@command("presets")
@click.argument("name", required=False)
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
@click.argument("name", metavar="FORMAT")
def schema(name: str, as_json: bool) -> int:
    """Print the JSON Schema of FORMAT: kohya-gui, snapshot, sd-scripts, dataset or civitai.

    It is JSON with and without --json.
    """
    from launcher.check.resolve import UsageError
    from launcher.json_schemas import SCHEMAS
    from schemas.problems import nearest

    if name not in SCHEMAS:
        guess = nearest(name, SCHEMAS)
        raise UsageError(f"{name}: must be one of {', '.join(SCHEMAS)}" + (f"; did you mean {guess}?" if guess else ""))
    print_json(SCHEMAS[name]())
    return 0
