"""The one door for paths and names that a config gives: what no file can be called, and where no run may write unasked.

Facts of every format meet here, since every value of an option is read by `schemas.config.read_value`.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

LONGEST_NAME = 255  # bytes of one part of a path, on every file system in use
LONGEST_PATH = 4095  # bytes of a whole path on Linux
# Endings of the longest files that are named after a run, temporary forms included: a preview at an epoch's end with
# the longest seed, the copy of a saved LoRA in peft's form while it is written, the snapshot likewise. A run that is
# gone on with renames what is there to NAME-v2.
ENDINGS = (
    "-v1000_e000001_000_20260101000000_18446744073709551615.png",
    "-v1000-step00000001.peft.safetensors.4194304.tmp.",
    "-v1000_20260101-000000.json.4194304.tmp.",
)
LONGEST_ENDING = max(len(ending) for ending in ENDINGS)
QUOTES = (('"', '"'), ("'", "'"), ("\u201c", "\u201d"), ("\u2018", "\u2019"), ("`", "`"))
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff]")
# what an escape in double quotes has become, where a backslash between folders was meant
ESCAPES = {"\t": "t", "\n": "n", "\r": "r", "\b": "b", "\f": "f", "\x1b": "e"}
NAMES = {"\t": "a tab", "\n": "a line end", "\r": "a line end", "\0": "a NUL"}
SYSTEM = ("/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/proc", "/run", "/sbin", "/sys", "/usr", "/var",
          "/System", "/Library", "/private/etc", "/private/var")  # fmt: skip
PASSING = (
    "/var/tmp",
    "/var/folders",
    "/private/var/tmp",
    "/private/var/folders",
    "/dev/shm",
    "/run/media",
    "/run/mount",
)
WINDOWS = re.compile(r"[A-Za-z]:[\\/](windows|program files|program files \(x86\)|programdata)([\\/]|$)", re.IGNORECASE)
OF_THE_SYSTEM, OF_THE_USER = "is a folder of the operating system", "is a hidden configuration folder"


def fault_of_path(path: str) -> tuple[str, str] | None:
    """(what is wrong with a path, what was probably meant) where no folder or file can sensibly be called so."""
    if CONTROL.search(path):
        must, meant = _control(path)
        hint = ": in double quotes a backslash begins an escape; write the path in single quotes or with /"
        return f"{must}{hint if ESCAPES.keys() & set(path.strip()) else ''}", meant
    found = _fault(path)
    if found is not None:
        return found
    longest = max((len(os.fsencode(part)) for part in re.split(r"[/\\]", path)), default=0)
    if longest > LONGEST_NAME:
        return f"must have no part longer than {LONGEST_NAME} bytes, and has one of {longest}", ""
    if len(os.fsencode(path)) > LONGEST_PATH:
        return f"must be at most {LONGEST_PATH} bytes long, and is {len(os.fsencode(path))}", ""
    return None


def fault_of_name(name: str) -> tuple[str, str] | None:
    """The same for a name that files of a run begin with."""
    if CONTROL.search(name):
        return _control(name)[0], CONTROL.sub("", name).strip()
    found = _fault(name)
    if found is not None:
        return found
    length, most = len(os.fsencode(name)), LONGEST_NAME - LONGEST_ENDING
    if length > most:
        shorter = os.fsencode(name)[:most].decode("utf-8", "ignore")
        return f"must be at most {most} bytes long, since files are named after it, and is {length}", shorter
    return None


def _fault(text: str) -> tuple[str, str] | None:
    if re.search("[\ud800-\udfff\ufffd]", text):
        return "must be text that UTF-8 can write, and holds a character that is none", ""
    for begin, end in QUOTES:
        if len(text) > 1 and text.startswith(begin) and text.endswith(end):
            return "must not stand in quotes of its own: they would become part of the name", text[1:-1].strip()
    if text.startswith('"') or text.endswith('"'):
        return "must not begin or end with a quote", text.strip('"').strip()
    if text != text.strip():
        return "must not begin or end with a blank", text.strip()
    return None


def _control(text: str) -> tuple[str, str]:
    marks = dict.fromkeys(NAMES.get(one, "a control character") for one in CONTROL.findall(text))
    must = f"must hold no control characters, and holds {' and '.join(marks)}"
    stripped = text.strip()
    if not CONTROL.search(stripped):
        return must, stripped
    meant = "".join(f"/{ESCAPES[one]}" if one in ESCAPES else one for one in stripped)
    meant = CONTROL.sub("", meant).replace("\\", "/")
    return must, meant


def protected(path: str) -> str | None:
    """Why a file may not send a run's output to `path` unasked; None for an ordinary folder.

    Links and .. are followed. What lies below the folder that the user stands in is the user's own doing.
    """
    if WINDOWS.match(path):
        return OF_THE_SYSTEM
    for spelling in {path, os.path.expanduser(path)}:
        try:
            plain, real = os.path.abspath(spelling), os.path.realpath(spelling)
        except (OSError, ValueError):
            continue  # said elsewhere: there is no such path
        for place in (Path(plain), Path(real)):
            why = _zone(place)
            if why is not None:
                return why
    return None


def _zone(place: Path) -> str | None:
    here, homes = Path(os.path.realpath(os.curdir)), _homes()
    for home in homes:
        inside = _below(place, home)
        if inside and inside[0].startswith(".") and inside[0] not in (".", ".."):
            return None if _stands_in(here, home / inside[0], place) else OF_THE_USER
        if inside and inside[:2] in (("Library", "LaunchAgents"), ("Library", "LaunchDaemons"), ("AppData", "Roaming")):
            return OF_THE_USER
        if inside is not None:
            return None
    temporary = (*PASSING, os.path.realpath(tempfile.gettempdir()))
    if any(_below(place, Path(one)) is not None for one in temporary):
        return None
    if place == Path("/"):
        return OF_THE_SYSTEM
    zone = next((Path(one) for one in SYSTEM if _below(place, Path(one)) is not None), None)
    return None if zone is None or _stands_in(here, zone, place) else OF_THE_SYSTEM


def _homes() -> list[Path]:
    """The user's home, and those of others on the machine; not /, which containers call so."""
    own = {os.path.expanduser("~"), os.path.realpath(os.path.expanduser("~"))}
    return [Path(home) for home in sorted(own) if os.path.isabs(home) and Path(home) != Path("/")]


def _below(place: Path, folder: Path) -> tuple[str, ...] | None:
    """The parts of `place` below `folder`; None where it lies elsewhere."""
    return place.relative_to(folder).parts if place.is_relative_to(folder) else None


def _stands_in(here: Path, zone: Path, place: Path) -> bool:
    return here != zone and here.is_relative_to(zone) and place.is_relative_to(here)
