"""compare: parse words, start the measuring, judge, write the page, print, exit code."""

from __future__ import annotations

from pathlib import Path

import click

from launcher.commands import command, print_json, refuse, set_option
from schemas.terminal import say


@command("compare")
@click.argument("run")
@click.option("--epochs", default="all", show_default=True, metavar="all|1,3,5", help="Which of the saved epochs.")
@click.option("--prompts", type=click.Path(path_type=Path), help="Prompts of the images; the run's own if not given.")
@click.option("--weights", default="1", show_default=True, metavar="0.6,0.8,1.0", help="Strengths of the images.")
@click.option("--held-out", type=click.Path(path_type=Path), metavar="DIR",
              help="Captioned images that were not trained on; those of validation_split if not given.")  # fmt: skip
@click.option("--embedder", type=click.Path(path_type=Path), metavar="PATH",
              help="A CLIP or DINO model of transformers, to measure likeness to the training images.")  # fmt: skip
@click.option("--images/--no-images", default=True, help="Whether the grid of images is drawn.")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="OUT.html",
              help="Where to write the page; compare.html in the run folder if not given.")  # fmt: skip
@set_option
def compare(
    run: str, epochs: str, prompts: Path | None, weights: str, held_out: Path | None, embedder: Path | None,
    images: bool, output: Path | None, sets: tuple[str, ...], as_json: bool,
) -> int:  # fmt: skip
    """Which epoch of RUN (a run folder, its output folder, or a folder of LoRA files) to keep, measured.

    Everything measured is kept: the same command goes on where it was stopped, and measures only what is new.
    """
    from launcher.about.compare import Asked, comparison
    from launcher.check.resolve import split_sets
    from launcher.report.compared import Compared, page_place, write_page

    asked = Asked(run, epochs, prompts, weights, held_out, embedder, images, split_sets(sets))
    what = comparison(asked)
    place = page_place(what, output)
    wish = what.write_wish()
    from launcher.commands.demo import run_module

    code = run_module("trainer.comparison", str(wish))
    if code not in (0, 1):
        return code
    found = Compared.read(what, asked, code)
    if found.problems:
        refuse(found.problems, as_json)
        return 1
    write_page(found, place)
    if as_json:
        print_json(found.as_json(place))
        return 0
    for line in found.lines():
        say(line)
    say(f"page: {place}")
    return 0
