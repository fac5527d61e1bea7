"""Files that are whole or not there, and text without secrets."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from schemas.config import TrainConfig, table
from schemas.files.writing import write_atomically
from schemas.terminal import in_strings

TOKEN = re.compile(r"\b(hf_[A-Za-z0-9]{16,}|sk-[\w-]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,})")
NAMED = re.compile(
    r"""(?P<name>(?:wandb_api_key|huggingface_token|wandbApiKey|api_key|hf_token|access_token|auth_token|password"""
    r"""|secret_access_key|access_key_id)["']?(?:\s*[=:]\s*|\s+(?=["']?[^\s"',}\d]*\d)))"""
    r"""(?P<quote>["']?)(?P<value>[^\s"',}]+)(?P=quote)"""
)


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


def blanked(document: Any) -> Any:
    """A document of JSON with everything in it that looks like a token replaced by ***."""
    if isinstance(document, str):
        return without_secrets(document)
    if isinstance(document, Mapping):
        return {name: blanked(value) for name, value in document.items()}
    if isinstance(document, (list, tuple)):
        return [blanked(value) for value in document]
    return document


def without_secrets(text: str, secrets: Iterable[str] = ()) -> str:
    """`text` with the given values, and everything that looks like a token, replaced by ***."""
    for secret in secrets:
        text = text.replace(secret, "***")
    text = NAMED.sub(lambda found: f"{found['name']}{found['quote']}***{found['quote']}", text)
    return TOKEN.sub("***", text)
