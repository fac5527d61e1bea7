"""The dataset_config file itself (TOML or JSON): it describes pictures only, everything else has the trainer's default.

Facts: reference section 2.6.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from launcher.formats import json_text, toml_text
from launcher.formats.base import DraftBuilder, Fate
from launcher.formats.registry import Keys
from schemas.datasets import SETTINGS, Level, Setting, may_stand
from schemas.problems import Problem

LEVELS: tuple[Level, ...] = ("dataset", "subset")


def read(text: str, *, file: str | None = None, overrides: Mapping[str, Any] | None = None) -> DraftBuilder:
    """The draft of a dataset file: `DraftBuilder.datasets` is the document. `overrides` are ignored."""
    draft = DraftBuilder(format="dataset", file=file)
    if text.lstrip().startswith("{"):
        values = json_text.parse(text, file)
    else:
        document = toml_text.parse(text, file)
        values, draft.lines, draft.problems = document.values, document.lines, document.problems
    judge(draft, values)
    draft.document = values
    draft.datasets = {name: value for name, value in values.items() if name != "$schema"}
    return draft


def judge(draft: DraftBuilder, values: Mapping[str, Any], prefix: str = "") -> None:
    """A fate for every key of a dataset document, by its dotted path."""
    for name, value in values.items():
        path = f"{prefix}{name}"
        if name == "general" and isinstance(value, Mapping):
            _table(draft, path, value, may_stand("dataset"))
        elif name == "datasets" and isinstance(value, list):
            for place, dataset in enumerate(value):
                _dataset(draft, f"{path}.{place}", dataset)
        elif name == "datasets":
            _dataset(draft, path, None)
        elif path == "$schema":
            draft.keys[path] = Fate("gui-only", None, None, "tells editors the schema")
        else:
            _unknown(draft, path, name, dict.fromkeys(("general", "datasets")))


def _dataset(draft: DraftBuilder, path: str, dataset: Any) -> None:
    if not isinstance(dataset, Mapping):
        draft.problems.append(
            Problem(
                code="bad-value",
                key=path,
                got=dataset,
                must="must be a table",
                file=draft.file,
                line=draft.lines.get(path),
                fix="write [[datasets]]",
            )
        )
        return
    _table(draft, path, {name: value for name, value in dataset.items() if name != "subsets"}, may_stand("dataset"))
    subsets = dataset.get("subsets")
    for place, subset in enumerate(subsets if isinstance(subsets, list) else []):
        if isinstance(subset, Mapping):
            _table(draft, f"{path}.subsets.{place}", subset, may_stand("subset"))
    if not subsets:
        draft.problems.append(
            Problem(
                code="no-subsets",
                key=path,
                must="has no [[datasets.subsets]]",
                file=draft.file,
                line=draft.lines.get(path),
                fix="add one with image_dir and num_repeats",
            )
        )


def _table(draft: DraftBuilder, path: str, values: Mapping[str, Any], known: Mapping[str, Setting]) -> None:
    for name, value in values.items():
        if name in known and known[name].idle:
            draft.keys[f"{path}.{name}"] = Fate("no-effect", None, value, known[name].idle)
        elif name in known:
            draft.keys[f"{path}.{name}"] = Fate("used", None, value)
        else:
            _unknown(draft, f"{path}.{name}", name, known)


def _unknown(draft: DraftBuilder, path: str, name: str, known: Iterable[str]) -> None:
    """The reference refuses any key that its schema does not hold; so an error."""
    places = {f"a {level}": may_stand(level) for level in LEVELS}
    right = [place for place, names in places.items() if name in names]
    guess = draft.guess(name, known)
    fix = f"move it to {right[-1]}" if right else f"did you mean {guess}?" if guess else f"remove {name}"
    draft.keys[path] = Fate("no-effect" if right else "unknown", None, None, fix)
    draft.problems.append(
        Problem(
            code="unknown-key",
            key=path,
            must="is not a key that a dataset file may hold here",
            file=draft.file,
            line=draft.lines.get(path),
            fix=fix,
        )
    )


def write(datasets: Mapping[str, Any]) -> str:
    """A dataset document as TOML."""
    import toml

    return toml.dumps(dict(datasets))


def documented() -> Keys:
    """The keys of a dataset file for the page of formats."""
    idle = {name: row.idle for name, row in SETTINGS.items() if row.idle}
    return Keys(used={"general", "datasets", "subsets", *(SETTINGS.keys() - idle.keys())}, idle=idle)
