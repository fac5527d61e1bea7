"""The Kohya GUI's own defaults file (config.toml): sections of form fields, not trainer arguments."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

from launcher.formats import toml_text
from launcher.formats.base import DraftBuilder, Fate
from schemas.problems import Problem

# sections about windows, other tabs and the preparing of pictures
OTHER_SECTIONS = (
    "settings", "server", "configuration", "dreambooth", "finetune", "textual_inversion", "dataset_preparation",
    "wd14_caption", "basic_caption", "blip_caption", "blip2_caption", "git_caption", "group_images", "manual_caption",
    "convert_lcm", "convert_model", "extract_lora", "merge_lora", "resize_lora", "verify_lora", "merge_lycoris",
    "extract_lycoris_locon", "svd_merge_lora", "extract_dylora",
)  # fmt: skip
# fields that the file spells otherwise than a form JSON, by section ("" is any)
FIELDS = {
    "": {"lora_type": "LoRA_type", "lycoris_preset": "LyCORIS_preset", "flux1": "flux1_checkbox",
         "sd3": "sd3_checkbox"},
    "huggingface": {name: f"huggingface_{name}" for name in
                    ("repo_id", "token", "repo_type", "repo_visibility", "path_in_repo")},
    "sd3": {name: f"sd3_{name}" for name in
            ("text_encoder_batch_size", "clip_l_dropout_rate", "t5_dropout_rate", "enable_scaled_pos_embed")},
}  # fmt: skip
# folders that the window opens first, and which of its parts are unfolded
WINDOW = re.compile(r"(models|vae|state|log_tracker_config|config|.*_data)_dir$|expand_\w*accordion$")


def read(text: str, *, file: str | None = None, overrides: Mapping[str, Any] | None = None) -> DraftBuilder:
    """The draft of the form that such a file fills in, read as a form JSON."""
    from launcher.formats import kohya_gui

    document = toml_text.parse(text, file)
    fields, names = _fields(document.values)
    plain = {name: value for name, value in fields.items() if isinstance(value, (str, int, float, bool))}
    known = kohya_gui.keys()
    window = [name for name in plain if name not in known and WINDOW.match(name)]
    form = {name: value for name, value in plain.items() if name not in window}
    draft = kohya_gui.read(json.dumps(form, indent=1), file=file, overrides=dict(overrides or {}))
    for name in window:
        draft.keys[name] = Fate("gui-only", None, None, "for the GUI's window only")
    draft.kind = "lora"
    draft.problems = [problem for problem in draft.problems if problem.code != "not-a-lora-preset"]
    draft.lines = {
        name: document.lines[names.get(name, name)] for name in draft.keys if names.get(name, name) in document.lines
    }
    must = "is the GUI's file of defaults; its fields are read as a form, and arguments are computed from them"
    draft.problems = [
        *document.problems,
        Problem(code="gui-defaults", severity="note", must=must, file=file),
        *(dataclasses.replace(problem, line=draft.lines.get(problem.key or "")) for problem in draft.problems),
    ]
    return draft


def _fields(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """(form fields, the file's own spelling of those that it spells otherwise)."""
    fields: dict[str, Any] = {}
    names: dict[str, str] = {}
    inner = values.get("lora")
    panels = inner.items() if isinstance(inner, Mapping) else ()
    for section, content in [*values.items(), *((name, panel) for name, panel in panels if isinstance(panel, Mapping))]:
        if section in OTHER_SECTIONS:
            continue
        for name, value in (content if isinstance(content, Mapping) else {section: content}).items():
            spelled = {**FIELDS[""], **FIELDS.get(section, {})}
            field = spelled[name] if name in spelled else str(name)
            if field != name:
                names[field] = name
            fields[field] = value
    return fields, names
