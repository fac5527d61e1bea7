"""A config as it stands: what the commands `validate` and `plan` say of it, computed once for each text."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from launcher import formats
from launcher.check import machine
from launcher.check.plan import Plan, make_plan
from launcher.check.preflight import Checked, check_file, unique
from launcher.check.resolve import Resolved, resolve
from launcher.formats.kohya_gui import keys as form_keys
from launcher.run.command import LaunchOptions
from launcher.ui.editing import hidden
from launcher.ui.folders import Folders, within
from launcher.ui.work import Conflict, Entry, Work
from schemas.blanking import blanked
from schemas.config import table
from schemas.problems import ConfigError, Problem, errors

FRESH = 2.0  # seconds; after them the images and the disk are looked at again
KEPT = 24


@dataclass(frozen=True)
class Judged:
    """A config with all that is known of it. `resolved` is None where the text cannot be read at all.

    `before` is the config as it came, to tell whose a value is; `conflict` is set where the file on disk is another.
    """

    entry: Entry
    text: str
    resolved: Resolved | None = None
    before: Resolved | None = None
    checked: Checked | None = None
    plan: Plan | None = None
    problems: tuple[Problem, ...] = ()
    conflict: Conflict | None = None
    plain: Resolved | None = field(default=None, repr=False)  # the file alone, without the words of its launch

    @property
    def ok(self) -> bool:
        """Whether it can be trained."""
        return self.plan is not None and not errors(self.problems)

    @cached_property
    def arguments(self) -> dict[str, str]:
        """Keys of the file, and words of findings, by the argument that they are about."""
        if self.resolved is None:
            return {}
        rows = form_keys()
        found = {key: fate.argument for key, fate in self.resolved.draft.keys.items() if fate.argument in table()}
        found |= {one.key: name for name, one in self.resolved.settings.items() if one.key and one.key in rows}
        return {key: name for key, name in found.items() if name}

    def about(self, problem: Problem) -> str | None:
        """The argument that a finding is about."""
        key = (problem.key or "").removeprefix("--set ")
        return key if key in table() else self.arguments.get(key)

    def findings(self) -> list[dict[str, Any]]:
        """Every finding, secrets blanked, with the argument that it is about and what a button could set."""
        from launcher.ui.fixes import buttons

        return [
            {**blanked(one.as_json()), "argument": self.about(one), "buttons": buttons(one, self)}
            for one in self.problems
        ]


class Judge:
    """Judges configs of a work folder; keeps the newest answers."""

    def __init__(self, work: Work, folders: Folders) -> None:
        self.work, self.folders = work, folders
        self._kept: OrderedDict[tuple[Any, ...], tuple[float, Judged]] = OrderedDict()
        self._lock = threading.Lock()

    def judge(self, name: str, *, fresh: bool = False) -> Judged:
        """The config of that ID as it stands on disk. ConfigError `no-config`."""
        entry = self.work.recovered(self.work.entry(name))
        conflict = None
        try:
            content = self.work.content(entry)
        except Conflict as fault:
            conflict, content = fault, fault.ours
        key = (entry.id, entry.now.mark, repr(sorted(entry.words.items())), entry.now.number)
        with self._lock:
            kept = self._kept.get(key)
        if kept is None or fresh or time.monotonic() - kept[0] > FRESH:
            judged = self._judge(entry, content)
            with self._lock:
                self._kept[key] = time.monotonic(), judged
                while len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
        else:
            judged = kept[1]
        return replace(judged, entry=entry, conflict=conflict)

    def _judge(self, entry: Entry, content: bytes) -> Judged:
        try:
            text, _ = formats.decode(content)
        except ConfigError as fault:
            return Judged(entry, "", problems=tuple(fault.problems))
        file = str(self.work.path(entry))
        try:
            plain = resolve(file, text=text)
            resolved = resolve(file, sets_of(entry), text=text)
        except ConfigError as fault:
            return Judged(entry, text, problems=tuple(fault.problems))
        except Exception as fault:
            if type(fault).__name__ != "UsageError":
                raise
            return Judged(entry, text, problems=(Problem(code="usage", must=str(fault)),))
        fenced, outside = within(resolved, self.folders)
        missing = {one.key for one in outside}
        checked = check_file(within(resolve(file, sets_of(entry), text=text), self.folders)[0])
        plan = planned(fenced, entry.words.get("vram"))
        found = [*outside, *plan.problems, *checked.problems]
        found = [one for one in found if one.code != "missing-option" or one.key not in missing]
        plan = replace(plan, problems=unique(found))
        return Judged(entry, text, resolved, self._before(entry), checked, plan, tuple(once(found)), plain=plain)

    def _before(self, entry: Entry) -> Resolved | None:
        """The config of the first version, or of the shipped preset that it was made from."""
        first = entry.versions[0]
        try:
            if entry.preset:
                return resolve(entry.preset)
            text, _ = formats.decode(self.work.kept(entry, 0))
            return resolve(str(self.work.folder / first.file), text=text)
        except ConfigError:
            return None


def sets_of(entry: Entry) -> dict[str, str]:
    """The --set words of a launch, its consent included."""
    words = entry.words
    sets = {str(name): str(value) for name, value in (words.get("sets") or {}).items()}
    if words.get("trust"):
        sets["trust"] = " ".join(words["trust"])
    if words.get("overwrite"):
        sets["overwrite"] = "true"
    return sets


def planned(resolved: Resolved, vram: float | None = None) -> Plan:
    """The plan as `kohyakit plan` makes it, going on included where the file asks for that."""
    from launcher.run import resume as going_on

    options, found = LaunchOptions(), list[Problem]()
    way = None
    try:
        way = going_on.in_file(resolved)
    except ConfigError as fault:
        found = fault.problems
    here = machine.this_machine()
    own = way is not None and way.own
    made = make_plan(way.resolved if way else resolved, here, options, resuming=own, vram=vram)
    if way is not None:
        made = going_on.counted(made, way)
    return replace(made, problems=[*found, *made.problems]) if found else made


def once(problems: list[Problem]) -> list[Problem]:
    """Each finding once, though both commands make it; an error beats the warning that `validate` makes of it."""
    seen: set[tuple[Any, ...]] = set()
    kept = []
    for one in unique(problems):
        key = (one.code, one.key, one.line, one.must)
        if key not in seen:
            seen.add(key)
            kept.append(one)
    return kept


def command(entry: Entry, file: str) -> list[str]:
    """What launches this config, as a user would type it."""
    return ["kohyakit", "launch", file, *launch_words(entry)]


def launch_words(entry: Entry) -> list[str]:
    """The words behind the file."""
    words = entry.words
    found = [word for name, value in (words.get("sets") or {}).items() for word in ("--set", f"{name}={value}")]
    found += [word for name in words.get("trust") or () for word in ("--trust", str(name))]
    found += ["--vram", f"{words['vram']:g}"] if words.get("vram") else []
    return found + (["--overwrite"] if words.get("overwrite") else [])


def texts(judged: Judged) -> Mapping[str, Any]:
    """The file's own text and its other form, JSON beside TOML; *** stands for secrets."""
    from launcher.about.convert import convert

    shown, _ = hidden(judged.text)
    own = (
        "json"
        if shown.lstrip("\ufeff \t\r\n").startswith("{")
        else "toml"
        if judged.entry.file.endswith(".toml")
        else "text"
    )
    found: dict[str, Any] = {"own": own, own: shown, "lost": []}
    if judged.plain is None:
        return found
    for kind, target in (("json", "kohya-gui"), ("toml", "sd-scripts")):
        if kind not in found:
            written = convert(judged.plain, target)
            found[kind] = hidden(written.text)[0]
            found["lost"] = [*found["lost"], *(blanked(one) for one in written.lost)]
    return found
