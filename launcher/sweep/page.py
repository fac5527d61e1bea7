"""The page of a sweep: a table of its runs, parallel coordinates, held-out losses by epoch, the best runs' previews."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.report.curves import Curve, chart
from launcher.report.facts import Preview, read_run
from launcher.report.sheet import (
    Embedded,
    Moment,
    embed,
    fitting,
    moments,
)
from launcher.report.style import STYLE
from launcher.report.write import POLICY, rows, text
from launcher.run.command import quoted
from launcher.run.files import write_text
from launcher.run.resume import find
from launcher.sweep.setup import Setup
from launcher.sweep.study import Row
from launcher.sweep.study import rows as rows_of
from schemas.problems import ConfigError

if TYPE_CHECKING:
    from optuna.study import Study

MARK = "<!doctype html>\n<!-- kohyakit sweep -->\n"
LOSS = "held-out loss"
BEST = 3  # runs whose previews are shown
DRAWN = 8  # curves that can be told apart
ACROSS = 6  # moments of a run beside each other
WIDTH, HEIGHT, TOP, BOTTOM, SIDE = 900, 300, 40, 30, 90
MORE = """
.lines { min-width: 40rem } .lines text { paint-order: stroke; stroke: var(--ground); stroke-width: 4 }
.lines path { stroke-width: 1.5; opacity: .55 } .lines path:hover { opacity: 1; stroke-width: 4 }
.lines path.best { stroke-width: 4; opacity: 1 } .axis { stroke: var(--line); stroke-width: 1 }
tr.best td { font-weight: 600 } td.number { text-align: right; font-variant-numeric: tabular-nums }
"""


def write(setup: Setup, study: Study, path: Path) -> None:
    """Writes the page anew; it is the sweep's own file, beside its runs."""
    write_text(path, page(setup, rows_of(setup, study)))


def page(setup: Setup, found: Sequence[Row]) -> str:
    """The document."""
    ranked = ranking(found)
    title = f"{text(setup.name)}: sweep of {len(found)} run{'' if len(found) == 1 else 's'}"
    return MARK + "\n".join(
        [
            f'<html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<style>{STYLE}{MORE}</style></head><body>",
            f"<h1>{text(setup.name)}</h1><p>{_what(setup)}</p>{_summary(setup, found, ranked)}",
            f"<h2>Runs</h2>{_table(setup, found, ranked)}",
            f"<h2>Values and held-out loss</h2>{coordinates(setup, ranked)}",
            f"<h2>Held-out loss by epoch</h2>{_curves(ranked)}",
            f"<h2>Previews of the best</h2>{_sheets(ranked)}",
            "</body></html>\n",
        ]
    )


def ranking(found: Sequence[Row]) -> list[Row]:
    """Runs with a measurement, the best first; those stopped early stand behind the finished ones."""
    measured = [row for row in found if row.loss is not None]
    return sorted(measured, key=lambda row: (row.state != "done", row.loss, row.number))


def _what(setup: Setup) -> str:
    varied = "; ".join(f"{one.name} {', '.join(one.choices) or one.as_json()}" for one in setup.space)
    return f"{text(Path(setup.file).name)}, varied: {text(varied)}"


def _summary(setup: Setup, found: Sequence[Row], ranked: Sequence[Row]) -> str:
    counted = {state: sum(row.state == state for row in found) for state in ("done", "stopped early", "failed", "open")}
    facts = [("Runs", f"{len(found)} of {setup.trials}")]
    facts += [(state.capitalize(), str(count)) for state, count in counted.items() if count]
    best = ranked[0] if ranked and ranked[0].state == "done" else None
    if best is None:
        boxes = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts)
        return f"<dl>{boxes}</dl><p>No run has come to its end yet.</p>"
    facts += [("Lowest held-out loss", f"{_loss(best.loss)}, epoch {best.epoch}")]
    boxes = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts)
    sets = [*setup.wish.sets, *(f"{name}={value}" for name, value in best.values.items())]
    words = [part for one in sets for part in ("--set", one)]
    said = f"<p>The lowest is trial {best.number}{_doubt(ranked)} To train with its values on all images:</p>"
    command = quoted(["kohyakit", "launch", Path(setup.file).name, *words])
    return f"<dl>{boxes}</dl>{said}<pre>{text(command)}</pre>"


def _doubt(ranked: Sequence[Row]) -> str:
    """What the difference to the next one is worth."""
    done = [row for row in ranked if row.state == "done"]
    if len(done) < 2 or not done[0].loss or done[1].loss is None or done[0].loss is None:
        return "."
    ahead = (done[1].loss - done[0].loss) / done[0].loss
    if ahead < 0.01:
        return f"; trial {done[1].number} is within {ahead:.1%} of it, which few held-out images cannot tell apart."
    return f", {ahead:.1%} below trial {done[1].number}. Of few held-out images this is a hint: look at the previews."


def _loss(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _table(setup: Setup, found: Sequence[Row], ranked: Sequence[Row]) -> str:
    place = {row.number: number for number, row in enumerate(ranked, start=1)}
    order = [*ranked, *(row for row in found if row.number not in place)]
    names = [one.name for one in setup.space]
    lines = [
        [
            str(place.get(row.number, "")),
            str(row.number),
            *(text(row.values.get(name, "")) for name in names),
            _loss(row.loss),
            "" if row.epoch is None else str(row.epoch),
            text(row.state),
            text(row.reason or (Path(row.run_folder).name if row.run_folder else "")),
        ]
        for row in order
    ]
    return rows(["Rank", "Trial", *(text(name) for name in names), "Held-out loss", "Epoch", "State", "Run"], lines)


@dataclass(frozen=True)
class Axis:
    """One option, or the loss: its name, where each value stands (0 bottom, 1 top), and its labels."""

    name: str
    place: Callable[[str], float]
    labels: Sequence[tuple[float, str]]


def coordinates(setup: Setup, ranked: Sequence[Row]) -> str:
    """Parallel coordinates: a line a run through its values to its loss, which is lowest at the bottom."""
    if len(ranked) < 2:
        return "<p>Two measured runs are needed.</p>"
    axes = [_axis(one.name, [row.values.get(one.name, "") for row in ranked]) for one in setup.space]
    axes.append(_axis(LOSS, [f"{row.loss:.6g}" for row in ranked]))
    step = (WIDTH - 2 * SIDE) / (len(axes) - 1)

    def y(share: float) -> float:
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    parts = []
    for index, axis in enumerate(axes):
        x = SIDE + index * step
        parts.append(f'<path class="axis" d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text class="mid" x="{x:.1f}" y="{TOP - 18}">{html.escape(axis.name)}</text>')
        side, anchor = (8, "") if index == len(axes) - 1 else (-8, ' class="end"')
        parts += [
            f'<text{anchor} x="{x + side:.1f}" y="{y(at) + 4:.1f}">{html.escape(label)}</text>'
            for at, label in axis.labels
        ]
    for number, row in reversed(list(enumerate(ranked))):
        values = [row.values.get(one.name, "") for one in setup.space] + [f"{row.loss:.6g}"]
        points = [
            (SIDE + index * step, y(axis.place(value)))
            for index, (axis, value) in enumerate(zip(axes, values, strict=True))
        ]
        line = "M" + "L".join(f"{x:.1f} {at:.1f}" for x, at in points)
        said = ", ".join(f"{axis.name} {value}" for axis, value in zip(axes, values, strict=True))
        kind = f"c{number % DRAWN}{' best' if number == 0 else ''}"
        parts.append(f'<path class="{kind}" d="{line}"><title>trial {row.number}: {html.escape(said)}</title></path>')
    name = "Values of the varied options and held-out loss, a line a run; the thick line is the best run"
    box = f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name}"'
    return (
        f'<figure><div class="wide"><svg class="lines" {box}>{"".join(parts)}</svg></div>'
        f'<figcaption class="small">{name}. The table above has the same numbers.</figcaption></figure>'
    )


def _axis(name: str, values: Sequence[str]) -> Axis:
    """Numbers by their size, by powers where they span much; words in the order in which they first stand."""
    numbers = {value: number for value in values if (number := _number(value)) is not None}
    if len(numbers) == len(set(values)) and len(set(numbers.values())) > 1:
        low, high = min(numbers.values()), max(numbers.values())
        power = low > 0 and high / low > 5

        def place(value: str) -> float:
            number = numbers[value]
            if power:
                return math.log(number / low) / math.log(high / low)
            return (number - low) / (high - low)

        shown = sorted(set(values), key=lambda value: numbers[value])
        labels = shown if len(shown) <= 6 and name != LOSS else [shown[0], shown[-1]]
        return Axis(name, place, [(place(value), f"{numbers[value]:.4g}") for value in labels])
    distinct = list(dict.fromkeys(values))
    room = max(1, len(distinct) - 1)
    return Axis(
        name, lambda value: distinct.index(value) / room, [(i / room, one[:12]) for i, one in enumerate(distinct)]
    )


def _number(value: str) -> float | None:
    try:
        found = float(value)
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def _curves(ranked: Sequence[Row]) -> str:
    curves = [
        Curve(f"trial {row.number}", f"c{index}", [(float(epoch), loss) for epoch, loss in row.losses.items()])
        for index, row in enumerate(ranked[:DRAWN])
    ]
    if not any(len(curve.points) > 1 for curve in curves):
        return "<p>A second epoch is needed.</p>"
    left = f"<p class='small'>The best {DRAWN} of {len(ranked)} runs.</p>" if len(ranked) > DRAWN else ""
    return left + chart("Held-out loss", curves, [], number=lambda value: f"{value:.4g}", from_zero=False).replace(
        "step ", "epoch "
    )


def _sheets(ranked: Sequence[Row]) -> str:
    """Previews of the best runs, each as its own report would show them."""
    shown = [_Sheet.of(row) for row in ranked[:BEST]]
    every: list[Preview] = [
        preview for sheet in shown if sheet for column in sheet.columns for preview in column.previews.values()
    ]
    if not every:
        return "<p>The runs made no previews: --set sample_prompts=FILE --set sample_every_n_epochs=1 makes some.</p>"
    pictures = embed(every)
    return "".join(sheet.markup(pictures) for sheet in shown if sheet and any(one.previews for one in sheet.columns))


@dataclass(frozen=True)
class _Sheet:
    row: Row
    columns: Sequence[Moment]
    prompts: Sequence[str]

    @classmethod
    def of(cls, row: Row) -> _Sheet | None:
        """None where the run cannot be read any more."""
        if row.run_folder is None:
            return None
        try:
            run = read_run(find(row.run_folder), row.run_folder)
        except (ConfigError, OSError):
            return None
        columns = [column for column in moments(run) if column.previews]
        return cls(row, fitting(columns)[-ACROSS:], run.prompts)

    def markup(self, pictures: Embedded) -> str:
        values = ", ".join(f"{name} {value}" for name, value in self.row.values.items())
        head = f"<h3>Trial {self.row.number}: {text(values)}, held-out loss {_loss(self.row.loss)}</h3>"
        indices = sorted({index for column in self.columns for index in column.previews})
        lines = []
        for index in indices:
            prompt = self.prompts[index] if index < len(self.prompts) else f"prompt {index + 1}"
            cells = [_image(pictures, column, index) for column in self.columns]
            lines.append([f'<span class="prompt">{text(prompt)}</span>', *cells])
        table = rows(["", *(text(column.title) for column in self.columns)], lines)
        return head + table.replace("<table", '<table class="sheet"', 1)


def _image(pictures: Embedded, column: Moment, index: int) -> str:
    preview = column.previews.get(index)
    url = pictures.urls.get(preview.path) if preview else None
    if preview is None or url is None:
        return ""
    return f'<label class="zoom"><input type="checkbox"><img src="{url}" alt="{text(column.title)}"></label>'
