"""Every format of config files, a row each: what it is, who reads and writes it, its keys, its JSON Schema.

Recognition, `explain`, `schema`, `convert` and the page of formats are loops over these rows. A row names functions as
"module:function", so that nothing is imported before it is used.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Keys:
    """The keys of one format by what becomes of them; `refused` and `idle` with the reason."""

    used: set[str] = field(default_factory=set)
    idle: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def known(self) -> int:
        return len(self.used | self.idle.keys() | self.refused.keys())

    @classmethod
    def arguments(cls, names: Iterable[str]) -> Keys:
        """Keys that are arguments under their own name."""
        found = cls()
        for name in names:
            found.add(name, name)
        return found

    def add(self, key: str, argument: str) -> None:
        """Files a key by what becomes of its argument."""
        from schemas.rules import UNSUPPORTED, WITHOUT_EFFECT

        if argument in UNSUPPORTED:
            self.refused[key] = UNSUPPORTED[argument]
        elif argument in WITHOUT_EFFECT:
            self.idle[key] = WITHOUT_EFFECT[argument]
        else:
            self.used.add(key)


@dataclass(frozen=True)
class Vocabulary:
    """What `explain` knows of a format's keys.

    `arguments`: keys that are an argument under another name. `meanings`: what is said of a key, text or a mapping of
    facts. `others`: further keys that can be asked for. `defaults`: argument -> what counts when a file is silent,
    where the format has an answer of its own.
    """

    arguments: Mapping[str, str] = field(default_factory=dict)
    meanings: Mapping[str, Any] = field(default_factory=dict)
    others: Iterable[str] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Format:
    """One format.

    `title` says what it is, `called` its short name in sentences. `recognises(text, file)` tells its files from any
    other's; formats without it are told apart in `launcher.formats.recognise`.

    `reader(text, *, file, overrides) -> Draft`; without one the format is only written. `keys() -> Keys` is for the
    page of formats, where `section` lists every key. `schema() -> dict` is its JSON Schema; `published`: as a file too.
    `faults(draft) -> problems` takes the place of plain validation against that schema. `vocabulary() -> Vocabulary`.

    `writer(resolved, beside) -> Written`. What it wrote is read again by the format `back` (default: itself).
    `counted`: it cannot leave the number of steps open. `elsewhere`: settings that it says otherwise than as arguments.
    `whole`: nothing is lost in it. `beside`: the format that it is written with, as a second file.
    """

    name: str
    title: str
    called: str = ""
    reader: str | None = None
    recognises: Callable[[str, str | None], bool] | None = None
    keys: str | None = None
    section: bool = False
    schema: str | None = None
    published: bool = False
    faults: str | None = None
    vocabulary: str | None = None
    writer: str | None = None
    back: str | None = None
    counted: bool = False
    elsewhere: tuple[str, ...] = ()
    whole: bool = False
    beside: str | None = None

    def part(self, name: str) -> Callable[..., Any]:
        """The function that the row names under `name`."""
        module, _, function = str(getattr(self, name)).partition(":")
        found: Callable[..., Any] = getattr(importlib.import_module(module), function)
        return found


FORMATS: dict[str, Format] = {}


def register(row: Format) -> None:
    """Makes a format known to the whole program; one of that name is replaced."""
    FORMATS[row.name] = row


def unregister(name: str) -> None:
    """Forgets a format, as tests do."""
    FORMATS.pop(name, None)


def having(part: str) -> dict[str, Format]:
    """The formats that have a reader, a writer, a schema, ..., in their order."""
    return {name: row for name, row in FORMATS.items() if getattr(row, part)}


def vocabularies() -> dict[str, Vocabulary]:
    """What `explain` knows of each format's keys."""
    return {name: row.part("vocabulary")() for name, row in having("vocabulary").items()}


for row in (
    Format(
        "kohya-gui", "Form JSON of the Kohya_ss GUI's LoRA tab, of any age; also its config.toml of defaults",
        called="Kohya GUI", reader="launcher.formats.kohya_gui:read", section=True,
        keys="launcher.formats.kohya_gui.fates:documented", schema="launcher.json_schemas:kohya_gui", published=True,
        faults="launcher.json_schemas:form_faults", vocabulary="launcher.formats.kohya_gui.table:vocabulary",
        writer="launcher.about.convert:to_kohya_gui",
    ),
    Format(
        "snapshot", "kohyakit's own: a form JSON with one more key, `kohyakit_snapshot`",
        reader="launcher.formats.kohya_gui:read", keys="launcher.formats.kohya_gui.fates:documented",
        schema="launcher.json_schemas:kohya_gui", faults="launcher.json_schemas:form_faults",
        writer="launcher.about.convert:to_snapshot", whole=True,
    ),
    Format(
        "sd-scripts", "Training TOML, or a command line in a text, .sh, .bat or .ps1 file", called="sd-scripts",
        reader="launcher.formats.sd_scripts:read", keys="launcher.formats.sd_scripts:documented", section=True,
        schema="launcher.json_schemas:sd_scripts", published=True, writer="launcher.about.convert:to_sd_scripts",
        counted=True,
    ),
    Format(
        "dataset", "dataset_config of sd-scripts, TOML or JSON", reader="launcher.formats.dataset_toml:read",
        keys="launcher.formats.dataset_toml:documented", section=True, schema="launcher.json_schemas:dataset",
        published=True, faults="launcher.json_schemas:dataset_faults", beside="sd-scripts",
    ),
    Format(
        "civitai", "Training parameters of CivitAI's on-site trainer, as people paste them",
        reader="launcher.formats.civitai:read", keys="launcher.formats.civitai:documented", section=True,
        schema="launcher.json_schemas:civitai", published=True, vocabulary="launcher.formats.civitai:vocabulary",
        writer="launcher.about.convert:to_civitai",
        elsewhere=("family", "save_every_n_epochs", "num_repeats", "gui_steps"),
    ),
    Format(
        "easy-training", "TOML and old JSON of LoRA_Easy_Training_Scripts",
        reader="launcher.formats.easy_training:read", keys="launcher.formats.easy_training:documented",
        vocabulary="launcher.formats.easy_training:vocabulary",
    ),
    Format(
        "lora-scripts", "TOML of lora-scripts (SD-Trainer)", reader="launcher.formats.lora_scripts:read",
        keys="launcher.formats.lora_scripts:documented",
    ),
    Format(
        "kohya-colab", "training_config.toml of the kohya-colab notebooks", reader="launcher.formats.kohya_colab:read",
        keys="launcher.formats.sd_scripts:documented",
    ),
    Format("lora", "Header of a LoRA file", reader="launcher.formats.lora_header:read",
           keys="launcher.formats.lora_header:documented"),
    Format("args", "sd-scripts' command line, as text", writer="launcher.about.convert:to_args", back="sd-scripts",
           counted=True),
):  # fmt: skip
    register(row)
