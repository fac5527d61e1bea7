"""`dataset check --sheet`: one self-contained HTML page with every picture, its caption and what was found."""

from __future__ import annotations

import base64
import html
import io
from collections import defaultdict
from pathlib import Path

from launcher.pictures.check import Checkup, Shot
from launcher.pictures.picture import open_picture
from schemas.problems import Problem

THUMBNAIL = (224, 224)
STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2rem; color: #222; background: #fafafa }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(236px, 1fr)); gap: 1rem }
figure { margin: 0; padding: .5rem; background: #fff; border: 1px solid #ddd; border-radius: 6px }
img { max-width: 100%; display: block; margin: 0 auto .4rem }
figcaption { font-size: 13px; overflow-wrap: anywhere }
.error { color: #b00020 } .warning { color: #8a5a00 } .note { color: #555 }
table { border-collapse: collapse } td, th { padding: .1rem .8rem .1rem 0; text-align: left }
"""


def sheet(found: Checkup) -> str:
    """The page as text."""
    by_key: dict[str, list[Problem]] = defaultdict(list)
    for problem in found.problems:
        by_key[problem.key or ""].append(problem)
    shown = {found.relative(shot.path) for shot in found.shots}
    general = [problem for key, problems in by_key.items() if key not in shown for problem in problems]
    title = html.escape(f"{found.directory.name}: {len(found.shots)} pictures")
    return "\n".join(
        [
            f"<!doctype html><meta charset='utf-8'><title>{title}</title><style>{STYLE}</style>",
            f"<h1>{title}</h1>",
            *[_line(problem, with_key=True) for problem in general],
            _table("Buckets", [(f"{width} x {height}", count) for (width, height), count in found.buckets]),
            _table("Tags", found.tags.most_common(40)),
            "<main>",
            *[_figure(found, shot, by_key[found.relative(shot.path)]) for shot in found.shots],
            "</main>",
        ]
    )


def _table(title: str, rows: list[tuple[str, int]]) -> str:
    if not rows:
        return ""
    cells = "".join(f"<tr><td>{html.escape(name)}</td><td>{count}</td></tr>" for name, count in rows)
    return f"<h2>{title}</h2><table>{cells}</table>"


def _figure(found: Checkup, shot: Shot, problems: list[Problem]) -> str:
    width, height = shot.size
    words = html.escape(shot.caption.strip()) if shot.caption and shot.caption.strip() else "<i>no caption</i>"
    name = html.escape(found.relative(shot.path))
    lines = "".join(_line(problem) for problem in problems)
    return (
        f"<figure><img src='{_thumbnail(shot.path)}' alt='{name}'>"
        f"<figcaption><b>{name}</b> {width} x {height}<br>{words}{lines}</figcaption></figure>"
    )


def _line(problem: Problem, *, with_key: bool = False) -> str:
    key = f"<b>{html.escape(problem.key)}</b> " if with_key and problem.key else ""
    fix = f" &rarr; {html.escape(problem.fix)}" if problem.fix else ""
    return f"<p class='{problem.severity}'>{key}{html.escape(problem.must)}{fix}</p>"


def _thumbnail(path: Path) -> str:
    image = open_picture(path.read_bytes()).image
    image.thumbnail(THUMBNAIL)
    stream = io.BytesIO()
    image.convert("RGB").save(stream, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
