"""Text without secrets: what looks like a token, or stands under a name that tokens have, becomes ***."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any

TOKEN = re.compile(r"\b(hf_[A-Za-z0-9]{16,}|sk-[\w-]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,})")
NAMES = (
    "wandb_api_key", "huggingface_token", "wandbApiKey", "api_key", "hf_token", "access_token", "auth_token",
    "password", "secret_access_key", "access_key_id",
)  # fmt: skip
NAMED = re.compile(
    rf"""(?P<name>(?:{"|".join(NAMES)})["']?(?:\s*[=:]\s*|\s+(?=["']?[^\s"',}}\d]*\d)))"""
    r"""(?P<quote>["']?)(?P<value>[^\s"',}]+)(?P=quote)"""
)
# A value as a config file may write it: in closed quotes, in triple ones over several lines, else to the line's end.
TRIPLE = r"""\"{3}.*?(?:\"{3}|\Z)|'{3}.*?(?:'{3}|\Z)"""
QUOTED = r"""\"(?:[^\"\\\n]|\\.)*\"|'[^'\n]*'|“[^”\n]*”"""


def without_secrets(text: str, secrets: Iterable[str] = ()) -> str:
    """`text` with the given values, and everything that looks like a token, replaced by ***."""
    for secret in secrets:
        text = text.replace(secret, "***")
    text = NAMED.sub(lambda found: f"{found['name']}{found['quote']}***{found['quote']}", text)
    return TOKEN.sub("***", text)


def blanked(document: Any) -> Any:
    """A document of JSON with everything in it that looks like a token replaced by ***."""
    if isinstance(document, str):
        return without_secrets(document)
    if isinstance(document, Mapping):
        return {name: blanked(value) for name, value in document.items()}
    if isinstance(document, (list, tuple)):
        return [blanked(value) for value in document]
    return document


def source_without_secrets(text: str) -> str:
    """The text of a config file with every secret in it as ***, each line where it was.

    Wider than `without_secrets`, for a file may be broken at this very place: a value without its closing quote goes up
    to the end of its line, a flag's value may stand on the next one.
    """
    return TOKEN.sub("***", _assignments().sub(_blank, text))


def _blank(found: re.Match[str]) -> str:
    name, value = (found["flag"], found["word"]) if found["flag"] else (found["key"], found["value"])
    return f"{name}***" + "\n" * value.count("\n")


@functools.cache
def _assignments() -> re.Pattern[str]:
    from schemas.config import table

    names = "|".join(sorted({*NAMES, *(name for name, option in table().items() if option.secret)}, key=len)[::-1])
    flag, word = rf"--(?:{names})(?:=|(?:\s|[\\`^]\n)+)", rf"{QUOTED}|[^\s]+"
    key, value = rf"""(?:{names})["'”]?\s*[=:]\s*""", rf"""{TRIPLE}|{QUOTED}|["'“][^\n]*|[^\s,}}][^\n,}}]*"""
    return re.compile(rf"(?P<flag>{flag})(?P<word>{word})|(?P<key>{key})(?P<value>{value})", re.DOTALL | re.IGNORECASE)
