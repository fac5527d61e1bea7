"""JSON files of other programs, and JSON that holds sd-scripts' arguments."""

from __future__ import annotations

import json
from typing import Any

import pytest

from launcher.formats import read_text
from schemas.problems import ConfigError


@pytest.mark.parametrize(
    ("document", "program"),
    [
        ({"training_method": "LORA", "base_model_name": "x", "learning_rate": 1e-4, "epochs": 1}, "OneTrainer"),
        ({"job": "extension", "config": {"name": "x", "process": []}}, "ai-toolkit"),
        ({"model_family": "sdxl", "data_backend_config": "x.json", "resolution": 1024}, "SimpleTuner"),
        ({"3": {"class_type": "KSampler", "inputs": {"seed": 1}}}, "ComfyUI"),
        ({"name": "x", "dependencies": {"a": "1"}}, "package.json"),
    ],
)
def test_other_programs_are_named(document: dict[str, Any], program: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_text(json.dumps(document), None, "a.json")
    assert caught.value.problems[0].code == "other-tool"
    assert program in caught.value.problems[0].must


def test_json_with_names_of_sd_scripts_is_read_as_its_arguments() -> None:
    text = '{"resolution":"1024,1024","optimizer_type":"Prodigy","network_module":"networks.lora"}'
    draft = read_text(text, None, "a.json")
    assert draft.format == "sd-scripts"
    assert draft.arguments["optimizer_type"].value == "Prodigy"


def test_one_picture_at_a_time_may_be_written_as_none() -> None:
    draft = read_text('network_module = "networks.lora"\nvae_batch_size = 0\n', None, "a.toml")
    assert draft.arguments["vae_batch_size"].value == 1
    assert [problem.severity for problem in draft.problems if problem.key == "vae_batch_size"] == ["warning"]
