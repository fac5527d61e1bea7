"""`kohyakit completion bash|zsh|fish`: the script that asks launcher/commands/offers.py."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from launcher.commands import command
from schemas.terminal import say, say_file

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_KOHYAKIT_COMPLETE"


@command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str, as_json: bool) -> int:
    """Print the script that completes kohyakit's commands, options, presets and keys in SHELL.

    For good: eval "$(kohyakit completion bash)" as a line of ~/.bashrc (zsh: of ~/.zshrc); in fish:
    kohyakit completion fish | source
    """
    from launcher.cli import cli
    from launcher.commands import print_json

    kind = get_completion_class(shell)
    if kind is None:
        say(f"this version of click knows no completion for {shell}", err=True)
        return 1
    made = kind(cli, {}, "kohyakit", VARIABLE)
    script = made.source_template % made.source_vars()  # `source` would start a bash to ask for its version
    if as_json:
        print_json({"shell": shell, "script": script})
    else:
        say_file(script)
    return 0
