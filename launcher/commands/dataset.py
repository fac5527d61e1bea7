"""The `dataset` commands: from a folder of photos to a training folder, checked. Parses words and prints."""

from __future__ import annotations

import functools
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from launcher.commands import of_the_system
from launcher.commands.examples import epilog
from launcher.run.command import quoted
from schemas.argument import whole_of
from schemas.problems import ConfigError, Problem, error, errors
from schemas.terminal import say, say_document

if TYPE_CHECKING:
    from launcher.photos.check import Checkup
    from launcher.photos.prepare import Prepared

SHOWN = 6  # findings of one kind that are printed one by one
HELP = {"help_option_names": ["-h", "--help"]}


@click.group("dataset", context_settings=HELP)
def dataset() -> None:
    """Make, check and pack a folder of training images."""


def refusing(command: Callable[..., None]) -> Callable[..., None]:
    """Findings that stop a command go to stderr (and, with --json, as one document to stdout); exit code 1."""

    @functools.wraps(command)
    def guarded(as_json: bool, **words: Any) -> None:
        try:
            command(as_json=as_json, **words)
        except BrokenPipeError:
            raise  # the reader of our output has left
        except (ConfigError, OSError) as wrong:
            fault = wrong if isinstance(wrong, ConfigError) else ConfigError([of_the_system(wrong)])
            if as_json:
                print_json({"ok": False, "problems": [problem.as_json() for problem in fault.problems]})
            for line in summary(fault.problems):
                say(line, err=True)
            sys.exit(1)

    return guarded


def print_json(document: dict[str, Any]) -> None:
    say_document(document)


@dataset.command(epilog=epilog("prepare"))
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--name", "token", required=True, metavar="TOKEN", help="The word that will call up what is trained.")
@click.option(
    "--to",
    "directory",
    type=click.Path(path_type=Path),
    help="Folder to make; SOURCE_TOKEN beside SOURCE if not given.",
)
@click.option(
    "--repeats",
    default="auto",
    show_default=True,
    metavar="N|auto",
    help="Exposures of each image in an epoch (repeats).",
)
@click.option("--keep-format", is_flag=True, help="Keep JPEG, WebP and BMP as they are instead of converting to PNG.")
@click.option("--skip-unreadable", is_flag=True, hidden=True, help="What is done anyway: broken images are left out.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@refusing
def prepare(
    *,
    source: Path,
    token: str,
    directory: Path | None,
    repeats: str,
    keep_format: bool,
    skip_unreadable: bool,  # older scripts say it
    as_json: bool,
) -> None:
    """Make a training folder from SOURCE, a folder or zip of photos, which stays as it is."""
    from launcher.photos.prepare import default_directory
    from launcher.photos.prepare import prepare as make

    made = make(
        source,
        token,
        directory or default_directory(source, token),
        repeats=_repeats(repeats),
        keep_format=keep_format,
        progress=functools.partial(_progress, label="preparing"),
    )
    if as_json:
        print_json(prepared_json(made))
    else:
        for line in _told(made, chosen=directory is None):
            say(line)


def _repeats(text: str) -> int | None:
    if text == "auto":
        return None
    number = whole_of(text)
    if number is None or number < 1:
        raise click.BadParameter(f"{text!r} must be a whole number of at least 1, or auto", param_hint="--repeats")
    return number


def _progress(items: list[Any], label: str) -> Iterator[Any]:
    """The items; with a bar on stderr where that is a terminal."""
    with click.progressbar(items, label=label, file=sys.stderr, hidden=not sys.stderr.isatty()) as bar:
        yield from bar


def next_command(made: Prepared) -> str:
    """What to type after `prepare`."""
    sets = {
        "pretrained_model_name_or_path": "MODEL.safetensors",
        "train_data_dir": str(made.train_data_dir),
        "output_dir": str(made.directory / "result_current"),
        "output_name": made.token,
    }
    return " ".join(["kohyakit plan sd15-character", *(f"--set {quoted([f'{k}={v}'])}" for k, v in sets.items())])


def prepared_json(made: Prepared) -> dict[str, Any]:
    """The document of `dataset prepare --json`."""
    return {
        "ok": True,
        "directory": str(made.directory),
        "train_data_dir": str(made.train_data_dir),
        "folder": str(made.folder),
        "token": made.token,
        "repeats": made.repeats,
        "images": len(made.written),
        "captions": sum(one.caption is not None for one in made.written),
        "written": [one.as_json() for one in made.written],
        "names_file": str(made.names_file),
        "left_out": [{"file": name, "why": why} for name, why in made.left_out],
        "next": next_command(made),
    }


def _told(made: Prepared, *, chosen: bool) -> Iterator[str]:
    images, captions = len(made.written), sum(one.caption is not None for one in made.written)
    yield f"{made.directory}{' (chosen: --to changes it)' if chosen else ''}"
    yield f"  training_images/{made.folder.name}/   {images} images, {captions} captions"
    yield f"  {images} images x {made.repeats} repeats = {images * made.repeats} exposures in an epoch"
    for note, count in Counter(note for one in made.written for note in one.notes).items():
        yield f"  {count} x {note}"
    first = made.written[0]
    yield f"  renamed, such as {first.source} -> {first.file}; all names are in {made.names_file}"
    for name, why in made.left_out:
        yield f"  left out: {name}: {why}"
    if captions < images:
        yield f"  {images - captions} images have no caption: they are trained on the word {made.token} alone"
    yield ""
    yield f"Look at it:  kohyakit dataset check {quoted([str(made.directory)])}"
    yield f"Then:        {next_command(made)}"


@dataset.command(epilog=epilog("check"))
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--caption-extension", default=".txt", show_default=True, help="Extension that the training will look for."
)
@click.option(
    "--resolution", default="512,512", show_default=True, metavar="N|W,H", help="Training size of the bucket table."
)
@click.option(
    "--max-token-length", type=click.Choice(["150", "225"]), help="Of the training: how many tokens captions may have."
)
@click.option(
    "--sheet", "sheet_file", type=click.Path(path_type=Path), help="Also write an HTML page that shows it all."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@refusing
def check(*, directory: Path, sheet_file: Path | None, as_json: bool, **settings: Any) -> None:
    """Say what is wrong, or could be better, in DIRECTORY; changes nothing."""
    if sheet_file and not sheet_file.parent.is_dir():
        raise error(
            "no-folder", f"{sheet_file.parent}: there is no such folder", fix="make it, or choose another --sheet"
        )
    found = _checked(directory, **settings)
    if sheet_file:
        _write_sheet(found, sheet_file)
    if as_json:
        print_json(found.as_json())
    else:
        for line in _report(found):
            say(line)
        if sheet_file:
            say()
            say(f"Open {sheet_file}")
    if not found.ok:
        if not as_json:
            say(f"{len(errors(found.problems))} errors", err=True)
        sys.exit(1)


def _checked(directory: Path, max_token_length: str | None = None, **settings: str) -> Checkup:
    from launcher.photos.check import check as look_at

    bar = functools.partial(_progress, label="checking")
    tokens = int(max_token_length) if max_token_length else None
    return look_at(directory, max_token_length=tokens, progress=bar, **settings)


def _write_sheet(found: Checkup, file: Path) -> None:
    from launcher.photos.sheet import sheet
    from launcher.run.files import write_text

    try:
        write_text(file, sheet(found).encode("utf-8", "backslashreplace").decode("utf-8"))
    except OSError as fault:
        raise error(
            "not-writable", f"{file}: cannot be written: {fault.strerror}", fix="choose another --sheet"
        ) from None


def _report(found: Checkup) -> Iterator[str]:
    for folder in found.folders:
        images = sum(shot.path.parent == folder.path for shot in found.shots)
        yield f"{folder.path}: {images} images x {folder.repeats or '?'} repeats"
    captions = sum(bool(shot.caption and shot.caption.strip()) for shot in found.shots)
    yield f"{len(found.shots)} images, {captions} with a caption"
    if found.buckets:
        yield "buckets: " + ", ".join(f"{width}x{height}: {count}" for (width, height), count in found.buckets)
    tags = found.tags.most_common(12)
    if tags:
        yield "most frequent tags: " + ", ".join(f"{tag} ({count})" for tag, count in tags)
    if found.problems:
        yield ""
    yield from summary(found.problems)


def summary(problems: Iterable[Problem]) -> Iterator[str]:
    """The findings, errors first; of many alike only the first few."""
    order = {"error": 0, "warning": 1, "note": 2}
    kinds: dict[tuple[int, str], list[Problem]] = {}
    for problem in problems:
        kinds.setdefault((order[problem.severity], problem.code), []).append(problem)
    for (_, code), alike in sorted(kinds.items(), key=lambda item: item[0][0]):
        for problem in alike[:SHOWN]:
            first, *rest = problem.lines()
            yield from [f"{problem.severity}: {first}", *rest]
        if len(alike) > SHOWN:
            yield f"{alike[0].severity}: {len(alike) - SHOWN} more of the kind {code} (--json lists all)"


@dataset.command(epilog=epilog("caption"))
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--model", required=True, metavar="blip|blip-large|wd14|PATH", help="A known model, or a local folder.")
@click.option("--prefix", default="", help='Put before each caption, such as "N0m3, ".')
@click.option("--beams", default=9, show_default=True, type=click.IntRange(1), help="Beams of the search; BLIP only.")
@click.option("--min-length", default=15, show_default=True, type=click.IntRange(1), help="Tokens; BLIP only.")
@click.option("--batch-size", default=4, show_default=True, type=click.IntRange(1), help="Images at once.")
@click.option("--threshold", default=0.35, show_default=True, type=click.FloatRange(0, 1), help="Of tags; WD14 only.")
@click.option("--append", "mode", flag_value="append", help="Put the new text behind captions that are there.")
@click.option("--overwrite", "mode", flag_value="overwrite", help="Replace captions that are there.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document; progress goes to stderr.")
@refusing
def caption(*, directory: Path, mode: str | None, as_json: bool, **settings: Any) -> None:
    """Write a caption beside every image of DIRECTORY that has none. Goes on where it stopped."""
    from launcher.commands.demo import run_module

    if not directory.is_dir():
        raise error("no-folder", f"{directory}: there is no such folder", fix="check the path")
    words = ["--json"] if as_json else []
    words += [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    sys.exit(run_module("trainer.captioning", str(directory), f"--mode={mode or 'keep'}", *words))


@dataset.command(epilog=epilog("pack"))
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("-o", "--output", "target", required=True, type=click.Path(path_type=Path), help="The zip to write.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@refusing
def pack(*, directory: Path, target: Path, as_json: bool) -> None:
    """Put the images and captions of DIRECTORY into one flat zip, as CivitAI takes them."""
    from launcher.photos.pack import check_target
    from launcher.photos.pack import pack as write

    check_target(target)
    found = _checked(directory)
    unusable = ("unreadable-image", "caption-encoding", "unreadable-caption")
    broken = [problem for problem in errors(found.problems) if problem.code in unusable]
    if broken:
        raise ConfigError(broken)
    names = write(found, target)
    if as_json:
        print_json({"ok": True, "file": str(target), "names": names})
    else:
        say(f"{target}: {len(found.shots)} images, {len(names) - len(found.shots)} captions")
