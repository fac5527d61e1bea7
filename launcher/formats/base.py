"""What a reader understood of a file of its format: the Draft, which `launcher.check.resolve` turns into a config."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from schemas.problems import Problem, nearest

Kind = Literal["lora", "dreambooth", "finetune", "textual-inversion"]
Status = Literal["used", "default", "renamed", "no-effect", "gui-only", "unknown", "other-family"]
Origin = Literal["file", "preset", "--set", "default", "computed", "adapted"]
MOST_GUESSES, LONGEST_NAME = 100, 100


@dataclass(frozen=True)
class Fate:
    """What became of one key of a file. `argument` is the sd-scripts name it reached, `value` the effective value."""

    status: Status
    argument: str | None = None
    value: Any = None
    why: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The Fate of `validate --json`."""
        return {"status": self.status, "argument": self.argument, "value": self.value, "why": self.why}


@dataclass(frozen=True)
class Setting:
    """One argument of the trainer: its value, who set it, and under which key of the file."""

    value: Any
    origin: Origin = "file"
    key: str | None = None


@dataclass(frozen=True)
class GuiSteps:
    """The GUI computes max_train_steps from the data: ceil(pictures x repeats / batch / accumulation x epoch x reg)."""

    epoch: float


@dataclass
class Draft:
    """A file as its reader understood it, before --set, disk and machine have their say.

    `arguments` hold sd-scripts names; a name that is absent has the trainer's default. `accelerate` holds the launch
    words by option name without dashes (`num_processes`, ...). `prompts` is prompt text that the file carries itself.
    `datasets` is a dataset_config document where the format describes data itself. `carry` keeps what only the
    format's own writer needs. `document` is the parsed file as the format's JSON Schema describes it, where it has one.
    """

    format: str
    file: str | None = None
    family: str | None = None
    kind: Kind = "lora"
    arguments: dict[str, Setting] = field(default_factory=dict)
    keys: dict[str, Fate] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    accelerate: dict[str, Any] = field(default_factory=dict)
    gui_steps: GuiSteps | None = None
    prompts: str | None = None
    datasets: Mapping[str, Any] | None = None
    carry: dict[str, Any] = field(default_factory=dict)
    document: Any = field(default=None, repr=False)
    guesses: int = 0

    def guess(self, name: str, known: Iterable[str]) -> str | None:
        """The known name most like `name`; a file with very many strange names is not puzzled over for ever."""
        self.guesses += 1
        return nearest(name, known) if self.guesses <= MOST_GUESSES and len(name) <= LONGEST_NAME else None
