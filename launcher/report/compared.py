"""The page and the document of `kohyakit compare`: verdict, measurements, grid of images."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.about.compare import Asked, Comparison
from launcher.report.make import refuse_strangers
from launcher.report.sheet import data_url
from launcher.report.style import STYLE
from launcher.report.verdict import Epoch, Verdict, epochs_of, judge
from launcher.report.write import MARK, POLICY, rows, text
from launcher.run.command import quoted
from launcher.run.files import write_text
from schemas.config import TrainConfig
from schemas.files.documents import parse_json
from schemas.files.textfile import CONFIG, read_text
from schemas.problems import Problem, error

DONE = "compared.json"
SIDES = ((60, 512), (200, 256), (10**9, 160))  # up to so many images: their longest side in pixels on the page
MORE_EPOCHS = 3
WIDE, HIGH, EDGE = 900, 240, 56


@dataclass(frozen=True)
class Compared:
    """What was measured of what, and what follows from it."""

    what: Comparison
    asked: Asked
    epochs: list[Epoch]
    measured: Mapping[str, Any]
    verdict: Verdict
    problems: list[Problem]

    @classmethod
    def read(cls, what: Comparison, asked: Asked, code: int) -> Compared:
        """The result of the measuring process that ended with `code`."""
        file = what.folder / DONE
        try:
            document = parse_json(read_text(file, limit=CONFIG * 16, what="measurements"))
        except ValueError:
            document = {"problems": [{"severity": "error", "code": "not-measured", "must": "was not measured"}]}
        problems = [Problem(**one) for one in document.get("problems") or []] if code else []
        if code:
            return cls(what, asked, [], {}, Verdict("cannot-tell", None, ""), problems)
        numbers = {str(one.file.absolute()): one.epoch for one in what.saved}
        epochs = epochs_of(document, numbers)
        return cls(what, asked, epochs, document, judge(epochs), [])

    @property
    def next(self) -> tuple[str, ...]:
        """The command for what to do next."""
        return next_command(self)

    def as_json(self, page: Path) -> dict[str, Any]:
        """The document of `compare --json`."""
        return {
            "ok": True, "page": str(page), "run": self.asked.run, "family": self.what.family,
            "held_out": {"images": list(self.measured["held_out"]), "from": _source(self),
                         "timesteps": list(self.measured["timesteps"])},
            "epochs": [_epoch_json(one) for one in self.epochs],
            "likeness_of_base": self.measured["base"].get("likeness"),
            "own_nearest": self.measured.get("own_nearest"),
            "images": [
                {"place": one["place"], "weight": one["weight"],
                 "files": [str(self.what.folder / name) for name in one["images"]]}
                for one in self.measured["measured"] if one.get("images")
            ],
            "prompts": [{"prompt": one.prompt, "with_trigger": number not in self.what.neutral}
                        for number, one in enumerate(self.what.prompts)],
            "verdict": self.verdict.as_json() | {"next": list(self.next)}, "problems": [],
        }  # fmt: skip

    def lines(self) -> Iterator[str]:
        """The same for people."""
        yield self.verdict.sentence
        for said in self.verdict.evidence:
            yield f"  {said}"
        for said in self.verdict.doubt:
            yield f"  doubt: {said}"
        yield f"next: {quoted(list(self.next))}"


def next_command(found: Compared, base: Path | None = None) -> tuple[str, ...]:
    """What to type next; files are named as seen from `base`, which a page does that is given away."""

    def name(path: Path) -> str:
        return str(path if base is None else os.path.relpath(path, base))

    what, verdict, kept = found.what, found.verdict, found.verdict.epoch
    start = Path(kept.file) if kept else what.saved[-1].file
    if what.run is None:
        if not found.measured["held_out"]:
            return ("kohyakit", "compare", name(start.parent), "--held-out", "DIR")
        again = verdict.action == "continue"
        return ("kohyakit", "resume", name(start), "--epochs", str(MORE_EPOCHS)) if again else (
            "kohyakit", "inspect", name(start))  # fmt: skip

    def anew(suffix: str, **sets: object) -> tuple[str, ...]:
        words = {**sets, "output_name": f"{what.name}-{suffix}"}
        config = name(what.run / "config.toml") if what.run else ""
        return (
            "kohyakit",
            "launch",
            config,
            *(word for key, value in words.items() for word in ("--set", f"{key}={value}")),
        )

    if not found.measured["held_out"]:
        return anew("held", validation_split=0.1)
    if verdict.action == "continue":
        return ("kohyakit", "resume", name(start), "--epochs", str(MORE_EPOCHS))
    if verdict.action == "stop-earlier" and (kept is None or verdict.over_trained_since == found.epochs[0].place):
        return anew("slower", **_slower(what.config))
    if verdict.action == "stop-earlier" and kept is not None and kept.number:
        return anew("shorter", max_train_epochs=kept.number + 1, max_train_steps="")
    return ("kohyakit", "inspect", name(start))


def _slower(config: TrainConfig) -> dict[str, str]:
    """A third of every rate that is set."""
    found = {"learning_rate": f"{config.learning_rate / 3:.2g}"}
    if config.unet_lr is not None:
        found["unet_lr"] = f"{config.unet_lr / 3:.2g}"
    if config.text_encoder_lr:
        found["text_encoder_lr"] = " ".join(f"{rate / 3:.2g}" for rate in config.text_encoder_lr)
    return found


def _epoch_json(one: Epoch) -> dict[str, Any]:
    error_of = one.error if one.gains else math.nan
    bands = {band: {"difference": value, "error": _finite(spread)} for band, (value, spread) in one.bands.items()}
    return {
        "place": one.place, "epoch": one.number, "file": one.file, "held_out": _finite(one.gain),
        "error": _finite(error_of), "bands": bands, "drift": one.drift, "sway": one.sway, "likeness": one.likeness,
    }  # fmt: skip


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _source(found: Compared) -> str | None:
    if found.asked.held_out is not None:
        return "--held-out"
    return "validation_split" if found.measured["held_out"] else None


def page_place(what: Comparison, output: Path | None) -> Path:
    """Where the page goes; ConfigError where a stranger's file lies."""
    place = output or (what.run or what.folder.parent) / (
        f"{what.name}-compare.html" if what.run is None else "compare.html"
    )
    refuse_strangers(place)
    return place


def write_page(found: Compared, place: Path) -> None:
    try:
        write_text(place, page(found))
    except OSError as fault:
        fix = "-o OUT.html in a folder that you may write to"
        raise error("not-writable", f"cannot be written: {fault.strerror}", file=str(place), fix=fix) from None


def page(found: Compared) -> str:
    """The document; nothing in it is loaded from elsewhere."""
    name = text(found.what.name)
    verdict, base = found.verdict, found.what.saved[0].file.parent.absolute()
    command = quoted(list(next_command(found, base)))
    evidence = "".join(f"<li>{text(said)}</li>" for said in verdict.evidence)
    doubt = "".join(f"<li>{text(said)}</li>" for said in verdict.doubt)
    return MARK + "\n".join(
        [
            f'<html lang="en"><head><meta charset="utf-8"><title>{name}: which epoch to keep</title>',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<style>{STYLE}</style></head><body>",
            f"<h1>{name}</h1><p>which epoch to keep</p>",
            f"<h2>Verdict</h2><p><b>{text(verdict.sentence)}</b></p><ul>{evidence}</ul>",
            f"<h3>Doubt</h3><ul>{doubt}</ul><h3>Next</h3><pre>{text(command)}</pre>"
            '<p class="small">The command is typed in the folder of the LoRA files.</p>',
            f"<h2>Measured</h2>{_chart(found)}{_table(found)}{_how(found)}",
            f"<h2>Images</h2>{_grid(found)}",
            "</body></html>\n",
        ]
    )


def _table(found: Compared) -> str:
    base, kept = found.measured["base"].get("likeness"), found.verdict.epoch
    bands = list(found.measured["bands"])
    head = ["", "held-out loss", *(f"of it {band}" for band in bands), "change of other prompts", "their images moved",
            *(["likeness to the set", "to the nearest image"] if base else [])]  # fmt: skip
    lines = []
    if base:
        lines.append(
            ["base model", *["0"] * (1 + len(bands)), "0", "0", _share(base["to_set"]), _share(base["to_nearest"])]
        )
    for one in found.epochs:
        like = one.likeness or {}
        name = f"<b>{text(one.place)}, kept</b>" if one is kept else text(one.place)
        lines.append([
            name, _difference(one.gain, one.error if one.gains else math.nan),
            *(_difference(*one.bands[band]) if band in one.bands else "-" for band in bands),
            _share(one.sway), _share(one.drift),
            *([_share(like.get("to_set")), _share(like.get("to_nearest"))] if base else []),
        ])  # fmt: skip
    copied = found.measured.get("own_nearest")
    said = f"A training image is {_share(copied)} like its nearest other one; above that, an epoch may copy."
    note = f'<p class="small">{said}</p>' if copied is not None else ""
    return rows(head, lines) + note


def _difference(value: float, spread: float) -> str:
    if not math.isfinite(value):
        return "-"
    return f"{value:+.4f}" + (f" ± {spread:.4f}" if math.isfinite(spread) else "")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _how(found: Compared) -> str:
    names = found.measured["held_out"]
    source = {
        "--held-out": f"in {found.asked.held_out.name}" if found.asked.held_out else "",
        "validation_split": "the images that the run kept aside",
    }
    where, steps = source.get(_source(found) or "", ""), len(found.measured["timesteps"])
    said = (
        f"{len(names)} held-out images ({where}), each at {steps} fixed timesteps with fixed noise and crop; "
        "differences to the base model, with their standard error."
        if names
        else "No image was held out: --held-out DIR, or --set validation_split=0.1 before the next run."
    )
    others = f"Other prompts are those without the trigger word: {_neutral(found)}."
    return f'<p class="small">{text(said)} {text(others)}</p>'


def _neutral(found: Compared) -> str:
    return "; ".join(found.what.prompts[number].prompt for number in found.what.neutral) or "there was none"


def _chart(found: Compared) -> str:
    """Held-out difference by epoch with its standard error as inline SVG; the kept one is filled."""
    known = [one for one in found.epochs if one.gains and math.isfinite(one.gain)]
    if len(known) < 2:
        return ""
    spreads = [one.error if math.isfinite(one.error) else 0.0 for one in known]
    low = min(0.0, *(one.gain - spread for one, spread in zip(known, spreads, strict=True)))
    high = max(0.0, *(one.gain + spread for one, spread in zip(known, spreads, strict=True)))
    across, up = (WIDE - 2 * EDGE) / (len(known) - 1), (HIGH - 60) / ((high - low) or 1.0)

    def at(number: int, value: float) -> tuple[float, float]:
        return EDGE + number * across, 20 + (high - value) * up

    parts = [f'<path class="grid" d="M{EDGE} {at(0, 0)[1]:.1f}H{WIDE - EDGE}"/>',
             f'<text class="end" x="{EDGE - 8}" y="{at(0, 0)[1] + 4:.1f}">base</text>',
             f'<text class="end" x="{EDGE - 8}" y="{at(0, low)[1] + 4:.1f}">{low:.3f}</text>']  # fmt: skip
    line = " ".join(f"{'L' if number else 'M'}{at(number, one.gain)[0]:.1f} {at(number, one.gain)[1]:.1f}"
                    for number, one in enumerate(known))  # fmt: skip
    parts.append(f'<path class="c0" d="{line}"/>')
    for number, (one, spread) in enumerate(zip(known, spreads, strict=True)):
        x, y = at(number, one.gain)
        top, bottom = at(number, one.gain + spread)[1], at(number, one.gain - spread)[1]
        parts.append(f'<path class="c0 raw" d="M{x:.1f} {top:.1f}V{bottom:.1f}"/>')
        fill = "currentColor" if one is found.verdict.epoch else "none"
        parts.append(f'<circle class="c0" cx="{x:.1f}" cy="{y:.1f}" r="5" style="fill:{fill};stroke:currentColor">'
                     f"<title>{text(one.place)}: {_difference(one.gain, spread)}</title></circle>")  # fmt: skip
        parts.append(f'<text class="mid" x="{x:.1f}" y="{HIGH - 10}">{text(one.place)}</text>')
    drawing = f'<svg viewBox="0 0 {WIDE} {HIGH}" role="img" aria-label="held-out loss by epoch">{"".join(parts)}</svg>'
    title = "<b>Held-out loss against the base model</b>, lower is better"
    return f"<figure><figcaption>{title}</figcaption>{drawing}</figure>"


def _grid(found: Compared) -> str:
    """Every prompt as a table of epoch by strength; the base model's image first."""
    measured = [one for one in found.measured["measured"] if one.get("images")]
    if not measured:
        return "<p>None were drawn (--no-images).</p>"
    count = sum(len(one["images"]) for one in measured)
    side = next(side for most, side in SIDES if count <= most)
    weights = sorted({one["weight"] for one in measured})
    places = list(dict.fromkeys(one["place"] for one in measured))
    names = {(one["place"], one["weight"]): one["images"] for one in measured}
    parts = []
    for index, prompt in enumerate(found.what.prompts):
        other = " (other prompt)" if index in found.what.neutral else ""
        base = found.measured["base"].get("images") or []
        lines = [["base model", _image(found, base, index, side), *[""] * (len(weights) - 1)]] if base else []
        lines += [[text(place), *(_image(found, names.get((place, weight), []), index, side) for weight in weights)]
                  for place in places]  # fmt: skip
        head = ["", *(f"strength {weight:g}" for weight in weights)]
        if len(weights) == 1:  # epochs beside each other
            cells = [_image(found, base, index, side)] if base else []
            cells += [_image(found, names.get((place, weights[0]), []), index, side) for place in places]
            head, lines = [*(["base model"] if base else []), *map(text, places)], [cells]
        table = rows(head, lines).replace("<table", '<table class="sheet"', 1)
        parts.append(f"<h3>{text(prompt.prompt)}{other}</h3>{table}")
    return "".join(parts) + f'<p class="small">The originals are in {text(found.what.folder.name)}/.</p>'


def _image(found: Compared, names: list[str], index: int, side: int) -> str:
    if index >= len(names):
        return "-"
    url = data_url(found.what.folder / names[index], side)
    name = text(names[index])
    if not url:
        return f"{name} cannot be read"
    zoom = f'<input type="checkbox" aria-label="enlarge {name}">'
    return f'<label class="zoom" title="{name}: click to enlarge">{zoom}<img src="{url}" alt="{name}"></label>'
