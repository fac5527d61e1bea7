"""`kohyakit demo`: the whole job on a small model of a drawn world, typed out command by command."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from launcher.commands.demo_sheet import (
    Asked,
    Epoch,
    draw,
    previews,
    rated,
    reason,
)
from launcher.run.child import handed_down
from launcher.run.command import quoted
from schemas.files.writing import disk_words
from schemas.terminal import say, style
from trainer.toy.world import TOKEN

PRESET = "toy"
NAME = "toyfrog"
SHORT = 1  # the epoch whose LoRA is continued
MORE = 2  # epochs
PACKAGES = Path(__file__).resolve().parent.parent.parent  # where launcher, trainer and schemas lie
TOY = PACKAGES / "trainer" / "toy"
# What the preset's prompts ask for, in their order.
ASKED = (
    Asked("on sand"),
    Asked("at sunset"),
    Asked("in the snow"),
    Asked("at night"),
    Asked("on sand", "star", "red"),
    Asked("under water", "circle", "yellow"),
    Asked("on grass", "cat", "blue"),
    Asked("at night", "crab", "orange"),
)


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
        say(err=True)
        say(f"The demo stopped: the command above ended with exit code {fault.code}.", err=True)
        say(f"What it has made so far lies in {directory}", err=True)
        return fault.code
    except OSError as fault:
        say(f"The demo stopped: {disk_words(fault)}", err=True)
        say(f"What it has made so far lies in {directory}", err=True)
        return 3
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
    settings = {
        "pretrained_model_name_or_path": str(TOY / "sd15.safetensors"),
        "train_data_dir": str(data / "training_images"),
        "output_dir": str(results),
        "output_name": NAME,
        "sample_at_first": "true",
    }
    sets = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]

    _heading(f"Photos. Everything goes into {directory}")
    shutil.copytree(TOY / "frogs", photos)
    say(f"{len(list(photos.glob('*.png')))} captioned pictures of a frog called {TOKEN}: {photos}")
    say("The base model is a toy: 12 MB in the form of a Stable Diffusion 1.5 checkpoint, trained from nothing")
    say("on drawn shapes and animals in six landscapes. It has never seen a frog, and its pictures have 64 pixels.")

    _heading("1. From photos to a training folder")
    _kohyakit("dataset", "prepare", str(photos), "--name", TOKEN, "--to", str(data), "--repeats", "16")
    _kohyakit("dataset", "check", str(data), "--resolution", "64,64")

    _heading(f"2. The preset {PRESET}: is it right, and what would it do?")
    _kohyakit("validate", PRESET, *sets)
    _kohyakit("plan", PRESET, *sets)

    _heading("3. Train")
    _kohyakit("launch", PRESET, *sets)

    _heading("4. Which epoch is best?")
    _compared(results, NAME, directory / "epochs.png")

    _heading(f"5. Going on: {MORE} epochs more, starting from the LoRA of epoch {SHORT}")
    short = results / f"{NAME}-{SHORT:06d}.safetensors"
    continued = f"{NAME}-continued"
    _kohyakit("resume", str(short), "--epochs", str(MORE), "--set", f"output_name={continued}")
    _compared(results, continued, directory / "continued.png")

    _heading("Done")
    _farewell(directory, results)


def _compared(results: Path, name: str, sheet: Path) -> list[Epoch]:
    """Prints what the previews of each epoch show, and draws the sheet."""
    epochs = rated(previews(results / "sample", name), ASKED, environment())
    say(f"{'epoch':>8}  {'frogs':>6}  {'others':>9}  as read from the previews by a small classifier")
    for epoch in epochs:
        number = "before" if epoch.number == 0 else str(epoch.number)
        taught, kept = f"{epoch.taught} of {epoch.taught_of}", f"{epoch.kept} of {epoch.kept_of}"
        say(f"{number:>8}  {taught:>6}  {kept:>9}")
    say(reason(epochs))
    draw(epochs, sheet)
    say(f"side by side: {sheet}")
    return epochs


def _heading(text: str) -> None:
    say()
    say(style(text, bold=True))


def _kohyakit(*words: str) -> None:
    """Print and run one command of ours, by this very installation."""
    say(style("$ " + quoted(["kohyakit", *words]), colour="cyan"))
    code = run_module("launcher", *words)
    if code:
        raise Failed(code)


def run_module(module: str, *words: str) -> int:
    """`python -m MODULE WORDS` with this installation's packages; the exit code."""
    sys.stdout.flush()
    with handed_down() as wishes:
        code = subprocess.run([sys.executable, "-P", "-m", module, *words], env=environment()).returncode
    if wishes.count:  # whatever became of that command
        raise KeyboardInterrupt
    return code


def environment() -> dict[str, str]:
    """With `python -P`: our packages first, so that a folder named launcher or trainer that lies around is no trap."""
    inherited = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([str(PACKAGES), *([inherited] if inherited else [])])
    # Layers this small are several times slower on two threads, and a hundred times where waiting threads spin.
    return {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", **os.environ, "PYTHONPATH": path}


def _farewell(directory: Path, results: Path) -> None:
    _listed("the epochs side by side, from fixed seeds", sorted(directory.glob("*.png")))
    _listed("LoRA files, for any program that loads Kohya's", sorted(results.glob("*.safetensors")))
    _listed("the settings, which Kohya's GUI and kohyakit load", sorted(results.glob("*.json")))
    run = results / f"{NAME}.run"
    say()
    say("What to type next:")
    for words, why in (
        (["report", str(run)], "the run as a page: curves, previews, settings"),
        (["inspect", str(results / f"{NAME}.safetensors")], "what the LoRA file says about itself"),
        (["presets"], "presets for real models"),
        (["dataset", "prepare", "MY_PHOTOS", "--name", "MYTOKEN"], "and now your own photos"),
    ):
        say(f"  {quoted(['kohyakit', *words])}")
        say(f"      {why}")


def _listed(title: str, files: Sequence[Path]) -> None:
    if files:
        say(f"{title}:")
    for file in files:
        say(f"  {file}")
