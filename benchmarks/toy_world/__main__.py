"""Makes all of trainer/toy from nothing: autoencoder, classifier, base models, training pictures, measured table.

`python -m benchmarks.toy_world --work FOLDER` takes a few hours of one core and can be interrupted and started again.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from benchmarks.toy_world import diffusion, frogs, judging, models, training, vae
from trainer.families import get
from trainer.toy import judge, scoring

HERE = Path(judge.__file__).parent
STEPS = {"vae": 2600, "decoder": 1000, "judge": 600, "sd15": 8000, "sdxl": 8000, "sd15-v": 700}
RATES = {"sd15": 2e-3, "sdxl": 2e-3, "sd15-v": 8e-4}
PICTURES = 16_000
STAGES = ("vae", "decoder", "judge", "sd15", "sdxl", "sd15-v", "frogs", "table")


def say(text: str) -> None:
    print(text, flush=True)


def encoder(work: Path) -> nn.Module:
    """The autoencoder whose latents the U-Nets are trained on."""
    return vae.trained(work, STEPS["vae"], say)


def decoder(work: Path) -> nn.Module:
    """The same with the decoder that is shipped."""
    return vae.better_decoder(encoder(work), work, STEPS["decoder"], say)


def pictures(work: Path) -> diffusion.Pictures:
    """The U-Nets' training pictures as latents of deviation 1."""
    found = training.kept(work, "pictures")
    if found is None:
        drawn = diffusion.encoded(vae.scaled(encoder(work), 1.0), PICTURES)
        found = {"means": drawn.means, "deviations": drawn.deviations}
        training.keep(work, "pictures", found)
    return diffusion.Pictures(found["means"], found["deviations"], diffusion.shown(PICTURES))


def base_model(work: Path, name: str) -> None:
    """Trains sd15, sdxl, or sd15-v (which starts from sd15) and writes the checkpoint."""
    family, v = name.removesuffix("-v"), name.endswith("-v")
    torch.manual_seed(0)
    toy = diffusion.fresh(family, encoder(work))
    if v:
        diffusion.learners(toy).load_state_dict(training.kept(work, family)["mean"])
    course = training.Course(name, STEPS[name], RATES[name], warmup=200)
    diffusion.trained(toy, pictures(work), course, work, say, v=v)
    modules = diffusion.parts(toy) | {"vae": vae.scaled(decoder(work), get(family).latent_scale)}
    models.write(HERE / f"{name}.safetensors", family, modules, prediction="v" if v else "epsilon")


def table() -> None:
    """Prints the measured quality of every model, the rows of docs/learning.md."""
    say(f"drawn pictures: {judging.rated(judge.judge(), random.Random('table'))}")
    for name in ("sd15", "sdxl", "sd15-v"):
        loaded, v = scoring.load(HERE / f"{name}.safetensors"), name.endswith("-v")
        found, frog = scoring.quality(loaded, v=v), scoring.learned(loaded, v=v)
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
            encoder(given.work)
        elif stage == "decoder":
            decoder(given.work)
        elif stage == "judge":
            say(str(judging.trained(judge.WEIGHTS, decoder(given.work), STEPS["judge"], given.work, say)))
        elif stage == "frogs":
            frogs.write(HERE / "frogs")
        elif stage == "table":
            table()
        else:
            base_model(given.work, stage)
    return 0


if __name__ == "__main__":
    sys.exit(main())
