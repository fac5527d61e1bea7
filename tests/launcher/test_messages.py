"""What a person reads of bad inputs, word for word: tests/golden/messages.json.

After a change that is meant: `RENEW=1 pytest tests/launcher/test_messages.py`, then read the difference.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent.parent / "golden" / "messages.json"
RENEW = "RENEW"
GUI = {"LoRA_type": "Standard", "max_resolution": "512,512", "network_dim": 8, "epoch": 1, "max_train_steps": 100}
TOML = 'pretrained_model_name_or_path = "m.safetensors"\noutput_dir = "out"\ntrain_data_dir = "data"\n'
FILES: dict[str, tuple[str, str]] = {  # name of the case: file and content
    "toml: values": ("a.toml", TOML + 'network_dim = "eight"\nlearning_rate = "1,5"\nmin_snr_gamma = -1\n'
                     'optimizer_type = "AdamX"\nlr_scheduler = "cosin"\nresolution = "51x"\n'),
    "toml: unknown keys": ("a.toml", TOML + "network_dimm = 4\nxyzzy = 1\n[section]\nlearning_rat = 1e-4\n"),
    "toml: lists": ("a.toml", TOML + 'network_args = [\n  "conv_dim=4",\n  "rank_dropout=2",\n  "nonsense=1",\n]\n'
                    'optimizer_args = ["weight_decay=viel"]\n'),
    "toml: not TOML": ("a.toml", "network_dim = 4\nfoo = [1,\nbar = 2\n"),
    "toml: mended": ("a.toml", 'network_dim = 4,\npretrained_model_name_or_path = "C:\\models\\x"\nxformers = True\n'
                     'network_module = "networks.lora"\n'),
    "toml: between options": ("a.toml", TOML + "cache_latents = true\ncolor_aug = true\nflip_aug = true\n"
                              "max_train_steps = 10\nmax_train_epochs = 2\nv_parameterization = true\n"
                              "prior_loss_weight = 0\nfp8_base = true\nmixed_precision = \"no\"\n"),
    "gui: values": ("a.json", json.dumps(GUI | {"network_dim": "acht", "unet_lr": -3, "max_resolution": "51x",
                                                "network_alpha": None, "optimizer": "Adamw", "xyzzy": 1}, indent=2)),
    "gui: on one line": ("a.json", json.dumps(GUI | {"network_dim": "acht", "caption_dropout_rate": 7, "seed": "x"})),
    "gui: not JSON": ("a.json", '{"LoRA_type": "Standard",\n "network_dim": 4\n "max_resolution": "512,512"}'),
    "gui: cut off": ("a.json", '{"LoRA_type": "Standard",\n "network_dim": 4,\n "max_resolution": "512,5'),
    "gui: a secret": ("a.json", '{"LoRA_type": "Standard", "wandb_api_key": "geheim wort", "network_dim": "acht"}'),
    "civitai: values": ("a.txt", '{\n"unetLR": "schnell",\n"textEncoderLR": 5e-5,\n"minSnrGamma": 5,\n'
                        '"optimizerType": "AdamX",\n"networkDim": -4,\n"resolution": 500\n}'),
    "civitai: not JSON": ("a.txt", '{\n"unetLR": 1,5,\n"textEncoderLR": 5e-5,\n"minSnrGamma": 5}'),
    "script: values": ("a.sh", "accelerate launch train_network.py --network_dim eight \\\n"
                       "  --optimizer_type=AdamX --wandb_api_key \\\n  geheim1 --unet_lr x --no_such_flag 1\n"),
    "dataset: values": ("a.toml", "[general]\nresolution = 512\nflip_aug = 3\n[[datasets]]\nbatch_size = \"x\"\n"
                        "[[datasets.subsets]]\nimage_dir = \"nowhere\"\nnum_repeats = -1\nnum_repeat = 3\n"),
    "other tool": ("a.json", '{"training_method": "LORA", "base_model_name": "x", "lora_rank": 4}'),
    "nothing": ("a.json", "{}"),
    "no config": ("a.txt", "a text about something else\n"),
    "terminal tricks": ("a.toml", 'network_dim = "\\u001b[31mred"\n"\\u001b]0;x\\u0007" = 1\n"a\\nerror: fake" = 2\n'),
}  # fmt: skip
COMMANDS: dict[str, tuple[str, ...]] = {
    "command: no file": ("validate", "nowhere.json"),
    "command: near a preset": ("plan", "sd15-caracter"),
    "command: --set without a value": ("plan", "toy", "--set", "network_dim"),
    "command: --set of nothing known": ("plan", "toy", "--set", "network_dimm=4"),
    "command: --set of a wrong value": ("validate", "toy", "--set", "network_dim=eight"),
    "command: --from": ("validate", "toy", "--from", "kohia-gui"),
    "command: misspelt": ("valdate", "toy"),
    "command: wrong option": ("plan", "toy", "--vramm", "8"),
    "command: explain": ("explain", "network_dimm"),
    "command: schema": ("schema", "kohya"),
    "command: folder": ("validate", "."),
    "command: resume": ("resume", "nowhere.run"),
    "command: inspect": ("inspect", "nowhere.safetensors"),
    "command: convert over a file": ("convert", "toy", "--to", "sd-scripts", "-o", "there.toml"),
    "dataset: no folder": ("dataset", "check", "nowhere"),
    "dataset: prepare": ("dataset", "prepare", "nowhere", "--name", "x y"),
}


@pytest.fixture
def says(kohyakit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """The exit code and stderr of a command in an empty folder, free of the names of this machine."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*words: str) -> list[str]:
        result = kohyakit(*words)
        presets = str(Path(__file__).parents[2] / "presets")
        text = result.stderr.replace(str(tmp_path), "DIR").replace(os.path.relpath(presets), "PRESETS")
        return [f"exit {result.exit_code}", *text.replace(presets, "PRESETS").splitlines()]

    return run


def cases() -> list[str]:
    return [*FILES, *COMMANDS]


def outcome(case: str, says: Callable[..., list[str]]) -> list[str]:
    if case in COMMANDS:
        Path("there.toml").write_text("x = 1\n", encoding="utf-8")
        return says(*COMMANDS[case])
    name, content = FILES[case]
    Path(name).write_text(content, encoding="utf-8")
    return says("validate", name)


@pytest.mark.parametrize("case", cases())
def test_the_words_are_those_of_the_golden_file(case: str, says) -> None:
    lines = outcome(case, says)
    golden = json.loads(GOLDEN.read_text(encoding="utf-8")) if GOLDEN.is_file() else {}
    if os.environ.get(RENEW):
        golden = {name: found for name, found in {**golden, case: lines}.items() if name in cases()}
        text = json.dumps({name: golden[name] for name in cases() if name in golden}, indent=1, ensure_ascii=False)
        GOLDEN.write_text(text + "\n", encoding="utf-8")
        return
    assert lines == golden.get(case), f"if this is meant: {RENEW}=1 pytest tests/launcher/test_messages.py"


@pytest.mark.parametrize("command", ["validate", "plan"])
def test_a_file_is_named_once_where_all_goes_to_one_screen(command: str, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(FILES["toml: values"][1], encoding="utf-8")
    words = [sys.executable, "-m", "launcher", command, "a.toml"]
    place = {"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": os.environ["PATH"]}
    run = functools.partial(subprocess.run, words, cwd=tmp_path, text=True, env=place, check=False)
    together = run(stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout
    assert together.count("a.toml") == 1
    first, *rest = together.splitlines()
    assert "a.toml" in first
    assert rest[0].startswith("  error[")
    assert " errors, 2 warnings" in rest[-1] if command == "validate" else rest[-1].startswith("not ok: ")
    apart = run(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert apart.stderr.startswith("a.toml\n  error[")


def test_no_case_shows_a_traceback_a_secret_or_an_escape() -> None:
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert list(golden) == cases()
    for case, lines in golden.items():
        text = "\n".join(lines)
        assert not any(word in text for word in ("Traceback", "geheim", "\x1b", "\x07")), case
        assert lines[0] in ("exit 0", "exit 1", "exit 2"), case
