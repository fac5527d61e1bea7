"""ui: parse words, start the server, print the address, exit code."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import click

from launcher.commands import command, print_json
from schemas.problems import error
from schemas.terminal import say

PACKAGES = ("starlette", "uvicorn", "jinja2")


@command("ui")
@click.argument("paths", nargs=-1, metavar="[FILE|RUN|DIR]...")
@click.option("--port", type=click.IntRange(0, 65535), help="Port; the first free one from 8765 on if not given.")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on; others than loopback are asked for their secret too.",
)
@click.option("--browser/--no-browser", default=True, help="Whether to open the browser.")
@click.option("--dir", "work", type=click.Path(path_type=Path), default=Path("kohyakit-ui"), show_default=True,
              help="Work folder: configs being edited, and every version of them.")  # fmt: skip
def ui(paths: tuple[str, ...], port: int | None, host: str, browser: bool, work: Path, as_json: bool) -> int:
    """The same in the browser, on this machine: a form with its plan, runs as they go on, images, LoRA files.

    Opens the first of the given paths: a file of any format, a run folder, or a folder of images. Only the folders
    that are given, those of the files given, the current one and the work folder are read. Runs outlive the server.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        must = f"needs {', '.join(missing)}"
        raise error(
            "missing-package", must, key="ui", fix=f'pip install "kohyakit[ui]", or pip install {" ".join(missing)}'
        )
    from launcher.ui.serve import prepare, serve

    served = prepare(paths, work, host=host, port=port)

    def ready() -> None:
        if as_json:
            print_json({"ok": True, "address": served.address, "work": str(work.resolve())})
        else:
            say(f"kohyakit ui: {served.address}")
            say("Ctrl-C ends the server; runs go on and are found again.", err=True)
        if browser:
            import webbrowser

            webbrowser.open(served.address)

    serve(served, ready)
    return 0
