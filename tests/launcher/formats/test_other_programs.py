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


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("a.toml", 'network_dim = 4\nfoo = 1\nbar = 2\nbaz = "x"\n'),
        ("a.toml", '[one]\nnetwork_dim = 4\nhidden = 1\n[two]\nlayers = 2\nheads = "x"\n'),
        ("a.json", '{"LoRA_type": "Standard", "max_resolution": "512", "a": 1, "b": 2, "c": 3}'),
        ("a.sh", "accelerate launch train_network.py --network_dim 4 --foo 1 --bar 2 --baz 3"),
    ],
)
def test_more_unknown_than_known_keys_is_never_ok(file: str, text: str) -> None:
    found = [problem for problem in read_text(text, None, file).problems if problem.code == "mostly-unknown"]
    assert [problem.severity for problem in found] == ["error"]
    assert "3 of " in found[0].must


def test_a_few_unknown_keys_are_only_warned_of() -> None:
    draft = read_text("network_dim = 4\nnetwork_alpha = 1\nfoo = 1\nbar = 2\n", None, "a.toml")
    assert "mostly-unknown" not in {problem.code for problem in draft.problems}


def test_one_common_word_makes_no_other_program() -> None:
    form = {"LoRA_type": "Standard", "network_dim": 4, "network_alpha": 4, "max_resolution": "512", "scripts": 1}
    assert read_text(json.dumps(form), None, "a.json").format == "kohya-gui"
