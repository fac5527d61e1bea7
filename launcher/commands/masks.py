"""dataset mask: the words of the command, and what it prints."""

from __future__ import annotations

from pathlib import Path

import click

from launcher.commands import command, print_json
from launcher.run.command import quoted
from schemas.terminal import say

SOURCES = ("alpha", "folder", "face", "rembg")
SHOWN = 5  # names given as examples


@command("mask")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--from",
    "kind",
    type=click.Choice(SOURCES),
    required=True,
    help="The images' transparency, a folder of masks, an ellipse round each face, or a cut-out by rembg.",
)
@click.option("--masks", type=click.Path(path_type=Path), help="folder: where the masks are; white is trained.")
@click.option(
    "--grow",
    default=1.4,
    show_default=True,
    type=click.FloatRange(0.5, 5),
    help="face: the ellipse's width, in widths of the face.",
)
@click.option("--resolution", default="512", show_default=True, metavar="N|W,H", help="For the dataset_config.")
@click.option("--overwrite", is_flag=True, help="Make masks anew that are there.")
@click.option("--show", is_flag=True, help="Also write a page that shows each mask over its image.")
def mask(
    *,
    directory: Path,
    kind: str,
    masks: Path | None,
    grow: float,
    resolution: str,
    overwrite: bool,
    show: bool,
    as_json: bool,
) -> int:
    """Make a mask for every image of DIRECTORY, so that the loss counts only there; and a dataset_config that names
    them. Masks that are there are kept. Exit code 3: some images could not be read, and are named."""
    from launcher.photos.masks import mask as make
    from schemas.datasets import parse_resolution
    from schemas.problems import ConfigError

    if wrong := parse_resolution(resolution)[1]:
        raise ConfigError(wrong)
    words = [f"--from={kind}", f"--grow={grow}", *([f"--masks={masks.absolute()}"] if masks else [])]
    made = make(directory, words, overwrite=overwrite, resolution=resolution)
    page = None
    if show:
        from launcher.photos.check import check
        from launcher.photos.sheet import sheet
        from launcher.run.files import write_text

        page = made.folder / "masks.html"
        text = sheet(check(directory, resolution=resolution), made.folder)
        write_text(page, text.encode("utf-8", "backslashreplace").decode("utf-8"))
    if as_json:
        print_json({**made.as_json(), "page": str(page) if page else None})
        return 3 if made.left_out else 0
    say(f"{made.folder}: {made.written} masks written{f', {made.kept} kept' if made.kept else ''}")
    if made.whole:
        examples = ", ".join(f"{Path(one['file']).name} ({one['why']})" for one in made.whole[:SHOWN])
        more = f" and {len(made.whole) - SHOWN} more" if len(made.whole) > SHOWN else ""
        say(f"{len(made.whole)} images have none of their own and are trained whole: {examples}{more}")
    for one in made.left_out:
        say(f"left out: {one['file']}: {one['why']}", err=True)
    say()
    if page:
        say(f"See them:  open {page}")
    sets = quoted(["--set", "masked_loss=true", "--set", f"dataset_config={made.config}"])
    say(f"Training:  kohyakit plan sd15-character {sets}")
    return 3 if made.left_out else 0
