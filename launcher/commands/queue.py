"""queue add, list, run, pause, resume, retry, move, remove, stop: parse words, call one function, print, exit code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from launcher.commands import SETTINGS, command, from_option, print_json, set_option, tell, trust_option
from launcher.commands.runs import keep_samples_option, processes_option, strict_option, vram_option
from schemas.problems import error
from schemas.terminal import say

if TYPE_CHECKING:
    from launcher.queue.folder import Queue
    from launcher.queue.jobs import Job

queue_option = click.option(
    "--queue", "folder", type=click.Path(path_type=Path), metavar="DIR", help="The queue's folder, if not your own one."
)


@click.group("queue", context_settings=SETTINGS)
def queue() -> None:
    """Runs one after the other, or one a GPU. It survives a closed terminal, a kill and a reboot."""


def queue_command(name: str) -> Callable[[Callable[..., int | None]], click.Command]:
    """A command of the group, with --queue and --json."""

    def wrap(function: Callable[..., int | None]) -> click.Command:
        made = command(name, "queue")(queue_option(function))
        queue.add_command(made)
        return made

    return wrap


def _queue(folder: Path | None) -> Queue:
    from launcher.queue.folder import Queue

    return Queue.at(folder)


@queue_command("add")
@click.argument("file")
@set_option
@from_option
@processes_option
@keep_samples_option
@vram_option
@click.option("--overwrite", is_flag=True, help="Replace results of an earlier run under the same name.")
@click.option("--epochs", type=click.IntRange(min=1), help="With a run: a new one of so many epochs, from its weights.")
@click.option("--steps", type=click.IntRange(min=1), help="With a run: a new one of so many steps, from its weights.")
@click.option("--first", is_flag=True, help="Before all others.")
@trust_option
@strict_option
def add(file: str, folder: Path | None, sets: tuple[str, ...], as_json: bool, **words: Any) -> int:
    """Queue FILE (a config, a preset, or a run to go on with). It is checked now, and started by `queue run`."""
    from launcher.queue.add import Wish, job_of

    where, first = _queue(folder), words.pop("first")
    job, plan = job_of(Wish(file, sets, format=words.pop("format_name"), **words))
    job = where.add(job, first=first)
    tell(plan.problems, notes=False)
    if as_json:
        print_json({"ok": True, **_entry(where, job)})
        return 0
    steps = f", {job.total} steps" if job.total else ""
    say(f"queued as {job.id}: {job.file} -> {job.run_folder}{steps}")
    if where.runner_lock().holder() is None:
        say(f"    start it with: kohyakit queue run{_named(where)}", err=True)
    return 0


def _named(where: Queue) -> str:
    """The --queue words of a suggested command."""
    from launcher.queue.folder import default_folder
    from schemas.terminal import shell_word

    return "" if where.path == default_folder() else f" --queue {shell_word(where.path)}"


def _entry(where: Queue, job: Job) -> dict[str, Any]:
    from launcher.queue.folder import LOG

    return {**job.as_json(), "log": str(where.folder(job.id) / LOG)}


@queue_command("list")
def show(folder: Path | None, as_json: bool) -> int:
    """Every run of the queue: its state, how far it is, and why it stands where it stands."""
    from launcher.queue.document import document, lines

    where = _queue(folder)
    found = document(where)
    if as_json:
        print_json(found)
        return 0
    for line in lines(found):
        say(line)
    return 0


@queue_command("run")
@click.option("--gpus", metavar="0,1", help="Work on these GPUs only; all of them if not given.")
@click.option("--cpu", is_flag=True, help="Work on the CPU, also at runs that were queued for a GPU.")
@click.option("--stay", is_flag=True, help="Wait for more when the queue is empty.")
def run(folder: Path | None, gpus: str | None, cpu: bool, stay: bool, as_json: bool) -> int:
    """Work through the queue in this terminal: one run a GPU, or one at a time on a CPU.

    Closing the terminal does not end it. Ctrl-C stops it: the runs under way save their state and go on with the next
    `queue run`.
    """

    from launcher.check.resolve import UsageError
    from launcher.queue.devices import slots
    from launcher.queue.document import document
    from launcher.queue.runner import Runner, work
    from schemas.signals import Wishes, ignore_hangup, install, outlast_terminal, restore

    if gpus is not None and cpu:
        raise UsageError("--gpus and --cpu exclude each other")
    where, places = _queue(folder), slots(gpus, cpu=cpu)
    lock = where.hold_for_runner()
    outlast_terminal()
    wishes, hangup = Wishes(), ignore_hangup()
    before = hangup | install(lambda number, frame: wishes.hear())
    try:

        def tell_of(line: str) -> None:
            say(line, err=as_json)

        runner = Runner(where, places, tell_of, cpu=cpu)
        code = work(runner, stay=stay, hear=lambda: wishes.count)
        if where.head()["paused"]:
            tell_of(f"the queue is paused; kohyakit queue resume{_named(where)}")
    finally:
        restore(before)
        lock.free()
    if as_json:
        print_json({"ok": code == 0, "exit": code, **document(where)})
    return code


@queue_command("pause")
@click.argument("number", type=int, required=False, metavar="[ID]")
def pause(folder: Path | None, number: int | None, as_json: bool) -> int:
    """Pause run ID: it saves its state, and the next one has its place. Without ID nothing new is started."""
    from launcher.queue.wishes import pause_all, pause_one

    where = _queue(folder)
    if number is None:
        pause_all(where)
        return _done(where, as_json, "paused: nothing new is started; runs under way go on")
    job = pause_one(where, number)
    word = "paused" if job.state == "paused" else "pausing: it finishes its step and saves its state"
    return _done(where, as_json, f"{job.id}: {job.name} {word}", job)


@queue_command("resume")
@click.argument("number", type=int, required=False, metavar="[ID]")
def resume(folder: Path | None, number: int | None, as_json: bool) -> int:
    """Put a paused run ID back into its place; it goes on exactly. Without ID the paused queue goes on."""
    from launcher.queue.wishes import resume_all, resume_one

    where = _queue(folder)
    if number is None:
        resume_all(where)
        return _done(where, as_json, "goes on")
    job = resume_one(where, number)
    return _done(where, as_json, f"{job.id}: {job.name} {job.state}", job)


@queue_command("retry")
@click.argument("number", type=int, metavar="ID")
def retry(folder: Path | None, number: int, as_json: bool) -> int:
    """Try a failed or held run ID again: from its state where it has one, else with its file as it is now."""
    from launcher.queue.wishes import retry_one

    where = _queue(folder)
    job = retry_one(where, number)
    return _done(where, as_json, f"{job.id}: {job.name} {job.state}", job)


@queue_command("move")
@click.argument("number", type=int, metavar="ID")
@click.option("--first", is_flag=True, help="Before all others.")
@click.option("--last", is_flag=True, help="Behind all others.")
@click.option("--before", type=int, metavar="ID", help="Before that one.")
def move(folder: Path | None, number: int, first: bool, last: bool, before: int | None, as_json: bool) -> int:
    """Change the order. A run under way is not interrupted by it; `queue pause` does that."""
    from launcher.check.resolve import UsageError

    if sum((first, last, before is not None)) != 1:
        raise UsageError("queue move needs one of --first, --last, --before ID")
    where = _queue(folder)
    if before == number:
        raise UsageError("--before names the same run")
    job = where.move(number, first=first, before=before)
    order = ", ".join(str(other.id) for other in where.jobs())
    return _done(where, as_json, f"order: {order}", job)


@queue_command("remove")
@click.argument("numbers", type=int, nargs=-1, metavar="[ID]...")
@click.option("--finished", is_flag=True, help="Every run that is done.")
def remove(folder: Path | None, numbers: tuple[int, ...], finished: bool, as_json: bool) -> int:
    """Take runs out of the queue. Their results, states and run folders stay."""
    from launcher.check.resolve import UsageError

    where = _queue(folder)
    if not numbers and not finished:
        raise UsageError("queue remove needs an ID, or --finished")
    numbers = (*numbers, *(job.id for job in where.jobs() if finished and job.state == "done"))
    for number in dict.fromkeys(numbers):
        where.remove(number)
    said = ", ".join(str(number) for number in dict.fromkeys(numbers)) or "none"
    return _done(where, as_json, f"removed from the queue: {said}; results and states stay")


@queue_command("stop")
def stop(folder: Path | None, as_json: bool) -> int:
    """End `queue run`, wherever it was started: the runs under way save their state."""
    where = _queue(folder)
    if where.runner_lock().holder() is None:
        raise error("no-runner", "is worked on by no process", file=str(where.path), fix="kohyakit queue run")
    with where.changing():
        where.set_head(stop_asked=True)
    return _done(where, as_json, "stopping: the runs under way save their state")


def _done(where: Queue, as_json: bool, said: str, job: Job | None = None) -> int:
    if as_json:
        print_json({"ok": True, **(_entry(where, job) if job is not None else {"queue": str(where.path)})})
    else:
        say(said)
    return 0
