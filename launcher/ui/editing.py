"""One argument changed in the text of a config, and nothing else: keys, comments, order, unknown keys stay as they are.

Every way of writing the change is tried on a copy and read back: it counts only if the copy then trains exactly as
`--set NAME=VALUE` over the old text would, so a form and the command line cannot disagree.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.about.diff import compare
from launcher.check.resolve import Resolved, resolve
from launcher.formats.kohya_gui.document import skip_white
from launcher.formats.kohya_gui.fates import SNAPSHOT
from schemas.blanking import NAMED, TOKEN
from schemas.config import BadValue, Option, mend, read_value, table
from schemas.problems import ConfigError, Problem, error

FORMS = ("kohya-gui", "snapshot")
DECODER = json.JSONDecoder()
NO_FILE_SAYS = ("trust", "overwrite")


@dataclass(frozen=True)
class Edit:
    """The new text under its file name, and what another format could not say, where it had to become one."""

    text: str
    file: str
    lost: tuple[str, ...] = ()


def edit(text: str, file: str, sets: Mapping[str, str], beside: Path) -> Edit:
    """`text` with arguments, or keys of its own dialect, set; "" unsets. ConfigError where a value cannot be read.

    `beside` is where the file lies: a change of format may have to write a dataset file there.
    """
    done = Edit(text, file)
    for name, value in sets.items():
        step = _one(done.text, done.file, name, value, beside)
        done = Edit(step.text, step.file, done.lost + step.lost)
    return done


def _one(text: str, file: str, name: str, value: str, beside: Path) -> Edit:
    option = table().get(name)
    if option is not None:
        refuse_bad(option, value)
    before = resolve(file, text=text)
    target = resolve(file, {name: value}, text=text)
    for candidate in _candidates(before, target, text, name, value):
        if candidate != text and same(candidate, file, target, name):
            return Edit(candidate, file)
    if compare(before, target) == ([], []) and _plain_same(before, target, name):
        return Edit(text, file)
    return _other_format(target, file, name, beside)


def refuse_bad(option: Option, value: str) -> None:
    """ConfigError with what the value must be, and what was probably meant."""
    if option.secret or option.name in NO_FILE_SAYS:
        what = "a secret is given by its environment variable" if option.secret else "only the command line can say it"
        raise error("not-in-a-file", f"is no file's to say: {what}", key=option.name, fix="see its explanation")
    try:
        read_value(option, value)
    except BadValue as bad:
        fix = bad.fix or mend(option, value)
        raise ConfigError([Problem(code="bad-value", key=option.name, got=value, must=str(bad), fix=fix)]) from None


def same(text: str, file: str, target: Resolved, name: str) -> bool:
    """Whether a text alone trains as `target`."""
    try:
        found = resolve(file, text=text)
    except ConfigError:
        return False
    return compare(found, target) == ([], []) and _plain_same(found, target, name)


def _plain_same(one: Resolved, other: Resolved, name: str) -> bool:
    """Of options that `compare` leaves out, or takes for the same in two spellings, the value itself."""
    option = table().get(name)
    if option is None:
        return True
    left, right = getattr(one.config, name), getattr(other.config, name)
    return bool(left == right or (not left and not right) or compare(one, other) == ([], []))


def _candidates(before: Resolved, target: Resolved, text: str, name: str, value: str) -> Iterator[str]:
    """Texts that may say it, those that change least first."""
    is_json = text.lstrip("\ufeff \t\r\n").startswith("{")
    if before.draft.format in FORMS and is_json:
        yield from _in_form(before, target, text, name, value)
    elif before.draft.format not in ("lora", "dataset") and before.draft.format is not None:
        try:
            yield from (_in_json if is_json else _in_toml)(before, text, name, value)
        except ValueError:  # a script, or another text without keys and values
            return


def _in_form(before: Resolved, target: Resolved, text: str, name: str, value: str) -> Iterator[str]:
    from launcher.about.convert import form_text
    from launcher.formats.kohya_gui import keys

    option, rows = table().get(name), keys()
    if option is None:
        row = rows.get(name)
        yield put(text, name, _typed(row.type if row else "str", value))
        return
    typed, _ = read_value(option, value)
    setting = before.settings.get(name)
    named = [setting.key] if setting and setting.key else []
    named += [key for key, row in rows.items() if row.argument == name and row.current and row.role == "argument"]
    for key in dict.fromkeys(named):
        if key in rows and rows[key].role == "argument":
            yield put(text, key, _for_form(rows[key].type, rows[key].default, typed, value))
    if option.kit:
        yield _kept_by_us(text, name, list(typed) if isinstance(typed, tuple) else typed, option.default)
    words = str(before.draft.carry.get("form", {}).get("additional_parameters") or "")
    more = _without(words, name)
    if typed not in (option.default, None, False) and not option.many:
        more = f"{more} --{name}".strip() if typed is True else f"{more} --{name}={value.strip()}".strip()
    if more != words:
        yield put(text, "additional_parameters", more)
    form, _ = form_text(target)
    whole, old = _document(form), before.draft.carry.get("form", {})
    changed = {key: one for key, one in whole.items() if key in old and old[key] != one and not rows[key].secret}
    patched = text
    for key, one in changed.items():
        patched = put(patched, key, one)
    yield patched
    present = set(_document(text))
    for key, one in whole.items():
        patched = put(patched, key, one) if key not in present else patched
    yield patched


def _document(text: str) -> dict[str, Any]:
    from launcher.formats.kohya_gui.document import parse

    return parse(text).values


def _typed(kind: str, value: str) -> Any:
    if kind == "bool" or value in ("true", "false"):
        return value.strip().lower() in ("true", "1")
    if kind in ("int", "float"):
        try:
            return int(value) if value.lstrip("+-").isdigit() else float(value)
        except ValueError:
            return value
    return value


def _for_form(kind: str, default: Any, typed: Any, value: str) -> Any:
    """A value as the form keeps it: 0 and "" for unset."""
    if kind == "bool":
        return bool(typed)
    if kind in ("int", "float"):
        if isinstance(typed, (list, tuple)):
            typed = typed[0] if len(typed) == 1 else None
        return default if typed is None and default else typed or 0
    if typed is None or typed is False:
        return ""
    return " ".join(map(str, typed)) if isinstance(typed, (list, tuple)) else str(value).strip() or str(typed)


def _without(words: str, name: str) -> str:
    """The free text of a form without an option and its value."""
    return re.sub(rf"(?<!\S)--{re.escape(name)}(?:=\S*|(?:\s+(?!--)\S+)*)?(?=\s|$)", "", words).strip()


def _kept_by_us(text: str, name: str, value: Any, default: Any) -> str:
    """Options of our own stand in our own entry, which the form passes over."""
    kept = _document(text).get(SNAPSHOT)
    kept = dict(kept) if isinstance(kept, Mapping) else {}
    arguments = dict(kept.get("arguments") or {})
    arguments.pop(name, None)
    if value != default:
        arguments[name] = value
    return put(text, SNAPSHOT, {**kept, "arguments": arguments})


def put(text: str, key: str, value: Any) -> str:
    """A JSON object's text with one top-level value replaced, or a key added after the last one.

    Of a key that stands there twice the last one counts, so that one is replaced.
    """
    said = json.dumps(value, ensure_ascii=False)
    places, end = _places(text)
    if key in places:
        start, stop = places[key]
        return text[:start] + said + text[stop:]
    head = re.search(r"\{([ \t]*\r?\n[ \t]*)?", text)
    indent = (head[1] or " ") if head else " "
    entry = f"{json.dumps(key, ensure_ascii=False)}: {said}"
    if not places:
        return text[:end] + f"{indent}{entry}" + ("\n" if "\n" in indent else " ") + text[end:].lstrip()
    return text[:end] + f",{indent}{entry}" + text[end:]


def _places(text: str) -> tuple[dict[str, tuple[int, int]], int]:
    """(key -> where its value stands, where a further key goes) of the top level."""
    places: dict[str, tuple[int, int]] = {}
    at = skip_white(text, text.index("{") + 1)
    last = at
    while text[at : at + 1] == '"':
        key, at = DECODER.raw_decode(text, at)
        at = skip_white(text, skip_white(text, at) + 1)
        _, stop = DECODER.raw_decode(text, at)
        places[key] = (at, stop)
        last, at = stop, skip_white(text, stop)
        if text[at : at + 1] == ",":
            at = skip_white(text, at + 1)
    return places, last


def _in_json(before: Resolved, text: str, name: str, value: str) -> Iterator[str]:
    option, setting = table().get(name), before.settings.get(name)
    typed = read_value(option, value)[0] if option is not None else _typed("str", value)
    typed = list(typed) if isinstance(typed, tuple) else typed
    yield put(text, (setting.key if setting and setting.key else None) or name, typed)


def _in_toml(before: Resolved, text: str, name: str, value: str) -> Iterator[str]:
    """One line changed, taken out, or added where such keys may stand."""
    import toml

    from schemas.files.documents import parse_toml

    parse_toml(text)
    option, setting = table().get(name), before.settings.get(name)
    key = (setting.key if setting and setting.key else name).rpartition(".")[2]
    line = ""
    if option is not None and value != "":
        typed, _ = read_value(option, value)
        line = toml.dumps({key: list(typed) if isinstance(typed, tuple) else typed})
    elif option is None:
        line = toml.dumps({key: value})
    one = re.compile(rf"""^[ \t]*(["']?){re.escape(key)}\1[ \t]*=.*(?:\r?\n|\Z)""", re.M)
    found = list(one.finditer(text))
    for last in reversed(found):  # the last one counts where tables are merged; in other dialects only one is read
        comment = re.search(r"""[ \t]+#[^"'\n]*$""", last[0].rstrip("\r\n")) if line else None
        fresh = line.rstrip("\n") + (comment[0] if comment else "") + "\n" if line else ""
        yield text[: last.start()] + fresh + text[last.end() :]
    if not line:
        return
    places = [len(text), *(table_.start() for table_ in re.finditer(r"^[ \t]*\[", text, re.M))]
    for at in (min(places), *sorted(places, reverse=True)[:12]):
        head = text[:at]
        yield head + ("" if not head or head.endswith("\n") else "\n") + line + text[at:]


def _other_format(target: Resolved, file: str, name: str, beside: Path) -> Edit:
    """The whole config written anew, where its own format cannot say the change or is not one that we write."""
    from launcher.about.convert import convert
    from launcher.run.files import write_text

    tried: list[tuple[int, Edit, dict[Path, str]]] = []
    for kind in ("snapshot", "sd-scripts"):
        place = beside / Path(file).with_suffix(".json" if kind == "snapshot" else ".toml").name
        while any((beside / f"{place.stem}{ending}").exists() for ending in ("-dataset.toml", "-prompts.txt")):
            place = place.with_stem(f"{place.stem}-2")
        written = convert(target, kind, beside=place)
        files = {place.with_name(f"{place.stem}{ending}"): more for ending, more in written.beside.items()}
        if not same(written.text, place.name, target, name) and not written.lost and not files:
            continue
        lost = (*written.lost, *_dropped(target, written.text, place.name))
        tried.append((len(written.lost), Edit(written.text, place.name, lost), files))
    if not tried:
        must = "cannot be said in this file's format"
        raise error("cannot-say", must, key=name, fix="edit the text, or download it as TOML and open that")
    _, best, files = min(tried, key=lambda one: one[0])
    for path, more in files.items():
        write_text(path, more)
    return best


def _dropped(target: Resolved, text: str, file: str) -> Iterator[str]:
    """Keys of the old file that trained nothing, and so are not in the new one."""
    try:
        kept = resolve(file, text=text).draft.keys
    except ConfigError:
        return
    for key, fate in target.draft.keys.items():
        if fate.argument is None and key not in kept:
            yield f"{key}: {fate.why or fate.status}"


def hidden(text: str) -> tuple[str, list[str]]:
    """A text with *** for everything that looks like a secret, and those in their order."""
    spans = [found.span("value") for found in NAMED.finditer(text)]
    tokens = [found.span() for found in TOKEN.finditer(text)]
    spans += [one for one in tokens if not any(start <= one[0] < stop for start, stop in spans)]
    shown: list[str] = []
    secrets: list[str] = []
    at = 0
    for start, stop in sorted(spans):
        if text[start:stop] == "***":
            continue
        shown += [text[at:start], "***"]
        secrets.append(text[start:stop])
        at = stop
    return "".join([*shown, text[at:]]), secrets


def restored(text: str, before: str) -> str:
    """The text of an editor with the secrets put back that `hidden` took out of `before`."""
    shown, secrets = hidden(before)
    if not secrets:
        return text
    parts = text.split("***")
    if len(parts) != len(secrets) + 1 or shown.count("***") != len(secrets):
        must = "stands for a secret of the file, and must stay where it is"
        raise error("secret-moved", must, got="***", fix="put every *** back, or undo")
    return "".join(part + secret for part, secret in zip(parts, [*secrets, ""], strict=True))
