"""training_config.toml of the kohya-colab notebooks (and of Linaqruf's kohya-trainer): sections of sd-scripts names.

Facts: format notes section 6. Nothing is renamed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from launcher.formats import sd_scripts
from launcher.formats.base import DraftBuilder


def read(text: str, *, file: str | None = None, overrides: Mapping[str, Any] | None = None) -> DraftBuilder:
    """The draft of such a file; SD1.5 and XL notebooks differ in the sections they write."""
    draft = sd_scripts.read(text, file=file, overrides=overrides)
    draft.format = "kohya-colab"
    return draft
