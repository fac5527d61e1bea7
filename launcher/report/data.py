"""The training images of a run as its report shows them: a few small ones, and what is wrong with them all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.report.facts import Run
from launcher.report.sheet import data_url
from schemas.problems import ConfigError, Problem

SIDE = 128  # pixels of the longer side
MOST = 24  # images, evenly chosen


@dataclass(frozen=True)
class Shown:
    """One image: its file name, its caption, and its data URL, None where it cannot be read."""

    name: str
    caption: str
    url: str | None


@dataclass(frozen=True)
class Data:
    """`count` images that are trained on; None where they are not here any more."""

    count: int | None
    images: Sequence[Shown]
    problems: Sequence[Problem]


NOTHING = Data(None, (), ())


def data_of(run: Run) -> Data:
    """What the data folders of the run hold now; never raises, as they may be of another machine."""
    from trainer.dataset.files import scan

    try:
        found = scan(run.config)
    except (ConfigError, OSError):
        return NOTHING
    own = [sample for sample in found.samples if not sample.is_reg]
    if not own:
        return NOTHING
    chosen = own if len(own) <= MOST else [own[len(own) * number // MOST] for number in range(MOST)]
    images = [Shown(sample.path.name, sample.caption, data_url(Path(sample.path), SIDE)) for sample in chosen]
    return Data(len(own), images, [problem for problem in found.problems if problem.severity != "note"])


def bundled(problems: Sequence[Problem]) -> list[tuple[Problem, int]]:
    """Each kind of finding once, with how often it was made."""
    counts = Counter(problem.code for problem in problems)
    first = {problem.code: problem for problem in reversed(problems)}
    return [(first[code], count) for code, count in counts.items()]
