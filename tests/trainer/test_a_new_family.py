"""The seam of a family: one defined in tests/toy_flow.py is recognised, planned, trained, previewed, saved, resumed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from launcher.cli import cli
from schemas import families
from schemas.files.weights import checkpoint_family, lora_facts
from tests import toy_flow
from trainer.families import get

ROOT = Path(__file__).parents[2]
LINEARS = toy_flow.BLOCKS * len(toy_flow.LINEARS) + 1
RANK = 4


@pytest.fixture(autouse=True)
def known() -> Iterator[None]:
    """The one call that makes the family known, and its undoing."""
    families.register(toy_flow.FACTS)
    yield
    families.unregister(toy_flow.FACTS.name)


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model of that family."""
    return toy_flow.write_checkpoint(tmp_path_factory.mktemp("flow") / "flow.safetensors")


@pytest.fixture
def start(start_in: Callable[..., int], flow: Path, tmp_path: Path) -> Callable[..., int]:
    """start(folder, flag=True, ...) trains the toy family into tmp_path/folder/out."""
    return lambda folder, **options: start_in(
        tmp_path / folder, **{"pretrained_model_name_or_path": flow, **options}
    )  # fmt: skip


def config(tmp_path: Path, model: Path, data: Path, **changes: Any) -> Path:
    values: dict[str, Any] = {
        "pretrained_model_name_or_path": str(model), "train_data_dir": str(data), "output_dir": str(tmp_path / "out"),
        "output_name": "n0m3", "resolution": "64,64", "network_module": "networks.lora", "network_dim": RANK,
        "learning_rate": 1e-3, "max_train_steps": 4, "caption_extension": ".txt", **changes,
    }  # fmt: skip
    path = tmp_path / "flow.toml"
    path.write_text("\n".join(f"{name} = {json.dumps(value)}" for name, value in values.items()), encoding="utf-8")
    return path


def kohyakit(*words: object) -> Any:
    return CliRunner().invoke(cli, [str(word) for word in words])


def test_no_file_of_the_product_knows_it() -> None:
    sources = [path for top in ("schemas", "launcher", "trainer") for path in (ROOT / top).rglob("*.py")]
    assert [path for path in sources if "toy_flow" in path.read_text(encoding="utf-8")] == []


def test_it_is_recognised_and_unknown_again_without_its_row(flow: Path) -> None:
    assert checkpoint_family(flow) == "toy-flow"
    assert get("toy-flow") is toy_flow.FAMILY
    families.unregister("toy-flow")
    assert checkpoint_family(flow) == "unknown"


def test_it_is_planned_as_it_will_be_trained(
    flow: Path,
    pictures: Path,
    tmp_path: Path,
) -> None:
    result = kohyakit("plan", config(tmp_path, flow, pictures), "--json")
    plan = json.loads(result.stdout)
    assert result.exit_code == 0, result.output
    assert plan["family"] == "toy-flow"
    assert plan["memory"]["parts"]["unet"] == toy_flow.FACTS.sizes.unet * 4
    assert plan["memory"]["parts"]["adapter"] == 4 * LINEARS * (2 * RANK * toy_flow.WIDTH + 1)  # with alphas
    words = kohyakit("plan", config(tmp_path, flow, pictures))
    assert "a lora for Toy Flow" in words.output
    on_a_card = kohyakit("plan", config(tmp_path, flow, pictures), "--gpu", "RTX 4090", "--json")
    assert on_a_card.exit_code == 0, on_a_card.output
    assert json.loads(on_a_card.stdout)["time"] is None  # nobody has counted its work


@pytest.mark.parametrize(
    ("change", "exit_code", "said"),
    [
        ({"v2": True}, 1, "is a checkpoint of Toy Flow under a config for SD 2.x"),
        ({"gradient_checkpointing": True}, 1, "is not supported: two blocks need none"),
        ({"network_args": ["block_dims=" + ",".join(["2"] * 25)]}, 1, "Toy Flow has no blocks of a U-Net"),
        ({"network_args": ["down_lr_weight=sine"]}, 1, "Toy Flow has no blocks of a U-Net"),
        ({"min_snr_gamma": 5}, 0, "has no effect: a flow has its own noise, target and weights"),
        ({"clip_skip": 1}, 0, "has no effect for Toy Flow"),
        ({"text_encoder_lr": [1e-4, 2e-4]}, 0, "toy-flow has one text encoder"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_what_does_not_fit_it_is_said(
    change: dict[str, Any], exit_code: int, said: str, flow: Path, pictures: Path, tmp_path: Path
) -> None:
    result = kohyakit("plan", config(tmp_path, flow, pictures, **change))
    assert result.exit_code == exit_code, result.output
    assert said in result.output


def test_it_trains_previews_saves_and_resumes_to_the_bit(start: Callable[..., int], tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("n0m3, an ellipse --d 1 --s 3\nn0m3 --w 103 --h 76 --d 2 --s 2\n", encoding="utf-8")
    options: dict[str, Any] = {
        "save_every_n_steps": 2, "save_state": True, "sample_prompts": prompts, "sample_every_n_steps": 2,
        "text_encoder_lr": [1e-3], "lr_scheduler": "cosine",
    }  # fmt: skip
    assert start("whole", **options) == 0
    assert start("cut", **{**options, "max_train_steps": 4}) == 0
    whole, state = tmp_path / "whole" / "out", next((tmp_path / "cut" / "out").rglob("state-00000002"))
    assert start("more", **options, resume=state) == 0
    weights = load_file(whole / "n0m3.safetensors")
    keys = {"lora_te_proj"} | {f"lora_unet_blocks_{n}_{name}" for n in range(2) for name in toy_flow.LINEARS}
    assert {name.partition(".")[0] for name in weights} == keys
    assert all(weights[name].abs().max() > 0 for name in weights if "lora_up" in name)  # text encoder too
    resumed = load_file(tmp_path / "more" / "out" / "n0m3.safetensors")
    assert resumed.keys() == weights.keys()
    assert all(torch.equal(resumed[name], weights[name]) for name in weights)
    with safe_open(whole / "n0m3.safetensors", "pt") as file:
        header = file.metadata()
    assert header["ss_base_model_version"] == "toy_flow_v1"
    assert header["modelspec.prediction_type"] == "velocity"
    assert lora_facts(whole / "n0m3.safetensors").family == "toy-flow"
    shown = sorted(whole.rglob("sample/*.png"))
    assert {Image.open(path).size for path in shown} == {(68, 68), (100, 76)}
    assert len(shown) == 4


def test_a_lora_goes_on_with_it_and_another_family_s_does_not(
    start: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], base_models: dict[str, Path]
) -> None:
    assert start("first") == 0
    lora = tmp_path / "first" / "out" / "n0m3.safetensors"
    assert start("second", network_weights=lora) == 0
    capsys.readouterr()
    assert start("third", network_weights=lora, pretrained_model_name_or_path=base_models["sd15"]) == 1
    assert "LoRA for toy-flow, the base model is sd15" in capsys.readouterr().err


def test_its_latents_and_texts_are_cached_in_its_own_form(
    start: Callable[..., int],
    tmp_path: Path,
    pictures: Path,
) -> None:
    options: dict[str, Any] = {"cache_latents_to_disk": True, "cache_text_encoder_outputs": True,
                               "cache_text_encoder_outputs_to_disk": True, "network_train_unet_only": True}  # fmt: skip
    data = tmp_path / "data" / "1_n0m3"
    data.mkdir(parents=True)
    Image.new("RGB", (64, 64), (200, 40, 40)).save(data / "a.png")
    (data / "a.txt").write_text("n0m3", encoding="utf-8")
    assert start("cached", train_data_dir=data.parent, **options) == 0
    latents = np.load(data / "a_0064x0064_toyflow.npz")["latents"]
    assert latents.shape == (6, 16, 16)
    assert np.load(data / "a_te_outputs.npz")["bytes"].shape == (toy_flow.TOKENS, toy_flow.WIDTH)
    assert start("again", train_data_dir=data.parent, **options) == 0
    once, again = (load_file(tmp_path / name / "out" / "n0m3.safetensors") for name in ("cached", "again"))
    assert all(torch.equal(once[name], again[name]) for name in once)


def test_it_learns(start: Callable[..., int], tmp_path: Path) -> None:
    """Against the flow: a target or a time that is wrong anywhere would leave the loss where it began."""
    options: dict[str, Any] = {"max_train_steps": 120, "learning_rate": 2e-2, "train_batch_size": 4}
    assert start("long", **options, validation_split=0.3, validate_every_n_steps=60) == 0
    log = next((tmp_path / "long").rglob("validation.jsonl")).read_text(encoding="utf-8").splitlines()
    first, *_, last = (json.loads(line)["loss"] for line in log)
    assert last < 0.9 * first
