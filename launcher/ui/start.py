"""The start screen: files in, presets, runs, configs that were begun; and opening each of them."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from launcher import formats
from launcher.check.resolve import preset_path, resolve, table_of_presets
from launcher.ui.editing import put
from launcher.ui.safety import MOST_BODY
from launcher.ui.site import Site, answer, from_htmx, json_body, refused, site_of
from launcher.ui.work import Entry
from schemas.blanking import blanked
from schemas.files.textfile import CONFIG, is_regular, read_bytes
from schemas.files.writing import scratch_of
from schemas.problems import ConfigError, error

LORA = ".safetensors"


def page(site: Site, request: Request, body: dict[str, Any]) -> Response:
    """`/`"""
    return site.html(
        "start.html",
        presets=presets(),
        entries=[entry for entry in site.work.entries() if is_regular(site.work.path(entry))][:30],
        roots=site.folders.roots,
        work=site.work.folder,
    )


def presets() -> list[dict[str, Any]]:
    """The shipped presets as cards, by family."""
    from schemas.families import facts_of

    rows = ((row, facts_of(str(row["family"]))) for row in table_of_presets())
    return [{**row, "family": facts.title if facts else row["family"]} for row, facts in rows]


def runs_part(site: Site, request: Request, body: dict[str, Any]) -> Response:
    """The list of runs, which a page loads after itself: looking for them takes longer than the rest."""
    return site.html("runs_part.html", runs=[site.runs.about(one) for one in site.runs.all()][:60])


def open_one(site: Site, request: Request, body: dict[str, Any]) -> Response:
    """`POST /api/open`: preset=NAME or file=PATH becomes a config in the work folder, or leads to where it is shown."""
    if name := json_body(body, "preset"):
        address = f"/config/{from_preset(site, name).id}"
    else:
        address = address_of(site, json_body(body, "file"))
    return opened(request, address)


def opened(request: Request, address: str) -> Response:
    """Leads a page, a script or a plain form to an address."""
    if from_htmx(request) or "application/json" in request.headers.get("accept", ""):
        response = answer({"ok": True, "address": address})
        response.headers["HX-Redirect"] = address
        return response
    return RedirectResponse(address, 303)


def from_preset(site: Site, name: str) -> Entry:
    """A shipped preset as a file of one's own; it says which one it was, so that it is treated as one."""
    from launcher.formats.kohya_gui.fates import SNAPSHOT

    path = preset_path(name)
    if path is None:
        raise error("no-file", "is no shipped preset", got=name[:80], fix="see the list on the start page")
    text = read_bytes(path, limit=CONFIG, what="preset").decode("utf-8")
    if path.suffix == ".json":
        text = put(text, SNAPSHOT, {"version": 1, "preset": path.stem})
    return site.work.add(path.name, text.encode(), preset=path.stem)


def address_of(site: Site, path: str) -> str:
    """Where a file, a run or a folder is shown; a config is copied into the work folder, the file itself stays."""
    place = site.folders.inside(path)
    if place.is_dir():
        return _folder_address(site, place)
    if place.suffix.lower() == LORA:
        from urllib.parse import quote

        return f"/lora?file={quote(str(place), safe='')}"
    content = read_bytes(place, limit=CONFIG, what="config file")
    return f"/config/{config_from(site, place.name, content, str(place)).id}"


def _folder_address(site: Site, place: Path) -> str:
    from urllib.parse import quote

    from launcher.run.resume import find
    from launcher.ui.runs import run_id

    try:
        found = find(str(place))
    except ConfigError:
        found = None
    if found is not None and found.run is not None and (place == found.run or place.suffix == ".run"):
        return f"/run/{run_id(found.run)}"
    return f"/images?dir={quote(str(place), safe='')}" if _holds_images(place) else "/"


def _holds_images(place: Path) -> bool:
    """Whether images lie in a folder or directly below it; a home folder is not searched through for that."""
    from trainer.dataset.pictures import list_folder

    try:
        below = [one for one in sorted(place.iterdir())[:200] if one.is_dir() and not one.name.startswith(".")]
        return any(list_folder(one).images for one in (place, *below[:50]))
    except OSError:
        return False


def config_from(site: Site, name: str, content: bytes, source: str | None) -> Entry:
    """A file of any format in the work folder, byte for byte; ConfigError where it is no config at all.

    One that does not parse is taken too: its text can be mended in the editor.
    """
    if len(content) > CONFIG:
        raise error(
            "file-too-large", f"is too large for a config: {len(content)} bytes", file=name, fix="choose the right file"
        )
    if not content.strip():
        raise error("empty-file", "is empty", file=name, fix="choose the right file")
    formats.decode(content)  # is text
    if (
        source is not None and Path(source).parent == site.work.folder
    ):  # it lies there already: a copy beside it helps nobody
        known = next((entry for entry in site.work.entries() if site.work.path(entry) == Path(source)), None)
        if known is not None:
            return known
    return site.work.add(name, content, source=source)


def recover(site: Site, request: Request, body: dict[str, Any]) -> Response:
    """`POST /api/recover` file=LORA: "train like this": the config that a LoRA file tells, in the work folder."""
    from launcher.about.convert import convert

    place = site.folders.inside(json_body(body, "file"))
    resolved = resolve(str(place), format="lora")
    written = convert(resolved, "snapshot")
    entry = site.work.add(f"{place.stem}.json", written.text.encode(), source=str(place))
    site.work.with_lost(entry, [str(blanked(one)) for one in written.lost])
    return opened(request, f"/config/{entry.id}")


async def upload(request: Request) -> Response:
    """`POST /api/upload?name=`: the bytes of a file that was dropped; streamed, bounded, only then looked at."""
    site, name = site_of(request), os.path.basename(request.query_params.get("name", "").replace("\\", "/"))[:120]
    is_lora = name.lower().endswith(LORA)
    folder = site.work.hidden / "uploads"
    folder.mkdir(parents=True, exist_ok=True)
    scratch = scratch_of(folder / f"{os.urandom(6).hex()}{LORA if is_lora else '.upload'}")
    try:
        size = 0
        with scratch.open("wb") as stream:
            async for piece in request.stream():
                size += len(piece)
                if not is_lora and size > MOST_BODY:
                    return refused(
                        error("file-too-large", f"is larger than {MOST_BODY // 2**20} MiB", file=name).problems
                    )
                await run_in_threadpool(stream.write, piece)
        address = await run_in_threadpool(_uploaded, site, name, scratch)
    except ConfigError as fault:
        return refused(fault.problems)
    except OSError as fault:
        return refused(error("not-usable", f"cannot be kept: {fault.strerror}", file=name, fix="make room").problems)
    finally:
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)
    return answer({"ok": True, "address": address})


def _uploaded(site: Site, name: str, scratch: Path) -> str:
    from urllib.parse import quote

    from schemas.files.weights import read_header

    if not name.lower().endswith(LORA):
        content = read_bytes(scratch, limit=CONFIG, what="config file")
        return f"/config/{config_from(site, name or 'dropped.txt', content, None).id}"
    read_header(scratch)  # refuses what is none before it takes a name
    stem = "".join(one if one.isalnum() or one in "-_." else "-" for one in Path(name).stem)[:80] or "lora"
    place, number = site.work.hidden / "uploads" / f"{stem}{LORA}", 1
    while place.exists():
        number += 1
        place = place.with_name(f"{stem}-{number}{LORA}")
    scratch.rename(place)
    return f"/lora?file={quote(str(place), safe='')}"


def picker(site: Site, request: Request, body: dict[str, Any]) -> Response:
    """`/parts/folder?path=&for=`: a list to choose a path from, within the named folders."""
    wanted, path = request.query_params.get("for", ""), request.query_params.get("path") or None
    folders_only = request.query_params.get("folders") == "1"
    try:
        listing = site.folders.listing(path)
    except ConfigError:
        listing = site.folders.listing(None)
    return site.html("picker.html", listing=listing, wanted=wanted, folders_only=folders_only)


def listing(site: Site, request: Request, body: dict[str, Any]) -> Response:
    """`/api/folders?path=`"""
    return answer(site.folders.listing(request.query_params.get("path") or None))
