"""defaults < preset or file < --set -> one TrainConfig, and for each argument who set it and under which key."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from launcher.formats.base import Draft, Fate, Origin, Setting
from schemas.config import BadValue, TrainConfig, from_flat, read_value, table
from schemas.files.textfile import is_regular
from schemas.problems import ConfigError, Problem, nearest

PRESETS = Path(__file__).resolve().parent.parent.parent / "presets"
ACCELERATE = (
    "num_processes", "num_machines", "machine_rank", "main_process_ip", "main_process_port", "gpu_ids",
    "num_cpu_threads_per_process",
)  # fmt: skip


LENGTHS = ("max_train_steps", "max_train_epochs")
# Arguments that also decide what a form makes of its other keys: a --set of them is typed into the form too.
SHAPING = (*LENGTHS, "lr_scheduler", "dataset_config")
FORMS = ("kohya-gui", "snapshot")


class UsageError(Exception):
    """The command line is wrong (exit 2)."""


@dataclass(frozen=True)
class Resolved:
    """A file with all layers applied. `settings` names the origin of every argument that is not simply a default."""

    draft: Draft
    config: TrainConfig
    settings: Mapping[str, Setting]
    problems: tuple[Problem, ...] = ()
    sets: Mapping[str, str] = field(default_factory=dict)

    def change(self, argument: str, value: Any, origin: Origin) -> Resolved:
        """The same with one argument replaced by something computed or adapted."""
        key = self.settings[argument].key if argument in self.settings else None
        settings = {**self.settings, argument: Setting(value, origin, key)}
        return replace(self, config=replace(self.config, **{argument: value}), settings=settings)

    def fated(self, key: str, fate: Fate) -> Resolved:
        """The same with another fate of one key of the file."""
        return replace(self, draft=replace(self.draft, keys={**self.draft.keys, key: fate}))

    def placed(self, problem: Problem) -> Problem:
        """`problem` about an argument, said of the key and line of the file that it came from."""
        if problem.key is None:
            return problem
        setting = self.settings.get(problem.key)
        key = (setting.key if setting else None) or problem.key
        elsewhere = problem.file not in (None, self.draft.file)  # an image, a dataset_config: lines of its own
        if setting is not None and setting.origin == "--set":
            return replace(problem, key=f"--set {problem.key}", file=problem.file if elsewhere else None, line=None)
        if elsewhere:
            return replace(problem, key=key)
        return replace(problem, key=key, file=self.draft.file, line=problem.line or self.draft.lines.get(key))

    def argument_table(self) -> dict[str, dict[str, Any]]:
        """The `arguments` of `plan --json`: every argument, secrets blanked."""
        found = {}
        for name, option in table().items():
            value = getattr(self.config, name)
            setting = self.settings.get(name)
            shown = "***" if option.secret and value else list(value) if isinstance(value, tuple) else value
            found[name] = {
                "value": shown,
                "origin": setting.origin if setting else "default",
                "from": setting.key if setting else None,
            }
        return found


def preset_path(name: str) -> Path | None:
    """The shipped preset of that name, with or without its extension."""
    for path in presets():
        if name in (path.name, path.stem):
            return path
    return None


def presets() -> list[Path]:
    """The shipped presets, by name."""
    kinds = (".toml", ".json")
    return sorted(path for path in PRESETS.glob("*") if path.suffix in kinds) if PRESETS.is_dir() else []


def table_of_presets() -> list[dict[str, Any]]:
    """Name, family and one line of each shipped preset."""
    rows = []
    for path in presets():
        resolved = resolve(str(path))
        about = resolved.config.training_comment or ""
        rows.append({"name": path.stem, "family": resolved.draft.family, "about": about, "file": str(path)})
    return rows


def split_sets(words: Iterable[str]) -> dict[str, str]:
    """`K=V` words as a mapping; later ones win. `K=` unsets."""
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name.strip():
            raise UsageError(f"--set {word}: write it as KEY=VALUE (KEY= to unset)")
        found[name.strip()] = value
    return found


def resolve(
    file: str, sets: Mapping[str, str] | None = None, *, format: str | None = None, text: str | None = None
) -> Resolved:
    """Reads `file` (or the shipped preset of that name), or `text` as if it stood there, and lays `sets` over it.

    Problems of values are collected, not raised; ConfigError only for a file that cannot be read at all, UsageError for
    a --set key that nobody knows.
    """
    from launcher import formats

    if format is not None and format not in formats.readable():
        raise UsageError(f"--from {format}: must be one of {', '.join(formats.readable())}")
    sets = dict(sets or {})
    path, origin = _find(file) if text is None else (file, "file")
    overrides = {name: value for name, value in sets.items() if not _is_argument(name, value)}
    typed = {name: value for name, value in sets.items() if name in overrides or name in SHAPING}
    over = {name: value for name, value in typed.items() if name not in ACCELERATE}
    draft = formats.read(path, over, format) if text is None else formats.read_text(text, format, path, over)
    origin = origin if made_from(draft) is None else "preset"
    arguments = {
        name: replace(value, origin=origin) if value.origin == "file" else value
        for name, value in draft.arguments.items()
    }
    said = _refuse_unknown(overrides, draft)
    launch = {name: value for name, value in overrides.items() if name in ACCELERATE}
    problems = (*standing(draft, sets, draft.problems), *said)
    draft = replace(draft, arguments=arguments, problems=problems, accelerate={**draft.accelerate, **launch})
    return settle(draft, sets)


def made_from(draft: Draft) -> str | None:
    """The shipped preset that a file says it was made from: what presets leave to the data is left to it then, too."""
    from launcher.formats.kohya_gui.fates import SNAPSHOT

    kept = draft.document.get(SNAPSHOT) if isinstance(draft.document, Mapping) else None
    name = kept.get("preset") if isinstance(kept, Mapping) else None
    return name if isinstance(name, str) and preset_path(name) is not None else None


def _find(file: str) -> tuple[str, Origin]:
    if not is_regular(file):
        preset = preset_path(file)
        if preset is not None:
            return str(preset), "preset"
        if not os.path.exists(file):
            guess = nearest(file, [path.stem for path in presets()])
            fix = (
                f"did you mean the preset {guess}?" if guess else "check the path, or choose one of `kohyakit presets`"
            )
            raise ConfigError([Problem(code="no-file", must="is neither a file nor a preset", file=file, fix=fix)])
    return file, "file"


def _is_argument(name: str, value: str) -> bool:
    """Whether a --set word is about the argument of that name, and not about a key of the file's own dialect."""
    option = table().get(name)
    if option is None or (name in LENGTHS and value.strip() in ("0", "0.0")):
        return False  # a length of 0 is a form's word for counting it from the pictures
    if option.kind is bool and value:
        try:
            read_value(option, value)
        except BadValue:
            return False  # the GUI writes xformers=sdpa where the argument is a flag
    return True


def _refuse_unknown(overrides: Mapping[str, str], draft: Draft) -> list[Problem]:
    """Warnings of --set words that change nothing; UsageError for those that nobody knows."""
    said: list[Problem] = []
    known = [*table(), *draft.keys, *ACCELERATE]
    wrong = []
    for name, value in overrides.items():
        fate = draft.keys.get(name)
        if name in ACCELERATE:
            continue
        if name in LENGTHS and draft.format not in FORMS:
            wrong.append(f"--set {name}={value}: must be at least 1 here; only a Kohya form counts the steps itself")
        elif name in table() and name not in LENGTHS and (fate is None or fate.status in ("unknown", "no-effect")):
            wrong.append(f"--set {name}={value}: must be true or false")
        elif fate is None or fate.status == "unknown":
            guess = nearest(name, [other for other in known if other != name])
            wrong.append(f"--set {name}: no such option" + (f", did you mean {guess}?" if guess else ""))
        elif fate.status == "no-effect":
            why = f"--set {name} changes nothing: {fate.why}"
            said.append(Problem(code="no-effect", must=why, severity="warning", key=name, got=value))
    if wrong:
        raise UsageError("\n".join(wrong))
    return said


def settle(draft: Draft, sets: Mapping[str, str] | None = None) -> Resolved:
    """The frozen config of a draft with --set words laid over its arguments."""
    settings, fates = dict(draft.arguments), dict(draft.keys)
    problems = list(draft.problems)
    for name, text in (sets or {}).items():
        if not _is_argument(name, text) or (text == "" and name in LENGTHS and draft.gui_steps is not None):
            continue
        before = settings.get(name)
        settings[name] = Setting(table()[name].default if text == "" else text, "--set", None)
        if before is not None and before.origin != "--set" and before.key in fates:
            fates[before.key] = Fate("no-effect", name, None, f"replaced by --set {name}")
    given = {name for name, setting in settings.items() if setting.origin == "--set"}
    problems += _length(settings, fates) + _secret_texts(settings)
    draft = replace(
        draft,
        keys=fates,
        gui_steps=None if given & set(LENGTHS) else draft.gui_steps,
        prompts=None if "sample_prompts" in given else draft.prompts,
        datasets=None if "dataset_config" in given else draft.datasets,
    )
    config, found = _config(settings)
    resolved = Resolved(draft, config, settings, (), dict(sets or {}))
    found = [one for one in found if one.code != "unusual-spelling" or settings[one.key or ""].origin != "--set"]
    placed = tuple(problems) + tuple(resolved.placed(problem) for problem in found)
    return replace(resolved, problems=placed)


def standing(draft: Draft, sets: Mapping[str, str], found: Iterable[Problem]) -> list[Problem]:
    """Findings of the file without those about what --set replaces, and without the advice that --set has followed."""

    def over(problem: Problem) -> bool:
        key = problem.key or ""
        fate = draft.keys.get(key)
        about = {key, *([fate.argument] if fate else [])}
        about |= {name for name, setting in draft.arguments.items() if setting.key == key}
        advised = re.findall(r"--set (\w+)=([^\s,]*)", problem.fix or "") if problem.severity != "error" else []
        followed = (name in sets and (value.isupper() or sets[name] == value) for name, value in advised)
        return bool(about & set(sets)) or any(followed)

    return [problem for problem in found if not over(problem)]


def _secret_texts(settings: dict[str, Setting]) -> list[Problem]:
    """Blanks what looks like a token in options that are written into files, such as comments and names."""
    from schemas.blanking import blanked

    found = []
    for name, setting in list(settings.items()):
        option = table().get(name)
        if option is None or option.secret or option.path or blanked(setting.value) == _listed(setting.value):
            continue
        settings[name] = replace(setting, value=blanked(setting.value))
        must = "holds what looks like a secret, which is blanked: it would be written into files"
        key = setting.key or name
        found.append(
            Problem(code="secret-in-text", severity="warning", key=key, must=must, fix=f"take the secret out of {key}")
        )
    return found


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _length(settings: dict[str, Setting], fates: dict[str, Fate]) -> list[Problem]:
    """A length given by --set beats every other statement of length in the file."""
    given = {name for name in LENGTHS if name in settings and settings[name].origin == "--set"}
    if given != {"max_train_steps"} or settings.get("max_train_epochs", Setting(None)).value in (None, "", 0):
        return []
    dropped = settings.pop("max_train_epochs")
    said = f"is left out: --set max_train_steps={settings['max_train_steps'].value} gives the length"
    key = dropped.key or "max_train_epochs"
    if key in fates:
        fates[key] = Fate("no-effect", "max_train_epochs", None, said)
    return [Problem(code="length-replaced", must=said, severity="note", key=key, got=dropped.value)]


def _config(settings: Mapping[str, Setting]) -> tuple[TrainConfig, list[Problem]]:
    """As much of a config as can be read, with a Problem for every value that cannot."""
    values = {name: setting.value for name, setting in settings.items()}
    try:
        return from_flat(values)
    except ConfigError as fault:
        bad = {problem.key for problem in fault.problems if problem.severity == "error"}
        config, _ = from_flat({name: value for name, value in values.items() if name not in bad})
        return config, fault.problems
