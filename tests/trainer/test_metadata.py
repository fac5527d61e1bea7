from __future__ import annotations

import argparse
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from schemas.config import from_flat
from schemas.derive import add_flags
from trainer.dataset.files import scan
from trainer.dataset.order import assign, batches_per_epoch
from trainer.families import get
from trainer.output.metadata import (
    BaseFile,
    DatasetFacts,
    RunFacts,
    build_metadata,
    last_name,
)

CASES = json.loads((Path(__file__).parents[1] / "golden" / "metadata.json").read_text(encoding="utf-8"))["cases"]
OURS = {"ss_sd_scripts_commit_hash": "unknown", "modelspec.implementation_version": r"kohyakit/\S+"}
FORMS = {
    "whole number": r"\d+", "unix seconds as float text": r"\d+\.\d+", "8 hex digits": "[0-9a-f]{8}",
    "64 hex digits": "[0-9a-f]{64}",
    "local time as YYYY-MM-DDTHH:MM:SS without zone": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d",
    "LoRA@ followed by unix seconds as float text (no output name and no title given)": r"LoRA@\d+\.\d+",
}  # fmt: skip


def config_of(words, **more):
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return from_flat({**vars(parser.parse_args(shlex.split(words))), **more})[0]


def facts_of(config, family="sd15", **more):
    values = {
        "config": config, "family": get(family).metadata(config), "datasets": (), "batches_per_epoch": 1, "epochs": 1,
        "total_steps": config.max_train_steps, "processes": 1, "optimizer": "torch.optim.adamw.AdamW", "session_id": 7,
        "started_at": 1700000000.5,
    }  # fmt: skip
    return RunFacts(**{**values, **more})


def header(facts, steps=12, epoch=1):
    return build_metadata(facts, steps=steps, epoch=epoch, finished_at=1700000100.25)


def check(found, case, ignored=()):
    for name in ignored:
        found.pop(name, None)
    for name, form in case["varying"].items():
        if not name.startswith("sshs_"):
            assert re.fullmatch(OURS.get(name) or FORMS[form], found.pop(name)), name
    assert found == case["metadata"]


@pytest.fixture
def pictures(tmp_path):
    """The toy dataset of the reference's runs."""

    def make(folder, sizes):
        place = tmp_path / "img" / folder
        place.mkdir(parents=True)
        for number, size in enumerate(sizes):
            Image.new("RGB", tuple(size)).save(place / f"{number}.png")
            (place / f"{number}.txt").write_text(f"N0m3, pattern number {number}, colorful stripes")
        return str(tmp_path / "img")

    return make


@pytest.mark.parametrize("case", [case for case in CASES if case["kind"] == "run"], ids=lambda case: case["name"])
def test_header_of_a_run_is_that_of_the_reference(pictures, case):
    folder = re.search(r"folder named (\S+)", case["dataset"])[1]
    config = config_of(case["args"], train_data_dir=pictures(folder, case["sizes"]))
    found = scan(config)
    assignment = assign(found, config)
    told = case["metadata"]
    facts = facts_of(
        config, datasets=DatasetFacts.of(found, assignment), batches_per_epoch=batches_per_epoch(assignment),
        epochs=int(told["ss_num_epochs"]), total_steps=12,
        model=BaseFile("sd15.safetensors", "0" * 8, "0" * 64),
    )  # fmt: skip
    check(header(facts, int(told["ss_steps"]), int(told["ss_epoch"])), case, ignored=("kohyakit_config",))


@pytest.mark.parametrize("case", [case for case in CASES if case["kind"] == "modelspec"], ids=lambda case: case["args"])
def test_model_card_is_that_of_the_reference(case):
    family = {"sd": "sd2" if "--v2" in case["args"] else "sd15", "sdxl": "sdxl"}[case["model"]]
    found = header(facts_of(config_of(case["args"]), family))
    check({name: text for name, text in found.items() if name.startswith("modelspec.")}, case)


def test_no_metadata_keeps_what_makes_the_file_usable():
    (case,) = (case for case in CASES if case["kind"] == "no_metadata")
    check(header(facts_of(config_of(case["args"]))), case)


def test_kohyakit_config_has_no_secrets_and_no_personal_folders():
    config = config_of("", output_dir="/home/me/secret place/out", pretrained_model_name_or_path=r"C:\Users\me\sd.ckpt",
                       base_weights=("/home/me/a.safetensors",), network_args=("preset=/home/me/p.toml", "algo=loha"),
                       wandb_api_key="abc", huggingface_token="hf_x", network_dim=8)  # fmt: skip
    text = header(facts_of(config))["kohyakit_config"]
    assert json.loads(text) == {
        "output_dir": "out", "pretrained_model_name_or_path": "sd.ckpt", "base_weights": ["a.safetensors"],
        "network_args": ["preset=p.toml", "algo=loha"], "network_dim": 8,
    }  # fmt: skip
    assert "me" not in re.findall(r"\w+", text)


@pytest.mark.parametrize(
    ("family", "rates", "text"),
    [
        ("sd15", (), "None"),
        ("sd15", (5e-05,), "5e-05"),
        ("sdxl", (1e-4, 1e-4), "0.0001"),
        ("sdxl", (1e-4, 2e-4), "[0.0001, 0.0002]"),
        ("sd15", (1e-4, 2e-4), "0.0001"),
    ],
)
def test_text_rates(family, rates, text):
    assert header(facts_of(config_of("", text_encoder_lr=rates), family))["ss_text_encoder_lr"] == text


def test_rates_that_adafactor_makes_itself_are_none():
    told = header(facts_of(config_of("", learning_rate=1e-3, lr_scheduler="adafactor:0.001", text_encoder_lr=(0.0,))))
    names = ("ss_learning_rate", "ss_unet_lr", "ss_text_encoder_lr", "ss_lr_scheduler")
    assert [told[name] for name in names] == ["None", "None", "None", "adafactor:0.001"]


def test_without_buckets_they_have_no_limits():
    names = ("ss_enable_bucket", "ss_min_bucket_reso", "ss_max_bucket_reso")
    told = [header(facts_of(config_of(words, min_bucket_reso=64))) for words in ("", "--enable_bucket")]
    assert [[one[name] for name in names] for one in told] == [["False", "None", "None"], ["True", "64", "1024"]]


@pytest.mark.parametrize("alpha", [8, 8.0, "8"])
def test_alpha_is_a_number_with_a_point_however_it_was_given(alpha):
    assert header(facts_of(config_of("", network_alpha=alpha)))["ss_network_alpha"] == "8.0"


def test_network_args_are_told_with_the_dropout():
    config = config_of("--network_dropout 0.1 --network_args conv_dim=4")
    assert json.loads(header(facts_of(config))["ss_network_args"]) == {"conv_dim": "4", "dropout": 0.1}


def test_dataset_config_is_told_by_dataset_and_subset(pictures, tmp_path):
    folder = Path(pictures("a", [(64, 64)] * 2)) / "a"
    file = tmp_path / "data.toml"
    file.write_text(f"[[datasets]]\nresolution = 64\nbatch_size = 2\n[[datasets.subsets]]\nimage_dir = '{folder}'\n"
                    "num_repeats = 3\nclass_tokens = 'sks'\ncaption_extension = '.txt'\n")  # fmt: skip
    config = config_of("", dataset_config=str(file))
    found = scan(config)
    told = header(facts_of(config, datasets=DatasetFacts.of(found, assign(found, config))))
    (dataset,) = json.loads(told["ss_datasets"])
    assert (dataset["enable_bucket"], dataset["min_bucket_reso"], dataset["max_bucket_reso"]) == (False, None, None)
    assert (dataset["num_train_images"], dataset["batch_size_per_device"], dataset["resolution"]) == (6, 2, [64, 64])
    (subset,) = dataset["subsets"]
    assert (subset["image_dir"], subset["img_count"], subset["num_repeats"]) == ("a", 2, 3)
    assert (subset["class_tokens"], subset["is_reg"]) == ("sks", False)
    assert json.loads(told["ss_dataset_dirs"]) == {"a": {"n_repeats": 3, "img_count": 2}}
    assert json.loads(told["ss_tag_frequency"])["a"]["n0m3"] == 2
    assert "ss_resolution" not in told


@pytest.mark.parametrize(("repeats", "counted"), [(1, "5"), (3, "15")])
def test_regularisation_pictures_count_with_their_own_repeats(pictures, tmp_path, repeats, counted):
    training = pictures("2_a", [(64, 64)])
    pictures(f"{repeats}_b", [(64, 64)] * 5)
    (tmp_path / "reg").mkdir()
    (tmp_path / "img" / f"{repeats}_b").rename(tmp_path / "reg" / f"{repeats}_b")
    config = config_of("--resolution 64", train_data_dir=training, reg_data_dir=str(tmp_path / "reg"))
    found = scan(config)
    assert sum(sample.repeats for sample in found.samples if sample.is_reg) in (2, 3)  # what is trained on
    told = header(facts_of(config, datasets=DatasetFacts.of(found, assign(found, config))))
    assert (told["ss_num_train_images"], told["ss_num_reg_images"]) == ("2", counted)


def test_folders_of_one_name_get_numbers(pictures, tmp_path):
    config = config_of("--resolution 64", train_data_dir=pictures("3_a", [(64, 64)]))
    found = scan(config)
    (facts,) = DatasetFacts.of(found, assign(found, config))
    told = json.loads(header(facts_of(config, datasets=(facts, replace(facts))))["ss_dataset_dirs"])
    assert list(told) == ["3_a", "3_a (2)"]


def test_base_files():
    assert BaseFile.of("owner/model", None) == BaseFile("owner/model")
    assert BaseFile.of("/models/sd.safetensors", ("a", "b")) == BaseFile("sd.safetensors", "a", "b")
    told = header(facts_of(config_of(""), vae=BaseFile("v.pt", "a", "b"), model=BaseFile("owner/model")))
    assert (told["ss_vae_name"], told["ss_vae_hash"], told["ss_new_vae_hash"]) == ("v.pt", "a", "b")
    assert "ss_sd_model_hash" not in told


def test_thumbnail_becomes_a_data_url(tmp_path, caplog):
    (tmp_path / "t.png").write_bytes(b"png")
    told = header(facts_of(config_of("", metadata_thumbnail=str(tmp_path / "t.png"))))
    assert told["modelspec.thumbnail"] == "data:image/png;base64,cG5n"
    assert "modelspec.thumbnail" not in header(facts_of(config_of("", metadata_thumbnail=str(tmp_path / "none.png"))))
    assert "does not exist" in caplog.text


@pytest.mark.parametrize(("place", "name"), [("/a/b.png", "b.png"), ("C:\\a\\b", "b"), ("b", "b"), ("/a/b/", "b")])
def test_last_name(place, name):
    assert last_name(place) == name
