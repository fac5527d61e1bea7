"""The page as text: every value escaped, nothing loaded from elsewhere, no script."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from launcher.report.advice import Suggestion, Trend, first_lost, over_trained
from launcher.report.curves import Curve, chart, moving_average
from launcher.report.data import NOTHING, Data, bundled
from launcher.report.facts import Run, last_name, shareable
from launcher.report.sheet import Embedded, Moment
from launcher.report.style import STYLE
from launcher.run.command import quoted
from schemas import interop
from schemas.blanking import without_secrets
from schemas.config import table, to_flat
from schemas.progress import hours
from schemas.rules.interop import kinds

MARK = "<!doctype html>\n<!-- kohyakit report -->\n"
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
HOME = re.compile(r"(?:/home|/Users|[A-Za-z]:[\\/]+Users)[\\/]+[^\\/\s\"'<>]+")
FOLDERS = re.compile(r"(?:[A-Za-z]:)?[\\/](?:[^\s\\/,;:'\"]+[\\/])+")  # of a path, all but its last name
COLOURS = 8  # classes c0 to c7 of the style
ACROSS = 4  # moments that fit beside each other
SHOWN = 200  # characters of a value; the rest is in its title


@dataclass(frozen=True)
class Page:
    """Everything that the page shows. `typed_in` says where its commands are typed."""

    run: Run
    moments: Sequence[Moment]
    columns: Sequence[Moment]
    pictures: Embedded
    trend: Trend | None
    suggestions: Sequence[Suggestion]
    typed_in: str
    data: Data = NOTHING


def text(value: Any) -> str:
    """A value of the user's as HTML text: secrets blanked, the name of the home folder left out."""
    return html.escape(HOME.sub("~", without_secrets(str(value))))


def _short(said: str) -> str:
    """A message without the folders that it names."""
    return text(FOLDERS.sub("", said))


def page(shown: Page) -> str:
    """The document."""
    title = f"{text(shown.run.name)}: report of a run"
    return MARK + "\n".join(
        [
            f'<html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<style>{STYLE}</style></head><body>",
            f"<h1>{text(shown.run.name)}</h1>{_summary(shown)}",
            *(f"<h2>{heading}</h2>{content()}" for heading, content in parts(shown).items()),
            "</body></html>\n",
        ]
    )


def parts(shown: Page) -> dict[str, Callable[[], str]]:
    """Heading -> what makes its HTML: the sections of the frozen page, which the live one shows too."""
    run = shown.run
    return {
        "What to try next": lambda: _advice(shown),
        "Curves": lambda: _curves(run),
        "Side by side": lambda: f"{_which(shown)}{_sheet(shown)}",
        "Saved files": lambda: _files(shown),
        "Training images": lambda: _data(shown.data),
        "Settings": lambda: _settings(run),
        "Starts": lambda: _starts(run),
        "Made with": lambda: _versions(run),
    }


def rows(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table of cells that are HTML already, a single cell over its whole width; empty without lines."""
    wide = f' colspan="{len(head)}"'
    body = "".join(
        "<tr>" + "".join(f"<td{wide if len(line) == 1 else ''}>{cell}</td>" for cell in line) + "</tr>"
        for line in lines
    )
    top = "".join(f"<th>{name}</th>" for name in head)
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>' if body else ""


def state(run: Run) -> str:
    """How the run stands, in words."""
    if first_lost(run) is not None:
        return "its loss became no number"
    words = {0: "finished", 1: "refused at its last start", 130: "interrupted", None: "running, or killed"}
    return words.get(run.exit, f"failed with exit code {run.exit}")


def _summary(shown: Page) -> str:
    run, losses = shown.run, [step.loss for step in shown.run.steps]
    seconds = sorted(step.seconds for step in run.steps if math.isfinite(step.seconds))
    memory = max((step.memory for step in run.steps if math.isfinite(step.memory)), default=math.nan)
    averages = moving_average(losses, window(len(losses)))
    data = run.record.get("dataset") or {}
    facts = [
        ("State", text(state(run))),
        ("Steps", f"{run.last.step} of {run.total}, epoch {run.last.epoch}"),
        ("Loss at the end", f"{loss(averages[-1])}{f', {shown.trend.word}' if shown.trend else ''}"),
        ("Time", f"{duration(sum(seconds))}, {seconds[len(seconds) // 2]:.3g} s a step" if seconds else "unknown"),
        ("Peak memory", size(memory)),
        *speed(run),
        ("Images", f"{data['images']}" if data.get("images") else "unknown"),
        ("Exposures an image", f"{run.looks:.0f}" if run.looks is not None else "unknown"),
        ("Network", f"rank {run.config.rank}, alpha {run.config.network_alpha:g}"),
    ]
    family = f"{text(run.family)} on " if run.family else ""
    model = last_name(run.config.pretrained_model_name_or_path or "an unknown model")
    boxes = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts)
    comment = f"<p>{text(run.config.training_comment)}</p>" if run.config.training_comment else ""
    return f"<p>{family}{text(model)}</p>{comment}<dl>{boxes}</dl>"


def _advice(shown: Page) -> str:
    items = "".join(
        f"<li><b>{text(said.title)}.</b> {text(said.reason)}<pre>{text(quoted(list(said.command)))}</pre></li>"
        for said in shown.suggestions
    )
    return f'<ol class="advice">{items}</ol><p class="small">{text(shown.typed_in)}</p>'


def window(count: int) -> int:
    """Steps that one point of the average covers: a twentieth of the run, 5 to 200."""
    return min(200, max(5, count // 20))


def _curves(run: Run) -> str:
    at = [float(step.step) for step in run.steps]
    ends = [(epoch, run.epoch_end(epoch)) for epoch in range(1, run.last.epoch + 1)]
    ends = [(epoch, step) for epoch, step in ends if step <= run.last.step]
    losses = [step.loss for step in run.steps]
    mean = list(zip(at, moving_average(losses, window(len(losses))), strict=True))
    both = [
        Curve("each step", "c0", list(zip(at, losses, strict=True)), raw=True),
        Curve(f"mean of {window(len(losses))} steps", "c0", mean),
    ]
    if run.held_out:
        both.append(Curve("held-out images", "c1", [(float(step), value) for step, value in run.held_out.items()]))
    seconds, memory = [step.seconds for step in run.steps], [step.memory / 2**30 for step in run.steps]
    time = [
        Curve("each step", "c1", list(zip(at, seconds, strict=True)), raw=True),
        Curve("mean", "c1", list(zip(at, moving_average(seconds, window(len(at))), strict=True))),
    ]
    held = [Curve("peak so far", "c2", list(zip(at, memory, strict=True)))]
    return "".join(
        [
            chart("Loss", both, ends, number=loss, from_zero=False),
            chart("Learning rate", _rates(run), ends, number=lambda value: f"{value:.3g}"),
            chart("Seconds a step", time, ends, number=lambda value: f"{value:.3g}"),
            chart("Memory in GiB", held, ends, number=lambda value: f"{value:.3g}"),
            '<p class="small">Peaks above a frame are drawn at its edge; a red line marks a step without a loss.</p>',
        ]
    )


def _rates(run: Run) -> list[Curve]:
    """One curve a group; groups that had the same rate all along are one."""
    groups: dict[tuple[tuple[float, float], ...], list[str]] = {}
    for name in dict.fromkeys(name for step in run.steps for name in step.lr):
        points = tuple((float(step.step), step.lr[name]) for step in run.steps if name in step.lr)
        groups.setdefault(points, []).append(name)
    return [
        Curve(", ".join(names), f"c{number % COLOURS}", points) for number, (points, names) in enumerate(groups.items())
    ]


def _sheet(shown: Page) -> str:
    columns = [column for column in shown.columns if column.previews or column.copies]
    if not columns:
        return "<p>Neither files nor previews are there.</p>"
    indices = sorted({index for column in columns for index in column.previews})
    cells = [[_picture(shown, column, index) for index in indices] for column in columns]
    prompts = [_prompt(shown.run, index) for index in indices]
    if len(columns) > max(len(indices), ACROSS):  # many epochs run down the page, which has no end
        head = ["", *prompts]
        lines = [
            [f"<b>{text(one.title)}</b><br>{_saved(one)}", *line] for one, line in zip(columns, cells, strict=True)
        ]
    else:
        head = ["", *(text(column.title) for column in columns)]
        saved = ["<b>saved</b>", *(_saved(column) for column in columns)]
        lines = [saved, *([prompt, *line] for prompt, *line in zip(prompts, *cells, strict=True))]
    return rows(head, lines).replace("<table", '<table class="sheet"', 1) + _limits(shown)


def _which(shown: Page) -> str:
    """How to choose an epoch by eye, which the loss of the training cannot do."""
    said = []
    if any(column.previews for column in shown.columns):
        said.append(
            "The loss does not tell; the previews do. Keep the first one that shows what you trained wherever its word "
            "stands in the prompt. Where prompts without the word begin to look like your images, or all images begin "
            "to look alike, training has gone on for too long."
        )
    measured = {step: value for step, value in shown.run.held_out.items() if math.isfinite(value)}
    if len(measured) > 1:
        best, last, found = min(measured, key=lambda step: measured[step]), max(measured), over_trained(shown.run)
        if found is not None:
            said.append(f"Over-trained since epoch {found.epoch}. {text(found.evidence)}.")
        else:
            then = (
                "has not risen yet" if best == last else "rises then" if measured[last] > measured[best] else "is flat"
            )
            lowest = f"On the images that are held out the loss is lowest after step {best} ({loss(measured[best])})"
            said.append(f"{lowest}, and {then}. Of few images this is a hint, no verdict.")
        said.append("<code>kohyakit compare</code> measures the saved files beside each other.")
    return f"<p>Which epoch to keep? {' '.join(said)}</p>" if said else ""


def _data(data: Data) -> str:
    """The images that were trained on, folded, and what is wrong with them."""
    if data.count is None:
        return "<p>They are not here any more, or not shown.</p>"
    cells = "".join(
        f'<figure><img src="{one.url}" alt="{text(one.name)}"><figcaption>{text(one.caption or "no caption")}'
        "</figcaption></figure>"
        if one.url
        else f"<figure>{text(one.name)} cannot be read</figure>"
        for one in data.images
    )
    found = "".join(
        f"<li>{text(problem.severity)}: {_short(problem.must)}{f' ({count} times)' if count > 1 else ''}"
        f"{f'; {_short(problem.fix)}' if problem.fix else ''}</li>"
        for problem, count in bundled(data.problems)
    )
    listed = f"<ul>{found}</ul>" if found else "<p>Nothing is wrong with them.</p>"
    title = f"{data.count} images" if len(data.images) == data.count else f"{len(data.images)} of {data.count} images"
    note = '<p class="small">kohyakit report --no-images leaves them out, for a page that you give away.</p>'
    return f'{listed}<details><summary>{title}</summary><div class="data">{cells}</div></details>{note}'


def _saved(column: Moment) -> str:
    return "<br>".join(f"{text(copy.path.name)}<br>{size(copy.size)}" for copy in column.copies) or "-"


def _prompt(run: Run, index: int) -> str:
    known = index < len(run.prompts)
    return f'<span class="prompt">{text(run.prompts[index] if known else f"prompt {index + 1}")}</span>'


def _picture(shown: Page, column: Moment, index: int) -> str:
    preview = column.previews.get(index)
    if preview is None:
        return "-"
    if preview.path not in shown.pictures.urls:
        return "left out"
    url = shown.pictures.urls[preview.path]
    name = text(preview.path.name)
    if not url:
        return f"{name} cannot be read"
    zoom = f'<input type="checkbox" aria-label="enlarge {name}">'  # no script is allowed here
    return f'<label class="zoom" title="{name}: click to enlarge">{zoom}<img src="{url}" alt="{name}"></label>'


def _limits(shown: Page) -> str:
    """What of the previews is on the page, and in which size."""
    pictures, there = shown.pictures, sum(len(moment.previews) for moment in shown.moments)
    if not there:
        return "<p>The run made no previews.</p>"
    said = f"{pictures.shown} of {there} previews, at most {pictures.side} pixels long, {size(pictures.size)} in all"
    hidden = len(shown.moments) - len(shown.columns)
    said += f"; {hidden} moments in between are left out to keep the page small" if hidden else ""
    return f'<p class="small">{said}. The originals are in sample/.</p>'


def _files(shown: Page) -> str:
    run, losses = shown.run, [step.loss for step in shown.run.steps]
    means = dict(zip((step.step for step in run.steps), moving_average(losses, window(len(losses))), strict=True))
    lines = [
        [text(copy.path.name), text(moment.title), size(copy.size), loss(means.get(copy.step, math.nan)),
         *([loss(run.held_out[copy.step]) if copy.step in run.held_out else "-"] if run.held_out else [])]
        for moment in shown.moments
        for copy in moment.copies
    ]  # fmt: skip
    head = ["file", "saved after", "size", "mean loss then", *(["held-out loss then"] if run.held_out else [])]
    table_of = rows(head, lines) or "<p>No file is there.</p>"
    return f"{table_of}{_programs(run)}"


def _programs(run: Run) -> str:
    """Where such a file works; nothing for kinds that were not measured."""
    said = "; ".join(interop.sentences(interop.readings(kinds(run.config), run.family)))
    return f'<p class="small">In other programs: {text(said)}.</p>' if said else ""


def _settings(run: Run) -> str:
    origins = run.record.get("origins") or {}
    flat = to_flat(run.config, defaults=True)
    named = {*origins, *to_flat(run.config)}
    lines, group = [], None
    for name, option in table().items():
        if name in named and name in flat:
            if option.group is not group:
                group = option.group
                lines.append([f"<h3>{text((group.__doc__ or '').strip().rstrip('.'))}</h3>"])
            lines.append(_setting(name, option.doc, flat[name], origins.get(name)))
    changes = [
        [text(change.get("argument")), *(text(shareable(str(change.get("argument")), change.get(word)))
                                          for word in ("from", "to")), text(change.get("why"))]
        for change in run.record.get("adapted") or []
    ]  # fmt: skip
    adapted = f"<h3>Adapted to the machine</h3>{rows(['option', 'asked', 'used', 'why'], changes)}" if changes else ""
    source = f"<p>From {text(last_name(str(run.record['file'])))}, format {text(run.record.get('format'))}.</p>" if (
        run.record.get("file")) else ""  # fmt: skip
    values = rows(["option", "value", "set by"], lines)
    note = '<p class="small">Everything else is at its default. Of paths only the last name is shown.</p>'
    return f"{source}{adapted}<details><summary>Values and who set them</summary>{values}</details>{note}"


def _setting(name: str, doc: str, value: Any, origin: dict[str, Any] | None) -> list[str]:
    said = origin.get("origin") if origin else "config.toml"
    key = origin.get("from") if origin else None
    by = f"{said}: {key}" if key and key != name else f"{said}"
    shown = shareable(name, value)
    words = " ".join(str(item) for item in shown) if isinstance(shown, list) else plain(shown)
    cut = words if len(words) <= SHOWN else words[: SHOWN - 1] + "…"
    return [
        f'<span class="option" title="{text(doc)}">{text(name)}</span>',
        f'<span title="{text(words)}">{text(cut)}</span>',
        text(by),
    ]


def plain(value: Any) -> str:
    """As in TOML, without quotes."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else "unset" if value is None else str(value)


def _starts(run: Run) -> str:
    lines = [
        [
            *(text(str(start.get(name) or "-").replace("T", " ")) for name in ("begin", "end", "mode")),
            *(text("-" if start.get(name) is None else start[name]) for name in ("exit", "last_step", "processes")),
            text(", ".join(_newer(run, start)) or "-"),
        ]
        for start in run.starts
    ]
    return rows(["begin", "end", "how", "exit", "last step", "processes", "other versions"], lines) or (
        "<p>Its record names no start.</p>"
    )


def _newer(run: Run, start: dict[str, Any]) -> list[str]:
    first = run.record.get("versions") or {}
    return [f"{name} {number}" for name, number in (start.get("versions") or {}).items() if first.get(name) != number]


def _versions(run: Run) -> str:
    lines = [[text(name), text(number)] for name, number in (run.record.get("versions") or {}).items()]
    for word in ("model", "dataset"):
        facts = run.record.get(word) or {}
        if facts.get("fingerprint"):
            named = f"{last_name(str(facts['name']))}, " if facts.get("name") else ""
            lines.append([f"{word}", text(f"{named}fingerprint {str(facts['fingerprint'])[:12]}")])
    return rows(["package", "version"], lines) or "<p>Its record names no versions.</p>"


def loss(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "no number"


def size(count: float) -> str:
    """Bytes in words."""
    if not math.isfinite(count):
        return "unknown"
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count / 1024:.0f} KiB"


def speed(run: Run) -> list[tuple[str, str]]:
    """Images a second in the middle of all steps, and the share of the card's peak at the end, where logged."""
    rates = sorted(step.images_per_second for step in run.steps if math.isfinite(step.images_per_second))
    shares = [step.mfu for step in run.steps if math.isfinite(step.mfu)]
    if not rates:
        return []
    share = f", {shares[-1]:.1%} of the card's peak" if shares else ""
    return [("Speed", f"{rates[len(rates) // 2]:.3g} images a second{share}")]


def duration(seconds: float) -> str:
    """h:mm:ss."""
    return hours(round(seconds))
