"""`python -m benchmarks.step`: our whole training step over the bare forward and backward of the same frozen U-Net.

Whole: the loop's own step as users run it, from asking for a batch of cached latents to the line in log.jsonl. Bare:
forward and backward of the U-Net without adapter, for the gradient of its input only; less than that nothing that
trains through this U-Net can do. Both alternate in one process on the same weights, so that a machine that slows down
slows both; the figure is the median of the ratios of neighbours.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from PIL import Image
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks import random_checkpoint
from schemas import ConfigError, TrainConfig, config
from trainer import loop
from trainer import setup as prepare
from trainer.dataset.files import scan
from trainer.families import NAMES, Conditioning, Family, Models, Sizes, get
from trainer.input.batches import Batch, BatchLoader
from trainer.watch.report import memory_in_use

PRECISION = {"fp32": "no", "fp16": "fp16", "bf16": "bf16"}
WARM_UP = 3  # pairs that are not counted


class BareUNet:
    """The U-Net as it was loaded, sharing its weights with the one that the adapter goes into."""

    def __init__(self, models: Models, family: Family, options: TrainConfig) -> None:
        shared = {id(weight): weight for weight in models.unet.parameters()}
        unet: Any = copy.deepcopy(models.unet, shared)
        if options.gradient_checkpointing:
            unet.train()
            unet.enable_gradient_checkpointing()
        self.unet: torch.nn.Module = unet
        self.family = family

    def step(self, shape: tuple[int, int, int]) -> None:
        """Forward and backward for random latents and text; `shape` is batch, height, width in pixels."""
        batch, height, width = shape
        weight: Tensor = next(self.unet.parameters())
        facts: Any = self.unet.config
        place: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
        noisy = torch.randn(batch, 4, height // 8, width // 8, **place, requires_grad=True)
        hidden = torch.randn(batch, 77, facts.cross_attention_dim, **place)
        pooled: Tensor | None = None
        if facts.projection_class_embeddings_input_dim:
            wide = facts.projection_class_embeddings_input_dim - 6 * facts.addition_time_embed_dim
            pooled = torch.randn(batch, wide, **place)
        full = torch.tensor([[height, width]] * batch, device=weight.device)
        sizes = Sizes(full, torch.zeros_like(full), full)
        timesteps = torch.randint(0, 1000, (batch,)).to(weight.device)
        predicted = self.family.predict(self.unet, noisy, timesteps, Conditioning(hidden, pooled), sizes)
        # Gradients of training's size: numbers near the smallest that a float holds are slow on CPUs.
        torch.nn.functional.mse_loss(predicted.float(), torch.randn_like(predicted, dtype=torch.float32)).backward()


@dataclass(frozen=True)
class Moment:
    """A point in time, or a length of it: seconds on the wall, and seconds of work of this process on all cores."""

    wall: float
    work: float

    @classmethod
    def now(cls) -> Moment:
        """When everything asked of the device is done."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return cls(time.perf_counter(), time.process_time())

    def __add__(self, other: Moment) -> Moment:
        return Moment(self.wall + other.wall, self.work + other.work)

    def __sub__(self, earlier: Moment) -> Moment:
        return Moment(self.wall - earlier.wall, self.work - earlier.work)


@dataclass
class Measured:
    """Lengths of neighbouring bare and whole steps, and what a profiler saw of them, seconds by operator."""

    bare: list[Moment] = field(default_factory=list)
    whole: list[Moment] = field(default_factory=list)
    operators: dict[str, dict[str, float]] = field(default_factory=dict)

    def pairs(self) -> list[tuple[Moment, Moment]]:
        """(whole, bare) of every counted pair; the last bare step has no partner."""
        return list(zip(self.whole, self.bare, strict=False))[WARM_UP:]


def alternating(measured: Measured, bare: Callable[[], None], *, profiled: bool) -> type[BatchLoader]:
    """A loader that runs a bare step between making a batch and giving it out, and takes the time of all three."""

    class Alternating(BatchLoader):
        def epoch(self, *place: Any, **more: Any) -> Iterator[Batch]:
            batches = super().epoch(*place, **more)
            while True:
                watch = profiled and len(measured.bare) >= WARM_UP
                with observed(measured, "whole", watch=watch):
                    began = Moment.now()
                    batch = next(batches, None)
                    asking = Moment.now() - began
                if batch is None:
                    return
                with observed(measured, "bare", watch=watch):
                    began = Moment.now()
                    bare()
                    measured.bare.append(Moment.now() - began)
                with observed(measured, "whole", watch=watch):
                    began = Moment.now()
                    yield batch
                    measured.whole.append(asking + (Moment.now() - began))

    return Alternating


class observed:
    """Adds the profiler's seconds by operator to `measured`, where `watch` says so."""

    def __init__(self, measured: Measured, name: str, *, watch: bool) -> None:
        self.seconds = measured.operators.setdefault(name, {})
        self.profiler = profile(activities=activities()) if watch else None

    def __enter__(self) -> None:
        if self.profiler:
            self.profiler.__enter__()

    def __exit__(self, *fault: Any) -> None:
        if self.profiler:
            self.profiler.__exit__(*fault)
            for event in self.profiler.key_averages():
                own = event.self_cpu_time_total + getattr(event, "self_device_time_total", 0)
                self.seconds[event.key] = self.seconds.get(event.key, 0.0) + own / 1e6


def activities() -> list[ProfilerActivity]:
    return [ProfilerActivity.CUDA if torch.cuda.is_available() else ProfilerActivity.CPU]


def pictures(folder: Path, size: int, count: int) -> Path:
    """`count` plain captioned pictures of `size` pixels a side in a folder of kohya's form; its parent."""
    own = folder / "img" / "1_n0m3"
    own.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (size, size), (255 * number // count, 90, 200)).save(own / f"{number}.png")
        (own / f"{number}.txt").write_text(f"n0m3, a plain colour, number {number}", encoding="utf-8")
    return own.parent


def training(asked: argparse.Namespace, folder: Path) -> TrainConfig:
    """The run to be measured, `--set` over it."""
    checkpoint = asked.checkpoint
    if checkpoint is None:
        checkpoint = folder / "tiny.safetensors"
        random_checkpoint.write(checkpoint, asked.family, tiny=True, dtype="fp32", seed=0)
    values = {
        "pretrained_model_name_or_path": str(checkpoint),
        "train_data_dir": str(pictures(folder, asked.size, asked.batch * 4)),
        "output_dir": str(folder / "out"), "output_name": "step", "resolution": str(asked.size),
        "caption_extension": ".txt", "train_batch_size": asked.batch, "mixed_precision": PRECISION[asked.dtype],
        "network_module": "networks.lora", "network_dim": asked.rank, "network_alpha": asked.rank,
        "network_train_unet_only": not asked.text_encoder, "optimizer_type": "AdamW8bit", "learning_rate": 1e-4,
        "max_train_steps": asked.steps + WARM_UP + 1, "cache_latents": True, "no_half_vae": True, "seed": 1,
        "max_data_loader_n_workers": 0, "v2": asked.family == "sd2",
    }  # fmt: skip
    values |= dict(item.split("=", 1) for item in asked.set)
    return config.from_flat(values)[0]


def measure(asked: argparse.Namespace, folder: Path) -> Measured:
    """Runs the training of `asked` in `folder` with a bare step before each of its own."""
    options, measured = training(asked, folder), Measured()
    made: list[BareUNet] = []
    load = prepare.load_models

    def load_and_keep(family: Family, *rest: Any) -> Models:
        models = load(family, *rest)
        made.append(BareUNet(models, family, options))
        return models

    loader = alternating(measured, lambda: made[0].step((asked.batch, asked.size, asked.size)), profiled=asked.profile)
    with patch.object(loop, "load_models", load_and_keep), patch.object(loop, "BatchLoader", loader):
        if loop.train(options, get(asked.family).name, scan(options)).interrupted:
            raise KeyboardInterrupt
    return measured


def report(measured: Measured) -> str:
    """The figures as text. On a CPU the ratio of work is given too: other programs disturb it less than the wall's."""
    pairs = measured.pairs()
    whole, bare = (statistics.median(pair[at].wall for pair in pairs) for at in (0, 1))
    lines = [
        f"whole step     median {whole:.4f} s",
        f"bare U-Net     median {bare:.4f} s",
        f"ratio          {_spread([w.wall / b.wall for w, b in pairs])}",
        f"peak memory    {memory_in_use() / 2**30:.1f} GiB",
    ]
    if not torch.cuda.is_available():
        lines.insert(3, f"ratio of work  {_spread([w.work / b.work for w, b in pairs])}")
    if measured.operators.get("whole"):
        lines += ["", f"{'seconds a step':<44}{'whole':>9}{'bare':>9}{'more':>9}", *_operators(measured)]
    return "\n".join(lines)


def _spread(ratios: list[float]) -> str:
    return f"median {statistics.median(ratios):.3f}  ({len(ratios)} pairs, {min(ratios):.3f} to {max(ratios):.3f})"


def _operators(measured: Measured, longest: int = 15) -> Iterator[str]:
    count = len(measured.bare) - WARM_UP  # the last whole step is cut off only after its work
    whole, bare = measured.operators["whole"], measured.operators["bare"]
    more = {name: whole.get(name, 0.0) - bare.get(name, 0.0) for name in {*whole, *bare}}
    for name in sorted(more, key=lambda name: -abs(more[name]))[:longest]:
        seconds = (whole.get(name, 0.0), bare.get(name, 0.0), more[name])
        yield f"{name[:43]:<44}" + "".join(f"{value / count:9.4f}" for value in seconds)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.step", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--family", choices=NAMES, default="sd15")
    parser.add_argument("--checkpoint", help="base model of that family; a tiny random one by default")
    parser.add_argument("--size", type=int, default=128, help="side of the pictures in pixels (128)")
    parser.add_argument("--batch", type=int, default=2, help="pictures in a step (2)")
    parser.add_argument("--dtype", choices=PRECISION, default="fp32")
    parser.add_argument("--steps", type=int, default=10, help="pairs counted (10)")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--text-encoder", action="store_true", help="train the text encoders too")
    parser.add_argument("--profile", action="store_true", help="say which operators cost the difference")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="any option of the trainer")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    asked = arguments().parse_args(argv)
    try:
        with tempfile.TemporaryDirectory() as folder:
            print(report(measure(asked, Path(folder))))
    except ConfigError as wrong:
        print("\n".join(str(problem) for problem in wrong.problems), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
