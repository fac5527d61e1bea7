"""`dataset check --sheet`: one self-contained HTML page with every image, its crop, caption, flags and look-alikes."""

from __future__ import annotations

import base64
import html
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from launcher.photos.check import Checkup, Shot
from launcher.photos.image import open_picture, thumbnail
from launcher.photos.sheet_style import SCRIPT, STYLE
from schemas.problems import Problem, Severity, shown
from trainer.dataset.images import Unreadable
from trainer.dataset.names import fold
from trainer.dataset.pictures import ahead, decoders, pictures_in

THUMBNAIL = (256, 256)
MOST = 5000  # images on the page, those with findings first; a browser has to hold them all
MOST_PAIRS = 500  # look-alikes side by side
MOST_TAGS = 100
WORST: dict[Severity, int] = {"error": 0, "warning": 1, "note": 2}
NO_CAPTION = "no-caption"
SILENT = ("caption-missing", "caption-empty")
KINDS = {"exact": "the same", "near": "nearly the same", "cropped": "cropped otherwise", "mirrored": "mirrored"}


def sheet(found: Checkup, masks: Path | None = None) -> str:
    """The page as text; `masks` is a folder of masks, named as the images are."""
    by_image = _by_image(found)
    attached = {id(problem) for problems in by_image.values() for problem in problems}
    general = [problem for problem in found.problems if id(problem) not in attached]
    title = html.escape(f"{found.directory.resolve().name}: {len(found.shots) + len(found.broken)} images")
    counts: Counter[str] = Counter(problem.severity for problem in found.problems)
    verdict = ", ".join(f"{counts[name]} {name}{'s' * (counts[name] != 1)}" for name in WORST if counts[name])
    shots = _chosen(found, by_image)
    missing = len(found.shots) - len(shots)
    return "\n".join(
        [
            "<!doctype html><html lang='en'><meta charset='utf-8'>",
            "<meta name='viewport' content='width=device-width, initial-scale=1'>",
            f"<title>{title}</title><style>{STYLE}</style>",
            f"<h1>{title}</h1>",
            f"<p class='small'>{verdict or 'nothing to remark'}</p>",
            *[_line(problem, with_key=True) for problem in general if problem.severity == "error"],
            _filters(found, by_image, masks is not None),
            _pairs(found, shots),
            "<main>",
            *[_broken(found, path, by_image[path]) for path in found.broken],
            *_figures(found, shots, by_image, masks),
            "</main>",
            "<p id='none' class='small' hidden>No image has all of that.</p>",
            f"<p class='small'>{missing} more images are not shown here.</p>" if missing else "",
            _remarks([problem for problem in general if problem.severity != "error"]),
            _table("Buckets", [(f"{width} x {height}", count) for (width, height), count in found.buckets]),
            _tags(found),
            f"<script>{SCRIPT}</script></html>",
        ]
    )


def _flags(shot: Shot, problems: list[Problem]) -> list[str]:
    """What an image can be filtered by."""
    silent = [] if (shot.caption or "").strip() else [NO_CAPTION]
    return list(dict.fromkeys([*(problem.code for problem in problems if problem.code not in SILENT), *silent]))


def _filters(found: Checkup, by_image: dict[Path, list[Problem]], masks: bool) -> str:
    counts = Counter(flag for shot in found.shots for flag in _flags(shot, by_image.get(shot.path, [])))
    counts.update(problem.code for path in found.broken for problem in by_image[path][:1])
    buttons = "".join(
        f"<button data-flag='{html.escape(flag)}' aria-pressed='false'>{html.escape(flag.replace('-', ' '))} "
        f"<b>{count}</b></button>"
        for flag, count in counts.most_common()
    )
    boxes = "<label><input type='checkbox' id='cuts' checked> crops</label>"
    if masks:
        boxes += "<label><input type='checkbox' id='masks' checked> masks</label>"
    search = "<input type='search' id='search' placeholder='name, caption, tag' aria-label='search'>"
    return f"<nav>{search}{buttons}{boxes}<span id='shown' class='small' aria-live='polite'></span></nav>"


def _pairs(found: Checkup, shots: list[Shot]) -> str:
    """Look-alikes side by side; the script takes their images from the figures."""
    places = {found.relative(shot.path): place for place, shot in enumerate(shots)}
    rows = [
        f"<div class='pair' data-a='{places[first]}' data-b='{places[second]}'><b>{KINDS[kind]}</b>"
        f"<span>{html.escape(first)}</span><span>{html.escape(second)}</span></div>"
        for kind, first, second in found.duplicates
        if first in places and second in places
    ]
    if not rows:
        return ""
    more = f"<p class='small'>{len(rows) - MOST_PAIRS} more pairs: --json lists them.</p>" * (len(rows) > MOST_PAIRS)
    title = f"Look-alikes side by side ({len(found.duplicates)})"
    return f"<details id='pairs'><summary>{title}</summary>{''.join(rows[:MOST_PAIRS])}{more}</details>"


def _tags(found: Checkup) -> str:
    """Every tag as a button that shows its images."""
    tags = found.tags.most_common()
    if not tags:
        return ""
    buttons = "".join(
        f"<button data-tag='{html.escape(tag, quote=True)}'>{html.escape(tag)} <b>{count}</b></button>"
        for tag, count in tags[:MOST_TAGS]
    )
    more = f"<p class='small'>{len(tags) - MOST_TAGS} rarer ones are not shown.</p>" * (len(tags) > MOST_TAGS)
    return f"<details><summary>Tags ({len(tags)})</summary><p class='tags'>{buttons}</p>{more}</details>"


def _by_image(found: Checkup) -> dict[Path, list[Problem]]:
    """Findings by the image that they are about, be it through its caption file."""
    owner = {found.relative(path): path for path in found.broken}
    for shot in found.shots:
        if shot.caption_file:
            owner[found.relative(shot.caption_file)] = shot.path
        owner[found.relative(shot.path)] = shot.path
    by_image: dict[Path, list[Problem]] = defaultdict(list)
    for problem in sorted(found.problems, key=lambda problem: WORST[problem.severity]):
        if problem.key in owner:
            by_image[owner[problem.key]].append(problem)
    return by_image


def _chosen(found: Checkup, by_image: dict[Path, list[Problem]]) -> list[Shot]:
    """The pictures to show: those with errors first, the others in their order."""
    worst = {path: min(WORST[problem.severity] for problem in problems) for path, problems in by_image.items()}
    if len(found.shots) > MOST:
        kept = sorted(found.shots, key=lambda shot: worst.get(shot.path, 3))[:MOST]
    else:
        kept = list(found.shots)
    return sorted(kept, key=lambda shot: worst.get(shot.path, 3) > 0)


def _figures(
    found: Checkup, shots: list[Shot], by_image: dict[Path, list[Problem]], masks: Path | None
) -> Iterator[str]:
    over = {folder.path: _masks_of(masks, folder.path) for folder in found.folders} if masks else {}
    images = ahead(_picture, [shot.path for shot in shots], decoders())
    layers = ahead(_layer, [over.get(shot.path.parent, {}).get(fold(shot.path.stem)) for shot in shots], decoders())
    for place, (shot, image, layer) in enumerate(zip(shots, images, layers, strict=True)):
        problems = by_image.get(shot.path, [])
        width, height = shot.size
        size = f"{width} x {height}"
        cut = ""
        if shot.cut:
            left, top, across, down = shot.cut.part
            box = (
                f"left:{left / width:.2%};top:{top / height:.2%};width:{across / width:.2%};height:{down / height:.2%}"
            )
            cut = f"<i class='cut' style='{box}'></i>"
            size += f" &rarr; {shot.cut.bucket[0]} x {shot.cut.bucket[1]}"
        frame = (
            f"<div class='frame' style='aspect-ratio:{width}/{height};"
            f"width:min(100%,calc(14rem*{width / height:.4f}))'>{image}{layer}{cut}</div>"
        )
        words = html.escape(shot.caption.strip()) if shot.caption and shot.caption.strip() else "<i>no caption</i>"
        flags = _flags(shot, problems)
        yield _figure(frame, _name(found, shot.path), size, words, problems, flags=flags, place=place)


def _name(found: Checkup, path: Path) -> str:
    return path.name if len(found.folders) == 1 else found.relative(path)


def _broken(found: Checkup, path: Path, problems: list[Problem]) -> str:
    flags = [problem.code for problem in problems]
    shown_instead = "<div class='none'>cannot be shown</div>"
    return _figure(shown_instead, _name(found, path), "", "", problems, flags=flags)


def _figure(
    image: str, name: str, size: str, words: str, problems: list[Problem], *, flags: list[str], place: int | None = None
) -> str:
    kind = " class='error'" if any(problem.severity == "error" for problem in problems) else ""
    data = f" data-flags='{html.escape(' '.join(flags), quote=True)}'"
    if place is not None:
        data += f" id='i{place}'"
    lines = "".join(_line(problem) for problem in problems)
    text = f"<b>{html.escape(name)}</b> <span class='small'>{size}</span><br>{words}{lines}"
    return f"<figure{kind}{data}>{image}<figcaption>{text}</figcaption></figure>"


def _picture(path: Path) -> str:
    try:
        content = thumbnail(open_picture(path).image, THUMBNAIL, 72)
    except Unreadable as fault:  # gone since it was checked
        return f"<div class='none'>{html.escape(str(fault))}</div>"
    data = base64.b64encode(content).decode("ascii")
    return f"<img src='data:image/jpeg;base64,{data}' decoding='async' alt='{html.escape(path.name, quote=True)}'>"


def _masks_of(masks: Path, folder: Path) -> dict[str, Path]:
    """By the image's name: masks of one folder lie in a folder of its name, or all in one."""
    own = masks / folder.name
    return {fold(path.stem): path for path in pictures_in(own if own.is_dir() else masks)}


def _layer(mask: Path | None) -> str:
    """A mask over its image: what is left out of the loss is darkened."""
    if mask is None:
        return ""
    return _picture(mask).replace("<img ", "<img class='mask' ")


def _remarks(problems: list[Problem]) -> str:
    if not problems:
        return ""
    lines = "".join(_line(problem, with_key=True) for problem in problems)
    opened = " open" if len(problems) <= 3 else ""
    return f"<details{opened}><summary>On the whole folder ({len(problems)})</summary>{lines}</details>"


def _table(title: str, rows: list[tuple[str, int]]) -> str:
    if not rows:
        return ""
    cells = "".join(f"<tr><td>{html.escape(name)}</td><td>{count}</td></tr>" for name, count in rows)
    return f"<details><summary>{title} ({len(rows)})</summary><table>{cells}</table></details>"


def _line(problem: Problem, *, with_key: bool = False) -> str:
    key = f"<b>{html.escape(problem.key)}</b> " if with_key and problem.key else ""
    fix = f" &rarr; {html.escape(problem.fix)}" if problem.fix else ""
    got = f" ({html.escape(shown(problem.got))})" if problem.got is not None else ""
    return f"<p class='{problem.severity}'>{key}{html.escape(problem.must)}{got}{fix}</p>"
