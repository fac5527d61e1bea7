"""Every format that can be read: FORMATS, recognising one from its content, and `read`, which opens the file."""

from __future__ import annotations

import dataclasses
import importlib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from launcher.formats.base import Draft
from launcher.formats.recognise import recognise
from schemas.files import textfile
from schemas.problems import ConfigError, Problem, error

__all__ = ["FORMATS", "Draft", "decode", "read", "read_text", "recognise"]

# name -> module with read(text, *, file, overrides) -> Draft
FORMATS: dict[str, str] = {
    "kohya-gui": "launcher.formats.kohya_gui",
    "snapshot": "launcher.formats.kohya_gui",
    "sd-scripts": "launcher.formats.sd_scripts",
    "dataset": "launcher.formats.dataset_toml",
    "civitai": "launcher.formats.civitai",
    "easy-training": "launcher.formats.easy_training",
    "lora-scripts": "launcher.formats.lora_scripts",
    "kohya-colab": "launcher.formats.kohya_colab",
    "lora": "launcher.formats.lora_header",
}
Reader = Callable[..., Draft]


def read(path: str | os.PathLike[str], overrides: Mapping[str, Any] | None = None, format: str | None = None) -> Draft:
    """The draft of the file at `path`; `overrides` are keys of its own dialect laid over it.

    `format` overrides recognition. ConfigError: `no-file`, `a-folder`, `empty-file`, `too-large`, `unknown-format`,
    `other-tool`, and what the format's own reader refuses.
    """
    file = os.fspath(path)
    if format is not None and format not in FORMATS:
        raise error(
            "unknown-format",
            f"must be one of {', '.join(FORMATS)}",
            key="--from",
            got=format,
            file=file,
            fix="choose one of them",
        )
    data, suffix = _open(file), Path(file).suffix.lower()
    if format == "lora" or (format is None and (suffix == ".safetensors" or _is_safetensors(data))):
        from launcher.formats import lora_header

        return lora_header.read_file(file, overrides=overrides or {})
    try:
        text, said = decode(data)
    except ConfigError as fault:
        raise ConfigError([_placed(problem, file) for problem in fault.problems]) from None
    draft = read_text(text, format, file, overrides)
    if said:
        draft.problems.insert(0, Problem(code="text-encoding", severity="note", must=said, file=file))
    return draft


def read_text(text: str, format: str | None, file: str, overrides: Mapping[str, Any] | None = None) -> Draft:
    """`read` of text that has no file yet; `file` is the name that messages give it."""
    try:
        if not text.strip():
            raise error("empty-file", "is empty", fix="choose the right file")
        name = format or recognise(text, file)
        draft = _reader(name, text, file)(text, file=file, overrides=dict(overrides or {}))
    except RecursionError:
        raise error(
            "unknown-format", "is nested too deeply for a config", file=file, fix="choose the right file"
        ) from None
    except ConfigError as fault:
        raise ConfigError([_placed(problem, file) for problem in fault.problems]) from None
    draft.format, draft.file = name, file
    draft.problems += _mostly_unknown(draft)
    return draft


def _mostly_unknown(draft: Draft) -> list[Problem]:
    """A file of which more keys are unknown than known is another program's, or none at all: never "ok"."""
    fates = {name: fate.status for name, fate in draft.keys.items() if fate.status != "gui-only"}
    strange = [name for name, status in fates.items() if status == "unknown"]
    if len(strange) <= len(fates) - len(strange):
        return []
    few = ", ".join(strange[:4]) + (", ..." if len(strange) > 4 else "")
    must = f"is no {draft.format} file as far as its keys tell: {len(strange)} of {len(fates)} are unknown ({few})"
    return [Problem(code="mostly-unknown", must=must, file=draft.file, fix="choose a training config of Kohya's")]


def _reader(name: str, text: str, file: str) -> Reader:
    if name == "sd-scripts":
        from launcher.formats import command_line

        if command_line.is_command_line(text, file):
            return command_line.read
    if name == "kohya-gui" and not text.lstrip().startswith("{"):
        from launcher.formats import gui_defaults

        return gui_defaults.read
    read: Reader = importlib.import_module(FORMATS[name]).read
    return read


def _placed(problem: Problem, file: str) -> Problem:
    return problem if problem.file else dataclasses.replace(problem, file=file)


def _open(file: str) -> bytes:
    """The bytes of a text file, or the first ones of a large .safetensors."""
    path = Path(file)
    if path.is_dir():
        raise error("a-folder", "is a folder, not a config file", file=file, fix=_offer(path))
    with textfile.open_regular(path, what="config file") as stream:
        start = stream.read(16)
    if path.suffix.lower() == ".safetensors" or _is_safetensors(start):
        return start
    return textfile.read_bytes(path, limit=textfile.CONFIG, what="config file")


def _offer(folder: Path) -> str:
    found = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in (".json", ".toml", ".safetensors"))
    return f"name one of its files: {', '.join(found[:5])}" if found else "name a config file"


def _is_safetensors(start: bytes) -> bool:
    """Eight bytes of length, then a JSON header."""
    return len(start) > 9 and start[8:9] == b"{" and 2 <= int.from_bytes(start[:8], "little") <= 100_000_000


def decode(data: bytes) -> tuple[str, str | None]:
    """(text, note) of a text file in UTF-8, UTF-16 or an old Windows encoding; line ends become newlines."""
    said: str | None = None
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        text, said = data.decode("utf-16", errors="replace"), "is UTF-16 text"
    elif data[:1] and data[1:2] == b"\0":
        text, said = data.decode("utf-16-le", errors="replace"), "is UTF-16 text without its mark"
    else:
        if data.startswith(b"\xef\xbb\xbf"):
            data, said = data[3:], "begins with a byte-order mark"
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            text, said = data.decode("cp1252", errors="replace"), "is not UTF-8; read as Windows-1252"
    if "\0" in text:
        raise error("unknown-format", "is not text", fix="choose the right file")
    return re.sub(r"\r\n?", "\n", text.lstrip("\ufeff")), said
