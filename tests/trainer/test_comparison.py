"""Measured beside the base model: nothing moves but by the LoRA, and the base is as before afterwards."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from schemas import TrainConfig, to_flat
from schemas.options import NetworkOptions
from tests.tiny import stir
from trainer.adapters import attach
from trainer.comparison import measures
from trainer.comparison.__main__ import DONE, Wish, held_scan, main
from trainer.comparison.measures import Bench, drift
from trainer.dataset.files import scan
from trainer.families import get
from trainer.output.lora_file import save_weights

SMALL = {"width": 64, "height": 64, "sample_steps": 2, "seed": 3}


@pytest.fixture(scope="module")
def config(base_models, pictures) -> TrainConfig:
    return TrainConfig(pretrained_model_name_or_path=str(base_models["sd15"]), train_data_dir=str(pictures),
                       resolution="64,64", caption_extension=".txt", max_data_loader_n_workers=0)  # fmt: skip


@pytest.fixture(scope="module")
def lora(config, tmp_path_factory) -> Path:
    family = get("sd15")
    models = family.load(config, dtype=torch.float32)
    adapter = attach(models, family.targets(models), NetworkOptions(network_dim=4, network_alpha=4.0))
    stir(adapter, 0.3)
    file = tmp_path_factory.mktemp("loras") / "x-000001.safetensors"
    save_weights(file, adapter.state_dict(), {"ss_base_model_version": "sd_v1"})
    return file


@pytest.fixture
def held(tmp_path: Path) -> Path:
    folder = tmp_path / "held"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (64, 64), (70 * number, 40, 120)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("n0m3", encoding="utf-8")
    return folder


def wish(config: TrainConfig, folder: Path, **changes) -> Path:
    place = folder / "wish.json"
    asked = {
        "config": to_flat(config), "family": "sd15", "files": [], "weights": [1.0], "neutral": [1],
        "prompts": [{"prompt": "n0m3", **SMALL}, {"prompt": "a cat", **SMALL}], "held_out": None, "embedder": None,
        "images": True,
    }  # fmt: skip
    place.write_text(json.dumps(asked | changes), encoding="utf-8")
    return place


def test_measuring_goes_on_where_it_stopped(config, lora, held, tmp_path, monkeypatch) -> None:
    asked = wish(config, tmp_path, files=[["epoch 1", str(lora)]], held_out=str(held), weights=[0.5, 1.0])
    assert main([str(asked)]) == 0
    found = json.loads((tmp_path / DONE).read_text(encoding="utf-8"))
    weak, whole = found["measured"]
    assert (weak["weight"], "losses" in weak) == (0.5, False)
    assert [len(row) for row in whole["losses"]] == [len(measures.TIMESTEPS)] * 3
    assert whole["losses"] != found["base"]["losses"]
    assert min(whole["drift"]) > 0
    assert min(whole["sway"]) > 0
    names = {*found["base"]["images"], *weak["images"], *whole["images"]}
    assert len(names) == 6
    assert all((tmp_path / name).is_file() for name in names)

    def fail(*_args, **_more):
        raise AssertionError("measured again")

    monkeypatch.setattr(measures, "losses", fail)
    assert main([str(asked)]) == 0
    assert json.loads((tmp_path / DONE).read_text(encoding="utf-8")) == found


def test_the_base_is_as_before_and_no_lora_changes_nothing(config, lora) -> None:
    bench = Bench.of(config, get("sd15"))
    before = {name: weight.clone() for name, weight in bench.models.unet.state_dict().items()}
    with bench.wearing(lora, 0.7):
        assert any(not torch.equal(before[name], weight) for name, weight in bench.models.unet.state_dict().items())
    assert all(torch.equal(before[name], weight) for name, weight in bench.models.unet.state_dict().items())


def test_drift_is_0_at_the_base_and_1_at_another_prompts_image() -> None:
    draw = torch.Generator().manual_seed(0)
    base = {(index, 0): torch.randn(1, 4, 8, 8, generator=draw) for index in range(12)}
    assert drift(base, base) == [0.0] * 12
    swapped = {(index, 0): base[(index + 1) % 12, 0] for index in range(12)}
    assert sum(drift(base, swapped)) / 12 == pytest.approx(1.0, abs=0.15)


def test_training_images_are_not_held_out(config, pictures, lora, tmp_path) -> None:
    asked = wish(config, tmp_path, files=[["epoch 1", str(lora)]], held_out=str(next(pictures.iterdir())))
    assert main([str(asked)]) == 1
    (problem,) = json.loads((tmp_path / DONE).read_text(encoding="utf-8"))["problems"]
    assert problem["code"] == "held-out-trained"


def test_the_images_that_the_run_kept_aside_are_held_out(config, tmp_path) -> None:
    def asked(**changes) -> Wish:
        return Wish(**json.loads(wish(replace(config, **changes), tmp_path).read_text(encoding="utf-8")))

    assert held_scan(asked(), config) is None
    split = replace(config, validation_split=0.4, validation_seed=1)
    found = held_scan(asked(validation_split=0.4), split)
    assert {one.path for one in found.samples} == {one.path for one in scan(split).validation}
    assert not {one.path for one in found.samples} & {one.path for one in scan(split).samples}


def test_an_embedder_measures_likeness() -> None:
    from trainer.comparison.embedding import likeness, own_nearest

    trained = torch.eye(4)
    assert likeness(trained[:1], trained) == {"to_set": 0.25, "to_nearest": 1.0}
    assert own_nearest(trained) == 0.0


@pytest.mark.parametrize("kind", ["clip", pytest.param("dino", marks=pytest.mark.slow)])
def test_models_of_transformers_are_embedders(kind, tmp_path) -> None:
    import transformers

    from trainer.comparison.embedding import Embedder

    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 16}
    if kind == "clip":
        vision = {**small, "intermediate_size": 16}
        text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
        model = transformers.CLIPModel(config)
    else:
        model = transformers.Dinov2Model(transformers.Dinov2Config(**small))
    model.save_pretrained(tmp_path)
    size = {"height": 32, "width": 32}
    transformers.CLIPImageProcessor(size=size, crop_size=size).save_pretrained(tmp_path)
    found = Embedder(str(tmp_path))([Image.new("RGB", (40, 30), colour) for colour in ("red", "red", "blue")])
    assert found.shape[0] == 3
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(found[0], found[1])
    assert not torch.allclose(found[0], found[2])


def test_a_folder_without_a_model_is_no_embedder(tmp_path) -> None:
    from schemas.problems import ConfigError
    from trainer.comparison.embedding import Embedder

    with pytest.raises(ConfigError, match=r"no config\.json"):
        Embedder(str(tmp_path))
