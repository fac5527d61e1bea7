"""What the plan says is what the run does: steps, epochs, saves, previews and every step's learning rate."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image

from launcher.check.machine import Machine
from launcher.check.plan import make_plan
from launcher.check.resolve import resolve
from launcher.run.command import LaunchOptions
from schemas import config
from tests.tiny import tiny_checkpoint
from trainer import loop
from trainer.dataset.files import scan
from trainer.output import results
from trainer.plan import marks

SIZES = [(64, 64), (64, 64), (96, 64), (64, 96), (96, 64), (64, 64), (128, 64)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven pictures of four shapes: five shown twice, two three times."""
    parent = tmp_path_factory.mktemp("data")
    for number, size in enumerate(SIZES):
        folder = parent / ("2_n0m3" if number < 5 else "3_more")
        folder.mkdir(exist_ok=True)
        Image.new("RGB", size, (30 * number, 90, 200)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("n0m3, a plain colour", encoding="utf-8")
    (parent / "prompts.txt").write_text("n0m3 --w 64 --h 64 --s 1 --d 1", encoding="utf-8")
    return parent


@pytest.fixture
def differ(model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """differ(max_train_steps=4, ...) plans and runs the same file, and fails where the two differ."""
    drawn: list[int] = []
    monkeypatch.setattr(results, "write_previews", lambda *rest, **_: drawn.append(moment(rest[2][0].path.name)))
    ends: dict[int, int] = {}

    def moment(name: str) -> int:
        mark = name.split("_")[1]
        return ends[int(mark[1:])] if mark.startswith("e") else int(mark)

    def compare(**options: Any) -> None:
        values = {
            "pretrained_model_name_or_path": str(model), "train_data_dir": str(data), "output_name": "n0m3",
            "output_dir": str(tmp_path / "out"), "resolution": "64,64", "enable_bucket": True, "min_bucket_reso": 64,
            "max_bucket_reso": 128, "caption_extension": ".txt", "network_module": "networks.lora", "network_dim": 2,
            "network_train_unet_only": True, "learning_rate": 1e-3, "cache_latents": True, "seed": 7,
            "max_data_loader_n_workers": 0, "sample_prompts": str(data / "prompts.txt"), **options,
        }  # fmt: skip
        if "dataset_config" in options:
            for name in ("train_data_dir", "resolution", "enable_bucket"):
                del values[name]
            values["dataset_config"] = str(two_datasets(tmp_path, data))
        read, _ = config.from_flat(values)
        file = tmp_path / "run.toml"
        file.write_text(config.write(read), encoding="utf-8")
        plan = make_plan(resolve(str(file)), Machine(packages=("bitsandbytes",)), LaunchOptions(processes=1))
        assert [str(problem) for problem in plan.problems if problem.severity == "error"] == []
        assert plan.steps is not None
        ends.update({epoch: plan.steps.epoch_end(epoch) for epoch in range(plan.steps.epochs + 1)})
        records = trained(plan.config, tmp_path / "out")
        assert [record["step"] for record in records] == list(range(1, plan.steps.total + 1))
        assert records[-1]["epoch"] == plan.steps.epochs
        assert drawn == plan.previews
        assert left(tmp_path / "out") == standing(plan.saves)
        curve = dict(map(tuple, plan.rates))
        rates = {record["step"] - 1: record["lr"]["unet"] for record in records}
        assert len(curve) == plan.steps.total + 1
        assert rates == pytest.approx({step: curve[step] for step in rates})

    return compare


def trained(read: config.TrainConfig, out: Path) -> list[dict[str, Any]]:
    for state in (AcceleratorState, GradientState, PartialState):
        state._shared_state.clear()
    loop.train(read, "sd15", scan(read))
    log = (out / "n0m3.run" / "log.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in log.splitlines()]


def left(out: Path) -> set[str]:
    """Weight files, and the states under the names that the plan gives them."""
    states = {path.name for path in (out / "n0m3.run").glob("state-*")}
    return {path.name for path in out.glob("*.safetensors")} | states


def standing(saves: list[marks.Save]) -> set[str]:
    """What the planned saves leave, after what each of them removes."""
    there: dict[str, str] = {}
    for save in saves:
        there[save.file] = save.file
        if save.state:
            there[save.state_name] = f"state-{save.step:08d}"
        for name in save.removes:
            there.pop(name, None)
    return set(there.values())


def two_datasets(folder: Path, data: Path) -> Path:
    """Two datasets of different size, batch size and repeats."""
    file = folder / "datasets.toml"
    file.write_text(
        f"""
        [general]
        caption_extension = ".txt"
        enable_bucket = true
        min_bucket_reso = 64
        max_bucket_reso = 128
        [[datasets]]
        resolution = 64
        batch_size = 3
        [[datasets.subsets]]
        image_dir = "{data / "2_n0m3"}"
        num_repeats = 4
        [[datasets]]
        resolution = [96, 64]
        batch_size = 1
        [[datasets.subsets]]
        image_dir = "{data / "3_more"}"
        """,
        encoding="utf-8",
    )
    return file


FEW: list[dict[str, Any]] = [
    {"max_train_steps": 5, "save_every_n_steps": 2, "sample_every_n_steps": 2, "sample_at_first": True},
    {"max_train_epochs": 2, "train_batch_size": 4, "lr_scheduler": "cosine", "save_every_n_epochs": 1,
     "sample_every_n_epochs": 1},
    {"max_train_epochs": 3, "train_batch_size": 2, "gradient_accumulation_steps": 4, "lr_warmup_steps": 0.3,
     "lr_scheduler": "linear", "save_every_n_steps": 1, "save_last_n_steps": 2},
    {"max_train_steps": 7, "train_batch_size": 3, "lr_scheduler": "constant_with_warmup", "lr_warmup_steps": 3,
     "save_state": True, "save_every_n_epochs": 1},
    {"dataset_config": True, "max_train_epochs": 1, "lr_scheduler": "polynomial", "lr_scheduler_power": 2,
     "sample_every_n_steps": 3},
    {"max_train_steps": 9, "lr_scheduler": "cosine_with_restarts", "lr_scheduler_num_cycles": 3, "lr_warmup_steps": 0.2,
     "save_every_n_steps": 4, "save_every_n_epochs": 1},
    {"max_train_epochs": 4, "train_batch_size": 8, "save_n_epoch_ratio": 2, "lr_scheduler": "warmup_stable_decay",
     "lr_warmup_steps": 2, "lr_decay_steps": 0.25, "lr_scheduler_min_lr_ratio": 0.1},
    {"max_train_steps": 6, "enable_bucket": False, "bucket_no_upscale": False, "train_batch_size": 5,
     "lr_scheduler": "cosine_with_min_lr", "lr_scheduler_min_lr_ratio": 0.2, "save_state_on_train_end": True},
]  # fmt: skip
MORE: list[dict[str, Any]] = [
    {"max_train_epochs": 3, "dataset_config": True, "gradient_accumulation_steps": 3, "save_every_n_epochs": 2},
    {"max_train_epochs": 5, "train_batch_size": 6, "save_every_n_epochs": 1, "save_last_n_epochs": 2},
    {"max_train_steps": 12, "save_every_n_steps": 3, "save_last_n_steps": 4, "save_last_n_steps_state": 7,
     "save_state": True},
    {"max_train_epochs": 4, "train_batch_size": 7, "save_every_n_epochs": 1, "save_last_n_epochs": 3,
     "save_last_n_epochs_state": 1, "save_state": True},
    {"max_train_steps": 10, "lr_scheduler": "inverse_sqrt", "lr_warmup_steps": 4, "lr_scheduler_timescale": 3},
    {"max_train_steps": 8, "lr_scheduler": "piecewise_constant", "lr_scheduler_args": ["step_rules='1:3,0.5:6,0.1'"]},
    {"max_train_steps": 8, "unet_lr": 3e-4, "lr_scheduler": "cosine", "lr_warmup_steps": "25%"},
    {"max_train_steps": 6, "optimizer_type": "AdamW8bit", "lr_scheduler": "linear", "sample_every_n_epochs": 2,
     "sample_every_n_steps": 1},
    {"max_train_epochs": 2, "train_batch_size": 2, "gradient_accumulation_steps": 100, "sample_every_n_epochs": 1},
    {"max_train_steps": 30, "train_batch_size": 4, "sample_every_n_epochs": 1, "sample_at_first": True},
    {"max_train_steps": 5, "optimizer_type": "AdamWScheduleFree", "save_every_n_steps": 5},
    {"max_train_epochs": 1, "max_train_steps": 3, "bucket_reso_steps": 32, "save_every_n_steps": 1},
]  # fmt: skip


def words(options: dict[str, Any]) -> str:
    return "-".join(options)


@pytest.mark.parametrize("options", FEW, ids=words)
def test_the_run_does_what_the_plan_says(options: dict[str, Any], differ: Callable[..., None]) -> None:
    differ(**options)


@pytest.mark.slow
@pytest.mark.parametrize("options", MORE, ids=words)
def test_the_run_does_what_the_plan_says_for_more(options: dict[str, Any], differ: Callable[..., None]) -> None:
    differ(**options)
