"""From the `fix` of a finding to buttons that apply it: what can be set is set, the rest stays a sentence."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from launcher.check import paths
from launcher.ui.runs import run_id
from schemas.config import BadValue, read_value, table
from schemas.problems import Problem

if TYPE_CHECKING:
    from launcher.ui.judging import Judged

SET = re.compile(r"--set (?:'(?P<quoted>[\w.]+=[^']*)'|(?P<name>[\w.]+)=(?P<value>'[^']*'|\"[^\"]*\"|[^\s,;)]*))")
TRUST = re.compile(r"--trust (?P<name>[\w.:/-]+)")
PLACEHOLDER = re.compile(r"(?:PATH|FILE|FOLDER|DIR|N|NAME|OTHER|MODEL|VALUE|TEXT)(?:[/.].*)?")
VRAM = re.compile(r"--vram (\d+)")


def buttons(problem: Problem, judged: Judged) -> list[dict[str, Any]]:
    """What can be clicked: {"label", "action": set | trust | vram | overwrite | show, "name", "value", "sets"}.

    Words that stand one after another belong together: they are one button, which sets them all.
    """
    fix, found = problem.fix or "", list[dict[str, Any]]()
    for together in _together(fix):
        open_one = next((name for name, value in together.items() if PLACEHOLDER.fullmatch(value)), None)
        if open_one is not None:
            found.append(_button(f"go to {open_one}", "show", open_one))
        elif all(_can_be_set(name, value, judged) for name, value in together.items()):
            said = [f"{name} to {value}" if value else f"{name} to nothing" for name, value in together.items()]
            name, value = next(iter(together.items()))
            found.append({**_button(f"set {' and '.join(said)}", "set", name, value), "sets": together})
    found += [_button(f"trust {one['name']} for the next launch", "trust", one["name"]) for one in TRUST.finditer(fix)
              if one["name"] != "NAME"]  # fmt: skip
    found += [_button(f"fit it into {one[1]} GB", "vram", "vram", one[1]) for one in VRAM.finditer(fix)]
    if problem.code == "results-exist" and judged.plan is not None:
        folder = paths.run_folder(judged.plan.checked.resolved)
        if folder.is_dir():
            found.append(_button("go to that run", "open", "run", f"/run/{run_id(folder)}"))
    if problem.code == "results-exist" or "--overwrite" in fix:
        found.append(_button("replace the earlier results at the next launch", "overwrite", "overwrite", "true"))
    meant = re.search(r"did you mean (\w+)\?", fix)
    if meant and meant[1] in table():
        found.append(_button(f"go to {meant[1]}", "show", meant[1]))
    about = judged.about(problem)
    if not found and about:
        found.append(_button("go to the field", "show", about))
    seen: dict[tuple[str, str, str], dict[str, Any]] = {}
    for button in found:
        seen.setdefault((button["action"], button["name"], button["value"]), button)
    return list(seen.values())


def _together(fix: str) -> Iterator[dict[str, str]]:
    """The `--set` words of a fix, those that only a blank divides as one."""
    group: dict[str, str] = {}
    end = -1
    for one in SET.finditer(fix):
        name, _, value = (one["quoted"] or f"{one['name']}={one['value']}").partition("=")
        if group and fix[end : one.start()].strip():
            yield group
            group = {}
        group[name], end = _unquoted(value), one.end()
    if group:
        yield group


def _button(label: str, action: str, name: str, value: str = "") -> dict[str, Any]:
    return {"label": label, "action": action, "name": name, "value": value}


def _unquoted(value: str) -> str:
    try:
        words = shlex.split(value)
    except ValueError:
        return value
    return words[0] if len(words) == 1 else value


def _can_be_set(name: str, value: str, judged: Judged) -> bool:
    option = table().get(name)
    if option is None:
        return judged.resolved is not None and name in judged.resolved.draft.keys
    try:
        read_value(option, value)
    except BadValue:
        return False
    return not option.secret
