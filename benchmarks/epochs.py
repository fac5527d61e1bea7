"""Does `kohyakit compare` choose the right epoch? Toy runs of many kinds, each epoch judged by what it draws.

`python -m benchmarks.epochs --work FOLDER` takes about an hour of one core; every stage goes on where it stopped.
Rates are constant, so the first epochs of a long run are the short run: each training counts as
several runs, cut at several lengths.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.report.verdict import epochs_of
from launcher.report.verdict import judge as verdict_of
from schemas.terminal import say
from trainer.toy import world

TOY = Path(world.__file__).parent
PER_EPOCH, EPOCHS = 40, 8  # updates of 4 images in an epoch; epochs
CUTS = (8, 4, 2)  # lengths at which a training counts as a run
RATES = {"unet_lr": 1.5e-3, "text_encoder_lr": 3e-3}
BOTH = ("conv_dim=4", "conv_alpha=1")
LYCORIS = "lycoris.kohya"
# name -> (times the usual rates, options)
TRAININGS: dict[str, tuple[float, dict[str, Any]]] = {
    "lora": (1, {}),
    "lora slow": (0.2, {}),
    "lora fast": (4, {}),
    "lora too fast": (12, {}),
    "locon": (1, {"network_args": BOTH}),
    "locon fast": (4, {"network_args": BOTH}),
    "loha": (0.5, {"network_module": "networks.loha", "network_args": BOTH}),
    "lokr": (5 / 3, {"network_module": "networks.lokr", "network_args": (*BOTH, "factor=4")}),
    "dora": (1, {"network_module": LYCORIS, "network_args": ("algo=locon", "dora_wd=True", *BOTH)}),
}
PROMPTS = (
    "ohwx frog, on sand", "ohwx frog, at night", "a big red star, on sand", "a small yellow circle, under water",
    "a big blue cat, on grass", "a big orange crab, at night", "a small purple square, at sunset",
    "a big white rabbit, in the snow",
)  # fmt: skip
FROGS, THINGS, STEPS = 24, 24, 10  # of a judgement: images of each, sampling steps
HELD = 12  # frogs that no training has seen
KEPT = 0.75  # of what the base model draws right, that an epoch must keep
NEAR = 0.05  # of the best frog score, that a choice may lose


def train(work: Path) -> None:
    """Every training that is not there yet."""
    data = work / "data" / f"8_{world.TOKEN}"
    if not data.is_dir():
        data.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(TOY / "frogs", data)
    for name, (pace, options) in TRAININGS.items():
        output = work / name.replace(" ", "-")
        if (output / "frog.safetensors").is_file():
            continue
        shutil.rmtree(output, ignore_errors=True)  # what an interrupted training has left
        values = {
            "pretrained_model_name_or_path": TOY / "sd15.safetensors", "train_data_dir": data.parent,
            "output_dir": output, "output_name": "frog", "resolution": 64, "caption_extension": ".txt",
            "network_module": "networks.lora", "network_dim": 16, "network_alpha": 8, "learning_rate": 1e-3,
            "lr_scheduler": "constant", "train_batch_size": 4, "max_train_epochs": EPOCHS, "save_every_n_epochs": 1,
            "min_snr_gamma": 5, "seed": 7, "max_data_loader_n_workers": 0, "cache_latents": True,
            **{rate: pace * usual for rate, usual in RATES.items()}, **options,
        }  # fmt: skip
        words = [sys.executable, "-m", "trainer"]
        for option, value in values.items():
            words += [f"--{option}"] if value is True else []
            many = value if isinstance(value, tuple) else [] if value is True else [value]
            words += [f"--{option}", *map(str, many)] if many else []
        say(name)
        subprocess.run(words, check=True)


def held_out(work: Path) -> Path:
    """Frogs that no training has seen."""
    folder = work / "held-out"
    if not folder.is_dir():
        rng = random.Random("held-out frogs")
        folder.mkdir(parents=True)
        for number in range(HELD):
            shown = world.concept(world.chosen(rng))
            file = folder / f"{number:02}.png"
            world.draw(shown, random.Random(f"held-out/{number}"), 128).save(file)
            file.with_suffix(".txt").write_text(world.concept_caption(shown), encoding="utf-8")
    return folder


def saved(folder: Path) -> dict[int, Path]:
    """Epoch -> LoRA file."""
    found = {epoch: folder / f"frog-{epoch:06d}.safetensors" for epoch in range(1, EPOCHS)}
    return found | {EPOCHS: folder / "frog.safetensors"}


def judge(work: Path) -> None:
    """What every epoch draws, as the classifier reads it: {"frogs", "others"} by training and epoch; 0 is the base."""
    import torch

    from trainer.toy import scoring

    torch.set_num_threads(1)
    file = work / "truth.json"
    truth: dict[str, dict[str, float]] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    every: list[tuple[str, Path | None]] = [("base/0", None)]
    for name in TRAININGS:
        folder = work / name.replace(" ", "-")
        if (folder / "frog.safetensors").is_file():
            every += [(f"{name}/{epoch}", path) for epoch, path in saved(folder).items()]
    for place, path in every:
        if place not in truth:
            loaded = scoring.load(TOY / "sd15.safetensors", path)
            frogs = scoring.learned(loaded, count=FROGS, steps=STEPS).concept
            others = scoring.quality(loaded, count=THINGS, steps=STEPS)
            truth[place] = {"frogs": frogs, "others": others.shape}
            say(f"{place}: {truth[place]}")
            file.write_text(json.dumps(truth, indent=1), encoding="utf-8")


@dataclass(frozen=True)
class Case:
    """One run: a training cut at a length, what its epochs are worth, which one was chosen."""

    name: str
    length: int
    frogs: dict[int, float]
    others: dict[int, float]  # shares of what the base model draws right
    chosen: int | None
    action: str

    @property
    def keeping(self) -> list[int]:
        return [epoch for epoch, share in self.others.items() if share >= KEPT]

    @property
    def best(self) -> int | None:
        """The epoch with most frogs among those that keep the others."""
        return max(self.keeping, key=lambda epoch: (self.frogs[epoch], -epoch), default=None)

    @property
    def hit(self) -> bool:
        """Whether the choice is near the best; where no epoch keeps the others or shows a frog, whether it says so."""
        if self.best is None:
            return self.chosen is None
        if self.chosen is None:
            return self.frogs[self.best] <= NEAR
        return self.chosen in self.keeping and self.frogs[self.chosen] >= self.frogs[self.best] - NEAR


def compare(work: Path) -> None:
    """`kohyakit compare` on every training; what it measured of the long run holds for the shorter ones."""
    held, prompts = held_out(work), work / "prompts.txt"
    prompts.write_text("".join(f"{prompt} --w 64 --h 64 --s 12 --l 4 --d {number}\n"
                               for number, prompt in enumerate(PROMPTS, 1)), encoding="utf-8")  # fmt: skip
    for folder in trained(work):
        if not (folder / "frog.run" / "compare" / "compared.json").is_file():
            words = [sys.executable, "-m", "launcher", "compare", str(folder), "--held-out", str(held), "--no-images",
                     "--prompts", str(prompts), "--json"]  # fmt: skip
            subprocess.run(words, check=True, stdout=subprocess.DEVNULL)


def trained(work: Path) -> list[Path]:
    folders = [work / name.replace(" ", "-") for name in TRAININGS]
    return [folder for folder in folders if (folder / "frog.safetensors").is_file()]


def cases(work: Path) -> Iterator[Case]:
    """Every training cut at every length, judged by `kohyakit compare`'s own verdict."""
    truth = json.loads((work / "truth.json").read_text(encoding="utf-8"))
    base = truth["base/0"]["others"]
    for name in TRAININGS:
        folder = work / name.replace(" ", "-")
        file = folder / "frog.run" / "compare" / "compared.json"
        if not file.is_file() or f"{name}/{EPOCHS}" not in truth:
            continue
        numbers = {str(path.absolute()): epoch for epoch, path in saved(folder).items()}
        measured = epochs_of(json.loads(file.read_text(encoding="utf-8")), numbers)
        for length in CUTS:
            verdict, epochs = verdict_of(measured[:length]), range(1, length + 1)
            yield Case(
                name, length, {epoch: truth[f"{name}/{epoch}"]["frogs"] for epoch in epochs},
                {epoch: truth[f"{name}/{epoch}"]["others"] / base for epoch in epochs},
                verdict.epoch.number if verdict.epoch else None, verdict.action,
            )  # fmt: skip


def table(work: Path) -> None:
    """The rows of docs/learning.md, and how many choices are right."""
    hits = []
    for case in cases(work):
        hits.append(case.hit)
        best, chosen = case.best, case.chosen
        cells = [
            case.name, str(case.length),
            "none" if best is None else f"{best}: {case.frogs[best]:.0%}",
            "none" if chosen is None else f"{chosen}: {case.frogs[chosen]:.0%}, {case.others[chosen]:.0%}",
            case.action, "hit" if case.hit else "**miss**",
        ]  # fmt: skip
        say("| " + " | ".join(cells) + " |")
    say(f"{sum(hits)} of {len(hits)} right")


STAGES = {"train": train, "judge": judge, "compare": compare, "table": table}


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.epochs", description=__doc__)
    parser.add_argument("--work", type=Path, required=True, metavar="FOLDER", help="for what is half done")
    parser.add_argument("stages", nargs="*", default=list(STAGES), metavar="STAGE", help=", ".join(STAGES))
    given = parser.parse_args(words)
    given.work.mkdir(parents=True, exist_ok=True)
    for stage in given.stages:
        STAGES[stage](given.work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
