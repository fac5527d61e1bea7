"""What every screen shares: folders, work folder, judge, runs, templates; how answers and errors are said."""

from __future__ import annotations

import functools
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote

import jinja2
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from launcher.check.resolve import UsageError
from launcher.report.write import duration, size
from launcher.ui.folders import Folders
from launcher.ui.judging import Judge
from launcher.ui.runs import Runs
from launcher.ui.work import Conflict, Work
from schemas.blanking import blanked
from schemas.files.documents import parse_json
from schemas.problems import ConfigError, Problem, error
from schemas.terminal import in_strings

HERE = Path(__file__).parent
MISSING = ("no-config", "no-run", "no-file", "no-option")
REFUSED = ("outside-folders",)


@functools.cache
def known(name: str) -> bool:
    """Whether there is a command of that name."""
    import click

    from launcher.cli import cli

    assert isinstance(cli, click.Group)
    return name in cli.list_commands(click.Context(cli))


@functools.cache
def environment() -> jinja2.Environment:
    """The templates, each compiled once; what is put into them is escaped."""
    loader = jinja2.FileSystemLoader(HERE / "templates")
    found = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    found.globals["has_queue"] = lambda: known("queue")
    found.filters |= {"size": size, "duration": duration, "address": lambda text: quote(str(text), safe="")}
    return found


@dataclass
class Site:
    """One server's state. Everything that must outlive it is in files."""

    folders: Folders
    work: Work
    judge: Judge = field(init=False)
    runs: Runs = field(init=False)
    templates: jinja2.Environment = field(init=False)

    def __post_init__(self) -> None:
        self.judge = Judge(self.work, self.folders)
        self.runs = Runs(self.work.hidden, self.folders)
        self.templates = environment()

    def html(self, template: str, status: int = 200, /, **values: Any) -> HTMLResponse:
        """A page or a part of one; everything in it is escaped."""
        return HTMLResponse(self.templates.get_template(template).render(**values), status)


def site_of(request: Request) -> Site:
    """The site that a request is for."""
    found: Site = request.app.state.site
    return found


def answer(document: Any, status: int = 200) -> Response:
    """A document as `--json` prints it: secrets blanked, NaN as null."""
    text = json.dumps(_finite(blanked(document)), ensure_ascii=False, default=str)
    return Response(in_strings(text).encode("utf-8", "replace"), status, media_type="application/json")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, Mapping):
        return {str(name): _finite(one) for name, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, (list, tuple)) else value


def refused(problems: Iterable[Problem], **more: Any) -> Response:
    """The findings that stood in the way, as a command with --json would say them."""
    problems = list(problems)
    codes = {problem.code for problem in problems}
    status = 403 if codes & set(REFUSED) else 404 if codes <= set(MISSING) else 422
    return answer({"ok": False, **more, "problems": [{**one.as_json(), "file": one.file} for one in problems]}, status)


Handler = Callable[[Request], Awaitable[Response]]


def handler(function: Callable[..., Response]) -> Handler:
    """An endpoint from a plain function of (site, request, body), run in a thread; its errors end as they should."""

    @functools.wraps(function)
    async def endpoint(request: Request) -> Response:
        api = request.url.path.startswith("/api/")
        try:
            given = await _body(request) if request.method in ("POST", "PUT") else {}
            return await run_in_threadpool(function, site_of(request), request, given)
        except UsageError as fault:
            problems = [Problem(code="usage", must=str(fault))]
        except ConfigError as fault:
            problems = fault.problems
        except Conflict as fault:
            text = {name: one.decode("utf-8", "replace") for name, one in (("disk", fault.disk), ("ours", fault.ours))}
            problem = Problem(
                code="changed-on-disk", must="has been changed by another program", fix="choose one of both"
            )
            return answer({"ok": False, **text, "problems": [problem.as_json()]}, 409)
        except OSError as fault:
            from schemas.files.writing import disk_words

            problems = [
                Problem(code="not-usable", must=disk_words(fault), fix="check the path, its rights and the disk")
            ]
        if api:
            return refused(problems)
        status = refused(problems).status_code
        return site_of(request).html("error.html", status, problems=[blanked(one.as_json()) for one in problems])

    return endpoint


async def _body(request: Request) -> dict[str, Any]:
    """What a form or a script has sent, bounded by the door."""
    raw = await request.body()
    if request.headers.get("content-type", "").startswith("application/json"):
        try:
            found = parse_json(raw)
        except (ValueError, UnicodeError):
            raise error("not-json", "the body is not JSON", fix="send one JSON object") from None
        if not isinstance(found, dict):
            raise error("not-json", "the body is no JSON object", fix="send one JSON object")
        return found
    return dict(parse_qsl(raw.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=2000))


def from_htmx(request: Request) -> bool:
    """Whether a part of a page is asked for."""
    return request.headers.get("hx-request") == "true"


def json_body(values: Mapping[str, Any], name: str, default: str = "") -> str:
    """A text of the body."""
    found = values.get(name, default)
    if isinstance(found, bool):
        return "true" if found else "false"
    return found if isinstance(found, str) else default if found is None else str(found)
