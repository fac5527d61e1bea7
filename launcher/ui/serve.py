"""Starting the server: folders, port, secret, the address that is printed and opened."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

from launcher.check import data
from launcher.ui import start as start_page
from launcher.ui.app import application
from launcher.ui.folders import Folders
from launcher.ui.form import search_text
from launcher.ui.safety import Door, kept_secret, names_of
from launcher.ui.site import Site
from launcher.ui.start import address_of
from launcher.ui.work import HIDDEN, Work
from schemas.config import table
from schemas.problems import ConfigError, error

FIRST_PORT, TRIED = 8765, 20


@dataclass(frozen=True)
class Served:
    """A server that can run: where it listens and the address that leads in."""

    door: Door
    listener: socket.socket
    address: str


def prepare(given: Sequence[str], work: Path, *, host: str, port: int | None) -> Served:
    """Everything before the first request. ConfigError where a path, the work folder or the port is of no use."""
    from trainer.dataset import pictures

    pictures.remembered, data.recent = {}, {}
    folder = Path(os.path.realpath(work))
    folders = Folders(tuple(_roots(given, folder)), ("kohyakit", "ui", *given))  # before anything is made
    try:
        folder.mkdir(parents=True, exist_ok=True)
        secret = kept_secret(folder / HIDDEN / "secret")
    except OSError as fault:
        raise error(
            "not-writable", f"cannot be written: {fault.strerror}", file=str(work), fix="--dir FOLDER"
        ) from None
    site = Site(folders, Work(folder))
    warm(site)
    place = address_of(site, given[0]) if given and (len(given) == 1 or not Path(given[0]).is_dir()) else "/"
    listener = listen(host, port)
    number = int(listener.getsockname()[1])
    shown = "127.0.0.1" if host in ("127.0.0.1", "localhost", "0.0.0.0", "") else f"[{host}]" if ":" in host else host
    path, _, query = place.partition("?")
    word = f"{query}&" if query else ""
    address = f"http://{shown}:{number}{path}?{word}{urlencode({'token': secret})}"
    return Served(application(site, secret, number, tuple(names_of(host))), listener, address)


def warm(site: Site) -> None:
    """What the first page would have to wait for: tables that are read, templates that are compiled."""
    start_page.presets()
    for name in site.templates.list_templates():
        site.templates.get_template(name)
    for name in table():
        search_text(name)


def _roots(given: Sequence[str], work: Path) -> list[Path]:
    """The folders that are named: those given, those that files given lie in, the current one, the work folder."""
    found = [Path.cwd(), work]
    for word in given:
        place = Path(word)
        if not place.exists():
            raise error("no-file", "is neither a file nor a folder", file=word, fix="check the path")
        real = Path(os.path.realpath(place))
        found.append(real if real.is_dir() and real.suffix != ".run" else real.parent)
    return list(dict.fromkeys(Path(os.path.realpath(one)) for one in found))


def listen(host: str, port: int | None) -> socket.socket:
    """A socket that listens; the first free port from 8765 on where none is asked for. ConfigError `port-taken`."""
    wanted = [port] if port is not None else [*range(FIRST_PORT, FIRST_PORT + TRIED), 0]
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for number in wanted:
        listener = socket.socket(family, socket.SOCK_STREAM)
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, number))
            listener.listen(128)
            return listener
        except OSError as fault:
            listener.close()
            if fault.errno == errno.EADDRINUSE and port is None:
                continue
            raise _no_port(host, number, fault) from None
        except OverflowError:
            raise error("bad-value", "must be 0 to 65535", key="--port", got=number, fix="--port 0") from None
    raise _no_port(host, wanted[-1], OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE)))


def _no_port(host: str, number: int, fault: OSError) -> ConfigError:
    if fault.errno == errno.EADDRINUSE:
        must, fix = "is taken by another program, perhaps another `kohyakit ui`", "--port 0 takes a free one"
        return error("port-taken", must, key="--port", got=number, fix=fix)
    if fault.errno in (errno.EACCES, errno.EPERM):
        return error("port-taken", "may not be used by you", key="--port", got=number, fix="a number above 1023")
    return error(
        "no-host", f"cannot be listened on: {fault.strerror or fault}", key="--host", got=host, fix="--host 127.0.0.1"
    )


def serve(served: Served, ready: Callable[[], object]) -> None:
    """Answers until it is interrupted; `ready` is called once it listens. Runs go on without it."""
    import uvicorn

    config = uvicorn.Config(
        served.door, log_level="error", access_log=False, server_header=False, date_header=False, lifespan="off",
        ws="none", timeout_graceful_shutdown=1, h11_max_incomplete_event_size=64 * 1024,
    )  # fmt: skip
    server = uvicorn.Server(config)

    def tell() -> None:
        while not server.started and not server.should_exit:
            time.sleep(0.01)
        if server.started:
            ready()

    threading.Thread(target=tell, daemon=True).start()
    server.run(sockets=[served.listener])
