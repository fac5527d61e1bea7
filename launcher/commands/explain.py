"""explain: parse words, call one function, print, exit code."""

from __future__ import annotations

import click

from launcher.commands import command, print_json
from schemas.terminal import say, style


@command("explain")
@click.argument("key")
def explain(key: str, as_json: bool) -> int:
    """One option: meaning, type, defaults, names in other formats, traps. KEY may be any format's name for it."""
    from launcher.about.explain import known_names, lines, lookup
    from launcher.check.resolve import UsageError
    from schemas.config import table
    from schemas.problems import nearest

    facts = lookup(key)
    if facts is None:
        guess = nearest(key, table()) or nearest(key, known_names())
        raise UsageError(f"{key}: no such option" + (f", did you mean {guess}?" if guess else ""))
    if as_json:
        print_json(facts)
    else:
        for line in [style(facts["key"], bold=True), *lines(facts)]:
            say(line)
    return 0
