"""Files that are whole or not there, and the options that must not be in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from schemas.config import TrainConfig, table
from schemas.files.writing import write_atomically
from schemas.terminal import in_strings


def write_bytes(path: Path, data: bytes) -> None:
    """Temporary name, flush, rename."""
    write_atomically(path, lambda stream: stream.write(data))


def write_text(path: Path, text: str) -> None:
    """UTF-8, line ends as given."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, document: Any) -> None:
    """Indented, readable."""
    write_text(path, in_strings(json.dumps(document, indent=2, ensure_ascii=False, default=str)) + "\n")


def secrets_of(config: TrainConfig) -> dict[str, str]:
    """The options of a config that must never be written, by name."""
    return {
        name: str(getattr(config, name)) for name, option in table().items() if option.secret and getattr(config, name)
    }
