"""What CivitAI's trainer takes: kinds of images, and the training JSON that goes with a zip."""

from __future__ import annotations

import json
import math
from pathlib import Path

from launcher.photos.check import Checkup
from schemas.files.documents import parse_json
from schemas.problems import ConfigError, Problem, error, errors
from trainer.dataset.images import kind_of_file

KINDS = ("PNG", "JPEG", "WEBP")
MOST_STEPS = 10_000  # of targetSteps; more is refused


def refused(found: Checkup) -> list[Problem]:
    """Images of kinds that the site does not take."""
    return [
        Problem(
            code="not-for-civitai",
            key=found.relative(shot.path),
            got=kind,
            must=f"must be one of {', '.join(KINDS)}: the site takes no others",
            fix="run the photos through `kohyakit dataset prepare`, which makes PNG of them",
        )
        for shot in found.shots
        if (kind := kind_of_file(shot.path)) not in KINDS
    ]


def training_json(found: Checkup, preset: str) -> tuple[str, list[str]]:
    """The JSON of a preset for these images, and what it cannot say. ConfigError where the site would refuse it."""
    from launcher import formats
    from launcher.about.convert import convert
    from launcher.check.resolve import resolve, settle

    place = str(found.folders[0].path.parent)
    written = convert(resolve(preset, {"train_data_dir": place}), "civitai")
    params = parse_json(written.text)
    repeats = {folder.repeats for folder in found.folders if folder.repeats}
    if len(repeats) == 1:
        params["numRepeats"] = repeats.pop()
    elif repeats:
        must = f"the folders have different repeats ({', '.join(map(str, sorted(repeats)))}), and the site knows one"
        raise error("not-for-civitai", must, key="numRepeats", fix="name them alike, or pack them one by one")
    epochs, batch = int(params.get("maxTrainEpochs", 1)), int(params.get("trainBatchSize", 1))
    steps = math.ceil(len(found.shots) * params.get("numRepeats", 200) * epochs / batch)
    params["targetSteps"] = steps
    if steps > MOST_STEPS:
        must = f"is more than the {MOST_STEPS} that the site accepts"
        fix = "fewer repeats (the number before the folder's name), or a preset of fewer epochs"
        raise error("not-for-civitai", must, key="targetSteps", got=steps, fix=fix)
    text = json.dumps(dict(sorted(params.items(), key=lambda item: (len(item[0]), item[0]))), indent=2) + "\n"
    wrong = errors(list(settle(formats.read_text(text, "civitai", "training.json")).problems))
    site = [problem for problem in wrong if problem.key in params]
    if site:
        raise ConfigError(site)
    return text, written.lost


def json_file(target: Path) -> Path:
    """Where the JSON of a zip is written."""
    return target.with_suffix(".json")
