"""`kohyakit demo`: the whole job on drawn pictures and a random small model, typed out command by command."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from launcher.toy import TOKEN, write_photos

PRESET = "toy"
PHOTOS = 12
SIDE = 256  # pixels; the preset trains at 64, smaller photos would be warned of
REPEATS = 2
NAME = "toyfrog"
PACKAGES = Path(__file__).resolve().parent.parent  # where launcher, trainer and schemas lie


class Failed(Exception):
    """A command of the demo ended with an exit code other than 0."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def run_demo(directory: Path) -> int:
    """Everything in `directory`, or in a numbered neighbour where that is in use; the exit code.

    Each step is the command that a user would type, run as a process of its own.
    """
    directory = free_directory(directory.resolve())
    try:
        _demo(directory)
    except Failed as fault:
        click.echo(f"\nThe demo stopped: the command above ended with exit code {fault.code}.", err=True)
        click.echo(f"What it has made so far lies in {directory}", err=True)
        return fault.code
    return 0


def free_directory(wanted: Path) -> Path:
    """`wanted`, or `wanted`-2, -3, ... : the first that is missing or empty."""
    number, folder = 1, wanted
    while folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder


def _demo(directory: Path) -> None:
    photos, data, results = directory / "photos", directory / "frog", directory / "frog" / "result_current"
    model = directory / "tiny-model.safetensors"
    settings = {
        "pretrained_model_name_or_path": str(model),
        "train_data_dir": str(data / "training_images"),
        "output_dir": str(results),
        "output_name": NAME,
    }
    sets = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]

    _heading(f"Photos and a model. Everything goes into {directory}")
    write_photos(photos, PHOTOS, SIDE)
    click.echo(f"drew {PHOTOS} captioned pictures of a frog called {TOKEN}: {photos}")
    _write_model(model)
    click.echo(f"wrote a small model of random numbers, in the form of a Stable Diffusion 1.5 checkpoint: {model}")

    _heading("1. From photos to a training folder")
    _kohyakit("dataset", "prepare", str(photos), "--name", TOKEN, "--to", str(data), "--repeats", str(REPEATS))
    _kohyakit("dataset", "check", str(data), "--resolution", "64,64")

    _heading(f"2. The preset {PRESET}: is it right, and what would it do?")
    _kohyakit("validate", PRESET, *sets)
    _kohyakit("plan", PRESET, *sets)

    _heading("3. Train")
    _kohyakit("launch", PRESET, *sets)

    _heading("4. One epoch more, starting from the LoRA")
    _kohyakit("resume", str(results / f"{NAME}.run"), "--epochs", "1")

    _heading("Done")
    _farewell(results)


def _write_model(file: Path) -> None:
    """By a process of its own, because it needs torch; what its libraries say is shown only when it fails."""
    words = [sys.executable, "-P", "-m", "trainer.families.random_checkpoint", "--family", "sd15", "--tiny", str(file)]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True)
    if done.returncode:
        click.echo(done.stdout + done.stderr, err=True)
        raise Failed(done.returncode)


def _heading(text: str) -> None:
    click.echo("\n" + click.style(text, bold=True))


def _kohyakit(*words: str) -> None:
    """Print and run one command of ours, by this very installation."""
    click.echo(click.style("$ " + shlex.join(["kohyakit", *words]), fg="cyan"))
    code = run_module("launcher", *words)
    if code:
        raise Failed(code)


def run_module(module: str, *words: str) -> int:
    """`python -m MODULE WORDS` with this installation's packages; the exit code."""
    sys.stdout.flush()
    return subprocess.run([sys.executable, "-P", "-m", module, *words], env=environment()).returncode


def environment() -> dict[str, str]:
    """With `python -P`: our packages first, so that a folder named launcher or trainer that lies around is no trap."""
    inherited = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([str(PACKAGES), *([inherited] if inherited else [])])
    # On a busy machine, threads that wait by spinning would make steps this small a hundred times slower.
    return {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "PYTHONPATH": path}


def _farewell(results: Path) -> None:
    previews = sorted((results / "sample").glob("*.png"))
    _listed("LoRA files, for any program that loads Kohya's", sorted(results.glob("*.safetensors")))
    _listed("the settings, which Kohya's GUI and kohyakit load", sorted(results.glob("*.json")))
    _listed("previews (noise: the model is random)", previews[-1:])
    run = results / f"{NAME}.run"
    click.echo("\nWhat to type next:")
    for words, why in (
        (["report", str(run)], "the run as a page: curves, previews, settings"),
        (["inspect", str(results / f"{NAME}.safetensors")], "what the LoRA file says about itself"),
        (["presets"], "presets for real models"),
        (["dataset", "prepare", "MY_PHOTOS", "--name", "MYTOKEN"], "and now your own photos"),
    ):
        click.echo(f"  {shlex.join(['kohyakit', *words])}\n      {why}")


def _listed(title: str, files: Sequence[Path]) -> None:
    if files:
        click.echo(f"{title}:")
    for file in files:
        click.echo(f"  {file}")
