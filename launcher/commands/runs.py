"""plan, launch, resume, demo: parse words, call one function, print, exit code."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from launcher.commands import (
    command,
    count,
    describe,
    file_argument,
    from_option,
    print_json,
    refuse,
    set_option,
    tell,
    trust_option,
    with_trust,
)
from launcher.commands.elsewhere import elsewhere, on_options, refuse_without_on
from launcher.commands.offers import files
from schemas.problems import ConfigError, Problem, errors
from schemas.terminal import say

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from launcher.check.machine import Machine
    from launcher.check.plan import Plan
    from launcher.check.resolve import Resolved
    from launcher.queue.add import Wish
    from launcher.run.command import LaunchOptions
    from launcher.run.launch import Ended
    from launcher.run.resume import Continuation

vram_option = click.option(
    "--vram", type=click.FloatRange(min=1), metavar="GB", help="Change what makes it fit this much GPU memory."
)
gpu_option = click.option("--gpu", metavar="NAME", help="Plan for a card of this name, such as 'RTX 3060'.")
price_option = click.option(
    "--price",
    type=click.FloatRange(min=0),
    metavar="PER_HOUR",
    help="What the machine costs an hour: sets price_per_hour.",
)
processes_option = click.option(
    "--processes", type=click.IntRange(min=1), metavar="N", help="Processes, all machines together."
)
keep_samples_option = click.option(
    "--keep-samples", is_flag=True, help="Fewer steps on several processes, so that as many images are seen."
)
strict_option = click.option("--strict", is_flag=True, help="Refuse instead of adapting to this machine.")


def launch_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of `launch` about processes."""
    for option in (
        click.option("--main-port", type=click.IntRange(1, 65535), help="Port of the first machine."),
        click.option("--main-ip", help="Address of the first machine."),
        click.option("--machines", type=click.IntRange(min=1), help="Number of machines."),
        click.option("--machine-rank", type=click.IntRange(min=0), help="Number of this machine, from 0."),
        click.option("--gpu-ids", help="GPUs to use, such as 0,1."),
        click.option("--accelerate-config", metavar="FILE", help="A file of `accelerate config`, passed on."),
        processes_option,
    ):
        function = option(function)
    return function


@command("plan")
@file_argument
@set_option
@from_option
@processes_option
@keep_samples_option
@trust_option
@vram_option
@gpu_option
@price_option
@strict_option
def plan(file: str, sets: tuple[str, ...], as_json: bool, **words: Any) -> int:
    """The dry run of FILE (or of a shipped preset): nothing at all is written."""
    from launcher.check import show
    from launcher.check.machine import this_machine, with_card
    from launcher.check.plan import make_plan
    from launcher.check.resolve import resolve
    from launcher.run.command import LaunchOptions

    resolved = resolve(file, _given(sets, words), format=words["format_name"])
    machine = with_card(this_machine(), words["gpu"], words["vram"])
    if words["gpu"] and words["vram"] is None:
        words["vram"] = (machine.gpus[0].memory or 0) / 2**30
    vram = words["vram"]
    options = LaunchOptions(processes=words["processes"], keep_samples=words["keep_samples"])
    made, _, said = _plan_of(resolved, options, words, machine=machine)
    if as_json:
        print_json({**made.as_json(), **({"said": said} if said else {})})
        tell(errors(made.problems))
    else:
        wrong, file = errors(made.problems), str(made.checked.resolved.draft.file)
        first, *rest = show.plan_lines(made)
        for line in (*said, first):
            say(line)
        describe(wrong, file)  # before the plan, where they are not overlooked
        for line in rest:
            say(line)
        if made.launch.num_processes > 1:
            for line in show.process_lines(made, make_plan(resolved, machine, LaunchOptions(processes=1), vram=vram)):
                say(line)
        warnings = [problem for problem in made.problems if problem.severity == "warning"]
        describe(warnings, file, named_here=bool(wrong))
        if made.problems:
            count(made.problems, "--json lists them", verdict="not ok: " if wrong else "")
    return 1 if errors(made.problems) else 0


def _given(sets: tuple[str, ...], words: dict[str, Any]) -> dict[str, str]:
    """The --set words, with what --trust and --price set."""
    from launcher.check.resolve import split_sets

    price = {} if words["price"] is None else {"price_per_hour": f"{words['price']:g}"}
    return with_trust({**split_sets(sets), **price}, words["trust"])


def _plan_of(
    resolved: Resolved,
    options: LaunchOptions,
    words: dict[str, Any],
    *,
    machine: Machine | None = None,
    keep_results: bool = False,
) -> tuple[Plan, Continuation | None, list[str]]:
    """The plan of a file, the way on where it sets `resume`, and what that is, in lines."""
    from dataclasses import replace

    from launcher.check.machine import this_machine
    from launcher.check.plan import make_plan
    from launcher.run import resume as going_on

    way = going_on.in_file(resolved)
    if way is not None and options.processes is None and "num_processes" not in resolved.draft.accelerate:
        options = replace(options, processes=way.processes)
    made = make_plan(
        way.resolved if way else resolved,
        machine or this_machine(),
        options,
        resuming=way is not None and way.own,
        vram=words["vram"],
        keep_results=keep_results,
    )
    if way is not None:
        made = going_on.counted(made, way)
    made = _strictly(made, words["strict"])
    return made, way, _told(made, way) if way else []


def _told(made: Plan, way: Continuation) -> list[str]:
    """The first lines of going on; no verdict while the input is wrong, for there is none."""
    from launcher.run import resume as going_on

    said = going_on.told(made, way)
    if not errors(made.problems):
        return said
    return [line for line in said if not line.lstrip().startswith(("nothing differs", "verdict: "))]


def _strictly(made: Plan, strict: bool) -> Plan:
    """Under --strict every adaptation is an error."""
    from dataclasses import replace

    if not strict:
        return made
    refused = [
        made.checked.resolved.placed(
            Problem(
                code="not-on-this-machine",
                key=change.argument,
                got=change.before,
                must=change.why,
                fix=f"--set {change.argument}={_word(change.after)}",
            )
        )
        for change in made.checked.adapted
    ]
    return replace(made, problems=[*refused, *made.problems])


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


@command("launch")
@file_argument
@set_option
@from_option
@launch_options
@keep_samples_option
@click.option("--print-command", is_flag=True, help="Print the command and write nothing.")
@click.option("--backend", type=click.Choice(["bundled", "sd-scripts"]), default="bundled", show_default=True)
@click.option("--sd-scripts-dir", type=click.Path(), metavar="D", help="The sd-scripts checkout of that backend.")
@click.option("--overwrite", is_flag=True, help="Replace results of an earlier run under the same name.")
@trust_option
@vram_option
@price_option
@strict_option
@on_options
def launch(file: str, sets: tuple[str, ...], as_json: bool, **words: Any) -> int:
    """Validate and plan FILE (or a shipped preset), then train: here, or with --on elsewhere."""
    from launcher.check import paths, show
    from launcher.check.resolve import resolve
    from launcher.run import launch as run
    from launcher.run import resume as going_on

    if words["on"]:
        return elsewhere(_wish(file, sets, words), words, as_json)
    refuse_without_on(words)
    given = _given(sets, words)
    if words["overwrite"]:
        given["overwrite"] = "true"
    resolved = resolve(file, given, format=words["format_name"])
    _refuse_in_use(paths.run_folder(resolved), words, resolved.draft.accelerate)
    if words["backend"] == "sd-scripts":
        from launcher.run.backend import sd_scripts

        return sd_scripts(resolved, words["sd_scripts_dir"], only_print=words["print_command"], as_json=as_json)
    made, way, said = _plan_of(resolved, _processes(words), words, keep_results=words["print_command"])
    if errors(made.problems):
        for line in said:
            say(line, err=True)
        raise ConfigError(made.problems)
    if words["print_command"]:
        return _print_command(made, said, as_json)
    for line in said:
        say(line, err=as_json)
    tell(made.problems, notes=False)
    for line in show.plan_lines(made):
        say(line, err=as_json)
    if way is not None and way.own and not made.config.debug_dataset:
        return _finish(made, going_on.start(made, way, **_outlets(as_json)), as_json)
    return _finish(made, run.launch(made, **_outlets(as_json)), as_json)


def _wish(file: str, sets: tuple[str, ...], words: dict[str, Any]) -> Wish:
    from launcher.queue.add import Wish

    names = ("trust", "processes", "keep_samples", "vram", "overwrite", "strict", "epochs", "steps")
    given = {name: words[name] for name in names if words.get(name) is not None}
    return Wish(file, sets, format=words.get("format_name"), **given)


def _refuse_in_use(run: Path, words: dict[str, Any], accelerate: Mapping[str, Any] | None = None) -> None:
    """ConfigError at once while a launcher or a trainer is at work; asked again under the lock.

    Of several machines the first one has the lock, and the others join it.
    """
    from launcher.check.machine import this_machine
    from launcher.run.command import decide
    from schemas.files.run_lock import in_use

    joins = decide(_processes(words), accelerate or {}, "no", this_machine()).machine_rank
    busy = None if joins or words["print_command"] else in_use(run)
    if busy is not None:
        raise busy


def _print_command(made: Plan, said: list[str], as_json: bool) -> int:
    """What starts the trainer without the launcher, as it can be typed; nothing is written."""
    from launcher.run.printed import printed_command

    printed = printed_command(made)
    for note in printed.notes:
        say(note, err=True)
    if as_json:
        files = {"files": printed.files} if printed.files else {}
        print_json({"command": printed.words, **files, **({"said": said} if said else {})})
    else:
        say(printed.line)
    return 0


def _processes(words: dict[str, Any]) -> Any:
    from launcher.run.command import LaunchOptions

    return LaunchOptions(
        words["processes"],
        words["gpu_ids"],
        words["machines"],
        words["machine_rank"],
        words["main_ip"],
        words["main_port"],
        words.get("keep_samples", False),
        words["accelerate_config"],
    )


def _outlets(as_json: bool) -> dict[str, Any]:
    """Where the trainer's output and our own words go."""
    from launcher.run import launch as run
    from schemas.signals import outlast_terminal

    outlast_terminal()
    return {
        "write": run.to_stderr if as_json else run.to_stdout,
        "say": lambda text: say(text, err=True),
        "terminal": sys.stdout.isatty() and not as_json,
    }


def _finish(made: Plan, ended: Ended, as_json: bool) -> int:
    from launcher.check import paths

    if as_json:
        print_json(
            {
                "ok": ended.code == 0,
                "exit": ended.code,
                "run_folder": str(paths.run_folder(made.checked.resolved)),
                "saved": [str(path) for path in ended.saved],
                "last_step": ended.last_step,
                "cause": ended.failure.cause if ended.failure else None,
                "advice": ended.failure.advice if ended.failure else None,
                "keys": list(ended.failure.keys) if ended.failure else [],
                "fix": ended.fix,
                "adapted": [change.as_json() for change in made.checked.adapted],
                "problems": [problem.as_json() for problem in made.problems],
            }
        )
    return ended.code


@command("resume")
@click.argument("path", shell_complete=files)
@click.option("--epochs", type=click.IntRange(min=1), help="A new run of so many epochs, from the weights.")
@click.option("--steps", type=click.IntRange(min=1), help="A new run of so many steps, from the weights.")
@click.option("--to-end", is_flag=True, help="The same run, exactly, from its newest state to its end.")
@set_option
@launch_options
@click.option("--print-command", is_flag=True, help="Print the command and write nothing.")
@trust_option
@strict_option
@on_options
def resume(
    path: str, epochs: int | None, steps: int | None, to_end: bool, sets: tuple[str, ...], as_json: bool, **words: Any
) -> int:
    """Go on with PATH: a run folder, a snapshot, an output folder or a LoRA file.

    A run that was cut off goes on exactly, from its newest whole state. A finished one goes on as a new run, with
    --epochs or --steps: its files are kept and get a new name first, NAME.safetensors becomes NAME-v1.safetensors and
    so on; each is named before it happens. With --set output_name=OTHER nothing is renamed.
    """
    from dataclasses import replace

    from launcher.check import show
    from launcher.check.machine import this_machine
    from launcher.check.plan import make_plan
    from launcher.check.resolve import split_sets
    from launcher.run import older
    from launcher.run import resume as going_on
    from launcher.run.launch import refuse_damaged

    if words["on"]:
        return elsewhere(_wish(path, sets, {**words, "epochs": epochs, "steps": steps}), words, as_json)
    refuse_without_on(words)
    given = with_trust(split_sets(sets), words["trust"])
    found = going_on.find(path)
    if found.run:
        _refuse_in_use(found.run, words)
    way = going_on.go_on(path, given, epochs=epochs, steps=steps, to_end=to_end)
    options = _processes(words)
    if options.processes is None and way.processes is not None:
        options = replace(options, processes=way.processes)
    made = going_on.counted(make_plan(way.resolved, this_machine(), options, resuming=True), way)
    made = _strictly(made, words["strict"])
    if words["print_command"]:
        made = older.unmoved(made, way)
    said = _told(made, way)
    if errors(made.problems):
        for line in said:
            say(line, err=True)
        raise ConfigError(made.problems)
    if words["print_command"]:
        return _print_command(made, said, as_json)
    refuse_damaged(made, _outlets(as_json)["say"])
    for line in said:
        say(line, err=as_json)
    made = older.renamed(made, way)
    tell(made.problems, notes=False)
    for line in show.plan_lines(made):
        say(line, err=as_json)
    return _finish(made, going_on.start(made, way, **_outlets(as_json)), as_json)


@command("demo")
@click.option("--dir", "directory", type=click.Path(path_type=Path), default=Path("kohyakit-demo"), show_default=True)
def demo(directory: Path, as_json: bool) -> int:
    """The whole job on toy data: dataset, model, plan, training, previews, LoRA, snapshot, continuation."""
    from launcher.commands.demo import run_demo

    if as_json:
        refuse([Problem(code="usage", must="demo is for people; it has no JSON document")], True)
        return 2
    return run_demo(directory)
