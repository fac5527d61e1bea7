"""Small real inputs: pictures, checkpoint and LoRA files of a few tensors, and the command line without a process."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from launcher.check import machine
from launcher.cli import cli
from launcher.run import launch as run
from launcher.run.child import Finished
from schemas.files.run_folder import manifest_of, sealed

UNET = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
SHAPES = {
    "sd15": {UNET: (4, 768), "cond_stage_model.transformer.text_model.final_layer_norm.weight": (4,)},
    "sdxl": {UNET: (4, 2048), "conditioner.embedders.1.model.ln_final.weight": (4,)},
    "flux": {"double_blocks.0.img_attn.qkv.weight": (4, 4)},
}
MODULE = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"


def safetensors(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    values: Mapping[str, float] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """A file of F32 tensors, each filled with its value (0 if not given)."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    body = b""
    for name, shape in shapes.items():
        raw = struct.pack("<f", (values or {}).get(name, 0.0)) * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [len(body), len(body) + len(raw)]}
        body += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return path


def add_state(run: Path, step: int, **progress: Any) -> Path:
    """A whole state of a run, as the trainer leaves it, with two parts that hold no weights."""
    state = run / f"state-{step:08d}"
    state.mkdir(parents=True)
    for name in ("adapter.safetensors", "optimizer.pt"):
        (state / name).write_bytes(f"{name} {step}".encode() * 20)
    (state / "progress.json").write_text(json.dumps(sealed({"step": step, **progress})), encoding="utf-8")
    (state / "complete").write_text(json.dumps(manifest_of(state)), encoding="utf-8")
    return state


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[[str], Path]:
    return lambda family: safetensors(tmp_path / f"{family}.safetensors", SHAPES[family])


@pytest.fixture
def full_size(tmp_path: Path) -> str:
    """A checkpoint with as many parameters as SD1.5, all in the file system's imagination."""
    parts = {UNET: (859_520_964 // 768, 768), "cond_stage_model.transformer.x": (123_060_480,)}
    header, end = {}, 0
    for name, shape in parts.items():
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    path = tmp_path / "full.safetensors"
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.truncate(8 + len(text) + end)
    return str(path)


@pytest.fixture
def lora(tmp_path: Path) -> Callable[..., Path]:
    """A LoRA of one module: rank, alpha, what its up half holds, and its context width (768 is SD1.5)."""

    def make(
        name: str = "lora.safetensors",
        rank: int = 4,
        alpha: float = 2,
        up: float = 0.5,
        width: int = 768,
        metadata: Mapping[str, str] | None = None,
    ) -> Path:
        shapes = {
            f"{MODULE}.lora_down.weight": (rank, width),
            f"{MODULE}.lora_up.weight": (320, rank),
            f"{MODULE}.alpha": (),
        }
        values = {f"{MODULE}.lora_up.weight": up, f"{MODULE}.lora_down.weight": 1.0, f"{MODULE}.alpha": alpha}
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return safetensors(path, shapes, values, metadata)

    return make


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """data/3_frog with four captioned pictures of 64 x 64."""
    folder = tmp_path / "data" / "3_frog"
    folder.mkdir(parents=True)
    for number in range(4):
        Image.new("RGB", (64, 64), (60 * number, 90, 30)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"frog, {number}", encoding="utf-8")
    return folder.parent


@pytest.fixture
def preset(tmp_path: Path, photos: Path, checkpoint: Callable[[str], Path]) -> Callable[..., Path]:
    """A GUI JSON that is ready to run on SD1.5 at 64 pixels, with changes."""

    def make(name: str = "frog.json", **changes: Any) -> Path:
        form = {
            "LoRA_type": "Standard",
            "pretrained_model_name_or_path": str(checkpoint("sd15")),
            "train_data_dir": str(photos),
            "output_dir": str(tmp_path / "out"),
            "output_name": "frog",
            "max_resolution": "64,64",
            "min_bucket_reso": 64,
            "max_bucket_reso": 64,
            "network_dim": 4,
            "network_alpha": 2,
            "train_batch_size": 2,
            "epoch": 2,
            "max_train_steps": 0,
            "caption_extension": ".txt",
            "optimizer": "AdamW",
            "mixed_precision": "no",
            "save_precision": "float",
            "xformers": "sdpa",
            "learning_rate": 1e-4,
            "unet_lr": 1e-4,
            "text_encoder_lr": 5e-5,
            "lr_scheduler": "constant",
            "lr_warmup": 0,
            "save_every_n_epochs": 1,
            "seed": 1,
        }
        path = tmp_path / name
        path.write_text(json.dumps({**form, **changes}), encoding="utf-8")
        return path

    return make


@pytest.fixture
def cut(kohyakit, preset, trainer, tmp_path: Path) -> Path:
    """The run folder of a run that was killed at step 8 of 12, with states of steps 2, 4 and 6."""
    trainer.code, trainer.steps, trainer.leaves = -9, 8, ()
    kohyakit("launch", preset())
    run = tmp_path / "out" / "frog.run"
    for step in (2, 4, 6):
        add_state(run, step)
    trainer.code, trainer.steps, trainer.leaves = 0, 12, ("frog.safetensors",)
    return run


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> machine.Machine:
    """The same machine everywhere: two cores, no GPU, bitsandbytes but no xformers."""
    found = machine.Machine(cores=2, memory=64 * 2**30, packages=frozenset({"torch", "accelerate", "bitsandbytes"}))
    monkeypatch.setattr(machine, "this_machine", lambda: found)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return found


@pytest.fixture
def kohyakit() -> Callable[..., Result]:
    """`kohyakit(*words)`: the command in this process; stdout and stderr apart."""
    return lambda *words: CliRunner().invoke(cli, [str(word) for word in words])


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def files() -> Callable[[Path], dict[str, bytes]]:
    return tree


@pytest.fixture
def trainer(monkeypatch, tmp_path: Path):
    """Stands in for the trainer's process: leaves what it is told to leave, ends with the given code."""

    class Trainer:
        code = 0
        lines: tuple[str, ...] = ()
        steps = 12
        leaves = ("frog.safetensors",)
        starts: list[tuple[list[str], dict[str, str]]] = []  # noqa: RUF012

        def __call__(self, words, environment, write, *, terminal=False) -> Finished:
            self.starts = [*self.starts, (words, dict(environment))]
            folder = Path(words[words.index("trainer") + 2]).parent
            with (folder / "log.jsonl").open("a") as log:
                log.writelines(json.dumps({"step": step + 1}) + "\n" for step in range(self.steps))
            for name in self.leaves:
                path = folder.parent / name
                path.parent.mkdir(exist_ok=True, parents=True)
                path.write_text("weights")
            return Finished(self.code, self.lines)

    found = Trainer()
    monkeypatch.setattr(run, "run_child", found)
    return found
