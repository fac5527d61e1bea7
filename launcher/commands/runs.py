"""plan, launch, resume, demo: parse words, call one function, print, exit code."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from launcher.commands import command, from_option, print_json, refuse, set_option, tell, trust_option, with_trust
from schemas.problems import ConfigError, Problem, errors
from schemas.terminal import say

if TYPE_CHECKING:
    from collections.abc import Callable

    from launcher.plan import Plan
    from launcher.run import Ended

vram_option = click.option(
    "--vram", type=click.FloatRange(min=1), metavar="GB", help="Change what makes it fit this much GPU memory."
)
processes_option = click.option(
    "--processes", type=click.IntRange(min=1), metavar="N", help="Processes, all machines together."
)
keep_samples_option = click.option(
    "--keep-samples", is_flag=True, help="Fewer steps on several processes, so that as many pictures are seen."
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
@click.argument("file")
@set_option
@from_option
@processes_option
@keep_samples_option
@trust_option
@vram_option
@strict_option
def plan(file: str, sets: tuple[str, ...], as_json: bool, **words: Any) -> int:
    """The dry run of FILE (or of a shipped preset): nothing at all is written."""
    from launcher import show
    from launcher.command import LaunchOptions
    from launcher.machine import this_machine
    from launcher.plan import make_plan
    from launcher.resolve import resolve, split_sets

    resolved = resolve(file, with_trust(split_sets(sets), words["trust"]), format=words["format_name"])
    machine, vram = this_machine(), words["vram"]
    options = LaunchOptions(processes=words["processes"], keep_samples=words["keep_samples"])
    made = _strictly(make_plan(resolved, machine, options, vram=vram), words["strict"])
    if as_json:
        print_json(made.as_json())
        tell(errors(made.problems))
    else:
        for line in show.plan_lines(made):
            say(line)
        if made.launch.num_processes > 1:
            for line in show.process_lines(made, make_plan(resolved, machine, LaunchOptions(processes=1), vram=vram)):
                say(line)
        tell(made.problems, notes=False)
    return 1 if errors(made.problems) else 0


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
@click.argument("file")
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
@strict_option
def launch(file: str, sets: tuple[str, ...], as_json: bool, **words: Any) -> int:
    """Validate and plan FILE (or a shipped preset), then train."""
    from launcher import run, show
    from launcher.command import quoted
    from launcher.machine import this_machine
    from launcher.plan import make_plan
    from launcher.resolve import resolve, split_sets

    given = with_trust(split_sets(sets), words["trust"])
    if words["overwrite"]:
        given["overwrite"] = "true"
    resolved = resolve(file, given, format=words["format_name"])
    if words["backend"] == "sd-scripts":
        from launcher.backend import sd_scripts

        return sd_scripts(resolved, words["sd_scripts_dir"], only_print=words["print_command"], as_json=as_json)
    made = make_plan(
        resolved, this_machine(), _processes(words), vram=words["vram"], keep_results=words["print_command"]
    )
    made = _strictly(made, words["strict"])
    if errors(made.problems):
        raise ConfigError(made.problems)
    if words["print_command"]:
        print_json({"command": made.command}) if as_json else say(quoted(made.command))
        return 0
    tell(made.problems, notes=False)
    for line in show.plan_lines(made):
        say(line, err=as_json)
    return _finish(made, run.launch(made, **_outlets(as_json)), as_json)


def _processes(words: dict[str, Any]) -> Any:
    from launcher.command import LaunchOptions

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
    from launcher import run

    sys.stdout.flush()
    return {
        "write": run.to_stderr if as_json else run.to_stdout,
        "say": lambda text: say(text, err=True),
        "terminal": sys.stdout.isatty() and not as_json,
    }


def _finish(made: Plan, ended: Ended, as_json: bool) -> int:
    from launcher import paths

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
@click.argument("path")
@click.option("--epochs", type=click.IntRange(min=1), help="A new run of so many epochs, from the weights.")
@click.option("--steps", type=click.IntRange(min=1), help="A new run of so many steps, from the weights.")
@click.option("--to-end", is_flag=True, help="The same run, exactly, from its newest state to its end.")
@set_option
@launch_options
@click.option("--print-command", is_flag=True, help="Print the command and write nothing.")
@trust_option
@strict_option
def resume(
    path: str, epochs: int | None, steps: int | None, to_end: bool, sets: tuple[str, ...], as_json: bool, **words: Any
) -> int:
    """Go on with PATH: a run folder, a snapshot, an output folder or a LoRA file."""
    from dataclasses import replace

    from launcher import resume as going_on
    from launcher import show
    from launcher.command import quoted
    from launcher.machine import this_machine
    from launcher.plan import make_plan
    from launcher.resolve import split_sets

    given = with_trust(split_sets(sets), words["trust"])
    way = going_on.go_on(path, given, epochs=epochs, steps=steps, to_end=to_end)
    options = _processes(words)
    if options.processes is None and way.processes is not None:
        options = replace(options, processes=way.processes)
    made = _strictly(make_plan(way.resolved, this_machine(), options, resuming=True), words["strict"])
    said = going_on.told(made, way)
    if errors(made.problems):
        for line in said:
            if not line.lstrip().startswith(("nothing differs", "verdict: ")):  # there is none while input is wrong
                say(line, err=True)
        raise ConfigError(made.problems)
    if words["print_command"]:
        print_json({"command": made.command, "said": said}) if as_json else say(quoted(made.command))
        return 0
    made = going_on.renamed(made, way)
    for line in said:
        say(line, err=as_json)
    tell(made.problems, notes=False)
    for line in show.plan_lines(made):
        say(line, err=as_json)
    return _finish(made, going_on.start(made, way, **_outlets(as_json)), as_json)


@command("demo")
@click.option("--dir", "directory", type=click.Path(path_type=Path), default=Path("kohyakit-demo"), show_default=True)
def demo(directory: Path, as_json: bool) -> int:
    """The whole job on toy data: dataset, model, plan, training, previews, LoRA, snapshot, continuation."""
    from launcher.demo import run_demo

    if as_json:
        refuse([Problem(code="usage", must="demo is for people; it has no JSON document")], True)
        return 2
    return run_demo(directory)
