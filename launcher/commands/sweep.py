"""sweep: parse words, set up, work through the trials, write the page, exit code."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from launcher.commands import command, from_option, print_json, set_option, trust_option
from launcher.commands.queue import queue_option
from launcher.commands.runs import vram_option
from schemas.terminal import say

if TYPE_CHECKING:
    from launcher.queue.folder import Queue
    from launcher.sweep.setup import Setup


@command("sweep")
@click.argument("file")
@click.option(
    "--vary", multiple=True, required=True, metavar="K=V,V,...", help="What to vary: K=8,16,32 or K=1e-5..1e-3."
)
@click.option("--trials", type=click.IntRange(min=1), metavar="N", help="Runs in all; every combination if not given.")
@set_option
@from_option
@vram_option
@trust_option
@click.option("--storage", type=click.Path(path_type=Path), metavar="FILE.db", help="Where it is kept, to go on with.")
@queue_option
@click.option("--parallel", type=click.IntRange(min=1), metavar="N", help="Runs at once; as many as GPUs if not given.")
@click.option("--gpus", metavar="0,1", help="Work on these GPUs only; all of them if not given.")
@click.option("--cpu", is_flag=True, help="Work on the CPU.")
@click.option("--prune/--no-prune", default=True, help="Whether runs that fall behind are stopped early.")
def sweep(file: str, vary: tuple[str, ...], sets: tuple[str, ...], as_json: bool, **words: Any) -> int:
    """Train FILE with some options varied, each run measured on the same images that are held out.

    The runs go through the queue. The same command goes on with a sweep that was interrupted. At the end, and after
    each run, one page compares them: sweep.html beside the runs.
    """
    from launcher.check.resolve import UsageError
    from launcher.queue.add import Wish
    from launcher.sweep import study as studies
    from launcher.sweep.setup import set_up

    if words["gpus"] is not None and words["cpu"]:
        raise UsageError("--gpus and --cpu exclude each other")
    studies.need_optuna()
    wish = Wish(file, sets, format=words["format_name"], trust=words["trust"], vram=words["vram"])
    setup = set_up(wish, vary, words["trials"], words["storage"])
    for line in setup.said:
        say(line, err=True)
    from launcher.queue.folder import Queue

    return _work(setup, Queue.at(words["folder"]), as_json, words)


def _work(setup: Setup, queue: Queue, as_json: bool, words: dict[str, Any]) -> int:
    """Runs the sweep; a queue that another process works on already is left to it."""

    from launcher.queue.devices import slots
    from launcher.queue.runner import Runner
    from launcher.sweep import page
    from launcher.sweep import study as studies
    from launcher.sweep import sweep as sweeps
    from schemas.problems import ConfigError
    from schemas.signals import Wishes, ignore_hangup, install, outlast_terminal, restore

    def tell(line: str) -> None:
        say(line, err=as_json)

    places = slots(words["gpus"], cpu=words["cpu"])
    study = studies.open_study(setup, prune=words["prune"])
    setup = sweeps.resumed(setup, study)
    out = setup.folder / "sweep.html"
    try:
        lock = queue.hold_for_runner()
    except ConfigError:
        lock = None
        tell("another process works on this queue; it runs the trials")
    outlast_terminal()
    wishes, hangup = Wishes(), ignore_hangup()
    before = hangup | install(lambda number, frame: wishes.hear())
    try:
        runner = Runner(queue, places, tell, cpu=words["cpu"]) if lock is not None else None
        under_way = sweeps.Sweep(
            setup, study, queue, tell, words["parallel"] or len(places), lambda: page.write(setup, study, out)
        )
        code = sweeps.work(under_way, runner, lambda: wishes.count)
        page.write(setup, study, out)
    finally:
        restore(before)
        if lock is not None:
            lock.free()
    return _finish(setup, studies.rows(setup, study), out, code, as_json)


def _finish(setup: Setup, rows: list[Any], out: Path, code: int, as_json: bool) -> int:
    best = min(
        (row for row in rows if row.loss is not None and row.state == "done"), key=lambda row: row.loss, default=None
    )
    if as_json:
        document = {"ok": code == 0, "exit": code, "storage": str(setup.storage), "page": str(out)}
        trials = [row.as_json() for row in rows]
        print_json({**document, "best": best.number if best else None, "trials": trials})
        return code
    if best is not None:
        values = ", ".join(f"{name}={value}" for name, value in best.values.items())
        say(f"lowest held-out loss: {best.loss:.4f}, trial {best.number} at epoch {best.epoch}: {values}")
        say(f"    its run: {best.run_folder}")
    say(f"page: {out}")
    return code
