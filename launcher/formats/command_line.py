"""Command lines of sd-scripts as found in .sh, .bat, .ps1 and text files.

Scripts as their shell reads them (`launcher.formats.scripts`), pasted commands as people mean them; the words of
`accelerate launch` apart; of several commands the training one.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from launcher.formats import sd_scripts
from launcher.formats.base import Draft, Kind
from launcher.formats.scripts import bash, cmd, powershell
from launcher.formats.scripts.state import Command, Doubt, State, Unreadable, Word, merged
from schemas.config import Option, table
from schemas.files.textfile import CONFIG, read_text
from schemas.problems import Problem
from schemas.terminal import shell_words

SHELLS = (".sh", ".bat", ".cmd", ".ps1")
# script -> (family, kind); None: SD 1.x or 2.x, the checkpoint or v2 tells
SCRIPTS: dict[str, tuple[str | None, Kind]] = {
    "train_network.py": (None, "lora"),
    "sdxl_train_network.py": ("sdxl", "lora"),
    "sd3_train_network.py": ("sd3", "lora"),
    "flux_train_network.py": ("flux", "lora"),
    "lumina_train_network.py": ("lumina", "lora"),
    "hunyuan_image_train_network.py": ("hunyuan", "lora"),
    "anima_train_network.py": ("anima", "lora"),
    "train_db.py": (None, "dreambooth"),
    "fine_tune.py": (None, "finetune"),
    "sdxl_train.py": ("sdxl", "finetune"),
    "sd3_train.py": ("sd3", "finetune"),
    "flux_train.py": ("flux", "finetune"),
    "train_textual_inversion.py": (None, "textual-inversion"),
    "sdxl_train_textual_inversion.py": ("sdxl", "textual-inversion"),
}
ACCELERATE_FLAGS = (
    "multi_gpu", "cpu", "tpu", "use_deepspeed", "use_fsdp", "same_network", "quiet", "no_python", "debug",
    "dynamo_use_fullgraph", "dynamo_use_dynamic",
)  # fmt: skip
VARIABLE = re.compile(r"\$\{?(?:env:)?([A-Za-z_]\w*)\}?|%([A-Za-z_]\w*)%|\$\(([A-Za-z_]\w*)\)", re.I)
LONGEST = 300  # characters of a word that can be a path
STOP = ("|", "||", "&&", "&", ";", ">", ">>", "2>&1", "<")


UNSET = "is a variable that the file does not set"
FILL_IN = "write the command with the value that it has when you run it"
MOST_DOUBTS = 50
SECRET = re.compile(r"token|secret|passw|api_?key|wandb_?key", re.I)
NOT_A_VALUE = re.compile(r"[\"']?[$%]|-|(?:if|not|exist|test|equ|neq)\Z|(?=.*(?:" + SECRET.pattern + r"))\w+\Z|:", re.I)
OF_SUFFIX = {".sh": "bash", ".ps1": "powershell", ".bat": "cmd", ".cmd": "cmd"}
READERS: dict[str, Callable[[str], State]] = {"bash": bash.read, "powershell": powershell.read, "cmd": cmd.read}
SIGNS = (
    ("bash", re.compile(r"\A#!.*sh\b")),
    ("powershell", re.compile(r"^\s*(\[\w.]+\])?\$[\w:]+(\.\w+\(|\s*\+?=)", re.M)),
    ("cmd", re.compile(r"^\s*@?(set\s+\"?\w+\"?=|rem\b|echo off)", re.M | re.I)),
    ("bash", re.compile(r"^[ \t]*(export\s+)?[A-Za-z_]\w*\+?=|^[ \t]*(if|for|while|case)\s|&&|\$\{?\w+\[", re.M)),
)


def is_command_line(text: str, file: str | None = None) -> bool:
    """Whether `text` is a command or a script with one, and not a document."""
    start = text.lstrip()
    if start.startswith("{"):
        return False
    if file and Path(file).suffix.lower() in SHELLS:
        return True
    code = "\n".join(line for line in text.split("\n") if not line.lstrip().startswith(("#", "rem ", "REM ", "::")))
    if re.search(r"\baccelerate(\.exe)?\s+launch\b|\bpython[\d.]*\s+\S*train_\w*\.py|^\S*train_network\.py\b", code):
        return not re.search(r"^\s*\[[\w.]+\]\s*$", code, re.M)
    flags = set(re.findall(r"(?:^|\s)--([a-z][a-z0-9_]*)", code))
    return len(flags & set(table())) >= 2 and not re.search(r"^\s*[a-z_]\w*\s*=\s", code, re.M)


def read(text: str, *, file: str | None = None, overrides: Mapping[str, Any] | None = None) -> Draft:
    """The draft of the training command in `text`. `overrides` are ignored: this format has no keys of its own."""
    draft = Draft(format="sd-scripts", file=file)
    commands = _commands(text, draft)
    training = [command for command in commands if _script(command.words) is not None]
    if not training and shell_of(text, file) is None:
        training = [command for command in commands if any(word.text.startswith("--") for word in command.words)]
    if not training:
        _add(draft, "no-command", "holds no training command", fix="paste the whole `accelerate launch ...` line")
        return draft
    command = training[0]
    words = command.words
    if len(training) > 1:
        _add(
            draft,
            "several-commands",
            f"holds {len(training)} training commands; the first, in line {words[0].line}, is read and the others, in "
            f"{_lines(training[1:])}, are not",
            line=training[1].words[0].line,
            fix="keep one command a file",
        )
    place = _script(words)
    if place is not None:
        draft.accelerate = _accelerate(words[:place])
    arguments = words if place is None else words[place + 1 :]
    _name_doubts(draft, command)
    _lost_options(draft, commands)
    if shell_of(text, file) == "bash":
        _lost_backslashes(draft, arguments)
    _parse(draft, arguments)
    if not draft.keys and not draft.problems:
        _add(
            draft,
            "no-options",
            "gives the training script no option",
            fix="paste the whole command",
            line=words[0].line,
        )
    _config_file(draft)
    script = Path(words[place].text.replace("\\", "/")).name if place is not None else ""
    family, kind = SCRIPTS.get(script, (None, "lora"))
    said_family, said_kind = sd_scripts.family_and_kind(draft)
    draft.family = family or said_family
    draft.kind = kind if kind != "lora" else said_kind if not script else "lora"
    return draft


def shell_of(text: str, file: str | None = None) -> str | None:
    """Whose script `text` is: bash, powershell, cmd, or None for a command that was only pasted."""
    shell = OF_SUFFIX.get(Path(file).suffix.lower()) if file else None
    if shell:
        return shell
    return next((shell for shell, sign in SIGNS if sign.search(text)), None)


def _commands(text: str, draft: Draft) -> list[Command]:
    """The commands of a script as its shell would run them, or of a pasted text."""
    reader = READERS.get(shell_of(text, draft.file) or "")
    if reader is not None:
        try:
            return reader(text).commands
        except Unreadable as fault:
            _add(
                draft,
                "undecided-script",
                f"cannot be read as a script: {fault.why}",
                line=fault.line,
                fix="mend this place, or keep only the training command with its values filled in",
            )
    found = []
    for line, number in _logical_lines(text):
        found += [Command(_with_doubts(words)) for words in _until_stop(_split(line, number)) if words]
    return found


def _with_doubts(words: list[Word]) -> list[Word]:
    """Names of variables in a pasted command are open."""
    return [
        replace(word, doubts=tuple(Doubt(name, UNSET, word.line, variable=True) for name in _names(word.text)))
        for word in words
    ]


def _name_doubts(draft: Draft, command: Command) -> None:
    """What only running the script decides is an error each, named at its place."""
    for doubt in merged([command.doubts, *(word.doubts for word in command.words)])[:MOST_DOUBTS]:
        _add(
            draft,
            "unresolved-variable" if doubt.variable else "undecided-script",
            f"{doubt.why}; the training command depends on it",
            got=_without_secrets(doubt.got),
            line=doubt.line,
            fix="put the value in its place" if doubt.variable else FILL_IN,
        )


def _without_secrets(got: str) -> str:
    """What a doubt is about, without the values that a variable of a secret is compared with or falls back to."""
    if not SECRET.search(got):
        return got
    got = re.sub(r"(:?[-=+?])[^}\s]*\}", r"\1***}", got)
    return re.sub(r"[^\s=!<>\[\](){}*]+", lambda word: word[0] if NOT_A_VALUE.match(word[0]) else "***", got)


def _lost_backslashes(draft: Draft, words: Sequence[Word]) -> None:
    """bash drops the backslashes of a Windows path without quotes; what is left is no path that anybody meant."""
    for word in words:
        if re.match(r"(--\w+=)?[A-Za-z]:[\w.]", word.text):
            _add(
                draft,
                "lost-backslashes",
                "looks like a Windows path without its backslashes: bash drops them outside quotes",
                severity="warning",
                got=word.text,
                line=word.line,
                fix="put the path into single quotes",
            )


def _lost_options(draft: Draft, commands: list[Command]) -> None:
    """Options that begin a line of their own, which the shell takes for a command."""
    for command in commands:
        first = command.words[0]
        if first.text.startswith("--") and _script(command.words) is None and shell_of("", draft.file):
            _add(
                draft,
                "undecided-script",
                "stands after the end of the training command, so the shell does not pass it",
                got=first.text,
                line=first.line,
                fix="end the line before it with the sign that continues a line, without a comment between",
            )


def _add(draft: Draft, code: str, must: str, **facts: Any) -> None:
    draft.problems.append(Problem(code=code, must=must, file=draft.file, **facts))


def _lines(commands: Sequence[Command]) -> str:
    numbers = [str(command.words[0].line) for command in commands[:10]]
    return f"line{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}"


def _logical_lines(text: str) -> list[tuple[str, int]]:
    """(line with its continuations, each after a line end, without comments; its first number)."""
    found: list[tuple[list[str], int]] = []
    open_ended = False
    for number, line in enumerate(text.split("\n"), 1):
        bare = line.strip()
        if re.match(r"(#|::|rem\b|@?echo\b|//)", bare, re.I):
            continue
        goes_on = bare.endswith(("\\", "^", "`")) and not bare.endswith("\\\\")
        bare = bare[:-1].rstrip() if goes_on else bare
        # a command also goes on with lines that are nothing but options
        if found and (open_ended or bare.startswith("--")):
            lines, first = found[-1]
            lines += [""] * (number - first - len(lines)) + [bare]
        elif bare:
            found.append(([bare], number))
        open_ended = goes_on
    return [("\n".join(lines), first) for lines, first in found]


def _split(line: str, number: int) -> list[Word]:
    """Words of a line; quotes group, a backslash escapes only quotes and blanks (Windows paths keep theirs)."""
    words: list[Word] = []
    word, quote, begun, quoted = "", "", False, False
    place, here = 0, number
    while place < len(line):
        letter = line[place]
        if (
            letter == "\\"
            and line[place + 1 : place + 2] in ('"', "'", " ")
            and quote != "'"
            and not _ends_path(line, place, quote)
        ):
            word, begun, place = word + line[place + 1], True, place + 2
            continue
        if quote:
            quote, word = ("", word) if letter == quote else (quote, word + letter)
        elif letter in "\"'":
            quote, begun, quoted = letter, True, True
        elif letter.isspace():
            if begun:
                words.append(Word(word, here, quoted))
            word, begun, quoted = "", False, False
            number += letter == "\n"
            here = number
        else:
            word, begun = word + letter, True
        place += 1
    return [*words, Word(word, here, quoted)] if begun else words


def _ends_path(line: str, place: int, quote: str) -> bool:
    """Whether the backslash before a closing quote or blank is the end of a Windows path such as "D:\\x\\"."""
    before = re.split(r"[\s\"'=]", line[max(0, place - LONGEST) : place])[-1]
    following = line[place + 1 : place + 2]
    if not re.match(r"[A-Za-z]:|\\\\|\.", before) and "\\" not in before:
        return False
    return following == " " or (following == quote and line[place + 2 : place + 3] in ("", " "))


def _names(text: str) -> list[str]:
    return [match[0] for match in VARIABLE.finditer(text)]


def _until_stop(words: list[Word]) -> list[list[Word]]:
    """One list a command: split at ; && | and redirections."""
    found: list[list[Word]] = [[]]
    skip = False
    for word in words:
        if not word.quoted and (word.text in STOP or word.text.endswith(";")):
            if word.text not in STOP:
                found[-1].append(Word(word.text.rstrip(";"), word.line))
            skip = word.text in (">", ">>", "<", "2>&1")
            if not skip:
                found.append([])
        elif not skip:
            found[-1].append(word)
    return found


def _script(words: Sequence[Word]) -> int | None:
    """Where the training script stands, or `-m trainer`'s module."""
    for place, word in enumerate(words):
        name = word.text.replace("\\", "/").rpartition("/")[2]
        if name in SCRIPTS or (name == "trainer" and place and words[place - 1].text in ("-m", "--module")):
            return place
    return None


def _accelerate(words: Sequence[Word]) -> dict[str, Any]:
    """`accelerate launch` options by name; flags are True."""
    found: dict[str, Any] = {}
    place = next((index + 1 for index, word in enumerate(words) if word.text == "launch"), len(words))
    while place < len(words):
        text = words[place].text
        place += 1
        if not text.startswith("--"):
            continue
        name, sign, value = text[2:].partition("=")
        name = name.replace("-", "_")
        if sign:
            found[name] = value
        elif name in ACCELERATE_FLAGS or place >= len(words) or words[place].text.startswith("--"):
            found[name] = True
        else:
            found[name] = words[place].text
            place += 1
    found.pop("module", None)
    return found


def _parse(draft: Draft, words: Sequence[Word]) -> None:
    """Options as argparse takes them: --name value, --name=value, unambiguous beginnings, lists, the last one wins."""
    place = 0
    while place < len(words):
        word = words[place]
        place += 1
        if not word.text.startswith("--"):
            if word.text.strip():
                draft.problems.append(
                    Problem(
                        code="stray-word",
                        severity="warning",
                        got=word.text,
                        must="belongs to no option and is passed over",
                        file=draft.file,
                        line=word.line,
                        fix="put values with blanks into quotes",
                    )
                )
            continue
        given, sign, value = word.text[2:].partition("=")
        name = _full_name(draft, given, word.line)
        option = table().get(name)
        values = [value] if sign else []
        most = (
            0
            if sign or (option is not None and option.kind is bool)
            else 1
            if option is not None and not option.many
            else len(words)
        )
        while place < len(words) and len(values) < most and not _is_option(words[place].text):
            values.append(words[place].text)
            place += 1
        _file(draft, option, name, values, word.line)


def _file(draft: Draft, option: Option | None, name: str, values: list[str], line: int) -> None:
    if option is not None and option.kind is not bool and not option.many and not values:
        draft.problems.append(
            Problem(
                code="no-value", must="has no value", key=name, file=draft.file, line=line, fix=f"write --{name} VALUE"
            )
        )
        return
    value: Any = values if option is None or option.many else (values[0] if values else True)
    sd_scripts.place(draft, name, value, line)


def _is_option(text: str) -> bool:
    return text.startswith("--") or (text.startswith("-") and not re.match(r"-\.?\d", text) and len(text) > 1)


def _full_name(draft: Draft, given: str, line: int) -> str:
    options = table()
    if given in options:
        return given
    longer = _beginning_with(given)
    if len(longer) == 1 and given:
        draft.problems.append(
            Problem(
                code="abbreviated-option",
                severity="note",
                key=longer[0],
                got=f"--{given}",
                must=f"is short for --{longer[0]}",
                file=draft.file,
                line=line,
            )
        )
        return longer[0]
    return given


@functools.lru_cache(maxsize=4096)
def _beginning_with(given: str) -> tuple[str, ...]:
    """The options of the reference whose names begin so; a script may hold a hundred thousand words."""
    return tuple(name for name, option in table().items() if name.startswith(given) and not option.kit)


def _config_file(draft: Draft) -> None:
    """Lays the command line over the TOML that it names, as sd-scripts does."""
    named = draft.arguments.pop("config_file", None)
    if named is None:
        return
    name = str(named.value)
    path = Path(name if name.endswith(".toml") else f"{name}.toml")
    if not path.is_absolute() and draft.file and not path.is_file():
        path = Path(draft.file).parent / path
    if not path.is_file():
        draft.problems.append(
            Problem(
                code="no-config-file",
                key="config_file",
                got=name,
                must="names a file that is not there; its options are missing",
                file=draft.file,
                line=draft.lines.get("config_file"),
                fix="correct the path",
            )
        )
        return
    inner = sd_scripts.read(read_text(path, limit=CONFIG, what="config file"), file=str(path))
    draft.arguments = {**inner.arguments, **draft.arguments}
    draft.keys = {**inner.keys, **draft.keys}
    draft.lines = {**{key: line for key, line in inner.lines.items() if key not in draft.keys}, **draft.lines}
    draft.problems += inner.problems


def write(arguments: Mapping[str, Any], *, launch: Sequence[str] = ("accelerate", "launch", "-m", "trainer")) -> str:
    """One command line that says `arguments` (sd-scripts names); unset ones and secrets are left out."""
    return shell_words([*launch, *words(arguments)])


def words(arguments: Mapping[str, Any]) -> list[str]:
    """The options of `arguments` as command-line words, sorted by name."""
    options, found = table(), []
    for name, value in sorted(arguments.items()):
        option = options.get(name)
        if (
            value is None
            or value is False
            or (option is not None and option.secret)
            or (option and option.many and not value)
        ):
            continue
        found.append(f"--{name}")
        if isinstance(value, (list, tuple)):
            found += [str(item) for item in value]
        elif option is not None and option.marks.get("ratio") and isinstance(value, float) and value == 1:
            found.append("100%")  # sd-scripts refuses 1.0 as a word
        elif value is not True:
            found[-1] += f"={value}" if str(value).startswith("-") else ""
            found += [] if str(value).startswith("-") else [str(value)]
    return found
