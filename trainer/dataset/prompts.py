"""Prompt files of the preview pictures, read and checked at the start (reference section 13, traps T20)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from schemas.config import table
from schemas.files.documents import parse_json, parse_toml
from schemas.files.textfile import CONFIG, read_text
from schemas.problems import ConfigError, Problem, error, nearest

NO_OPTION = "is not an option of prompt lines, or lacks its value"
STEPS = range(1, 1001)


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One preview. Sizes in pixels; what is None follows the family or the config."""

    prompt: str
    negative_prompt: str | None = None
    width: int | None = None
    height: int | None = None
    seed: int | None = None
    sample_steps: int = 30
    scale: float = 7.5
    sample_sampler: str | None = None


# Code after " --" -> (key, form of its value).
CODES = {
    "w": ("width", r"\d+"),
    "h": ("height", r"\d+"),
    "d": ("seed", r"\d+"),
    "s": ("sample_steps", r"\d+"),
    "l": ("scale", r"[\d.]+"),
    "g": ("guidance_scale", r"[\d.]+"),
    "n": ("negative_prompt", r".+"),
    "ss": ("sample_sampler", r".+"),
    "cn": ("controlnet_image", r".+"),
    "ctr": ("cfg_trunc_ratio", r"[\d.]+"),
    "rcfg": ("renorm_cfg", r"[\d.]+"),
    "fs": ("flow_shift", r".+"),
}
SIZE = re.compile(r"\s*(\d+)\s*[x\u00d7*,]\s*(\d+)\s*$", re.IGNORECASE)
OPTION = re.compile(r"([a-z]+)\s(.+)", re.IGNORECASE)
WHOLE = ("width", "height", "seed", "sample_steps")
FAR = 2.0**65  # neither nan nor an infinity is within, nor an integer that no float can hold
RANGES = {  # a seed may be negative: torch takes it as it is
    "width": (0, 16384), "height": (0, 16384), "seed": (-(2**63), 2**64 - 1), "sample_steps": (0, STEPS[-1]),
}  # fmt: skip
DECIMAL = ("scale", "guidance_scale", "cfg_trunc_ratio", "renorm_cfg")
# Of other families, or of ControlNet: known, but nothing follows from them here.
IDLE = ("guidance_scale", "controlnet_image", "cfg_trunc_ratio", "renorm_cfg", "flow_shift")


def parse_line(text: str) -> dict[str, Any]:
    """The settings in a line of a .txt file: the prompt, then options such as --w 512.

    As the reference, except that a prompt which itself begins like an option is only a prompt.
    """
    return _parse(text)[0]


def _parse(text: str) -> tuple[dict[str, Any], list[str]]:
    """(settings, options that could not be read)."""
    prompt, *options = text.split(" --")
    found: dict[str, Any] = {"prompt": prompt}
    unread = []
    for option in options:
        read = _option(option)
        if read is None or _cut(option):
            unread.append(option.strip())
        if read is not None:
            found[read[0]] = read[1]
    return found, unread


def _cut(option: str) -> str | None:
    """What is read of an option whose value goes on behind its number, as in --w 64abc; None where all of it is."""
    match = OPTION.match(option.rstrip())
    if not match or match[1].lower() not in CODES:
        return None
    key, form = CODES[match[1].lower()]
    value = re.match(form, match[2])
    if key not in (*WHOLE, *DECIMAL) or value is None or value.end() == len(match[2].rstrip()):
        return None
    return f"--{match[1]} {value[0]}"


def _option(text: str) -> tuple[str, Any] | None:
    match = OPTION.match(text.rstrip())
    if not match or match[1].lower() not in CODES:
        return None
    key, form = CODES[match[1].lower()]
    if key in ("width", "height") and SIZE.match(match[2]):
        return None
    value = re.match(form, match[2])
    if value is None:
        return None
    try:
        number = int(value[0]) if key in WHOLE else float(value[0]) if key in DECIMAL else value[0]
    except ValueError:
        return None
    if key == "sample_steps":
        number = min(max(int(number), STEPS[0]), STEPS[-1])
    return key, number


def read_prompts(
    path: str | os.PathLike[str], problems: list[Problem] | None = None, *, text: str | None = None
) -> list[Prompt]:
    """The prompts of a .txt, .toml or .json file. Warnings are appended to `problems`; ConfigError has all errors.

    `text` is the file's content, where it is known without reading it.
    """
    file = os.fspath(path)
    readers = {".txt": _read_text, ".toml": _read_toml, ".json": _read_json}
    extension = os.path.splitext(file)[1].lower()
    if extension not in readers:
        raise error(
            "prompt-file-type",
            "must end in .txt, .toml or .json",
            key="sample_prompts",
            got=file,
            fix="rename the file after its format",
        )
    found: list[Problem] = []
    text = read_text(file, limit=CONFIG, what="prompt file") if text is None else text
    try:
        entries = readers[extension](text, found, file)
    except ValueError as fault:
        raise error(
            "bad-prompts", f"cannot be read: {fault}", key="sample_prompts", file=file, fix="mend that line"
        ) from None
    prompts = [prompt for line, entry in entries for prompt in _checked(entry, line, file, found)]
    if not prompts and not found:
        found.append(
            Problem(
                code="no-prompts",
                severity="warning",
                key="sample_prompts",
                file=file,
                must="holds no prompt",
                fix="write one prompt a line",
            )
        )
    if any(problem.severity == "error" for problem in found):
        raise ConfigError(found)
    if problems is not None:
        problems += found
    return prompts


Entries = Iterable[tuple[int | None, Mapping[str, Any]]]  # (line, settings)


def _read_text(text: str, problems: list[Problem], file: str) -> Entries:
    lines = (
        (number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip() and line[0] != "#"
    )
    entries = []
    for number, line in lines:
        settings, unread = _parse(line.strip())
        problems += _unread(unread, number, file)
        entries.append((number, settings))
    return entries


# What other programs call an option of prompt lines.
MEANT = {
    "width": "w", "height": "h", "steps": "s", "step": "s", "seed": "d", "cfg": "l", "scale": "l", "cfg_scale": "l",
    "guidance": "l", "neg": "n", "negative": "n", "negative_prompt": "n", "sampler": "ss",
}  # fmt: skip


def _meant(option: str) -> str:
    """The option of prompt lines that says the same, with the value given."""
    name, _, value = option.partition(" ")
    code, size = MEANT.get(re.sub(r"\W", "_", name.lower())), SIZE.match(value)
    if size and name.lower() in ("w", "h", "size", "res", "resolution", "ar"):
        return f"write --w {size[1]} --h {size[2]}"
    if code:
        return f"write --{code} {value.strip() or 'VALUE'}"
    if name.lower() in CODES:
        return f"give --{name.lower()} a value that it can read"
    return "remove it; options are --n --w --h --d --s --l --ss"


def _unread(options: Iterable[str], line: int | None, file: str) -> Iterator[Problem]:
    for option in options:
        cut = None if SIZE.match(option.partition(" ")[2]) else _cut(option)
        if option.replace(" ", "") != "d-1":  # what GUIs write for a random seed
            yield Problem(
                code="prompt-option",
                severity="warning",
                file=file,
                line=line,
                key="sample_prompts",
                got=f"--{option}",
                must=f"is read as {cut}, the rest is left out" if cut else NO_OPTION,
                fix=f"write {cut}" if cut else _meant(option),
            )


def _read_toml(text: str, problems: list[Problem], file: str) -> Entries:
    shared = parse_toml(text).get("prompt")
    subsets = shared.get("subset") if isinstance(shared, dict) else None
    tables = isinstance(subsets, list) and all(isinstance(subset, dict) for subset in subsets)
    if not isinstance(shared, dict) or not isinstance(subsets, list) or not tables:
        raise ValueError("it must hold a table [prompt] with [[prompt.subset]]")
    common = {key: value for key, value in shared.items() if key != "subset"}
    for number, subset in enumerate(subsets):
        for key in common.keys() & subset.keys():
            problems.append(
                Problem(
                    code="prompt-key-twice",
                    file=file,
                    key=f"prompt/subset/{number}/{key}",
                    got=subset[key],
                    must="is also given for all prompts",
                    fix="remove one of the two",
                )
            )
    return [(None, {**common, **subset}) for subset in subsets]


def _read_json(text: str, problems: list[Problem], file: str) -> Entries:
    document = parse_json(text)
    if not isinstance(document, list) or not all(isinstance(entry, (str, dict)) for entry in document):
        raise ValueError("it must be a list of prompt lines or tables")
    entries: list[tuple[int | None, Mapping[str, Any]]] = []
    for entry in document:
        if isinstance(entry, str):
            settings, unread = _parse(entry)
            problems += _unread(unread, None, file)
            entries.append((None, settings))
        else:
            entries.append((None, {key: value for key, value in entry.items() if key != "subset"}))
    return entries


def _checked(entry: Mapping[str, Any], line: int | None, file: str, problems: list[Problem]) -> Iterator[Prompt]:
    place: dict[str, Any] = {"file": file, "line": line}
    known = {field.name for field in fields(Prompt)}
    given = {key: value for key, value in entry.items() if value is not None}
    for key in given.keys() - known:
        guess = nearest(key, known)
        problems.append(
            Problem(
                code="no-effect" if key in IDLE else "unknown-option",
                severity="warning",
                key=key,
                got=given[key],
                must="has no effect on previews of this model family" if key in IDLE else "is not a setting of prompts",
                fix=f"did you mean {guess}?" if guess and key not in IDLE else "remove it",
                **place,
            )
        )
    values = {key: value for key, value in given.items() if key in known}
    if "prompt" not in values:
        values["prompt"] = ""
        must, fix = "is not given; the picture is made without words", "add prompt"
        problems.append(Problem(code="no-prompt", severity="warning", key="prompt", must=must, fix=fix, **place))
    wrong = list(_wrong(values, place))
    problems += wrong
    if not wrong:
        yield Prompt(**values)


def _wrong(values: dict[str, Any], place: dict[str, Any]) -> Iterator[Problem]:
    if not isinstance(values.get("prompt"), str):
        yield Problem(
            code="no-prompt", key="prompt", got=values.get("prompt"), must="must be text", fix="add prompt", **place
        )
    for key, value in values.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and -FAR < value < FAR
        least, most = RANGES.get(key, (0, 0))
        if key in WHOLE and not (number and value == int(value) and least <= value <= most):
            must = f"must be a whole number from {least} to {most}"
            fix = f"write {key} = 512, or leave it out" if key in ("width", "height") else f"leave {key} out"
            yield Problem(code="bad-value", key=key, got=value, must=must, fix=fix, **place)
        elif key == "scale" and not number:
            must = f"must be a finite number below {FAR:.2g}"
            yield Problem(
                code="bad-value", key=key, got=value, must=must, fix=f"write {key} = 7.5, or leave {key} out", **place
            )
        elif key == "negative_prompt" and not isinstance(value, str):
            yield Problem(
                code="bad-value",
                key=key,
                got=value,
                must="must be text",
                fix=f"put {key} in quotes, or leave it out",
                **place,
            )
    sampler, samplers = values.get("sample_sampler"), table()["sample_sampler"].choices
    if sampler is not None and sampler not in samplers:
        guess = nearest(str(sampler), samplers)
        yield Problem(
            code="unknown-sampler",
            key="sample_sampler",
            got=sampler,
            must="must be one of " + ", ".join(samplers),
            fix=f"did you mean {guess}?" if guess else "take one of those",
            **place,
        )
    for key in WHOLE:
        if isinstance(values.get(key), float) and values[key].is_integer():
            values[key] = int(values[key])
