"""report: parse words, call one function, print, exit code."""

from __future__ import annotations

from pathlib import Path

import click

from launcher.commands import command, print_json
from schemas.terminal import say


@command("report")
@click.argument("run")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="OUT.html",
    help="Where to write it; report.html in the run folder if not given.",
)
@click.option("--images/--no-images", default=True, help="Whether the page holds a few of the training images.")
def report(run: str, output: Path | None, images: bool, as_json: bool) -> int:
    """One page of RUN (a run folder, snapshot, output folder or LoRA): curves, previews, settings, what to try next."""
    from launcher.report.make import make_report
    from launcher.run.command import quoted

    made = make_report(run, output, images=images)
    if as_json:
        print_json(made.as_json())
        return 0
    say(str(made.path))
    for said in made.suggestions:
        say(f"{said.title}: {said.reason}", err=True)
        say(f"    {quoted(list(said.command))}", err=True)
    return 0
