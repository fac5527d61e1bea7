"""Makes all of trainer/toy from nothing: autoencoder, classifier, base models, training pictures, measured table.

`python -m benchmarks.toy_world --work FOLDER` takes a few hours of one core and can be interrupted and started again.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.toy_world import diffusion, frogs, judging, models, vae
from trainer.families import get
from trainer.toy import judge, scoring

HERE = Path(judge.__file__).parent
STEPS = {"vae": 2000, "decoder": 1200, "judge": 300, "sd15": 9500, "sdxl": 6000, "sd15-v": 600}
RATES = {"sd15": 2e-3, "sdxl": 2e-3, "sd15-v": 6e-4}
PICTURES = 16_000
STAGES = ("vae", "judge", "sd15", "sdxl", "sd15-v", "frogs", "table")


def say(text: str) -> None:
    print(text, flush=True)


def autoencoder(work: Path, *, finished: bool = True) -> nn.Module:
    """The trained autoencoder: encoder and decoder together, then (`finished`) the decoder alone."""
    model = vae.train(work, STEPS["vae"], 0, say)
    return vae.train_decoder(model, work, STEPS["decoder"], 0, say) if finished else model


def pictures(work: Path, model: nn.Module) -> diffusion.Pictures:
    """The U-Nets' training pictures as latents of deviation 1."""
    found: Any = models.kept(work, "pictures")
    if found is None:
        drawn = diffusion.encoded(vae.scaled(model, 1.0, 0), PICTURES, 0)
        found = {"means": drawn.means, "deviations": drawn.deviations}
        models.keep(work, "pictures", found)
    return diffusion.Pictures(found["means"], found["deviations"], diffusion.shown(PICTURES, 0))


def base_model(work: Path, name: str) -> None:
    """Trains sd15, sdxl, or sd15-v (which starts from sd15) and writes the checkpoint."""
    family, v = name.removesuffix("-v"), name.endswith("-v")
    model = autoencoder(work, finished=False)
    toy = diffusion.Toy.fresh(family, vae.scaled(model, get(family).latent_scale, 0))
    if v:
        before: Any = models.kept(work, family)
        toy.load(before["mean"])
        toy.mean = before["mean"]
    course = diffusion.Course(name, STEPS[name], RATES[name], v)
    averaged = diffusion.train(toy, pictures(work, model), work, course, say)
    final = vae.scaled(autoencoder(work), get(family).latent_scale, 0)
    modules = {"vae": final, **averaged.trained()}
    models.write(HERE / f"{name}.safetensors", family, modules, prediction="v" if v else "epsilon")


def table() -> None:
    """Prints the measured quality of every model, the rows of docs/learning.md."""
    say(f"drawn pictures: {judging.rated(judge.judge(), random.Random('table'))}")
    for name in ("sd15", "sdxl", "sd15-v"):
        loaded, v = scoring.load(HERE / f"{name}.safetensors"), name.endswith("-v")
        found, frog = scoring.quality(loaded, count=96, v=v, steps=20), scoring.learned(loaded, count=24, v=v, steps=20)
        rows = (found.shape, found.colour, found.background, frog.concept)
        say(f"| `{name}` | " + " | ".join(f"{share:.0%}" for share in rows) + " |")


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.toy_world", description=__doc__)
    parser.add_argument("--work", type=Path, required=True, metavar="FOLDER", help="for what is half done")
    parser.add_argument("stages", nargs="*", default=STAGES, metavar="STAGE", help=", ".join(STAGES))
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(words)
    torch.set_num_threads(given.threads)
    given.work.mkdir(parents=True, exist_ok=True)
    for stage in given.stages:
        if stage == "vae":
            autoencoder(given.work)
        elif stage == "judge":
            say(str(judging.train(judge.WEIGHTS, autoencoder(given.work), STEPS["judge"], 0, say)))
        elif stage == "frogs":
            frogs.write(HERE / "frogs")
        elif stage == "table":
            table()
        else:
            base_model(given.work, stage)
    return 0


if __name__ == "__main__":
    sys.exit(main())
