"""The addresses, each with its function; what stands before them is the door of `safety`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from launcher.ui import asking, editor, reading, running, sheet, start
from launcher.ui.safety import LOOPBACK, Door, TooLarge
from launcher.ui.site import HERE, Site, handler, site_of

Answering = Callable[[Site, Request, dict[str, Any]], Response]
READ: dict[str, Answering] = {
    "/": start.page,
    "/parts/runs": start.runs_part,
    "/parts/folder": start.picker,
    "/config/{id}": editor.page,
    "/config/{id}/changes": editor.changes,
    "/config/{id}/file": editor.download,
    "/config/{id}/diff": reading.diff_page,
    "/explain/{key}": reading.explain_page,
    "/lora": reading.lora_page,
    "/images": sheet.page,
    "/images/part": sheet.part,
    "/images/thumb": sheet.thumb,
    "/run/{id}": running.page,
    "/run/{id}/part/{part}": running.part,
    "/run/{id}/preview": running.preview,
    "/run/{id}/compare": running.compare_page,
    "/queue": asking.page,
    "/api/config/{id}": editor.show,
    "/api/folders": start.listing,
    "/api/presets": reading.presets,
    "/api/validate": reading.validate,
    "/api/plan": reading.plan,
    "/api/convert": reading.convert,
    "/api/diff": reading.diff,
    "/api/inspect": reading.inspect,
    "/api/explain/{key}": reading.explain,
    "/api/dataset/check": sheet.document,
    "/api/runs": running.runs,
    "/api/run/{id}": running.show,
    "/api/run/{id}/curve": running.curve,
    "/api/run/{id}/log": running.output,
    "/api/run/{id}/compare": running.compared,
    "/api/queue": asking.queue,
}
CHANGE: dict[str, Answering] = {
    "/api/open": start.open_one,
    "/api/recover": start.recover,
    "/api/config/{id}/set": editor.set_values,
    "/api/config/{id}/text": editor.set_text,
    "/api/config/{id}/words": editor.set_words,
    "/api/config/{id}/prompts": editor.set_prompts,
    "/api/config/{id}/undo": editor.undo,
    "/api/config/{id}/redo": editor.redo,
    "/api/config/{id}/settle": editor.settle,
    "/api/config/{id}/launch": editor.launch,
    "/api/config/{id}/queue": asking.add,
    "/api/queue/{what}": asking.change,
    "/api/run/{id}/compare": asking.measure,
    "/api/run/{id}/stop": running.stop,
    "/api/run/{id}/resume": running.resume,
    "/api/run/{id}/keep": running.keep,
    "/api/dataset/caption": sheet.save_caption,
    "/api/dataset/undo": sheet.undo_caption,
    "/api/dataset/recheck": sheet.recheck,
}


def application(site: Site, secret: str, port: int, hosts: tuple[str, ...] = LOOPBACK) -> Door:
    """The whole ASGI application."""
    routes: list[Route | Mount] = [Route(path, handler(function)) for path, function in READ.items()]
    routes += [Route(path, handler(function), methods=["POST"]) for path, function in CHANGE.items()]
    routes += [
        Route("/api/upload", start.upload, methods=["POST"]),
        Route("/api/run/{id}/events", running.events),
        Mount("/static", StaticFiles(directory=HERE / "static")),
    ]
    app = Starlette(
        routes=routes,
        middleware=[Middleware(GZipMiddleware, minimum_size=2000, compresslevel=5)],
        exception_handlers={404: _not_found, 405: _not_allowed, TooLarge: _too_large, Exception: _failed},
    )
    app.state.site = site
    return Door(app, secret, port, hosts)


async def _not_found(request: Request, fault: Exception) -> Response:
    problem = {"must": "there is no such page", "fix": "go to the start page", "severity": "error", "code": "no-page"}
    if request.url.path.startswith("/api/"):
        return PlainTextResponse("no such address\n", 404)
    return site_of(request).html("error.html", 404, problems=[problem])


async def _not_allowed(request: Request, fault: Exception) -> Response:
    return PlainTextResponse("this address takes another method\n", 405)


async def _too_large(request: Request, fault: Exception) -> Response:
    return PlainTextResponse("too large\n", 413)


async def _failed(request: Request, fault: Exception) -> Response:
    """A fault of ours: said as one, without its insides."""
    text = (
        f"kohyakit ui met a fault of its own ({type(fault).__name__}); nothing was changed. Its terminal says more.\n"
    )
    return PlainTextResponse(text, 500)
