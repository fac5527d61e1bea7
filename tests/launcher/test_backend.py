from __future__ import annotations

import json
import shlex
import sys
import tomllib
from pathlib import Path


def test_the_guis_own_command_is_printed(kohyakit, preset, tmp_path: Path, files) -> None:
    file = preset()
    before = files(tmp_path)
    found = kohyakit("launch", file, "--backend", "sd-scripts", "--sd-scripts-dir", "/sd", "--print-command")
    words = shlex.split(found.stdout)
    assert words[:2] == ["accelerate", "launch"]
    assert "/sd/train_network.py" in words
    assert files(tmp_path) == before


def test_its_toml_is_the_guis_with_set_over_it(kohyakit, preset, tmp_path: Path) -> None:
    words = ("--backend", "sd-scripts", "--print-command", "--json", "--set", "network_dim=16", "--set", "seed=")
    config = json.loads(kohyakit("launch", preset(), *words).stdout)["config"]
    assert (config["network_dim"], config["max_train_steps"], "seed" in config) == (16, 12, False)
    assert config["text_encoder_lr"] == [5e-5, 5e-5]
    assert config["sample_prompts"] == f"{tmp_path}/out/sample/prompt.txt"


def test_an_sdxl_file_of_another_format_gets_its_script(kohyakit, checkpoint, photos, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        f'pretrained_model_name_or_path = "{checkpoint("sdxl")}"\ntrain_data_dir = "{photos}"\n'
        f'output_dir = "{tmp_path}/out"\nresolution = "64"\ncaption_extension = ".txt"\n'
    )
    assert "sdxl_train_network.py" in kohyakit("launch", file, "--backend", "sd-scripts", "--print-command").stdout


def test_it_starts_with_the_files_the_gui_writes(kohyakit, preset, tmp_path: Path, monkeypatch) -> None:
    """A stand-in for sd-scripts that reads its config file, started by a stand-in for accelerate."""
    checkout, programs = tmp_path / "sd", tmp_path / "bin"
    checkout.mkdir()
    programs.mkdir()
    (checkout / "train_network.py").write_text(
        "import sys, tomllib\nprint(tomllib.load(open(sys.argv[sys.argv.index('--config_file') + 1], 'rb')))"
    )
    accelerate = programs / "accelerate"
    accelerate.write_text(f'#!/bin/sh\nwhile [ "${{1##*.}}" != py ]; do shift; done\nexec {sys.executable} "$@"\n')
    accelerate.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    found = kohyakit(
        "launch", preset(sample_prompts="a frog"), "--backend", "sd-scripts", "--sd-scripts-dir", checkout, "--json"
    )
    assert json.loads(found.stdout)["exit"] == 0, found.output
    (written,) = (tmp_path / "out").glob("config_lora-*.toml")
    assert tomllib.loads(written.read_text())["network_dim"] == 4
    assert (tmp_path / "out" / "sample" / "prompt.txt").read_text() == "a frog"
    assert len(list((tmp_path / "out").glob("frog_*.json"))) == 1


def test_a_folder_without_scripts_is_a_wrong_command_line(kohyakit, preset, tmp_path: Path) -> None:
    assert kohyakit("launch", preset(), "--backend", "sd-scripts", "--sd-scripts-dir", tmp_path).exit_code == 2
    assert kohyakit("launch", preset(), "--backend", "sd-scripts").exit_code == 2
