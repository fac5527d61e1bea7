"""The moments of a run side by side: what was saved and what the previews showed then."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from launcher.report.facts import Copy, Preview, Run

SIDES = ((60, 768), (200, 384), (400, 256))  # up to so many pictures: longest side in pixels
MOST_PICTURES = SIDES[-1][0]
MOST_BYTES = 12 * 2**20  # of all data URLs together


@dataclass
class Moment:
    """One step at which something was saved or shown; previews by prompt index."""

    step: int
    epoch: int | None = None
    copies: list[Copy] = field(default_factory=list)
    previews: dict[int, Preview] = field(default_factory=dict)

    @property
    def title(self) -> str:
        if self.step == 0:
            return "before training"
        return f"step {self.step}" if self.epoch is None else f"epoch {self.epoch}, step {self.step}"


@dataclass(frozen=True)
class Embedded:
    """Data URLs by file; None for a picture that cannot be read. `left_out` counts those over the limit."""

    urls: dict[Path, str | None]
    side: int
    size: int
    left_out: int

    @property
    def shown(self) -> int:
        return sum(url is not None for url in self.urls.values())


def moments(run: Run) -> list[Moment]:
    """Every moment of the run in its order."""
    found: dict[int, Moment] = {}
    ends = {run.epoch_end(epoch): epoch for epoch in range(1, run.last.epoch + 1)}

    def at(step: int) -> Moment:
        return found.setdefault(step, Moment(step, ends.get(step)))

    for copy in run.copies:
        at(copy.step).copies.append(copy)
    for preview in run.previews:
        at(preview.step).previews[preview.index] = preview
    return [found[step] for step in sorted(found)]


def fitting(columns: Sequence[Moment], limit: int = MOST_PICTURES) -> list[Moment]:
    """So many moments, evenly chosen with the first and the last, that their pictures stay within the limit."""
    rows = max((len(column.previews) for column in columns), default=0)
    room = max(2, limit // max(1, rows))
    if len(columns) <= room or rows == 0:
        return list(columns)
    chosen = {round(index * (len(columns) - 1) / (room - 1)) for index in range(room)}
    return [column for index, column in enumerate(columns) if index in chosen]


def embed(previews: Iterable[Preview], *, most: int = MOST_BYTES) -> Embedded:
    """Every picture as a JPEG data URL, scaled down by how many there are, until the bytes are used up."""
    paths = [preview.path for preview in previews]
    side = next((side for count, side in SIDES if len(paths) <= count), SIDES[-1][1])
    urls: dict[Path, str | None] = {}
    size = 0
    for path in paths:
        url = data_url(path, side)
        if size + len(url or "") <= most:
            urls[path] = url
            size += len(url or "")
    return Embedded(urls, side, size, len(paths) - len(urls))


def data_url(path: Path, side: int) -> str | None:
    """The picture at most `side` pixels long, without any of its metadata; None where it cannot be read."""
    from launcher.photos.image import open_picture, thumbnail
    from trainer.dataset.images import Unreadable

    try:
        content = thumbnail(open_picture(path).image, (side, side), 85)
    except Unreadable:
        return None
    return "data:image/jpeg;base64," + base64.b64encode(content).decode("ascii")
