"""`dataset check --sheet`: one self-contained HTML page with every picture, its caption and what was found."""

from __future__ import annotations

import base64
import html
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from launcher.photos.check import Checkup, Shot
from launcher.photos.image import open_picture, thumbnail
from schemas.problems import Problem, Severity, shown
from trainer.dataset.images import Unreadable
from trainer.dataset.pictures import ahead, decoders

THUMBNAIL = (320, 320)
MOST = 1000  # pictures on the page, those with findings first; a browser has to hold them all
WORST: dict[Severity, int] = {"error": 0, "warning": 1, "note": 2}
STYLE = """
:root { color-scheme: light dark; --ink: #222; --page: #fafafa; --card: #fff; --line: #ddd; --faint: #555;
  --error: #b00020; --warning: #8a5a00 }
@media (prefers-color-scheme: dark) { :root { --ink: #ddd; --page: #161616; --card: #222; --line: #444; --faint: #aaa;
  --error: #ff8a94; --warning: #e6b450 } }
* { box-sizing: border-box }
body { font: 15px/1.4 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 1600px; color: var(--ink);
  background: var(--page) }
h1 { font-size: 1.4rem; margin: .3rem 0; overflow-wrap: anywhere }
h2 { font-size: 1.1rem }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(220px, 100%), 1fr)); gap: .8rem;
  margin: 1rem 0 }
figure { margin: 0; padding: .5rem; background: var(--card); border: 1px solid var(--line); border-radius: 6px }
figure.error { border-color: var(--error) }
img { width: 100%; height: 220px; object-fit: contain; display: block; margin: 0 0 .4rem }
.none { height: 220px; display: grid; place-items: center; border: 1px dashed var(--error); margin: 0 0 .4rem;
  color: var(--error) }
figcaption { font-size: 13px; overflow-wrap: anywhere }
p { margin: .3rem 0; overflow-wrap: anywhere }
p.error { color: var(--error) } p.warning { color: var(--warning) } p.note, .small { color: var(--faint) }
details { margin: .8rem 0 } summary { cursor: pointer; font-weight: 600 }
table { border-collapse: collapse } td, th { padding: .1rem .8rem .1rem 0; text-align: left; overflow-wrap: anywhere }
"""


def sheet(found: Checkup) -> str:
    """The page as text."""
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
            "<main>",
            *[_broken(found, path, by_image[path]) for path in found.broken],
            *_figures(found, shots, by_image),
            "</main>",
            f"<p class='small'>{missing} more pictures are not shown here.</p>" if missing else "",
            _remarks([problem for problem in general if problem.severity != "error"]),
            _table("Buckets", [(f"{width} x {height}", count) for (width, height), count in found.buckets]),
            _table("Tags", found.tags.most_common(40)),
            "</html>",
        ]
    )


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


def _figures(found: Checkup, shots: list[Shot], by_image: dict[Path, list[Problem]]) -> Iterator[str]:
    for shot, image in zip(shots, ahead(_picture, [shot.path for shot in shots], decoders()), strict=True):
        width, height = shot.size
        words = html.escape(shot.caption.strip()) if shot.caption and shot.caption.strip() else "<i>no caption</i>"
        yield _figure(image, found.relative(shot.path), f"{width} x {height}", words, by_image.get(shot.path, []))


def _broken(found: Checkup, path: Path, problems: list[Problem]) -> str:
    return _figure("<div class='none'>cannot be shown</div>", found.relative(path), "", "", problems)


def _figure(image: str, name: str, size: str, words: str, problems: list[Problem]) -> str:
    kind = " class='error'" if any(problem.severity == "error" for problem in problems) else ""
    lines = "".join(_line(problem) for problem in problems)
    return f"<figure{kind}>{image}<figcaption><b>{html.escape(name)}</b> {size}<br>{words}{lines}</figcaption></figure>"


def _picture(path: Path) -> str:
    try:
        content = thumbnail(open_picture(path).image, THUMBNAIL, 80)
    except Unreadable as fault:  # gone since it was checked
        return f"<div class='none'>{html.escape(str(fault))}</div>"
    data = base64.b64encode(content).decode("ascii")
    return f"<img src='data:image/jpeg;base64,{data}' alt='{html.escape(path.name)}'>"


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
