from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from launcher.about.convert import TARGETS, convert
from launcher.about.diff import compare
from launcher.check.resolve import presets, resolve
from launcher.run.snapshot import MARK


@pytest.mark.parametrize("target", ["kohya-gui", "sd-scripts", "args", "snapshot"])
def test_there_and_back_trains_the_same(preset, tmp_path: Path, target) -> None:
    one = resolve(
        str(
            preset(
                noise_offset=0.05,
                max_train_steps=20,
                min_snr_gamma=5,
                keep_tokens=1,
                flip_aug=True,
                optimizer="AdamW8bit",
                optimizer_args="weight_decay=0.1",
                lr_scheduler="cosine",
                lr_warmup=10,
            )
        )
    )
    out = tmp_path / "out.x"
    found = convert(one, target, beside=out)
    assert found.lost == []
    out.write_text(found.text)
    assert compare(one, resolve(str(out)))[0] == []


@pytest.mark.parametrize("name", [path.stem for path in presets()])
def test_shipped_presets_survive_the_form(tmp_path: Path, name) -> None:
    one = resolve(name)
    (tmp_path / "x.json").write_text(convert(one, "kohya-gui").text)
    assert compare(one, resolve(str(tmp_path / "x.json")))[0] == []


def test_what_the_target_cannot_say_is_listed(kohyakit, preset) -> None:
    found = kohyakit("convert", preset(max_train_epochs=3, network_dropout=0.1), "--to", "civitai", "--json")
    document = json.loads(found.stdout)
    assert any(entry.startswith("network_dropout = 0.1") for entry in document["lost"])
    assert "lost: network_dropout" in found.stderr
    assert json.loads(document["text"])["networkDim"] == 4


def test_steps_are_counted_where_the_pictures_are(preset) -> None:
    assert tomllib.loads(convert(resolve(str(preset())), "sd-scripts").text)["max_train_steps"] == 12


def test_steps_that_cannot_be_counted_are_lost_and_said(preset) -> None:
    found = convert(resolve(str(preset(train_data_dir="/content/img"))), "sd-scripts")
    assert any(entry.startswith("epoch = 2") for entry in found.lost)


def test_prompts_become_a_file_beside(kohyakit, preset, tmp_path: Path) -> None:
    out = tmp_path / "run.toml"
    found = kohyakit(
        "convert", preset(sample_prompts="a frog", sample_every_n_epochs=1), "--to", "sd-scripts", "-o", out
    )
    assert found.exit_code == 0, found.output
    assert (tmp_path / "run-prompts.txt").read_text() == "a frog\n"
    assert tomllib.loads(out.read_text())["sample_prompts"] == str(tmp_path / "run-prompts.txt")


def test_data_becomes_a_file_beside(kohyakit, photos: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "c.json", tmp_path / "run.toml"
    source.write_text(
        json.dumps(
            {
                "unetLR": 1e-4,
                "textEncoderLR": 5e-5,
                "minSnrGamma": 5,
                "targetSteps": 9,
                "numRepeats": 7,
                "maxTrainEpochs": 2,
                "trainBatchSize": 1,
                "networkDim": 4,
                "networkAlpha": 2,
            }
        )
    )
    kohyakit("convert", source, "--to", "sd-scripts", "-o", out, "--set", f"train_data_dir={photos / '3_frog'}")
    data = tomllib.loads((tmp_path / "run-dataset.toml").read_text())
    assert data["datasets"][0]["subsets"][0]["num_repeats"] == 7
    assert "train_data_dir" not in tomllib.loads(out.read_text())


def test_a_snapshot_says_what_it_is(preset, tmp_path: Path) -> None:
    document = json.loads(convert(resolve(str(preset())), "snapshot").text)
    assert document[MARK]["format"] == "kohya-gui"


def test_nothing_is_overwritten_unasked(kohyakit, preset, tmp_path: Path) -> None:
    out = tmp_path / "x.toml"
    out.write_text("mine")
    assert kohyakit("convert", preset(), "--to", "sd-scripts", "-o", out).exit_code == 1
    assert out.read_text() == "mine"
    assert kohyakit("convert", preset(), "--to", "sd-scripts", "-o", out, "--overwrite").exit_code == 0


def test_without_a_file_the_text_alone_is_on_stdout(kohyakit, preset) -> None:
    assert (
        tomllib.loads(kohyakit("convert", preset(max_train_steps=5), "--to", "sd-scripts").stdout)["max_train_steps"]
        == 5
    )


@pytest.mark.parametrize("target", TARGETS)
def test_secrets_are_never_written(preset, target) -> None:
    found = convert(resolve(str(preset(wandb_api_key="0" * 40, max_train_steps=5))), target)
    assert "0" * 40 not in found.text
    assert any("secrets" in entry for entry in found.lost)


def test_a_form_names_the_dataset_file_beside_it(kohyakit, tmp_path: Path) -> None:
    source, out = tmp_path / "d.toml", tmp_path / "form.json"
    source.write_text("[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'a'\nnum_repeats = 3\n")
    assert kohyakit("convert", source, "--to", "kohya-gui", "-o", out).exit_code == 0
    assert json.loads(out.read_text())["dataset_config"] == str(tmp_path / "form-dataset.toml")
    assert compare(resolve(str(source)), resolve(str(out)))[0] == []


def test_a_forms_epochs_are_the_sites(preset) -> None:
    found = convert(resolve(str(preset(epoch=7))), "civitai")
    assert json.loads(found.text)["maxTrainEpochs"] == 7
    assert not any(entry.startswith("max_train") for entry in found.lost)


def test_a_form_that_counts_its_steps_stays_one(preset) -> None:
    assert json.loads(convert(resolve(str(preset())), "kohya-gui").text)["max_train_steps"] == 0


def test_repeats_without_a_folder_are_said(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text('{"unetLR": 0.1, "minSnrGamma": 5, "numRepeats": 12}')
    found = convert(resolve(str(tmp_path / "c.json")), "kohya-gui")
    assert any(entry.startswith("num_repeats = 12") for entry in found.lost)


def test_a_snapshot_keeps_options_of_our_own(preset, tmp_path: Path) -> None:
    one = resolve(str(preset()), {"stop_text_encoder_training": "0.4", "save_peft": "true", "overwrite": "true"})
    written = convert(one, "snapshot")
    file = tmp_path / "snapshot.json"
    file.write_text(written.text, encoding="utf-8")
    back = resolve(str(file))
    assert (back.config.stop_text_encoder_training, back.config.save_peft, back.config.overwrite) == (0.4, True, False)
    assert compare(one, back)[0] == []
    assert [problem for problem in back.problems if problem.key == MARK] == []
    assert back.draft.keys[MARK].status == "used"


def test_other_formats_say_that_they_lose_options_of_our_own(preset) -> None:
    one = resolve(str(preset()), {"stop_text_encoder_training": "0.4"})
    for target in ("kohya-gui", "sd-scripts", "args", "civitai"):
        assert any(line.startswith("stop_text_encoder_training") for line in convert(one, target).lost), target


def test_a_difference_in_an_option_of_our_own_is_one_in_training(preset) -> None:
    one, other = resolve(str(preset())), resolve(str(preset()), {"stop_text_encoder_training": "3"})
    assert [entry["argument"] for entry in compare(one, other)[0]] == ["stop_text_encoder_training"]


@pytest.mark.parametrize("key", ["stop_text_encoder_training", "stop_text_encoder_training_pct"])
def test_the_form_drops_its_per_cent_and_the_fix_gives_them(preset, key: str) -> None:
    file = str(preset(**{key: 40}))
    plain = resolve(file)
    assert plain.config.stop_text_encoder_training == 0
    (found,) = [problem for problem in plain.problems if problem.key == key]
    assert found.fix == "--set stop_text_encoder_training=0.4 to have it"
    assert resolve(file, {"stop_text_encoder_training": "0.4"}).config.stop_text_encoder_training == 0.4


@pytest.mark.parametrize("target", sorted(set(TARGETS) - {"snapshot"}))
def test_another_reading_of_text_projection_is_lost_and_said(preset, target) -> None:
    one = resolve(str(preset()), {"sdxl_text_projection": "as_stored"})
    lost = [entry for entry in convert(one, target).lost if entry.startswith("sdxl_text_projection = as_stored")]
    assert len(lost) == 1
    assert not any(entry.startswith("sdxl_text") for entry in convert(resolve(str(preset())), target).lost)
