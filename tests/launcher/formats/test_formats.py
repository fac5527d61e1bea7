from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher import formats
from launcher.formats import FORMATS, decode, read, recognise
from schemas.config import from_flat
from schemas.problems import ConfigError

SAMPLES: list[tuple[str, str]] = [
    ('{"LoRA_type": "Standard", "max_resolution": "512,512"}', "kohya-gui"),
    ('{"kohyakit_snapshot": {}, "LoRA_type": "Standard"}', "snapshot"),
    ('{"unetLR": 1, "minSnrGamma": 5, --> note\n}', "civitai"),
    ('"unetLR": 1,\n"textEncoderLR": 5', "civitai"),
    ('{"ecosystem": "sdxl", "lr": 0.1, "engine": "ai-toolkit"}', "civitai"),
    ('{"base_model": "m", "img_folder": "i", "net_dim": 8}', "easy-training"),
    ('{"datasets": []}', "dataset"),
    ("[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'x'\n", "dataset"),
    ("[[subsets]]\nimage_dir = 'x'\n[train_mode]\ntrain_mode = 'lora'\n", "easy-training"),
    ("[network_args.args]\nnetwork_dim = 8\n", "easy-training"),
    ('model_train_type = "sd-lora"\n', "lora-scripts"),
    ("[optimizer_arguments]\nlearning_rate = 1\n[training_arguments]\nseed = 1\n", "kohya-colab"),
    ("[folders]\noutput_dir = ''\n[basic]\nepoch = 1\n[advanced]\nseed = 1\n", "kohya-gui"),
    ("network_dim = 8\n", "sd-scripts"),
    ("[any]\nnetwork_dim = 8\n", "sd-scripts"),
    ("accelerate launch train_network.py --seed 1", "sd-scripts"),
]


@pytest.mark.parametrize(("text", "name"), SAMPLES, ids=range(len(SAMPLES)))
def test_recognised_by_content(text: str, name: str) -> None:
    assert recognise(text) == name
    assert name in FORMATS


OTHERS = [
    ('{"__version": 6, "training_method": "LORA"}', "other-tool"),
    ("job: extension\nconfig:\n  process:\n    - type: x\n", "other-tool"),
    ("dataset = 'd'\n[model]\ntype = 'sdxl'\n[optimizer]\ntype = 'adamw'\n", "other-tool"),
    ("[[datasets]]\nimage_directory = 'x'\ncache_directory = 'y'\n", "other-tool"),
    ("[prompt]\nwidth = 512\n", "unknown-format"),
    ('["a prompt"]', "unknown-format"),
    ('{"a": 1}', "unknown-format"),
    ("dear reader\n", "unknown-format"),
]


@pytest.mark.parametrize(("text", "code"), OTHERS, ids=range(len(OTHERS)))
def test_other_files_are_named(text: str, code: str) -> None:
    with pytest.raises(ConfigError) as fault:
        recognise(text)
    assert fault.value.problems[-1].code == code


def code_of(path: Path, **more: str) -> str:
    with pytest.raises(ConfigError) as fault:
        read(path, **more)  # type: ignore[arg-type]
    assert all(problem.file for problem in fault.value.problems)
    return fault.value.problems[-1].code


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "empty.toml").write_text(" \n")
    (tmp_path / "binary.toml").write_bytes(b"seed = 1\0\xff\0")
    (tmp_path / "bad.toml").write_text("seed = {x}\nseed\n")
    assert code_of(tmp_path / "none.toml") == "no-file"
    assert code_of(tmp_path) == "a-folder"
    assert code_of(tmp_path / "empty.toml") == "empty-file"
    assert code_of(tmp_path / "binary.toml") == "unknown-format"
    assert code_of(tmp_path / "bad.toml") == "not-toml"


def test_large_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats.textfile, "CONFIG", 10)
    (tmp_path / "a.toml").write_text("seed = 1\n" * 3)
    assert code_of(tmp_path / "a.toml") == "file-too-large"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252"])
def test_encodings_and_line_ends(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes('output_name = "Ä"\r\nseed = 1\r\n'.encode(encoding))
    draft = read(path)
    assert {name: setting.value for name, setting in draft.arguments.items()} == {"output_name": "Ä", "seed": 1}
    assert [problem.code for problem in draft.problems] == ([] if encoding == "utf-8" else ["text-encoding"])


def test_decode_says_nothing_of_plain_text() -> None:
    assert decode(b"a\r\nb\rc") == ("a\nb\nc", None)


def test_format_and_overrides_are_passed_on(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(json.dumps({"unetLR": 0.1}))
    draft = read(path, {"networkDim": 8}, "civitai")
    assert (draft.format, draft.arguments["network_dim"].value) == ("civitai", 8)
    assert code_of(path, format="nothing") == "unknown-format"


def test_the_guis_defaults_are_read_as_a_form(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("[folders]\noutput_dir = 'o'\n[basic]\nmax_resolution = '640,640'\n[advanced]\nseed = 7\n")
    draft = read(path)
    assert (draft.format, draft.arguments["resolution"].value, draft.lines["seed"]) == ("kohya-gui", "640,640", 6)
    assert "gui-defaults" in [problem.code for problem in draft.problems]


@pytest.mark.parametrize("text", ["x = " + "[" * 50_000, '{"unetLR":1,"minSnrGamma":' + '{"a":' * 50_000])
def test_deep_nesting_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.toml").write_text(text)
    assert code_of(tmp_path / "a.toml") in ("not-toml", "not-json")


@pytest.mark.parametrize(
    ("text", "codes"),
    [("seed = N", {"bad-value", "not-toml"}), ('{"unetLR": N, "minSnrGamma": 5}', {"bad-value", "not-json"})],
)
def test_absurd_numbers_are_refused_not_stumbled_over(tmp_path: Path, text: str, codes: set[str]) -> None:
    found = set()
    for digits in (400, 6000):
        (tmp_path / "a.txt").write_text(text.replace("N", "9" * digits))
        with pytest.raises(ConfigError) as fault:
            from_flat({name: setting.value for name, setting in read(tmp_path / "a.txt").arguments.items()})
        found.add(fault.value.problems[-1].code)
    assert found == codes


@pytest.mark.parametrize(("text", "line"), [('{"a": 1,', 1), ("hello world\n", 1), ('{\n "a": 1\n "b": 2\n}', 2)])
def test_broken_json_of_no_known_kind_is_answered_with_its_line(text: str, line: int, tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        read(file)
    assert [(problem.code, problem.line) for problem in caught.value.problems] == [("not-json", line)]
