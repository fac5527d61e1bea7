"""A format of config files that the product does not know: a recipe, a line a key, `#recipe` in the first.

`register(FORMAT)` is all that makes it known.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launcher.about.convert import Written, arguments
from launcher.check.resolve import Resolved
from launcher.formats.base import Draft, Fate, Setting
from launcher.formats.registry import Format, Keys, Vocabulary
from schemas.problems import Problem, error, nearest

ARGUMENTS = {
    "base": "pretrained_model_name_or_path", "photos": "train_data_dir", "into": "output_dir", "size": "resolution",
    "width-of-lora": "network_dim", "rounds": "max_train_epochs", "speed": "learning_rate",
    "portion": "train_batch_size",
}  # fmt: skip
IDLE = {"cook": "the name of whoever wrote the recipe"}
TYPES = {"width-of-lora": "integer", "rounds": "integer", "portion": "integer", "speed": "number"}


def recognises(text: str, file: str | None) -> bool:
    return text.startswith("#recipe")


def read(text: str, *, file: str | None = None, overrides: Mapping[str, Any] | None = None) -> Draft:
    draft, document = Draft("recipe"), dict[str, Any]()
    for number, line in enumerate(text.splitlines(), 1):
        key, _, value = line.partition(" ")
        if not key or key.startswith("#"):
            continue
        if not value:
            raise error("not-a-recipe", "has a key without a value", key=key, file=file, fix="write KEY VALUE")
        draft.lines[key] = number
        document[key] = _number(value)
        if key in ARGUMENTS:
            draft.arguments[ARGUMENTS[key]] = Setting(value, "file", key)
            draft.keys[key] = Fate("renamed", ARGUMENTS[key], value)
        elif key in IDLE:
            draft.keys[key] = Fate("no-effect", None, None, IDLE[key])
        else:
            draft.keys[key] = Fate("unknown")
            guess = nearest(key, ARGUMENTS)
            draft.problems.append(
                Problem(code="unknown-key", severity="warning", must="is unknown", key=key, file=file, line=number,
                        fix=f"write {guess}" if guess else "remove it")
            )  # fmt: skip
    draft.document = document
    return draft


def _number(value: str) -> Any:
    try:
        return int(value)
    except ValueError:
        pass
    try:
        return float(value)
    except ValueError:
        return value


def write(resolved: Resolved, beside: Path | None) -> Written:
    names, lines, lost = {argument: key for key, argument in ARGUMENTS.items()}, ["#recipe"], []
    for name, value in arguments(resolved).items():
        if name in names:
            lines.append(f"{names[name]} {value}")
        else:
            lost.append(f"{name} = {value}: a recipe has no word for it")
    return Written("\n".join(lines) + "\n", ".recipe", {}, lost)


def keys() -> Keys:
    return Keys(set(ARGUMENTS), dict(IDLE))


def schema() -> dict[str, Any]:
    properties = {key: {"title": key, "type": TYPES.get(key, ["string", "number"])} for key in ARGUMENTS}
    return {"type": "object", "title": "a recipe", "properties": properties}


def vocabulary() -> Vocabulary:
    return Vocabulary(ARGUMENTS, {**IDLE, "size": "side of the images in a recipe"}, defaults={"network_dim": 2})


FORMAT = Format(
    "recipe", "A recipe of the tests' own", called="recipes", reader=f"{__name__}:read", recognises=recognises,
    keys=f"{__name__}:keys", section=True, schema=f"{__name__}:schema", vocabulary=f"{__name__}:vocabulary",
    writer=f"{__name__}:write",
)  # fmt: skip
