"""Captions from an OpenAI-compatible server (vLLM, llama.cpp, LM Studio, Ollama ...): one request an image."""

from __future__ import annotations

import base64
import io
import json
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from schemas.files.documents import parse_json
from schemas.problems import error
from trainer.captioning.models import ANSWER, QUESTION
from trainer.captioning.settings import CaptionSettings, Describe

KEYS = ("KOHYAKIT_API_KEY", "OPENAI_API_KEY")  # environment variables that may hold the server's key
SIDE = 1024  # pixels of the longer side that are sent
ANSWER_SECONDS, GREETING_SECONDS = 300, 10
LARGEST_ANSWER = 4 << 20  # bytes


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *request: Any, **facts: Any) -> None:
        """A key is for the server that was named, and for no other."""


OPENER = urllib.request.build_opener(_NoRedirects)


def endpoint(settings: CaptionSettings) -> Describe:
    """The server at settings.endpoint. ConfigError `no-endpoint`, `unknown-model` before the first image."""
    base = _base(settings.endpoint)
    _greet(base, settings.model)

    def describe(images: Sequence[Image.Image]) -> list[str]:
        with ThreadPoolExecutor(max(1, len(images))) as pool:
            return list(pool.map(lambda image: _ask(base, image, settings), images))

    return describe


def unload(settings: CaptionSettings) -> bool:
    """Ask the server to free the model's memory, which Ollama knows how to; whether it did."""
    root = _base(settings.endpoint).removesuffix("/v1")
    try:
        _post(f"{root}/api/generate", {"model": settings.model, "keep_alive": 0}, GREETING_SECONDS)
    except (OSError, ValueError):
        return False
    return True


def _base(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        fix = "write for example --endpoint http://127.0.0.1:11434/v1"
        raise error("no-endpoint", "must be the address of a server", key="--endpoint", got=url, fix=fix)
    base = url.rstrip("/").removesuffix("/chat/completions")
    return base if parts.path.strip("/") else f"{base}/v1"


def _greet(base: str, model: str) -> None:
    """Whether a server is there, and knows the model where it has a list."""
    try:
        found = _get(f"{base}/models", GREETING_SECONDS)
    except urllib.error.HTTPError as fault:
        if fault.code not in (404, 405, 501):  # has no list
            must = f"the server answers {fault.code} {fault.reason}"
            fix = f"set {KEYS[0]} to its key" if fault.code in (401, 403) else "check the address"
            raise error("no-endpoint", must, key="--endpoint", got=base, fix=fix) from None
        return
    except (OSError, ValueError) as fault:
        must = f"no server answers there: {getattr(fault, 'reason', fault)}"
        raise error("no-endpoint", must, key="--endpoint", got=base, fix="start it, or check the address") from None
    rows = found.get("data") if isinstance(found, dict) else None
    names = [str(row.get("id")) for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    if names and model not in names and f"{model}:latest" not in names:
        must = f"is not what the server has: {', '.join(names[:8])}"
        raise error("unknown-model", must, key="--model", got=model, fix=f"--model {names[0]}")


def _ask(base: str, image: Image.Image, settings: CaptionSettings) -> str:
    small = image.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=92)
    address = f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"
    question = settings.prompt or QUESTION
    content = [{"type": "text", "text": question}, {"type": "image_url", "image_url": {"url": address}}]
    request = {
        "model": settings.model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": settings.max_length or ANSWER,
        "temperature": 0,
    }
    answer = _post(f"{base}/chat/completions", request, ANSWER_SECONDS)
    try:
        text = answer["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        raise ValueError("the server's answer holds no text") from None
    if not isinstance(text, str):
        raise ValueError("the server's answer holds no text")
    return " ".join(text.split())


def _get(url: str, seconds: float) -> Any:
    return _sent(urllib.request.Request(url, headers=_headers()), seconds)


def _post(url: str, document: Any, seconds: float) -> Any:
    data = json.dumps(document).encode()
    return _sent(urllib.request.Request(url, data, {**_headers(), "Content-Type": "application/json"}), seconds)


def _headers() -> dict[str, str]:
    key = next((os.environ[name] for name in KEYS if os.environ.get(name)), None)
    return {"Authorization": f"Bearer {key}"} if key else {}


def _sent(request: urllib.request.Request, seconds: float) -> Any:
    with OPENER.open(request, timeout=seconds) as answer:
        return parse_json(answer.read(LARGEST_ANSWER))
