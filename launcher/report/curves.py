"""Curves as inline SVG: axes, epoch marks, values on hover. Text and numbers in, markup out."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 900, 260
LEFT, RIGHT, TOP, BOTTOM = 66, 24, 22, 30
BINS = 400  # more points than twice this are drawn as the lowest and highest of each bin
STRIPS = 90  # places that show their values on hover
EPOCH_LABELS = 12
CLIPPED = 1.15  # height of the axis over what 98 % of the points reach

Point = tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """`kind` is a class of the page's style; points with a NaN or infinite value are left out of the line."""

    name: str
    kind: str
    points: Sequence[Point]
    raw: bool = False  # single measurements under an average: thin, and their peaks may leave the frame


@dataclass(frozen=True)
class Frame:
    """Data ranges, and where they lie on the drawing."""

    first: float
    last: float
    low: float
    high: float

    def x(self, value: float) -> float:
        span = self.last - self.first or 1.0
        return LEFT + (value - self.first) / span * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low or 1.0)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def moving_average(values: Sequence[float], window: int) -> list[float]:
    """Mean of the last `window` values; what is not finite does not count."""
    found, held, total = [], 0, 0.0
    for index, value in enumerate(values):
        if math.isfinite(value):
            total, held = total + value, held + 1
        if index >= window and math.isfinite(values[index - window]):
            total, held = total - values[index - window], held - 1
        found.append(total / held if held else math.nan)
    return found


def chart(
    title: str,
    curves: Sequence[Curve],
    epochs: Sequence[tuple[int, int]],
    *,
    number: Callable[[float], str],
    from_zero: bool = True,
) -> str:
    """A figure over steps; `epochs` are (epoch, its last step). Empty when there is no finite value."""
    frame = _frame(curves, from_zero)
    if frame is None:
        return ""
    parts = [*_axes(frame, number), *_epochs(frame, epochs)]
    parts += [_line(frame, curve) for curve in curves]
    parts += [f'<path class="lost" d="M{frame.x(x):.1f} {TOP}v{HEIGHT - TOP - BOTTOM}"/>' for x in _lost(curves)]
    parts += _strips(frame, curves, number)
    keys = " ".join(
        f'<span class="key {curve.kind}{" faint" if curve.raw else ""}"><i></i>{html.escape(curve.name)}</span>'
        for curve in curves
    )
    name = html.escape(title)
    drawing = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name}">{"".join(parts)}</svg>'
    return f"<figure><figcaption><b>{name}</b> {keys}</figcaption>{drawing}</figure>"


def _frame(curves: Sequence[Curve], from_zero: bool) -> Frame | None:
    steps = [x for curve in curves for x, _ in curve.points]
    leading = sorted(y for curve in curves if not curve.raw for _, y in curve.points if math.isfinite(y))
    raw = sorted(y for curve in curves if curve.raw for _, y in curve.points if math.isfinite(y))
    if not leading and not raw:
        return None
    share = 0.98 if raw else 1.0  # single measurements stand far out, and pull their average after them
    tops = [min(values[-1], values[int(share * (len(values) - 1))] * CLIPPED) for values in (leading, raw) if values]
    lows = [values[0] for values in (leading, raw) if values]
    high, low = max(tops), min(0.0, *lows) if from_zero else min(lows)
    margin = (high - low) * 0.04 or abs(high) * 0.1 or 1.0
    return Frame(min(steps), max(steps), low if from_zero and low == 0 else low - margin, high + margin)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers within a range: steps of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    size = next((power * factor for factor in (1, 2, 5) if power * factor >= rough), power * 10)
    begin, end = math.ceil(low / size - 1e-9), math.floor(high / size + 1e-9)
    return [size * index for index in range(begin, end + 1)]


def _axes(frame: Frame, number: Callable[[float], str]) -> list[str]:
    parts = []
    for value in ticks(frame.low, frame.high):
        y = frame.y(value)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="end" x="{LEFT - 6}" y="{y + 4:.1f}">{html.escape(number(value))}</text>')
    for value in ticks(frame.first, frame.last, 8):
        if value == int(value):
            parts.append(f'<text class="mid" x="{frame.x(value):.1f}" y="{HEIGHT - 10}">{int(value)}</text>')
    return parts


def _epochs(frame: Frame, epochs: Sequence[tuple[int, int]]) -> list[str]:
    every = math.ceil(len(epochs) / EPOCH_LABELS) or 1
    parts = []
    for epoch, step in epochs:
        if not frame.first <= step <= frame.last or (epoch % every and step != epochs[-1][1]):
            continue
        x = frame.x(step)
        parts.append(f'<path class="epoch" d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text class="end small" x="{x - 3:.1f}" y="{TOP - 6}">epoch {epoch}</text>')
    return parts


def _line(frame: Frame, curve: Curve) -> str:
    """Moves and lines; a gap where a value is not finite, a dot where it stands alone."""
    words, pen = [], False
    points = thinned(curve.points) if curve.raw else curve.points[:: max(1, len(curve.points) // (2 * BINS))]
    points = [*points, curve.points[-1]] if points and points[-1] != curve.points[-1] else points
    for x, y in points:
        if math.isfinite(y):
            words.append(f"{'L' if pen else 'M'}{frame.x(x):.1f} {frame.y(y):.1f}{'' if pen else 'h0.01'}")
        pen = math.isfinite(y)
    return f'<path class="{curve.kind}{" raw" if curve.raw else ""}" d="{"".join(words)}"/>'


def thinned(points: Sequence[Point]) -> list[Point]:
    """At most two points a bin, the lowest and the highest, so that no peak is lost."""
    if len(points) <= 2 * BINS:
        return list(points)
    found: list[Point] = []
    size = math.ceil(len(points) / BINS)
    for begin in range(0, len(points), size):
        group = [point for point in points[begin : begin + size] if math.isfinite(point[1])]
        if group:
            found += sorted({min(group, key=lambda p: p[1]), max(group, key=lambda p: p[1])})
    return found


def _lost(curves: Sequence[Curve]) -> list[float]:
    return sorted({x for curve in curves if curve.raw for x, y in curve.points if not math.isfinite(y)})[:STRIPS]


def _strips(frame: Frame, curves: Sequence[Curve], number: Callable[[float], str]) -> list[str]:
    """Invisible columns whose title a browser shows on hover: no script is needed."""
    tables = [(curve.name, dict(curve.points)) for curve in curves]
    steps = sorted({x for _, table in tables for x in table})
    size = max(1, math.ceil(len(steps) / STRIPS))
    shown, parts = steps[::size], []
    for index, step in enumerate(shown):
        x = frame.x(step) if index == 0 else (frame.x(shown[index - 1]) + frame.x(step)) / 2
        end = (frame.x(step) + frame.x(shown[index + 1])) / 2 if index + 1 < len(shown) else frame.x(step)
        said = ", ".join(f"{name} {number(table[step])}" for name, table in tables if step in table)
        box = f'x="{x:.1f}" y="{TOP}" width="{max(1.0, end - x):.1f}" height="{HEIGHT - TOP - BOTTOM}"'
        parts.append(f'<rect class="strip" {box}><title>step {step:g}: {html.escape(said)}</title></rect>')
    return parts
