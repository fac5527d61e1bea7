"""Which epoch to keep, from what was measured: pure arithmetic, with its evidence and its doubt.

Held-out losses are compared image by image (the same crop, timesteps and noise), so that what makes one image harder
than another drops out; the standard error is that of the images. The limits were set on toy runs whose best epoch is
known: docs/learning.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

CLEAR = 2.0  # standard errors of a difference that counts
SWAY_LIMIT = 0.09  # change of what the model says of other prompts, as a share of it, above which they suffer
BEARABLE = 1.5  # times the limit: up to there the gentlest epoch is named all the same, with a warning
FLAT = 0.01  # of what the best epoch has gained, that an earlier and gentler one may lack


@dataclass(frozen=True)
class Epoch:
    """One saved file: difference of each held-out image's loss to the base model's, drift and sway of other prompts."""

    place: str
    number: int | None
    file: str
    gains: Sequence[float]  # negative: better than the base model
    bands: Mapping[str, tuple[float, float]]  # band of timesteps -> (mean difference, its standard error)
    drift: float | None
    sway: float | None
    likeness: Mapping[str, float] | None = None

    @property
    def gain(self) -> float:
        return mean(self.gains)

    @property
    def error(self) -> float:
        return standard_error(self.gains)


@dataclass(frozen=True)
class Verdict:
    """`action`: keep, continue, stop-earlier, cannot-tell. `epoch` is the one to keep, None where none can be told."""

    action: str
    epoch: Epoch | None
    sentence: str
    evidence: list[str] = field(default_factory=list)
    doubt: list[str] = field(default_factory=list)
    over_trained_since: str | None = None

    def as_json(self) -> dict[str, Any]:
        kept = self.epoch
        return {
            "action": self.action, "epoch": kept.number if kept else None, "place": kept.place if kept else None,
            "file": kept.file if kept else None, "sentence": self.sentence, "evidence": self.evidence,
            "doubt": self.doubt, "over_trained_since": self.over_trained_since,
        }  # fmt: skip


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def standard_error(values: Sequence[float]) -> float:
    """Of the mean; infinite for a single value."""
    if len(values) < 2:
        return math.inf
    middle = mean(values)
    return math.sqrt(sum((value - middle) ** 2 for value in values) / (len(values) - 1) / len(values))


def epochs_of(measured: Mapping[str, Any], numbers: Mapping[str, int | None]) -> list[Epoch]:
    """The measurements of every file at the strength that is judged; `numbers` by file."""
    base = measured["base"].get("losses") or []
    found = []
    for one in measured["measured"]:
        if "losses" not in one:
            continue
        differences = [[now - then for now, then in zip(row, first, strict=True)]
                       for row, first in zip(one["losses"], base, strict=True)]  # fmt: skip
        bands = {}
        for band, (start, end) in measured["bands"].items():
            rows = [mean(row[start:end]) for row in differences]
            if rows:
                bands[band] = (mean(rows), standard_error(rows))
        drift, sway = one.get("drift"), one.get("sway")
        found.append(Epoch(
            one["place"], numbers.get(one["file"]), one["file"], [mean(row) for row in differences], bands,
            mean(drift) if drift else None, mean(sway) if sway else None, one.get("likeness"),
        ))  # fmt: skip
    return found


def worse(one: Epoch, other: Epoch) -> float:
    """How clearly `one` is worse than `other` on the held-out images, in standard errors of the paired difference."""
    apart = [mine - theirs for mine, theirs in zip(one.gains, other.gains, strict=True)]
    error = standard_error(apart)
    return mean(apart) / error if error > 0 else math.copysign(math.inf, mean(apart)) if mean(apart) else 0.0


def judge(epochs: Sequence[Epoch]) -> Verdict:
    """The verdict over the epochs in the order of the run."""
    if not epochs or not epochs[0].gains:
        return Verdict("cannot-tell", None, "No image was held out, so no epoch can be called the best.",
                       doubt=["drift and likeness say how much changed, not what was learnt"])  # fmt: skip
    gentle = [one for one in epochs if one.sway is None or one.sway <= SWAY_LIMIT]
    lowest = min(epochs, key=lambda one: one.gain)
    doubt = _doubt(epochs)
    if lowest.gain >= -CLEAR * lowest.error or not math.isfinite(lowest.error):
        return _nothing_gained(epochs, lowest, doubt)
    if not gentle:
        return _none_gentle(epochs, doubt)
    best = min(gentle, key=lambda one: one.gain)
    if best.gain >= -CLEAR * best.error:
        said = "What is learnt costs other prompts too much in every epoch that has learnt it."
        return Verdict("stop-earlier", None, said, _evidence(lowest), doubt, lowest.place)
    kept = next(one for one in gentle if one.gain <= (1 - FLAT) * best.gain)
    later = epochs[epochs.index(kept) + 1 :]
    since = over_trained(epochs, kept)
    evidence = _evidence(kept)
    if since is not None:
        evidence.append(f"from {since.place} on it is over-trained: {_why(since, kept)}")
        costly = since.sway is not None and since.sway > SWAY_LIMIT
        after = "costs other prompts too much" if costly else "is worse on held-out images"
        action, said = "stop-earlier", f"Keep {kept.place}; what came after it {after}."
    elif not later and len(epochs) > 1 and worse(epochs[-2], kept) > CLEAR:
        action, said = "continue", f"Keep {kept.place} for now: it is the last, and it was still getting better."
    elif not later and len(epochs) == 1:
        action, said = "continue", f"{kept.place} has learnt something; there is nothing to compare it with."
    else:
        action, said = "keep", f"Keep {kept.place}."
    ties = [one.place for one in epochs if one is not kept and abs(worse(one, kept)) <= CLEAR and one in gentle]
    if ties:
        doubt.insert(0, f"{', '.join(ties)} cannot be told from it by the held-out images")
    return Verdict(action, kept, said, evidence, doubt, since.place if since else None)


def _none_gentle(epochs: Sequence[Epoch], doubt: list[str]) -> Verdict:
    """Every epoch costs other prompts too much: the gentlest where that can be borne, none otherwise."""
    gentlest = min(epochs, key=lambda one: one.sway or 0.0)
    evidence = [
        f"{gentlest.place}: other prompts {_percent(gentlest.sway)} changed, {_percent(SWAY_LIMIT)} is the limit"
    ]
    borne = (gentlest.sway or 0.0) <= BEARABLE * SWAY_LIMIT and gentlest.gain < -CLEAR * gentlest.error
    if borne:
        said = f"Keep {gentlest.place} if any: each has changed other prompts too much, it least; the rate is too high."
        return Verdict("stop-earlier", gentlest, said, [*_evidence(gentlest), *evidence], doubt, epochs[0].place)
    said = "Every epoch has changed other prompts too much; the rate is too high."
    return Verdict("stop-earlier", None, said, evidence, doubt, epochs[0].place)


def over_trained(epochs: Sequence[Epoch], kept: Epoch) -> Epoch | None:
    """The first epoch after `kept` from which all are clearly worse on held-out images, or cost others too much."""
    later = list(epochs[epochs.index(kept) + 1 :])
    found = None
    for one in reversed(later):
        too_far = one.sway is not None and one.sway > SWAY_LIMIT
        if not (too_far or worse(one, kept) > CLEAR):
            break
        found = one
    return found


def _nothing_gained(epochs: Sequence[Epoch], lowest: Epoch, doubt: list[str]) -> Verdict:
    worst = epochs[-1]
    if math.isfinite(worst.error) and worst.gain > CLEAR * worst.error and (worst.sway or 0) > SWAY_LIMIT / 4:
        said = "Every epoch is worse on held-out images than the base model: the rate is too high."
        return Verdict("stop-earlier", None, said, _evidence(epochs[0]), doubt, epochs[0].place)
    small = worst.sway is not None and worst.sway < SWAY_LIMIT / 4
    if small:
        said = "Nothing is learnt yet that the held-out images show."
        return Verdict("continue", None, said, _evidence(lowest), doubt)
    said = "The differences are within the error of the measurement."
    return Verdict("cannot-tell", None, said, _evidence(lowest), doubt)


def _evidence(one: Epoch) -> list[str]:
    found = [f"{one.place}: held-out loss {one.gain:+.4f} ± {one.error:.4f} against the base model"]
    if one.sway is not None:
        found.append(f"{one.place}: what the model says of other prompts has changed by {_percent(one.sway)}")
    if one.drift is not None:
        found.append(
            f"{one.place}: images of other prompts have moved {_percent(one.drift)} of the way to unrelated ones"
        )
    return found


def _why(one: Epoch, kept: Epoch) -> str:
    if one.sway is not None and one.sway > SWAY_LIMIT:
        return f"other prompts have changed by {_percent(one.sway)}"
    return (
        f"its held-out loss is {one.gain - kept.gain:+.4f} against {kept.place}, {worse(one, kept):.1f} standard errors"
    )


def _doubt(epochs: Sequence[Epoch]) -> list[str]:
    count, found = len(epochs[0].gains), []
    if count < 8:
        found.append(f"{count} held-out image{'s are' if count > 1 else ' is'} few; ten or more make it a measurement")
    if epochs[0].sway is None:
        found.append("no prompt without the trigger word was measured, so what other prompts lose is not known")
    else:
        found.append("how much other prompts may change was set on toy models: look at those images")
    found.append("the loss does not see what a person likes: look at the images")
    return found


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{share:.1%}"
