"""The `dataset` commands: from a folder of photos to a training folder, checked. Parses words and prints."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from launcher.commands import captions, command, masks, print_json
from launcher.run.command import quoted
from schemas import diagnostics
from schemas.argument import whole_of
from schemas.problems import ConfigError, Problem, error, errors
from schemas.progress import Progress, over
from schemas.terminal import say

if TYPE_CHECKING:
    from launcher.photos.check import Checkup
    from launcher.photos.prepare import Prepared
    from launcher.photos.ready import Ready

# Findings that are worded differently of each image, and what they say of several.
SAID_OF_ALL = {
    "exact-duplicate": "are the same as another image",
    "near-duplicate": "are nearly the same as another image",
    "cropped-duplicate": "show the same as another image, cropped otherwise",
    "mirrored-duplicate": "are mirror images of another image",
    "crop-loss": "lose much of themselves in their bucket",
    "enlarged-image": "are enlarged: blur is learned",
    "unreadable-image": "cannot be read",
}
ALIKE = ("crop-loss", "enlarged-image", "unreadable-image")
SHOWN = 5  # names of one kind that are printed
HELP = {"help_option_names": ["-h", "--help"]}


@click.group("dataset", context_settings=HELP)
def dataset() -> None:
    """Make, check, caption, mask and pack a folder of training images."""


@command("prepare")
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
@click.option(
    "--preset", metavar="PRESET|FILE", help="Also write the ready config, and print the one command that trains."
)
@click.option("--reg", type=click.Path(path_type=Path), help="Folder of regularisation images to take along.")
@click.option("--keep-format", is_flag=True, help="Keep JPEG, WebP and BMP as they are instead of converting to PNG.")
@click.option("--skip-unreadable", is_flag=True, hidden=True, help="What is done anyway: broken images are left out.")
def prepare(
    *,
    source: Path,
    token: str,
    directory: Path | None,
    repeats: str,
    preset: str | None,
    reg: Path | None,
    keep_format: bool,
    skip_unreadable: bool,  # older scripts say it
    as_json: bool,
) -> int:
    """Make a training folder from SOURCE, a folder or zip of photos, which stays as it is; or add its new photos to
    the folder that is there, where nothing is renamed. Exit code 3: some could not be used, and are named."""
    from launcher.check.resolve import resolve
    from launcher.photos import ready as ready_made
    from launcher.photos.prepare import Order, default_directory
    from launcher.photos.prepare import prepare as make

    number = _repeats(repeats)
    if preset:
        resolve(preset)  # ConfigError where there is none, before the photos are read
    made = make(
        source,
        token,
        directory or default_directory(source, token),
        Order(number, keep_format, reg),
        progress=functools.partial(_progress, label="preparing"),
    )
    config = ready_made.ready(made, preset) if preset else None
    if as_json:
        print_json(prepared_json(made, config))
    else:
        for line in _told(made, config, chosen=directory is None):
            say(line)
    return 3 if made.broken and not skip_unreadable else 0


def _repeats(text: str) -> int | None:
    if text == "auto":
        return None
    number = whole_of(text)
    if number is None or number < 1:
        raise click.BadParameter(f"{text!r} must be a whole number of at least 1, or auto", param_hint="--repeats")
    return number


def _progress(items: list[Any], label: str) -> Iterator[Any]:
    """The items; how far they are is shown on stderr."""
    yield from over(items, Progress(label))


def next_command(made: Prepared) -> str:
    """What to type after `prepare`."""
    sets = {
        "pretrained_model_name_or_path": "MODEL.safetensors",
        "train_data_dir": str(made.train_data_dir),
        "output_dir": str(made.directory / "result_current"),
        "output_name": made.token,
    }
    return " ".join(["kohyakit plan sd15-character", *(f"--set {quoted([f'{k}={v}'])}" for k, v in sets.items())])


def prepared_json(made: Prepared, config: Ready | None = None) -> dict[str, Any]:
    """The document of `dataset prepare --json`."""
    return {
        "ok": not made.broken,
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
        "already_there": made.there,
        "reg_data_dir": str(made.reg.train_data_dir) if made.reg else None,
        "reg_images": len(made.reg.written) if made.reg else 0,
        "config": str(config.file) if config else None,
        "next": config.command if config else next_command(made),
    }


def _told(made: Prepared, config: Ready | None, *, chosen: bool) -> Iterator[str]:
    images, captions = len(made.written), sum(one.caption is not None for one in made.written)
    yield f"{made.directory}{' (chosen: --to changes it)' if chosen else ''}"
    more = " added" if made.added else ""
    yield f"  training_images/{made.folder.name}/   {images} images{more}, {captions} captions"
    if made.there:
        yield f"  {made.there} photos were in it already"
    if not made.added:
        yield f"  {images} images x {made.repeats} repeats = {images * made.repeats} exposures in an epoch"
    if made.reg:
        yield f"  reg_images/{made.reg.folder.name}/   {len(made.reg.written)} images for regularisation"
    for note, count in Counter(note for one in made.written for note in one.notes).items():
        yield f"  {count} x {note}"
    if made.written:
        first = made.written[0]
        yield f"  renamed, such as {first.source} -> {first.file}; all names are in {made.names_file}"
    for name, why in made.left_out:
        yield f"  left out: {name}: {why}"
    if captions < images:
        yield f"  {images - captions} images have no caption: they are trained on the word {made.token} alone"
    if config:
        state = "was there, and stays as it is" if config.kept else "the config, ready to train"
        yield f"  {config.file.name}: {state}"
    yield ""
    yield f"Look at it:  kohyakit dataset check {quoted([str(made.directory)])}"
    if config:
        yield f"Train:       {config.command}"
    else:
        yield f"Then:        {next_command(made)}"


@command("check")
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
@click.option("--upscale", is_flag=True, help="As a training without bucket_no_upscale: small images are enlarged.")
@click.option(
    "--sheet", "sheet_file", type=click.Path(path_type=Path), help="Also write an HTML page that shows it all."
)
@click.option(
    "--masks",
    "masks_folder",
    type=click.Path(path_type=Path),
    help="Folder of masks that the page shows over the images.",
)
def check(
    *, directory: Path, sheet_file: Path | None, masks_folder: Path | None, as_json: bool, **settings: Any
) -> int:
    """Say what is wrong, or could be better, in DIRECTORY; changes nothing."""
    if sheet_file and not sheet_file.parent.is_dir():
        raise error(
            "no-folder", f"{sheet_file.parent}: there is no such folder", fix="make it, or choose another --sheet"
        )
    if masks_folder and not masks_folder.is_dir():
        raise error("no-folder", f"{masks_folder}: there is no such folder", key="--masks", fix="check the path")
    found = _checked(directory, **settings)
    if sheet_file:
        _write_sheet(found, sheet_file, masks_folder)
    if as_json:
        print_json(found.as_json())
    else:
        for line in _report(found):
            say(line)
        say()
        for line in _next(found, sheet_file):
            say(line)
    return 0 if found.ok else 1


def _checked(directory: Path, max_token_length: str | None = None, **settings: Any) -> Checkup:
    from launcher.photos.check import check as look_at

    bar = functools.partial(_progress, label="checking")
    tokens = int(max_token_length) if max_token_length else None
    return look_at(directory, max_token_length=tokens, progress=bar, **settings)


def _next(found: Checkup, sheet_file: Path | None) -> Iterator[str]:
    """What to do after a check, the most useful first."""
    directory = quoted([str(found.directory)])
    wrong = len(errors(found.problems))
    if wrong:
        yield f"{wrong} error{'s' * (wrong != 1)}: mend {'it' if wrong == 1 else 'them'}, then check again"
    if sheet_file:
        yield f"See all:   open {sheet_file}"
    else:
        yield f"See all:   kohyakit dataset check {directory} --sheet sheet.html"
    if not all((shot.caption or "").strip() for shot in found.shots):
        word = next((folder.name for folder in found.folders if folder.repeats), "WORD")
        prefix = quoted([f"{word}, "])
        yield f"Captions:  kohyakit dataset caption {directory} --model blip --prefix {prefix}"
    if not wrong and found.folders:
        place = quoted([f"train_data_dir={found.folders[0].path.parent}"])
        yield f"Training:  kohyakit plan sd15-character --set {place} (kohyakit presets lists others)"


def _write_sheet(found: Checkup, file: Path, masks: Path | None) -> None:
    from launcher.photos.sheet import sheet
    from launcher.run.files import write_text

    try:
        write_text(file, sheet(found, masks).encode("utf-8", "backslashreplace").decode("utf-8"))
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
    """The findings, errors first; those that say the same of several images as one, with their names."""
    order = {"error": 0, "warning": 1, "note": 2}
    kinds: dict[tuple[int, str, str], list[Problem]] = {}
    for problem in problems:
        # Of duplicates each names another image, of captions each another word.
        shape = "" if problem.code.endswith("-duplicate") or problem.code in ALIKE else problem.must
        kinds.setdefault((order[problem.severity], problem.code, shape), []).append(problem)
    for _, alike in sorted(kinds.items(), key=lambda item: item[0][0]):
        if len(alike) <= 2:
            yield from diagnostics.report(alike)
        else:
            names = _names(alike)
            more = f" and {len(names) - SHOWN} more (--json lists all)" if len(names) > SHOWN else ""
            one = alike[0]
            same = one.must if all(other.must == one.must for other in alike) else f"{one.must}, and so on"
            text = SAID_OF_ALL.get(one.code, same)
            yield f"{one.severity}[{one.code}]: {len(alike)} images: {text}: {', '.join(names[:SHOWN])}{more}"
            if one.fix:
                yield f"  fix: {one.fix}"


def _names(alike: list[Problem]) -> list[str]:
    """The images of findings with their numbers; the folder once where all lie in one."""
    keys = [one.key or "" for one in alike]
    folder = keys[0].rpartition("/")[0] + "/"
    one_folder = all(key.rpartition("/")[0] + "/" == folder for key in keys)
    short = [key.removeprefix(folder) for key in keys[1:]] if one_folder else keys[1:]
    pairs = zip([keys[0], *short], alike, strict=True)
    return [f"{key}{f' ({one.got})' if one.got is not None else ''}" for key, one in pairs if key]


@command("pack")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("-o", "--output", "target", required=True, type=click.Path(path_type=Path), help="The zip to write.")
@click.option("--preset", metavar="PRESET|FILE", help="Also write its training JSON beside the zip.")
def pack(*, directory: Path, target: Path, preset: str | None, as_json: bool) -> None:
    """Put the images and captions of DIRECTORY into one flat zip, as CivitAI takes them; refuses what it refuses."""
    from launcher.photos import site
    from launcher.photos.pack import check_target
    from launcher.photos.pack import pack as write
    from launcher.run.files import write_text
    from schemas.blanking import without_secrets

    beside = site.json_file(target) if preset else None
    for file in filter(None, (target, beside)):
        check_target(file)
    found = _checked(directory)
    unusable = ("unreadable-image", "caption-encoding", "unreadable-caption")
    broken = [problem for problem in errors(found.problems) if problem.code in unusable] + site.refused(found)
    if broken:
        raise ConfigError(broken)
    text, lost = site.training_json(found, preset) if preset else ("", [])
    names = write(found, target)
    if beside:
        write_text(beside, without_secrets(text))
    if as_json:
        print_json(
            {"ok": True, "file": str(target), "names": names, "json": str(beside) if beside else None, "lost": lost}
        )
        return
    say(f"{target}: {len(found.shots)} images, {len(names) - len(found.shots)} captions")
    if beside:
        say(f"{beside}: the training settings; {len(lost)} of the preset the site does not know (--json lists them)")


for _command in (prepare, check, captions.caption, captions.tags, masks.mask, pack):
    dataset.add_command(_command)
