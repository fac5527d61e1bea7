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
from trainer.toy import judge, scoring, world

HERE = Path(judge.__file__).parent
STEPS = {"vae": 2600, "decoder": 1000, "decoder-128": 600, "judge": 600}
# Of U-Net and text encoders: steps, highest rate, the course it goes on from.
COURSES: dict[str, tuple[int, float, str | None]] = {
    "sd15": (8000, 2e-3, None),
    "sdxl-64": (8000, 2e-3, None),
    "sdxl": (5000, 1.5e-3, "sdxl-64"),
    "sd15-v": (700, 8e-4, "sd15"),
}
SHIPPED = ("sd15", "sdxl", "sd15-v")
PICTURES = 16_000
STAGES = ("vae", "decoder", "judge", *COURSES, "frogs", "table")


def say(text: str) -> None:
    print(text, flush=True)


def encoder(work: Path) -> nn.Module:
    """The autoencoder whose latents the U-Nets are trained on."""
    return vae.trained(work, STEPS["vae"], say)


def decoder(work: Path, side: int = world.SIDE) -> nn.Module:
    """The same with the decoder that is shipped, for pictures of that side."""
    course = training.Course("decoder", STEPS["decoder"], vae.RATE, seed=1)
    better = vae.better_decoder(encoder(work), course, work, say)
    if side == world.SIDE:
        return better
    course = training.Course(f"decoder-{side}", STEPS[f"decoder-{side}"], vae.RATE / 2, seed=2)
    return vae.better_decoder(better, course, work, say, side)


def pictures(work: Path, side: int) -> diffusion.Pictures:
    """The U-Nets' training pictures of that side as latents of deviation 1."""
    found = training.kept(work, f"pictures-{side}")
    if found is None:
        drawn = diffusion.encoded(vae.scaled(encoder(work), 1.0), PICTURES, side)
        found = {"means": drawn.means, "deviations": drawn.deviations}
        training.keep(work, f"pictures-{side}", found)
    return diffusion.Pictures(found["means"], found["deviations"], diffusion.shown(PICTURES))


def base_model(work: Path, name: str) -> None:
    """Trains a U-Net and its text encoders, after the course it goes on from, and writes the checkpoint to be shipped.

    As the real SDXL was, the one in its form is trained on small pictures first, which takes a third of the time.
    """
    family, v = name.partition("-")[0], name.endswith("-v")
    side = world.side_of(family) if name in SHIPPED else world.SIDE
    steps, rate, before = COURSES[name]
    torch.manual_seed(0)
    toy = diffusion.fresh(family, encoder(work))
    if before is not None:
        start = training.kept(work, before)
        if start is None:
            raise SystemExit(f"{name} goes on from {before}, which is not in {work}: run that stage first")
        diffusion.learners(toy).load_state_dict(start["mean"])
    course = training.Course(name, steps, rate, warmup=200)
    diffusion.trained(toy, pictures(work, side), course, work, say, v=v)
    if name in SHIPPED:
        modules = diffusion.parts(toy) | {"vae": vae.scaled(decoder(work, side), get(family).facts.latents.scale)}
        models.write(HERE / f"{name}.safetensors", family, modules, prediction="v" if v else "epsilon")


def table() -> None:
    """Prints the measured quality of every model, the rows of docs/learning.md."""
    say(f"drawn pictures: {judging.rated(judge.judge(), random.Random('table'))}")
    for name in SHIPPED:
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
