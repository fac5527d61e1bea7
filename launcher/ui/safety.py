"""Who may talk to the page: own Host, own Origin, the secret of the address; and what a browser may do with an answer.

Cookies do not know ports, and any page that a browser shows can send requests to 127.0.0.1. So the secret alone is not
enough: a request must name the host that we serve under (against names that are turned to 127.0.0.1), and one that
changes something must come from a page of ours (Origin). Sources: Jupyter's security page, fetch metadata (W3C).
"""

from __future__ import annotations

import hmac
import os
import secrets
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

from schemas.files.textfile import read_text
from schemas.files.writing import write_atomically
from schemas.problems import ConfigError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
READING = ("GET", "HEAD")
MOST_BODY = 64 * 2**20  # bytes of a request that is no upload of a LoRA file
MOST_UPLOAD = 4 * 2**30
UPLOADS = "/api/upload"
DAYS = 30 * 86400
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
)
CLOSED = (
    "<!doctype html><meta charset=utf-8><title>kohyakit</title><h1>This page needs its secret</h1>"
    "<p>Open the whole address that <code>kohyakit ui</code> printed in the terminal; it ends in "
    "<code>?token=...</code>. Afterwards this browser knows it for 30 days."
)


def kept_secret(file: Path) -> str:
    """The secret of a work folder, made once: bookmarks and open pages go on after a restart. Readable by its owner."""
    try:
        found = read_text(file, limit=200, what="secret").strip()
        if len(found) >= 32 and found.isalnum():
            return found
    except ConfigError:
        pass
    made = secrets.token_hex(24)

    def write(stream: Any) -> None:
        os.chmod(stream.name, 0o600)  # before there is anything in it
        stream.write(made.encode())

    write_atomically(file, write)
    return made


@dataclass(frozen=True)
class Door:
    """ASGI middleware. `hosts` are the names it is served under, without the port."""

    app: App
    secret: str
    port: int
    hosts: tuple[str, ...] = LOOPBACK

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return  # no websockets here
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await _answer(send, *refusal)
            return
        if not self._known(scope, headers):
            await _answer(send, 403, CLOSED, b"text/html; charset=utf-8")
            return
        asked = dict(parse_qsl(scope["query_string"].decode("latin-1")))
        if "token" in asked and scope["method"] == "GET" and not scope["path"].startswith("/api/"):
            await self._enter(scope, send)
            return
        limit = MOST_UPLOAD if scope["path"] == UPLOADS else MOST_BODY
        if int(headers.get("content-length") or 0) > limit:
            await _answer(send, 413, f"too large: at most {limit // 2**20} MiB are taken")
            return
        await self.app(scope, _bounded(receive, limit), _with_headers(send, scope["path"]))

    @property
    def cookie(self) -> str:
        return f"kohyakit-{self.port}"

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str] | None:
        """Why a request is not even looked at."""
        own = {f"{host}:{self.port}" for host in self.hosts} | ({*self.hosts} if self.port == 80 else set())
        if headers.get("host", "").lower() not in own:
            return 421, "this server is not known under that name"
        origin, length = headers.get("origin"), headers.get("content-length")
        if origin is not None and origin not in {f"http://{one}" for one in own}:
            return 403, "requests from other pages are refused"
        if (length is not None and not length.isascii()) or (length is not None and not length.isdigit()):
            return 400, "content-length is no number"
        if scope["method"] not in READING and origin is None and "authorization" not in headers:
            return 403, "a request that changes something must say its Origin"
        site, mode = headers.get("sec-fetch-site"), headers.get("sec-fetch-mode")
        if site not in (None, "same-origin", "none") and not (mode == "navigate" and scope["method"] == "GET"):
            return 403, "requests from other pages are refused"
        return None

    def _known(self, scope: Scope, headers: dict[str, str]) -> bool:
        given = [value for name, value in parse_qsl(scope["query_string"].decode("latin-1")) if name == "token"]
        scheme, _, word = headers.get("authorization", "").partition(" ")
        if scheme.lower() in ("bearer", "token"):
            given.append(word.strip())
        try:
            jar = SimpleCookie(headers.get("cookie", ""))
            given += [jar[self.cookie].value] if self.cookie in jar else []
        except CookieError:
            pass
        return any(hmac.compare_digest(one.encode(), self.secret.encode()) for one in given)

    async def _enter(self, scope: Scope, send: Send) -> None:
        """The secret moves from the address, which gets into histories and screenshots, into a cookie."""
        rest = [pair for pair in parse_qsl(scope["query_string"].decode("latin-1")) if pair[0] != "token"]
        path = "/" + scope["path"].lstrip("/")  # //host would be another site
        place = path + (f"?{urlencode(rest)}" if rest else "")
        cookie = f"{self.cookie}={self.secret}; Path=/; HttpOnly; SameSite=Strict; Max-Age={DAYS}"
        headers = [(b"location", place.encode("utf-8", "replace")), (b"set-cookie", cookie.encode()), *HEADERS]
        await send({"type": "http.response.start", "status": 303, "headers": headers})
        await send({"type": "http.response.body", "body": b""})


async def _answer(send: Send, status: int, text: str, kind: bytes = b"text/plain; charset=utf-8") -> None:
    headers = [(b"content-type", kind), *HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})


class TooLarge(Exception):
    """A body without a length, or with a wrong one, went on beyond the limit."""


def _bounded(receive: Receive, limit: int) -> Receive:
    taken = 0

    async def bounded() -> MutableMapping[str, Any]:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > limit:
            raise TooLarge
        return message

    return bounded


def _with_headers(send: Send, path: str) -> Send:
    async def passed_on(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            kept = [*message.get("headers", ()), *HEADERS]
            if not any(name == b"cache-control" for name, _ in kept):
                kept.append((b"cache-control", b"no-store"))
            message["headers"] = kept
        await send(message)

    return passed_on


def names_of(host: str) -> Iterable[str]:
    """The names under which a server that listens on `host` is asked for."""
    if host in ("127.0.0.1", "localhost", "::1"):
        return LOOPBACK
    return (*LOOPBACK, f"[{host}]" if ":" in host else host.lower())
