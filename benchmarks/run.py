"""`python -m benchmarks.run [--quick]`: everything that is measured, in one command, as a file of benchmarks/results/.

Steps over the floor (see `benchmarks.step`), the same training written plainly with diffusers and peft beside it, how
fast images are cached, how long a save holds up training, what a start imports, how fast the launcher answers. With a
GPU everything runs there. `--quick` uses small models of random weights: it shows that all of it works, and how the
launcher and a start behave, not what a step costs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import random_checkpoint, step
from benchmarks.peer import plain_steps
from benchmarks.record import RESULTS, machine_facts
from schemas.files.writing import write_atomically
from schemas.terminal import say
from trainer.watch.report import memory_in_use

Row = dict[str, Any]
LYCORIS = ["network_module=lycoris.kohya"]
CASES: dict[str, list[str]] = {  # name -> options beyond LoRA of rank 16, U-Net only
    "rank 4": ["network_dim=4"],
    "rank 16": [],
    "rank 32": ["network_dim=32"],
    "rank 128": ["network_dim=128"],
    "text encoders too": ["network_train_unet_only=false"],
    "checkpointing": ["gradient_checkpointing=true"],
    "8 blocks checkpointed": ["gradient_checkpointing=true", "checkpointed_blocks=8"],
    "LoCon": ["network_args=conv_dim=8"],
    "LoHa": [*LYCORIS, "network_args=algo=loha"],
    "LoKr": [*LYCORIS, "network_args=algo=lokr factor=8"],
    "DoRA": [*LYCORIS, "network_args=algo=lora dora_wd=True"],
}
ANSWERS = {"help": ["--help"], "validate": ["validate", "sdxl-character"], "plan": ["plan", "sdxl-character"]}


def step_rows(asked: argparse.Namespace, checkpoints: dict[str, Path]) -> Iterator[Row]:
    """Whole step against the floor, for every family and kind."""
    for family, checkpoint in checkpoints.items():
        for name, sets in CASES.items():
            if asked.only and not any(word in name for word in asked.only):
                continue
            words = ["--family", family, "--checkpoint", str(checkpoint), "--size", str(asked.size), "--dtype",
                     asked.dtype, "--steps", str(asked.steps)]  # fmt: skip
            words += [word for one in sets for word in ("--set", one)]
            with tempfile.TemporaryDirectory() as folder:
                pairs = step.measure(step.arguments().parse_args(words), Path(folder)).pairs()
            row = {
                "family": family, "case": name,
                "step_seconds": statistics.median(whole.wall for whole, _ in pairs),
                "floor_seconds": statistics.median(bare.wall for _, bare in pairs),
                "ratio": statistics.median(whole.wall / bare.wall for whole, bare in pairs),
                "ratio_of_work": statistics.median(whole.work / bare.work for whole, bare in pairs),
                "peak_bytes": memory_in_use(),
            }  # fmt: skip
            say(f"{family}, {name}: {row['ratio']:.2f} of the floor, {row['step_seconds']:.3f} s")
            yield row


def peer_rows(asked: argparse.Namespace, checkpoints: dict[str, Path]) -> Iterator[Row]:
    """The same training with diffusers and peft alone."""
    for family, checkpoint in checkpoints.items():
        seconds = plain_steps(family, checkpoint, size=asked.size, count=asked.steps + step.WARM_UP, dtype=asked.dtype)
        row = {"family": family, "step_seconds": statistics.median(seconds[step.WARM_UP :])}
        say(f"{family}, diffusers and peft: {row['step_seconds']:.3f} s")
        yield row


def timed(words: Sequence[str], times: int) -> float:
    """Seconds of a command, the median of `times`."""

    def once() -> float:
        began = time.perf_counter()
        subprocess.run(words, capture_output=True, check=False)
        return time.perf_counter() - began

    return statistics.median(once() for _ in range(times))


def answers(asked: argparse.Namespace, _: dict[str, Path]) -> Iterator[Row]:
    """How fast the launcher answers."""
    for name, words in ANSWERS.items():
        row = {"command": name, "seconds": timed([sys.executable, "-m", "launcher", *words], asked.times)}
        say(f"kohyakit {name}: {row['seconds']:.2f} s")
        yield row


def start_rows(asked: argparse.Namespace, checkpoints: dict[str, Path]) -> Iterator[Row]:
    """Imports of the trainer, and a whole run of one step, start to end."""
    for name, code in (("torch", "import torch"), ("trainer", "import trainer.loop")):
        yield {"part": f"import {name}", "seconds": timed([sys.executable, "-c", code], asked.times)}
    for family, checkpoint in checkpoints.items():
        with tempfile.TemporaryDirectory() as folder:
            images = step.pictures(Path(folder), asked.size, 4)
            words = [sys.executable, "-m", "trainer", "--pretrained_model_name_or_path", str(checkpoint),
                     "--train_data_dir", str(images), "--output_dir", f"{folder}/out", "--output_name", "start",
                     "--resolution", str(asked.size), "--network_module", "networks.lora", "--max_train_steps", "1",
                     "--cache_latents", "--network_train_unet_only", "--caption_extension", ".txt"]  # fmt: skip
            row = {"part": f"{family}, one step from start to end", "seconds": timed(words, 1)}
        say(f"{row['part']}: {row['seconds']:.1f} s")
        yield row


SECTIONS: dict[str, Callable[[argparse.Namespace, dict[str, Path]], Iterator[Row]]] = {
    "steps": step_rows, "peer": peer_rows, "launcher": answers, "start": start_rows,
}  # fmt: skip


def table(document: dict[str, Any]) -> str:
    """The results as a Markdown table a section."""
    lines: list[str] = []
    for section in SECTIONS:
        rows = document.get(section) or []
        if rows:
            names = list(rows[0])
            lines += [f"\n{section}\n", "| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
            lines += ["| " + " | ".join(_cell(row[name]) for name in names) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.run", description=(__doc__ or "").split("\n")[0])
    gpu = torch.cuda.is_available()
    parser.add_argument("--quick", action="store_true", help="small models, few steps: minutes")
    parser.add_argument("--families", nargs="*", default=["sd15", "sdxl"] if gpu else ["sd15"])
    parser.add_argument("--sections", nargs="*", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--only", nargs="*", default=[], help="cases whose name has one of these words")
    parser.add_argument("--size", type=int, default=512 if gpu else 128)
    parser.add_argument("--steps", type=int, default=20 if gpu else 4)
    parser.add_argument("--dtype", choices=step.PRECISION, default="bf16" if gpu else "fp32")
    parser.add_argument("-o", "--output", type=Path, help="the result's file (benchmarks/results/DATE-COMMIT.json)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    asked = arguments().parse_args(argv)
    asked.times = 3 if asked.quick else 9
    if asked.quick:
        asked.size, asked.steps, asked.families = 64, 2, ["sd15", "sdxl"]
    facts = machine_facts()
    document: dict[str, Any] = {**facts, "quick": asked.quick, "size": asked.size, "dtype": asked.dtype}
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = {family: Path(folder) / f"{family}.safetensors" for family in asked.families}
        for family, file in checkpoints.items():
            random_checkpoint.write(file, family, tiny=asked.quick, dtype="fp32" if asked.quick else "fp16", seed=0)
        for section in asked.sections:
            document[section] = list(SECTIONS[section](asked, checkpoints))
    output = asked.output or RESULTS / f"{facts['date']}-{(facts['commit'] or 'unknown').rstrip('+')}.json"
    text = json.dumps(document, indent=1) + "\n"
    write_atomically(output, lambda stream: stream.write(text.encode("utf-8")))
    say(table(document))
    say(f"wrote {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
