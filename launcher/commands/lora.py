"""inspect: parse words, call one function, print, exit code."""

from __future__ import annotations

from pathlib import Path

import click

from launcher.commands import command, print_json, tell
from launcher.commands.configs import Writable, places, write_files
from launcher.commands.offers import files
from schemas.terminal import say


@command("inspect")
@click.argument("lora", shell_complete=files)
@click.option("--to", "target", type=Writable(), help="Also write the recovered config in this format.")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Where to write it.")
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
@click.option("--config", "show_config", is_flag=True, help="Show the recovered config.")
def inspect(
    lora: str, target: str | None, output: Path | None, overwrite: bool, show_config: bool, as_json: bool
) -> int:
    """What a LoRA file says about itself: ranks, modules, hashes, health, and the config it was trained with."""
    from launcher.about import inspect as facts_of
    from launcher.about.convert import convert
    from launcher.check.resolve import UsageError, resolve
    from schemas.blanking import without_secrets

    if (target is None) != (output is None):
        raise UsageError("--to and -o belong together")
    resolved = resolve(lora, format="lora")
    facts = facts_of.document(lora, resolved)
    config = facts["config"]
    if target is not None and output is not None:
        written = convert(resolved, target, beside=output)
        write_files(places(output, without_secrets(written.text), written.beside), overwrite)
        for entry in written.lost:
            say(f"lost: {entry}", err=True)
    if as_json:
        print_json(facts)
    else:
        for line in facts_of.lines(facts):
            say(line)
        counts = {
            known: sum(entry["known"] == known for entry in config.values())
            for known in ("stated", "inferred", "unknown")
        }
        say("  config: " + ", ".join(f"{count} {known}" for known, count in counts.items()) + " (--config shows it)")
        tell(list(resolved.problems), notes=False)
        for name, fact in config.items() if show_config else ():
            if fact["known"] != "unknown":
                say(f"    {fact['known']:<9} {name} = {fact['value']!r}")
    return 0 if facts["health"]["finite"] else 1
