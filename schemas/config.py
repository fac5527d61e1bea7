"""One frozen TrainConfig of every option group, so `config.network_dim` is spelled as in every Kohya file."""

from __future__ import annotations

import dataclasses
import functools
import os
import typing
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from schemas import options as o
from schemas.argument import with_point
from schemas.files import textfile
from schemas.files.documents import parse_toml
from schemas.files.places import fault_of_name, fault_of_path
from schemas.problems import ConfigError, Problem, error, nearest
from schemas.terminal import shell_word, shell_words


@dataclass(frozen=True, kw_only=True)
class TrainConfig(
    o.ModelOptions,
    o.NetworkOptions,
    o.OptimizerOptions,
    o.SchedulerOptions,
    o.LossOptions,
    o.NoiseOptions,
    o.DataOptions,
    o.CaptionOptions,
    o.BucketOptions,
    o.CacheOptions,
    o.PrecisionOptions,
    o.MemoryOptions,
    o.SavingOptions,
    o.StateOptions,
    o.SamplingOptions,
    o.LoggingOptions,
    o.MetadataOptions,
    o.HubOptions,
    o.DistributedOptions,
    o.DeprecatedOptions,
    o.FileOptions,
):
    """Everything the trainer is told. Declares nothing itself; parts take the group they need."""


GROUPS: tuple[type, ...] = TrainConfig.__bases__


@dataclass(frozen=True)
class Option:
    """What `schemas.options` says of one option, in the form that loops want."""

    name: str
    group: type
    default: Any
    doc: str
    kind: type  # bool, int, float or str
    many: bool
    optional: bool
    choices: tuple[str, ...]
    marks: Mapping[str, Any]

    @property
    def secret(self) -> bool:
        return bool(self.marks.get("secret"))

    @property
    def path(self) -> bool:
        return bool(self.marks.get("path"))

    @property
    def name_of_files(self) -> bool:
        return bool(self.marks.get("name_of_files"))

    @property
    def kit(self) -> bool:
        return bool(self.marks.get("kit"))

    @property
    def resumable(self) -> bool:
        return bool(self.marks.get("resume"))


@functools.cache
def table() -> dict[str, Option]:
    """name -> Option, in the order of the groups and of their fields."""
    found: dict[str, Option] = {}
    for group in GROUPS:
        hints = typing.get_type_hints(group)
        for field in dataclasses.fields(group):
            kind, many, optional, choices = _shape(hints[field.name])
            marks = dict(field.metadata)
            found[field.name] = Option(
                field.name, group, field.default, marks.pop("doc"), kind, many, optional, choices, marks
            )
    return found


def _shape(hint: Any) -> tuple[type, bool, bool, tuple[str, ...]]:
    optional = many = False
    if get_origin(hint) in (Union, UnionType):
        members = [member for member in get_args(hint) if member is not NoneType]
        optional = len(members) < len(get_args(hint))
        hint = float if members == [int, float] else members[0]
    if get_origin(hint) is tuple:
        many, hint = True, get_args(hint)[0]
    if get_origin(hint) is Literal:
        return type(get_args(hint)[0]), many, optional, tuple(str(choice) for choice in get_args(hint))
    return hint, many, optional, ()


LARGEST = 2.0**63


class BadValue(ValueError):
    """A value that cannot be read; the text says what it must be, `fix` what was probably meant."""

    def __init__(self, must: str, fix: str | None = None) -> None:
        super().__init__(must)
        self.fix = fix


def read_value(option: Option, value: Any) -> tuple[Any, str | None]:
    """(value in the option's type, note when it was written unusually); BadValue when it cannot be read.

    Accepts what Kohya accepts: numeric text, "" or null for unset, whole floats, 0/1 for flags.
    """
    if value is None or (isinstance(value, str) and value == "" and (option.kind is not str or option.choices)):
        return option.default, None if value is None else "empty text read as unset"
    if option.many:
        if isinstance(value, str):
            items, note = value.split(), "text read as a list"
        elif isinstance(value, Iterable) and not isinstance(value, Mapping):
            items, note = list(value), None
        else:
            items, note = [value], "one value read as a list"
        read = [_read_one(option, item) for item in items]
        return tuple(item for item, _ in read), next((said for _, said in read if said), note)
    if isinstance(value, (Mapping, list, tuple)):
        if option.name == "resolution" and isinstance(value, (list, tuple)):
            return ",".join(str(side) for side in value), "list read as width,height"
        raise BadValue(_must(option))
    return _read_one(option, value)


def _read_one(option: Option, value: Any) -> tuple[Any, str | None]:
    reader = {bool: _read_flag, int: _read_int, float: _read_float, str: _read_text}[option.kind]
    read, note = reader(option, value)
    if read is not None and option.kind is not str and option.kind is not bool:
        for mark, holds in (("ge", float.__ge__), ("gt", float.__gt__), ("le", float.__le__)):
            if mark in option.marks and not holds(float(read), float(option.marks[mark])):
                raise BadValue(_must(option))
    return read, note


def _read_flag(option: Option, value: Any) -> tuple[bool, str | None]:
    if isinstance(value, bool):
        return value, None
    if isinstance(value, (int, float)) and value in (0, 1):
        return bool(value), "number read as true or false"
    words = {"true": True, "false": False, "1": True, "0": False}
    if isinstance(value, str) and value.strip().lower() in words:
        return words[value.strip().lower()], "text read as true or false"
    raise BadValue(_must(option))


def _number(option: Option, value: Any) -> tuple[float | int, str | None]:
    if isinstance(value, bool):
        raise BadValue(_must(option))
    if isinstance(value, (int, float)):
        number, note = value, None
    else:
        text = str(value).strip()
        try:
            if option.marks.get("ratio") and text.endswith("%"):
                share = float(text[:-1]) / 100
                if not 0 <= share <= 1:
                    raise BadValue(_must(option))
                return share, "per cent read as a share"
            number = int(text) if text.lstrip("+-").isdigit() and len(text) < 40 else float(text)
        except ValueError:
            raise BadValue(_must(option)) from None
        note = "text read as a number"
    if not -LARGEST < number < LARGEST:  # neither is nan, nor an integer that no float can hold
        raise BadValue(_must(option, beyond=True))
    return number, note


def _read_int(option: Option, value: Any) -> tuple[int | None, str | None]:
    number, note = _number(option, value)
    if option.name == "max_token_length" and number == 75:
        return None, "75 is the length without this option"
    if number != int(number) or (option.choices and str(int(number)) not in option.choices):
        raise BadValue(_must(option))
    return int(number), note or (None if isinstance(number, int) else "whole decimal read as a whole number")


def _read_float(option: Option, value: Any) -> tuple[float | int, str | None]:
    number, note = _number(option, value)
    if option.marks.get("ratio") and (isinstance(number, int) or number > 1):
        if number != int(number):
            raise BadValue(_must(option))
        return int(number), note
    return float(number), note  # of a ratio: the share of the run, 1.0 being the whole of it


def _read_text(option: Option, value: Any) -> tuple[str | None, str | None]:
    if isinstance(value, bool):
        if value is False:
            return option.default, "false read as unset"
        raise BadValue(_must(option))
    text = str(value)
    if option.choices and text not in option.choices:
        folded = {choice.lower(): choice for choice in option.choices}
        if text.strip().lower() not in folded:
            raise BadValue(_must(option))
        return folded[text.strip().lower()], "spelling of the choice repaired"
    fault = fault_of_path(text) if option.path and not text.startswith("data:") else None
    fault = fault_of_name(text) if option.name_of_files else fault
    if fault is not None:
        raise BadValue(
            fault[0], f"--set {option.name}={shell_words([fault[1]])}" if fault[1] and not option.many else None
        )
    note = None if isinstance(value, str) else "number read as text"
    return text, note


def _must(option: Option, *, beyond: bool = False) -> str:
    """What a value of this option must be, in words; of one `beyond` all numbers also how far they go."""
    if option.choices:
        return "must be one of " + ", ".join(option.choices)
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[option.kind]
    if option.marks.get("ratio"):
        words = "a whole number of steps, or a share of the run (a decimal up to 1.0, or per cent)"
    limits: dict[str, Any] = {"ge": -LARGEST, "le": LARGEST} if beyond else {}
    limits |= {mark: option.marks[mark] for mark in ("ge", "gt", "le") if mark in option.marks}
    if beyond:
        words = words.replace("a ", "a finite ", 1)
    bounds = [
        f"{said} {limits[mark]:.2g}" if abs(limits[mark]) == LARGEST else f"{said} {limits[mark]}"
        for mark, said in (("ge", "at least"), ("gt", "more than"), ("le", "at most"))
        if mark in limits and not (mark == "ge" and "gt" in limits)
    ]
    words = " ".join([words, " and ".join(bounds)]).strip()
    return f"must be {'a list, each ' if option.many else ''}{words}"


def mend(option: Option, value: Any) -> str:
    """A --set word that can be read, for a refused value: what was meant, the nearest, or the default."""
    usual = option.marks.get("instead")
    default = (
        f"--set {option.name}= for the default" if usual is None else f"--set {option.name}={usual}, a usual value"
    )
    if option.secret or option.kind not in (int, float):
        return default
    given = value if isinstance(value, (list, tuple)) else [value]
    points = [with_point(one) or one if isinstance(one, str) else str(one) for one in given]
    if points != [str(one) for one in given]:
        try:
            read_value(option, points if option.many else points[0])
            return f"write a point: --set {shell_word(option.name + '=' + ' '.join(points))}"
        except BadValue:
            pass
    if option.many:
        return default
    word = str(value).strip()
    for mark in ("ge", "le"):
        bound = option.marks.get(mark)
        try:
            number = float(word)
        except ValueError:
            break
        if usual is None and bound is not None and (number < bound if mark == "ge" else number > bound):
            return f"--set {option.name}={bound}, the nearest that is allowed"
    return default


def from_flat(
    values: Mapping[str, Any], *, file: str | None = None, lines: Mapping[str, int] | None = None
) -> tuple[TrainConfig, list[Problem]]:
    """The config that `values` (sd-scripts names) describe, with notes on unusual spellings.

    Raises ConfigError with every unknown name and unreadable value at once.
    """
    known, given, problems = table(), {}, []
    for name, value in values.items():
        place: dict[str, Any] = {"file": file, "line": (lines or {}).get(name), "key": name, "got": value}
        if name not in known:
            guess = nearest(name, known)
            fix = f"did you mean {guess}?" if guess else "remove it"
            problems.append(Problem(code="unknown-option", must="is not an option of the trainer", fix=fix, **place))
            continue
        try:
            given[name], note = read_value(known[name], value)
        except BadValue as bad:
            hidden = {**place, "got": "***"} if known[name].secret else place
            fix = bad.fix or mend(known[name], value)
            problems.append(Problem(code="bad-value", must=str(bad), fix=fix, **hidden))
            continue
        if note:
            problems.append(Problem(code="unusual-spelling", must=note, severity="note", **place))
    if any(problem.severity == "error" for problem in problems):
        raise ConfigError(problems)
    return TrainConfig(**given), problems


def to_flat(config: TrainConfig, *, defaults: bool = False, secrets: bool = False) -> dict[str, Any]:
    """The options that differ from their default (all with `defaults`); secrets only when asked for."""
    flat: dict[str, Any] = {}
    for name, option in table().items():
        value = getattr(config, name)
        if (defaults or value != option.default) and (secrets or not option.secret):
            flat[name] = list(value) if isinstance(value, tuple) else value
    return flat


def read(path: str | os.PathLike[str]) -> tuple[TrainConfig, list[Problem]]:
    """The config in a TOML of sd-scripts' form."""
    file = os.fspath(path)
    values, lines = read_values(file)
    return from_flat(values, file=file, lines=lines)


def read_values(file: str) -> tuple[dict[str, Any], dict[str, int]]:
    """(values, their lines) of a TOML of sd-scripts' form: tables are merged one level down, as its reader does."""
    text = textfile.read_text(file, limit=textfile.CONFIG, what="config file")
    try:
        document = parse_toml(text)
    except ValueError as fault:
        raise error("not-toml", f"is not TOML: {fault}", file=file, fix="mend that line") from None
    lines = {}
    for number, line in enumerate(text.splitlines(), start=1):
        name, equals, _ = line.partition("=")
        if equals:
            lines[name.strip().strip("\"'")] = number
    return flatten(document), lines


def flatten(document: Mapping[str, Any]) -> dict[str, Any]:
    """Top-level values, and the values of every top-level table; later ones win."""
    flat: dict[str, Any] = {}
    for name, value in document.items():
        flat.update(value if isinstance(value, Mapping) else {name: value})
    return flat


def write(config: TrainConfig, always: Collection[str] = ()) -> str:
    """TOML of the options that differ from their default, without secrets; `read` gives the same config back.

    Options in `always` are written as defaults too, where leaving them out would leave them open.
    """
    import toml

    flat = to_flat(config) | {name: getattr(config, name) for name in always}
    flat = {name: value for name, value in flat.items() if value is not None and name != "config_file"}
    return toml.dumps(dict(sorted(flat.items())))
