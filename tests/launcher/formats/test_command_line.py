from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launcher.formats.base import Draft
from launcher.formats.command_line import is_command_line, read, words, write
from schemas.config import read_value, table

START = "accelerate launch --num_cpu_threads_per_process=2 --multi_gpu train_network.py"


def values(draft: Draft) -> dict[str, Any]:
    return {name: setting.value for name, setting in draft.arguments.items()}


@pytest.mark.parametrize("joint", ["\\", "^", "`"])
def test_continued_lines(joint: str) -> None:
    draft = read(f'{START} {joint}\n  --network_dim 16 {joint}\n  --optimizer_args "a=1" b=2 {joint}\n  --xformers\n')
    assert values(draft) == {"network_dim": 16, "optimizer_args": ("a=1", "b=2"), "xformers": True}
    assert draft.problems == [problem for problem in draft.problems if problem.severity == "note"]


def test_launch_words_are_kept_apart() -> None:
    draft = read(f"{START} --network_dim 4 --mixed_precision bf16")
    assert draft.accelerate == {"num_cpu_threads_per_process": "2", "multi_gpu": True}
    assert values(draft)["mixed_precision"] == "bf16"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r'--train_data_dir="D:\my pictures\x"', r"D:\my pictures\x"),
        (r'--train_data_dir "D:\my pictures\\" --seed 1', "D:\\my pictures\\\\"),
        (r'--train_data_dir "D:\pictures\" --seed 1', "D:\\pictures\\"),
        ("--train_data_dir '/a b'", "/a b"),
        (r"--train_data_dir /a\ b", "/a b"),
    ],
)
def test_quotes_and_paths(text: str, value: str) -> None:
    assert values(read(f"{START} {text}"))["train_data_dir"] == value


@pytest.mark.parametrize(
    ("script", "value"),
    [
        (f'NAME="my lora"\n{START} --output_name "$NAME"', "my lora"),
        (f"set NAME=mine\n{START} --output_name %NAME%", "mine"),
        (f'$name = "mine"\n{START} --output_name=$name', "mine"),
        (f"{START} --output_name ${{NAME}}", "${NAME}"),
    ],
)
def test_variables(script: str, value: str) -> None:
    draft = read(script)
    assert values(draft)["output_name"] == value
    unresolved = [problem.got for problem in draft.problems if problem.code == "unresolved-variable"]
    assert unresolved == (["${NAME}"] if "$" in value else [])


def test_arguments_that_powershell_adds() -> None:
    adding = '$ext = [System.Collections.ArrayList]::new()\n[void]$ext.Add("--lowram")'
    script = f"{adding}\n{START} --seed 1 `\n --output_name x $ext"
    assert values(read(script)) == {"seed": 1, "output_name": "x", "lowram": True}


def test_of_several_commands_the_training_one() -> None:
    before = "#!/bin/bash\ncd sd-scripts && pip install -r requirements.txt"
    script = f"{before}\n# {START} --seed 9\n{START} --seed 1 > log.txt\n"
    assert values(read(script)) == {"seed": 1}


def test_two_training_commands_are_said() -> None:
    draft = read(f"{START} --seed 1\n{START} --seed 2\n")
    assert values(draft) == {"seed": 1}
    assert "several-commands" in [problem.code for problem in draft.problems]


def test_the_script_tells_family_and_kind() -> None:
    assert read("python sdxl_train_network.py --seed 1").family == "sdxl"
    assert read("python train_textual_inversion.py --seed 1").kind == "textual-inversion"


def test_short_options_as_argparse_takes_them() -> None:
    draft = read(f"{START} --train_batch 2 --max_train 3")
    assert values(draft) == {"train_batch_size": 2}
    assert [problem.code for problem in draft.problems if problem.severity != "note"] == ["unknown-key"]


def test_negative_numbers_are_values_and_stray_words_are_said() -> None:
    draft = read(f"{START} --multires_noise_iterations -1 --xformers true")
    assert draft.arguments["multires_noise_iterations"].value == "-1"
    assert [problem.got for problem in draft.problems if problem.code == "stray-word"] == ["true"]


def test_config_file_lies_under_the_command(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("[x]\nseed = 1\nnetwork_dim = 8\n")
    draft = read(f"{START} --config_file c --seed 2", file=str(tmp_path / "run.sh"))
    assert values(draft) == {"seed": 2, "network_dim": 8}
    missing = read(f"{START} --config_file nowhere --seed 2")
    assert [problem.code for problem in missing.problems if problem.severity == "error"] == ["no-config-file"]


def test_what_is_a_command_line() -> None:
    assert is_command_line(f"{START} --seed 1")
    assert is_command_line("--seed 1 --network_dim 4")
    assert not is_command_line("seed = 1\n# accelerate launch train_network.py\n")
    assert not is_command_line('{"a": "--seed 1 --network_dim 3"}')


def test_writing_and_reading_give_the_same() -> None:
    given = {
        "network_dim": 8,
        "optimizer_args": ("a=1", "b=(1, 2)"),
        "output_name": "a b",
        "xformers": True,
        "noise_offset": -0.1,
        "v2": False,
    }
    draft = read(write({**given, "huggingface_token": "secret"}))
    assert values(draft) == {name: value for name, value in given.items() if value is not False}


def test_each_option_knows_its_own_line() -> None:
    draft = read(f"# first\n{START} \\\n  --seed 1 \\\n # no\n  --learning_rte 2\n\n--network_dim 3")
    assert draft.lines == {"seed": 3, "learning_rte": 5, "network_dim": 7}


def test_variables_before_the_command_belong_to_it() -> None:
    assert values(read(f"CUDA_VISIBLE_DEVICES=0 {START} --seed 1")) == {"seed": 1}


def test_a_quoted_semicolon_ends_no_command() -> None:
    draft = read("accelerate launch train_network.py --caption_extension ';' --seed 3")
    assert {name: setting.value for name, setting in draft.arguments.items()} == {"caption_extension": ";", "seed": 3}


def test_a_warmup_of_the_whole_run_is_written_as_sd_scripts_reads_it() -> None:
    written = words({"lr_warmup_steps": 1.0, "lr_decay_steps": 0.5})
    assert written == ["--lr_decay_steps", "0.5", "--lr_warmup_steps", "100%"]
    found = read(f"accelerate launch train_network.py {' '.join(written)}")
    assert read_value(table()["lr_warmup_steps"], found.arguments["lr_warmup_steps"].value)[0] == 1.0
