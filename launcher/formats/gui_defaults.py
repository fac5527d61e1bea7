"""The Kohya GUI's own defaults file (config.toml): sections of form fields, not trainer arguments."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from launcher.formats import toml_text
from launcher.formats.base import Draft
from schemas.problems import Problem


def read(text: str, *, file: str | None = None, overrides: Mapping[str, Any] | None = None) -> Draft:
    """The draft of the form that such a file fills in, read as a form JSON."""
    from launcher.formats import kohya_gui

    document = toml_text.parse(text, file)
    fields: dict[str, Any] = {}
    for name, value in document.values.items():
        fields.update(value if isinstance(value, Mapping) else {name: value})
    plain = {name: value for name, value in fields.items() if isinstance(value, (str, int, float, bool))}
    draft = kohya_gui.read(json.dumps(plain, indent=1), file=file, overrides=dict(overrides or {}))
    draft.lines = {name: document.lines[name] for name in draft.keys if name in document.lines}
    must = "is the GUI's file of defaults; its fields are read as a form, and arguments are computed from them"
    draft.problems = [
        *document.problems,
        Problem(code="gui-defaults", severity="note", must=must, file=file),
        *(dataclasses.replace(problem, line=draft.lines.get(problem.key or "")) for problem in draft.problems),
    ]
    return draft
