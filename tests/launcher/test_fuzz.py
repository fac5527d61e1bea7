"""Whatever a file holds: an answer, never a traceback, and never a long wait."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from launcher import formats
from launcher.about.convert import TARGETS, convert
from launcher.check.preflight import check_file
from launcher.check.resolve import resolve, settle
from schemas.problems import ConfigError, Problem, errors

GUI = """{
  "LoRA_type": "LyCORIS/LoCon", "network_dim": "32", "network_alpha": 16.0, "conv_dim": 8, "epoch": "10",
  "max_resolution": "1024,1024", "optimizer": "AdamW8bit", "optimizer_args": "\\"weight_decay=0.1\\" betas=0.9,0.99",
  "lr_scheduler": "cosine", "lr_warmup": 10, "learning_rate": 0.0001, "unet_lr": "1e-4", "text_encoder_lr": 5e-05,
  "xformers": true, "sdxl": true, "noise_offset": 0.05,
  "sample_prompts": "a cat --n bad --w 512\\nb", "max_train_steps": "",
  "additional_parameters": "--max_grad_norm=0 --network_train_unet_only", "train_data_dir": "C:\\\\data", "seed": ""
}"""
FLAT = """[model]
pretrained_model_name_or_path = "C:/models/x.safetensors" # where
network_module = "networks.lora"
network_args = ["conv_dim=8", "conv_alpha=4"]
[training]
learning_rate = "1e-4"
text_encoder_lr = [5e-5]
max_train_epochs = 10
lr_warmup_steps = 0.1
resolution = "512,768"
xformers = true
"""
DATASET = """[general]
shuffle_caption = true
resolution = [1024, 1024]
[[datasets]]
batch_size = 2
  [[datasets.subsets]]
  image_dir = 'a'
  num_repeats = 10
  face_crop_aug_range = [1.0, 2.0]
"""
CIVITAI = """{
  "engine": "kohya", "unetLR": 0.0005, "clipSkip": 1, "loraType": "lora", "networkDim": 32, "numRepeats": 12,
  "targetSteps": 3072, --> This changes
  "optimizerArgs": "weight_decay=0.1", "optimizerType": "AdamW8Bit", "textEncoderLR": 0, "maxTrainEpochs": 16,
  "trainBatchSize": 2, "resolution": 1024, “minSnrGamma”: 5, "lrScheduler": "cosine_with_restarts",
}"""
EASY = """[[subsets]]
image_dir = "a"
num_repeats = 2
[train_mode]
train_mode = "lora"
[general_args.args]
sdxl = true
max_train_epochs = 5
[general_args.dataset_args]
resolution = [1024, 1024]
[network_args.args.network_args]
algo = "locon"
conv_dim = 8
[optimizer_args.args]
optimizer_type = "Came"
warmup_ratio = 0.1
[optimizer_args.args.optimizer_args]
weight_decay = "0.1"
"""
FRONT_END = """model_train_type = "sdxl-lora"
network_module = "lycoris.kohya"
lycoris_algo = "lokr"
lokr_factor = 8
learning_rate = "1e-4"
enable_base_weight = true
base_weights = "a\\nb"
base_weights_multiplier = "1\\n0.5"
optimizer_type = "Prodigy"
prodigy_d0 = "1e-5"
ui_custom_params = "seed = 7"
positive_prompts = "a cat"
enable_preview = true
"""
SHELL = """set DIM=32
accelerate launch --num_processes=2 "train_network.py" ^
  --network_dim %DIM% --resolution="512,512" --optimizer_args "weight_decay=0.1" "betas=0.9,0.99" ^
  --output_dir 'C:\\out put\\' --seed $SEED --unknown_thing 3 > log.txt
"""
DEFAULTS = """[folders]
output_dir = 'o'
[basic]
max_resolution = '640,640'
[lora.basic]
network_dim = 8
[huggingface]
repo_id = 'x'
[advanced]
seed = 7
"""
SAMPLES = {"a.json": GUI, "b.toml": FLAT, "c.toml": DATASET, "d.json": CIVITAI, "e.toml": EASY, "f.toml": FRONT_END,
           "g.bat": SHELL, "h.toml": DEFAULTS}  # fmt: skip
# fmt: off
ODD = [
    "", "{", "}", "[", "]", "[[", "]]", '"', "'", '"""', "\\", ",",
    "=", ":", "\n", "\r\n", "#", "//", "-->", "null", "NaN",
    "-1", "1e999", "1e-400", "9" * 40, "true", "{}", "[]", "[[1]]", "{a=1}", "--",
    "--config_file x", "$(rm)", "\x00",
    "\ufeff", "\ud7ff", "🐸", "%",
    "@", "é" * 3, "0x1f", "1979-05-27", "inf", " ", "\t", "`", "^", ";", "&&",
]
# fmt: on

edit = st.tuples(st.integers(0, 2000), st.integers(0, 30), st.sampled_from(ODD))
fuzz = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def refusal(act: Callable[[], Any]) -> list[Problem] | None:
    """The errors that `act` is refused with, None where it is done."""
    try:
        act()
    except ConfigError as fault:
        return errors(fault.problems)
    return None


def answer(text: str, name: str, format: str | None = None) -> None:
    """Everything that `validate` and `convert` do with a text; being refused is an answer."""
    assert refusal(lambda: _whole(text, name, format)) != []


def _whole(text: str, name: str, format: str | None) -> None:
    draft = formats.read_text(text, format, name)
    checked = check_file(settle(draft))
    assert all(problem.must for problem in checked.problems)
    json.dumps({key: fate.as_json() for key, fate in draft.keys.items()}, default=str)
    json.dumps([problem.as_json() for problem in checked.problems], default=str)
    for target in TARGETS if checked.ok else ():
        convert(checked.resolved, target)


@pytest.mark.parametrize("name", SAMPLES)
@fuzz
@given(edits=st.lists(edit, min_size=1, max_size=4))
def test_mutated_files_are_answered(name: str, edits: list[tuple[int, int, str]]) -> None:
    text = SAMPLES[name]
    for place, length, new in edits:
        place %= len(text) + 1
        text = text[:place] + new + text[place + length :]
    answer(text, name)


WORDS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.sampled_from(ODD))
VALUES = st.recursive(
    WORDS, lambda one: st.lists(one, max_size=3) | st.dictionaries(st.text(max_size=4), one, max_size=3)
)


@pytest.mark.parametrize(("name", "format"), [("a.json", "kohya-gui"), ("d.json", "civitai"), ("c.json", "dataset")])
@fuzz
@given(data=st.data())
def test_any_value_under_a_known_key_is_answered(name: str, format: str, data: st.DataObject) -> None:
    from launcher.json_schemas import SCHEMAS

    keys = st.sampled_from(sorted(SCHEMAS[format]()["properties"]))
    document = data.draw(st.dictionaries(keys, VALUES, max_size=6))
    answer(json.dumps(document), name, format)


@fuzz
@given(data=st.data())
def test_any_value_of_a_toml_is_answered(data: st.DataObject) -> None:
    import toml

    from schemas.config import table

    leaf = st.one_of(
        st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(), st.text("ab1., =-'\\\"\n", max_size=8)
    )
    values = st.one_of(leaf, st.lists(st.text("a=1", max_size=4), max_size=3), st.dictionaries(st.just("k"), leaf))
    document = data.draw(st.dictionaries(st.sampled_from(sorted(table())), values, max_size=6))
    answer(toml.dumps(document), "b.toml", "sd-scripts")


@fuzz
@given(data=st.binary(max_size=300))
def test_any_bytes_are_answered(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_bytes(data)
    assert refusal(lambda: resolve(str(path))) != []


BOMBS = {
    "deep lists": '{"LoRA_type": "Standard", "network_dim": ' + "[" * 100_000,
    "deep objects": '{"LoRA_type":' * 50_000,
    "a closed well": '{"epoch": ' + "[" * 900 + "]" * 900 + ', "network_dim": 4}',
    "a huge number": '{"LoRA_type": "Standard", "network_dim": ' + "9" * 500_000 + "}",
    "a huge exponent": '{"LoRA_type": "Standard", "network_dim": 1e999999999}',
    "many keys": "{"
    + ",".join(f'"k{number}": 1' for number in range(60_000))
    + ', "LoRA_type": "Standard", "epoch": 1}',
    "many equal keys": '{"LoRA_type": "Standard"' + ', "epoch": 1' * 80_000 + "}",
    "a long text": '{"LoRA_type": "Standard", "epoch": 1, "sample_prompts": "' + "a " * 400_000 + '"}',
    "long arguments": '{"LoRA_type": "Standard", "epoch": 1, "optimizer_args": "' + "a=1 " * 200_000 + '"}',
    "long parameters": '{"LoRA_type": "Standard", "epoch": 1, "additional_parameters": "'
    + "--seed=1 " * 100_000
    + '"}',
    "open quotes": '{"unetLR": 1, "minSnrGamma": 5, "x": "' + "\\" * 400_001 + '"}',
    "only braces": "{" * 500_000,
    "blank": "{" + " " * 900_000,
    "slashes": '{"unetLR": 1, "minSnrGamma": 5' + " //" * 200_000,
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_are_errors_or_read(tmp_path: Path, bomb: str) -> None:
    path = tmp_path / "bomb.json"
    path.write_text(BOMBS[bomb], encoding="utf-8")
    assert refusal(lambda: check_file(resolve(str(path)))) != []


TOML_BOMBS = {
    "one long line": "network_dim = " + "a" * 900_000,
    "many bad lines": "network_dim = 4\n" + "this is prose, not toml\n" * 30_000,
    "a long list": "network_dim = 4\nnetwork_args = [" + "'a=1'," * 150_000 + "]",
    "deep tables": "[" + ".".join(["a"] * 20_000) + "]\nnetwork_dim = 4",
    "many equal keys": "network_dim = 4\n" * 40_000,
    "open text": 'output_name = "' + "a\n" * 300_000,
    "many flags": "train_network.py " + "--network_dim 4 " * 40_000,
    "many continuations": "train_network.py \\\n" + "--network_args a=1 \\\n" * 40_000,
    "many variables": "".join(f"A{number}=$A{number - 1}$A{number - 1}\n" for number in range(40))
    + "train_network.py --seed $A39",
}


@pytest.mark.parametrize("bomb", TOML_BOMBS)
def test_long_texts_are_errors_or_read(tmp_path: Path, bomb: str) -> None:
    path = tmp_path / "bomb.toml"
    path.write_text(TOML_BOMBS[bomb], encoding="utf-8")
    assert refusal(lambda: check_file(resolve(str(path)))) != []


def test_equal_keys_are_told_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"LoRA_type": "Standard",\n"epoch": 1,\n"epoch": 2}')
    found = [problem for problem in resolve(str(path)).problems if problem.code == "duplicate-key"]
    assert [(problem.key, problem.line) for problem in found] == [("epoch", 3)]
