"""Hostile files at the commands: nothing hangs, nothing runs into a traceback, nothing forges a line."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from schemas.config import table
from schemas.files.lora_names import split
from tests.launcher.conftest import MODULE, safetensors

EVIL = "x\x1b]0;X\x07\nerror: fake\x9b31m\u202ey"
OBEYED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202a-\u202e]")
DEEP = "[" * 3000 + "]" * 3000
TEXTS = [name for name, option in table().items() if option.kind is str and not option.choices and not option.secret]
OLD = ["optimizer_type"]  # the form has its own name for it


def harmless(result: Any) -> bool:
    """Neither traceback nor anything that a terminal obeys, nor a line of the file's own."""
    text = result.stdout + result.stderr
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert OBEYED.search(text) is None
    assert "\nerror: fake" not in f"\n{text}"
    return True


@pytest.mark.parametrize("name", [name for name in TEXTS if name not in OLD])
def test_no_value_reaches_the_terminal_as_it_is(kohyakit: Any, preset: Any, name: str) -> None:
    file = preset(**{name: EVIL})
    for command in ("validate", "plan"):
        assert harmless(kohyakit(command, file))
    document = kohyakit("plan", file, "--json")
    assert harmless(document)
    json.loads(document.stdout)


def test_no_key_does(kohyakit: Any, preset: Any, tmp_path: Path) -> None:
    assert harmless(kohyakit("validate", preset(**{EVIL: 1, "network_dims": EVIL}), "--keys"))
    toml = tmp_path / "a.toml"
    toml.write_text('network_dim = 4\n"\\u001b]0;X\\u0007" = 1\n"a\\nerror: fake" = 2\n')
    assert harmless(kohyakit("validate", toml, "--keys"))


WORDS = [
    ["plan", "x", f"--{EVIL}"], [EVIL], ["plan", EVIL], ["explain", EVIL], ["report", EVIL], ["resume", EVIL],
    ["inspect", EVIL], ["plan", "toy", "--set", EVIL], ["plan", "toy", "--vram", EVIL],
    ["convert", "toy", "--to", EVIL], ["dataset", "check", EVIL], ["dataset", EVIL],
]  # fmt: skip


@pytest.mark.parametrize("words", WORDS)
def test_no_argument_does(kohyakit: Any, words: list[str]) -> None:
    result = kohyakit(*words)
    assert harmless(result)
    assert result.exit_code in (1, 2)


def test_a_suggested_command_holds_no_second_one(kohyakit: Any, preset: Any) -> None:
    said = kohyakit("plan", preset(network_module="x; touch here")).stderr
    assert "network_module='x; touch here'" in said


LONG = ["x" * 5000, "x/" * 3000]


@pytest.mark.parametrize("path", LONG)
@pytest.mark.parametrize(
    "words",
    [["plan"], ["validate"], ["inspect"], ["report"], ["resume"], ["diff", "toy"], ["dataset", "check"],
     ["convert", "toy", "--to", "sd-scripts", "-o"], ["dataset", "prepare", "--name", "a"],
     ["launch", "toy", "--accelerate-config"]],
)  # fmt: skip
def test_a_path_of_thousands_of_letters_is_an_error(kohyakit: Any, words: list[str], path: str) -> None:
    result = kohyakit(*words, path)
    assert harmless(result)
    assert result.exit_code in (1, 2)


@pytest.mark.parametrize("name", ["output_dir", "train_data_dir", "pretrained_model_name_or_path", "logging_dir"])
def test_neither_is_one_in_a_file_or_a_set(kohyakit: Any, preset: Any, name: str) -> None:
    for result in (
        kohyakit("plan", preset(**{name: LONG[0]})),
        kohyakit("plan", preset(), "--set", f"{name}={LONG[1]}"),
    ):
        assert harmless(result)
        assert result.exit_code == 1


def test_names_are_measured_before_anything_is_written(kohyakit: Any, preset: Any, tmp_path: Path) -> None:
    result = kohyakit("launch", preset(output_name="n" * 232))
    assert result.exit_code == 1
    assert "must be at most" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["pipe", "zero"])
@pytest.mark.parametrize(
    ("key", "ending"),
    [("pretrained_model_name_or_path", ".safetensors"), ("pretrained_model_name_or_path", ".ckpt"),
     ("vae", ".safetensors"), ("network_weights", ".safetensors"), ("sample_prompts", ".txt"),
     ("dataset_config", ".toml"), ("dataset_config", ".json"),
     ("log_tracker_config", ".toml"), ("reg_data_dir", ""), ("train_data_dir", "")],
)  # fmt: skip
def test_pipes_and_devices_are_refused_by_plan(
    kohyakit: Any, preset: Any, tmp_path: Path, name: str, key: str, ending: str
) -> None:
    path = tmp_path / f"{name}{ending}"
    os.mkfifo(path) if name == "pipe" else path.symlink_to("/dev/zero")
    result = kohyakit("plan", preset(), "--set", f"{key}={path}")
    assert harmless(result)
    assert result.exit_code == 1


@pytest.mark.parametrize("command", ["validate", "plan", "inspect", "resume", "report", "convert --to kohya-gui"])
@pytest.mark.parametrize("ending", ["json", "toml", "safetensors", "txt", "sh"])
def test_a_config_that_is_a_pipe_is_refused(kohyakit: Any, tmp_path: Path, command: str, ending: str) -> None:
    os.mkfifo(tmp_path / f"a.{ending}")
    result = kohyakit(*command.split(), tmp_path / f"a.{ending}")
    assert harmless(result)
    assert result.exit_code == 1


@pytest.mark.parametrize(
    "text",
    [f'{{"optimizer_args": {DEEP}, "LoRA_type": "Standard", "max_resolution": "64,64"}}',
     '{"LoRA_type": "Standard", "max_resolution": "64,64", "seed": ' + "9" * 5000 + "}",
     f'{{"unetLR": 1, "minSnrGamma": 5, "x": {DEEP}}}', f'{{"datasets": {DEEP}}}',
     f"network_dim = 4\nx = {DEEP}\n", "network_dim = 4\n" + ".".join("a" * 3000) + " = 1\n"],
)  # fmt: skip
def test_nesting_and_endless_numbers_are_errors(kohyakit: Any, tmp_path: Path, text: str) -> None:
    file = tmp_path / ("a.json" if text.startswith("{") else "a.toml")
    file.write_text(text)
    for command in ("validate", "plan"):
        result = kohyakit(command, file)
        assert harmless(result)
        assert result.exit_code == 1


HEADERS = [DEEP, '{"a":' * 3000 + "1" + "}" * 3000, '{"\\ud800": "\\udfff"}', "\ud800", EVIL, "9" * 5000]


@pytest.mark.parametrize(
    "key",
    ["ss_network_args", "ss_tag_frequency", "ss_datasets", "kohyakit_config", "ot_config", "lora_adapter_metadata",
     "ss_dataset_dirs", "modelspec.title", "ss_output_name"],
)  # fmt: skip
@pytest.mark.parametrize("text", HEADERS)
def test_a_lora_header_may_say_anything(kohyakit: Any, tmp_path: Path, key: str, text: str) -> None:
    shapes = {f"{MODULE}.lora_down.weight": (4, 768), f"{MODULE}.lora_up.weight": (320, 4)}
    file = safetensors(tmp_path / "a.safetensors", shapes, metadata={key: text})
    assert harmless(kohyakit("inspect", file))
    document = kohyakit("inspect", file, "--json")
    assert harmless(document)
    json.loads(document.stdout)
    assert harmless(kohyakit("inspect", file, "--to", "kohya-gui", "-o", tmp_path / "b.json"))


def test_halves_of_pairs_can_be_written(kohyakit: Any, preset: Any, tmp_path: Path) -> None:
    file = preset(training_comment="\ud800")
    assert harmless(kohyakit("plan", file))
    assert harmless(kohyakit("convert", file, "--to", "sd-scripts", "-o", tmp_path / "a.toml"))
    assert (tmp_path / "a.toml").is_file()


@pytest.mark.parametrize("key", ["output_dir", "logging_dir"])
@pytest.mark.parametrize("place", ["/etc/x", "~/.ssh", "/usr/../etc", "~/.local/share/x"])
def test_a_file_may_not_choose_a_system_folder(kohyakit: Any, preset: Any, key: str, place: str) -> None:
    file = preset(**{key: os.path.expanduser(place)})
    refused = kohyakit("plan", file, "--json")
    codes = {(one["code"], one["key"]) for one in json.loads(refused.stdout)["problems"]}
    assert ("needs-consent", key) in codes
    for words in (["--trust", key], ["--set", f"{key}={os.path.expanduser(place)}"]):
        given = json.loads(kohyakit("plan", file, "--json", *words).stdout)
        assert "needs-consent" not in {one["code"] for one in given["problems"]}


def test_caches_in_a_system_folder_need_a_word_too(kohyakit: Any, preset: Any) -> None:
    said = kohyakit("plan", preset(train_data_dir="/etc", cache_latents=True, cache_latents_to_disk=True)).stderr
    assert "--trust train_data_dir" in said


def test_what_is_wrong_with_a_path_is_said_once(kohyakit: Any, preset: Any) -> None:
    said = json.loads(kohyakit("plan", preset(train_data_dir='"/x/q"'), "--json").stdout)["problems"]
    about = [one["code"] for one in said if one["severity"] == "error"]
    assert about == ["bad-value"]


def test_a_header_of_many_tensors_takes_seconds(kohyakit: Any, tmp_path: Path) -> None:
    """Work per tensor must not grow with their number: ten times the tensors, about ten times the time."""
    import time

    def seconds(modules: int) -> float:
        shapes = {f"lora_unet_down_blocks_{n}_attn1_to_q{ending}": (1,) * size for n in range(modules)
                  for ending, size in ((".lora_down.weight", 2), (".lora_up.weight", 2), (".alpha", 0))}  # fmt: skip
        file = safetensors_of_ones(tmp_path / f"{modules}.safetensors", shapes)
        began = time.process_time()
        assert kohyakit("inspect", file, "--json").exit_code == 0
        return time.process_time() - began

    seconds(10)  # imports
    assert seconds(10_000) < 30 * max(seconds(1_000), 0.02)


def safetensors_of_ones(path: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    import struct

    header = {name: {"dtype": "F16", "shape": list(shape), "data_offsets": [2 * n, 2 * n + 2]}
              for n, (name, shape) in enumerate(shapes.items())}  # fmt: skip
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + struct.pack("<e", 1.0) * len(shapes))
    return path


PROMPTS: list[tuple[str, str]] = [
    ("toml", "[prompt]\nwidth = nan\n[[prompt.subset]]\nprompt = 'x'\n"),
    ("toml", "[prompt]\nheight = inf\nseed = -inf\nscale = nan\n[[prompt.subset]]\nprompt = 'x'\n"),
    ("toml", "[prompt]\nsubset = [1, 2]\n"),
    ("json", '[{"prompt": "x", "width": 1e300}]'),
    ("json", '[{"prompt": "x", "seed": NaN}]'),
    ("json", DEEP),
    ("toml", f"prompt = {DEEP}"),
]


@pytest.mark.parametrize(("ending", "text"), PROMPTS)
def test_numbers_of_prompts_are_checked(
    kohyakit: Callable[..., Any], preset: Any, tmp_path: Path, ending: str, text: str
) -> None:
    (tmp_path / f"p.{ending}").write_text(text)
    result = kohyakit("plan", preset(), "--set", f"sample_prompts={tmp_path / f'p.{ending}'}")
    assert harmless(result)
    assert result.exit_code == 1
    assert "sample_prompts" in result.stderr or "p." in result.stderr


@pytest.mark.parametrize("command", ["resume", "report", "inspect", "validate", "plan"])
def test_a_link_in_a_circle_is_no_file(kohyakit: Any, tmp_path: Path, command: str) -> None:
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    found = kohyakit(command, str(tmp_path / "circle"))
    assert found.exit_code == 1
    assert harmless(found)


@pytest.mark.parametrize("name", ["console_log_file", "output_dir", "train_data_dir", "network_weights"])
def test_an_option_that_names_a_circle(kohyakit: Any, preset: Any, tmp_path: Path, name: str) -> None:
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    found = kohyakit("plan", str(preset()), "--set", f"{name}={tmp_path}/circle")
    assert found.exit_code == 1
    assert harmless(found)


@pytest.mark.parametrize("number", ["1e400", "-1e400", "inf", "nan", "1e308"])
@pytest.mark.parametrize("command", ["validate", "plan", "convert"])
def test_no_number_is_too_large_to_be_refused(kohyakit: Any, tmp_path: Path, command: str, number: str) -> None:
    names = [name for name, option in table().items() if option.kind in (int, float)]
    file = tmp_path / "c.toml"
    file.write_text("".join(f"{name} = {number.replace('1e400', 'inf')}\n" for name in names))
    found = kohyakit(command, str(file), *(["--to", "args"] if command == "convert" else []))
    assert found.exit_code == 1
    assert harmless(found)


def test_digits_without_end_in_a_lora_become_a_form(kohyakit: Any, tmp_path: Path) -> None:
    given = {"conv_dim": "9" * 5000, "conv_alpha": "\u00b2", "block_size": "9" * 5000}
    facts = {"ss_network_module": "networks.lora", "ss_network_args": json.dumps(given), "ss_steps": "\u00b2"}
    lora = safetensors(tmp_path / "a.safetensors", {f"{MODULE}.lora_down.weight": (4, 4)}, metadata=facts)
    for words in (["convert", str(lora), "--to", "kohya-gui"], ["inspect", str(lora)], ["validate", str(lora)]):
        assert harmless(kohyakit(*words))


def test_each_name_of_a_large_lora_is_taken_apart_once(kohyakit: Any, tmp_path: Path) -> None:
    names = [f"lora_unet_far_{number}.{tail}" for number in range(200) for tail in ("lora_down.weight", "alpha")]
    lora = safetensors(tmp_path / "large.safetensors", {name: () if "alpha" in name else (1, 1) for name in names})
    split.cache_clear()
    assert kohyakit("inspect", str(lora)).exit_code == 0
    assert split.cache_info().misses <= len(names)
    assert split.cache_info().hits >= len(names)  # several looks at the same names
