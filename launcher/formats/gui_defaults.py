"""The Kohya GUI's own defaults file (config.toml): sections of form fields, not trainer arguments."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from launcher.formats import toml_text
from launcher.formats.base import Draft
from schemas.problems import Problem

# sections about windows, other tabs and the preparing of pictures
OTHER_SECTIONS = (
    "settings", "server", "configuration", "dreambooth", "finetune", "textual_inversion", "dataset_preparation",
    "wd14_caption", "basic_caption", "blip_caption", "blip2_caption", "git_caption", "group_images", "manual_caption",
    "convert_lcm", "convert_model", "extract_lora", "merge_lora", "resize_lora", "verify_lora", "merge_lycoris",
    "extract_lycoris_locon", "svd_merge_lora", "extract_dylora",
)  # fmt: skip


def read(text: str, *, file: str | None = None, overrides: Mapping[str, Any] | None = None) -> Draft:
    """The draft of the form that such a file fills in, read as a form JSON."""
    from launcher.formats import kohya_gui

    document = toml_text.parse(text, file)
    fields: dict[str, Any] = {}
    for name, value in document.values.items():
        if name not in OTHER_SECTIONS:
            fields.update(value if isinstance(value, Mapping) else {name: value})
    for panel in (value for value in document.values.get("lora", {}).values() if isinstance(value, Mapping)):
        fields.update(panel)
    plain = {name: value for name, value in fields.items() if isinstance(value, (str, int, float, bool))}
    draft = kohya_gui.read(json.dumps(plain, indent=1), file=file, overrides=dict(overrides or {}))
    draft.kind = "lora"
    draft.problems = [problem for problem in draft.problems if problem.code != "not-a-lora-preset"]
    draft.lines = {name: document.lines[name] for name in draft.keys if name in document.lines}
    must = "is the GUI's file of defaults; its fields are read as a form, and arguments are computed from them"
    draft.problems = [
        *document.problems,
        Problem(code="gui-defaults", severity="note", must=must, file=file),
        *(dataclasses.replace(problem, line=draft.lines.get(problem.key or "")) for problem in draft.problems),
    ]
    return draft
