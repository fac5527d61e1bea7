"""Training images: the sheet of `dataset check`, live; captions are edited where they are read, and can be undone."""

from __future__ import annotations

import functools
import hashlib
import json
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from launcher.check import data
from launcher.photos.check import Checkup, check
from launcher.photos.source import natural
from launcher.run.files import write_text
from launcher.ui.site import Site, answer, from_htmx, json_body
from schemas.blanking import blanked
from schemas.files.documents import parse_json
from schemas.files.textfile import (
    CAPTION,
    MIB,
    read_bytes,
    read_text,
)
from schemas.problems import ConfigError, Problem, error
from trainer.dataset.captions import captions_like
from trainer.dataset.pictures import deeper, list_folder

PAGE = 48  # images of one page
THUMB = (360, 360)
MOST_THUMBS = 600
KEPT = 500  # captions of one folder that undo remembers
MOST_JOBS = 8


@dataclass
class Job:
    """A check under way or done; `done` of `total` images have been looked at."""

    directory: Path
    extension: str
    total: int = 0
    done: int = 0
    found: Checkup | None = None
    fault: str | None = None
    end: float | None = None
    edited: set[str] = field(default_factory=set)  # captions changed since: what was found of them counts no more


JOBS: OrderedDict[tuple[str, str], Job] = OrderedDict()
LOCK = threading.Lock()


def job_of(directory: Path, extension: str, *, again: bool = False) -> Job:
    """The check of a folder, started in the background where there is none yet."""
    key = (str(directory), extension)
    with LOCK:
        found = JOBS.get(key)
        if found is not None and not (again and found.end is not None):
            JOBS.move_to_end(key)
            return found
        job = JOBS[key] = Job(directory, extension)
        while len(JOBS) > MOST_JOBS:
            JOBS.popitem(last=False)
    threading.Thread(target=_check, args=(job,), daemon=True).start()
    return job


def _check(job: Job) -> None:
    def progress(items: list[Any]) -> Iterable[Any]:
        job.total = len(items)
        for job.done, one in enumerate(items):
            yield one

    try:
        job.found = check(job.directory, caption_extension=job.extension, progress=progress)
    except ConfigError as fault:
        job.fault = "; ".join(one.must for one in fault.problems)
    except OSError as fault:
        job.fault = str(fault.strerror or fault)
    job.end = time.time()


def _asked(site: Site, request: Request) -> tuple[Path, str]:
    """(folder, caption extension) of a query."""
    place = site.folders.inside(request.query_params.get("dir", ""))
    if not place.is_dir():
        raise error("no-file", "is no folder", got=str(place), fix="choose a folder of images")
    if link := site.folders.leading_out(place):
        raise ConfigError([site.folders.refusal(link)])
    extension = request.query_params.get("extension") or ".txt"
    return place, extension if extension.startswith(".") and extension[1:].isalnum() else ".txt"


def page(site: Site, request: Request, body: dict[str, Any]) -> Response:
    """`/images?dir=`"""
    if not request.query_params.get("dir"):
        return site.html("images.html", dir=None, roots=site.folders.roots)
    place, extension = _asked(site, request)
    return site.html(
        "images.html",
        dir=str(place),
        name=place.name,
        roots=site.folders.roots,
        **_part(site, request, place, extension),
    )


def part(site: Site, request: Request, body: dict[str, Any]) -> Response:
    """`/images/part?dir=`: the sheet alone, while the check goes on and after it."""
    place, extension = _asked(site, request)
    return site.html("images_part.html", dir=str(place), **_part(site, request, place, extension))


def _part(site: Site, request: Request, place: Path, extension: str) -> dict[str, Any]:
    query = request.query_params
    job = job_of(place, extension)
    images = _listed(str(place), _signature(place))
    findings = _by_image(job)
    tag, only, text = query.get("tag", ""), query.get("only", ""), query.get("q", "").strip().lower()
    if only == "flagged":
        images = [one for one in images if findings.get(_relative(place, one))]
    if only == "without":
        images = [one for one in images if not _caption(one, extension)[1].strip()]
    if tag:
        images = [one for one in images if tag in _tags(_caption(one, extension)[1])]
    if text:
        images = [one for one in images if text in one.name.lower() or text in _caption(one, extension)[1].lower()]
    number = int(query["page"]) if query.get("page", "").isdigit() else 1
    pages = max(1, -(-len(images) // PAGE))
    number = min(max(1, number), pages)
    shown = [_shown(site, place, one, extension, findings) for one in images[(number - 1) * PAGE : number * PAGE]]
    return {
        "shown": [one for one in shown if one is not None], "count": len(images), "page": number, "pages": pages,
        "job": job, "extension": extension, "tag": tag, "only": only, "q": query.get("q", ""),
        "general": _general(job), "duplicates": _duplicates(job), "buckets": job.found.buckets if job.found else [],
        "tags": job.found.tags.most_common(60) if job.found else [],
        "query": request.url.query,
    }  # fmt: skip


@functools.lru_cache(maxsize=16)
def _listed(place: str, signature: tuple[Any, ...]) -> list[Path]:
    """Every image below a folder, in the order in which people count."""
    top = Path(place)
    found = [*list_folder(top).images, *(path for below, _ in deeper(top) for path in list_folder(below).images)]
    return sorted(found, key=lambda path: (str(path.parent), natural(path.name)))


def _signature(place: Path) -> tuple[Any, ...]:
    marks = [place.stat().st_mtime_ns]
    try:
        marks += [one.stat().st_mtime_ns for one in sorted(place.iterdir()) if one.is_dir()]
    except OSError:
        pass
    return tuple(marks)


def _relative(place: Path, image: Path) -> str:
    return image.relative_to(place).as_posix() if image.is_relative_to(place) else str(image)


def _caption(image: Path, extension: str) -> tuple[Path | None, str]:
    """(its caption file, its text); a caption is small, and what cannot be read is no caption."""
    names = _names(str(image.parent), image.parent.stat().st_mtime_ns)
    name = next(iter(captions_like(image.name, extension, names)), None)
    if name is None:
        return None, ""
    file = image.with_name(name)
    try:
        return file, read_text(file, limit=CAPTION, what="caption")
    except ConfigError:
        return file, ""


@functools.lru_cache(maxsize=32)
def _names(folder: str, changed: int) -> Any:
    return list_folder(folder).names


def _tags(text: str) -> set[str]:
    first = text.strip().splitlines()[0] if text.strip() else ""
    return {one.strip() for one in first.split(",")}


def _shown(
    site: Site, place: Path, image: Path, extension: str, findings: dict[str, list[Problem]]
) -> dict[str, Any] | None:
    if not site.folders.holds(image):  # a link out of the folders
        return None
    relative = _relative(place, image)
    file, text = _caption(image, extension)
    try:
        changed = image.stat().st_mtime_ns
    except OSError:
        return None
    found = [
        {"severity": one.severity, "must": blanked(one.must), "fix": blanked(one.fix)}
        for one in findings.get(relative, ())
    ]
    return {"path": str(image), "name": relative, "caption": text, "has": file is not None, "changed": changed,
            "id": hashlib.sha256(relative.encode("utf-8", "replace")).hexdigest()[:12], "findings": found}  # fmt: skip


def _by_image(job: Job) -> dict[str, list[Problem]]:
    """Findings by image, those of its caption file with it."""
    if job.found is None:
        return {}
    owner = {job.found.relative(path): job.found.relative(path) for path in job.found.broken}
    for shot in job.found.shots:
        name = job.found.relative(shot.path)
        owner[name] = name
        if shot.caption_file:
            owner[job.found.relative(shot.caption_file)] = name
    made: dict[str, list[Problem]] = {}
    for one in job.found.problems:
        if one.key in owner and not (one.code.startswith("caption") and owner[one.key] in job.edited):
            made.setdefault(owner[one.key], []).append(one)
    return made


def _general(job: Job) -> list[dict[str, Any]]:
    """What is found of the whole folder."""
    if job.found is None:
        return []
    own = {id(one) for found in _by_image(job).values() for one in found}
    return [
        {"severity": one.severity, "key": one.key, "must": blanked(one.must), "fix": blanked(one.fix)}
        for one in job.found.problems
        if id(one) not in own and not one.code.endswith("-duplicate") and not one.code.startswith("caption-missing")
    ]


def _duplicates(job: Job) -> list[dict[str, Any]]:
    if job.found is None:
        return []
    place = job.directory
    return [{"kind": kind, "first": first, "second": second, "a": str(place / first), "b": str(place / second)}
            for kind, first, second in job.found.duplicates[:60]]  # fmt: skip


def document(site: Site, request: Request, body: dict[str, Any]) -> Response:
    """`/api/dataset/check?dir=`: the document of `dataset check --json`; while it is made, how far it has come."""
    place, extension = _asked(site, request)
    job = job_of(place, extension)
    if job.found is not None:
        return answer(job.found.as_json())
    if job.fault is not None:
        raise error("not-usable", job.fault, file=str(place), fix="choose another folder")
    return answer({"directory": str(place), "done": job.done, "total": job.total}, 202)


def recheck(site: Site, request: Request, body: dict[str, Any]) -> Response:
    """`POST /api/dataset/recheck` dir=: looks at everything again."""
    place = site.folders.inside(json_body(body, "dir"))
    job_of(place, json_body(body, "extension", ".txt") or ".txt", again=True)
    return answer({"ok": True})


THUMBS: OrderedDict[tuple[str, int], bytes] = OrderedDict()


def thumb(site: Site, request: Request, body: dict[str, Any]) -> Response:
    """`/images/thumb?file=`: a small JPEG of an image, upright, as it is trained."""
    from launcher.photos.image import open_picture, thumbnail
    from trainer.dataset.images import Unreadable

    place = site.folders.inside(request.query_params.get("file", ""))
    try:
        key = (str(place), place.stat().st_mtime_ns)
    except OSError:
        raise error("no-file", "does not exist", file=str(place), fix="reload the page") from None
    with LOCK:
        found = THUMBS.get(key)
    if found is None:
        try:
            found = thumbnail(open_picture(place).image, THUMB, 80)
        except Unreadable as fault:
            raise error("unreadable-image", str(fault), file=str(place), fix="replace the file") from None
        with LOCK:
            THUMBS[key] = found
            while len(THUMBS) > MOST_THUMBS:
                THUMBS.popitem(last=False)
    return Response(found, media_type="image/jpeg", headers={"cache-control": "private, max-age=86400"})


def save_caption(site: Site, request: Request, body: dict[str, Any]) -> Response:
    """`POST /api/dataset/caption` file=IMAGE caption=TEXT: saved at once; what stood there before can be undone."""
    image = site.folders.inside(json_body(body, "file"))
    extension = json_body(body, "extension", ".txt") or ".txt"
    text = json_body(body, "caption").replace("\r\n", "\n")
    if not extension.startswith(".") or not extension[1:].isalnum():
        raise error("bad-value", "is no extension", key="extension", got=extension[:20], fix=".txt")
    if len(text.encode("utf-8", "replace")) > MIB:
        raise error("file-too-large", "is too long for a caption", fix="shorten it")
    if not image.is_file() or image not in {Path(one) for one in list_folder(image.parent).images}:
        raise error("no-file", "is no image of that folder", file=str(image), fix="reload the page")
    file, before = _caption(image, extension)
    target = file or image.with_suffix(extension)
    site.folders.inside(str(target))  # not through a link that leads out
    with LOCK:
        _remember(site, target, before if file else None)
        write_text(target, text.encode("utf-8", "replace").decode())
    _mark_edited(image)
    return _saved(site, request, body, image)


def _saved(site: Site, request: Request, body: dict[str, Any], image: Path) -> Response:
    if from_htmx(request):
        return answer({"ok": True, "said": f"saved {image.name}"})
    _, text = _caption(image, json_body(body, "extension", ".txt") or ".txt")
    return answer({"ok": True, "file": str(image), "caption": text})


def _mark_edited(image: Path) -> None:
    if data.recent is not None:
        data.recent.clear()
    for job in list(JOBS.values()):
        if image.is_relative_to(job.directory):
            job.edited.add(_relative(job.directory, image))


def _journal(site: Site, folder: Path) -> Path:
    name = hashlib.sha256(str(folder).encode("utf-8", "replace")).hexdigest()[:16]
    return site.work.hidden / "captions" / f"{name}.json"


def _remembered(journal: Path) -> list[dict[str, Any]]:
    try:
        kept = parse_json(read_bytes(journal, limit=64 * MIB, what="captions that were changed"))
    except (ConfigError, ValueError, UnicodeError):
        return []
    return (
        [one for one in kept if isinstance(one, dict) and isinstance(one.get("file"), str)]
        if isinstance(kept, list)
        else []
    )


def _remember(site: Site, file: Path, before: str | None) -> None:
    journal = _journal(site, file.parent)
    kept = [*_remembered(journal), {"file": file.name, "before": before, "time": time.time()}][-KEPT:]
    write_text(journal, json.dumps(kept))


def undo_caption(site: Site, request: Request, body: dict[str, Any]) -> Response:
    """`POST /api/dataset/undo` dir=FOLDER: the last caption that was changed in it or below is as it was."""
    place = site.folders.inside(json_body(body, "dir"))
    folders = [place, *(below for below, _ in deeper(place))]
    with LOCK:
        found = [
            (kept[-1]["time"], folder, kept) for folder in folders if (kept := _remembered(_journal(site, folder)))
        ]
        if not found:
            raise error("nothing-there", "no caption was changed here", fix="change one first")
        _, folder, kept = max(found, key=lambda one: one[0])
        last = kept[-1]
        file = site.folders.inside(str(folder / Path(last["file"]).name))
        if last["before"] is None:
            file.unlink(missing_ok=True)
        else:
            write_text(file, str(last["before"]))
        write_text(_journal(site, folder), json.dumps(kept[:-1]))
    return answer({"ok": True, "file": file.name, "caption": last["before"], "said": f"{file.name} is as it was"})
