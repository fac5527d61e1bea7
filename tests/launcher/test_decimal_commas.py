"""A number with a decimal comma is told which number it means, in every format, and never cut at the comma."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.check.preflight import check_file
from launcher.check.resolve import resolve
from schemas.problems import ConfigError, Problem

COMMAND = "accelerate launch train_network.py --pretrained_model_name_or_path=a.safetensors "


def found(tmp_path: Path, name: str, text: str) -> list[Problem]:
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    try:
        return check_file(resolve(str(file), {})).problems
    except ConfigError as fault:
        return fault.problems


@pytest.mark.parametrize(
    ("name", "text", "fix"),
    [
        ("form.json", '{"LoRA_type": "Standard", "unet_lr": "0,0003"}', "write a point: --set unet_lr=0.0003"),
        ("bare.json", '{"LoRA_type": "Standard",\n "unet_lr": 3,5e-4,\n "epoch": 1}', "with a point: 3.5e-4"),
        ("args.json", '{"network_module": "networks.lora", "learning_rate": 0,0003}', "with a point: 0.0003"),
        ("civitai.json", '{"unetLR": 0,0003, "networkDim": 32}', "with a point: 0.0003"),
        ("text.toml", 'network_module = "a"\nlearning_rate = "0,0003"', "write a point: --set learning_rate=0.0003"),
        ("bare.toml", 'network_module = "a"\nlearning_rate = 0,0003', "write a point: --set learning_rate=0.0003"),
        ("rate.sh", COMMAND + "--learning_rate 0,0003", "write a point: --set learning_rate=0.0003"),
        ("rates.sh", COMMAND + "--text_encoder_lr 0,00005", "write a point: --set text_encoder_lr=0.00005"),
        ("net.sh", COMMAND + "--network_args dropout=0,1", "write a point: --set network_args=dropout=0.1"),
        ("optimizer.sh", COMMAND + "--optimizer_args weight_decay=0,01", "write a point: weight_decay=0.01"),
    ],
)
def test_the_number_that_is_meant_is_named(tmp_path: Path, name: str, text: str, fix: str) -> None:
    fixes = [problem.fix or "" for problem in found(tmp_path, name, text) if problem.severity == "error"]
    assert any(fix in one for one in fixes), fixes


def test_no_point_where_a_list_is_meant(tmp_path: Path) -> None:
    text = '{"LoRA_type": "Standard", "max_resolution": "512,768" "epoch": 1}'
    assert not any("point" in (problem.fix or "") for problem in found(tmp_path, "form.json", text))
