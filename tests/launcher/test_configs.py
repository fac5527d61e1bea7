from __future__ import annotations

import json
from pathlib import Path

from launcher.about.explain import lookup
from launcher.check.resolve import presets
from schemas.config import table


def validated(kohyakit, *words) -> list[dict]:
    return json.loads(kohyakit("validate", "--json", *words).stdout)["files"]


def test_every_key_of_the_file_has_a_fate(kohyakit, preset) -> None:
    file = preset(nonsense_key=1)
    (found,) = validated(kohyakit, file)
    assert set(found) == {"file", "format", "family", "kind", "ok", "problems", "keys"}
    assert set(found["keys"]) == set(json.loads(file.read_text()))
    assert set(found["keys"]["network_dim"]) == {"status", "argument", "value", "why"}
    assert found["keys"]["nonsense_key"]["status"] == "unknown"


def test_problems_have_their_line(kohyakit, preset, tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text('{\n "LoRA_type": "Standard",\n "network_dim": "many",\n "unet_lr": 1e-4\n}')
    (found,) = validated(kohyakit, file)
    assert [problem["line"] for problem in found["problems"] if problem["key"] == "network_dim"] == [3]
    assert set(found["problems"][0]) == {"severity", "code", "key", "line", "got", "must", "fix"}


def test_many_files_are_told_apart(kohyakit, preset, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{")
    found = kohyakit("validate", preset(), tmp_path / "bad.json", "toy", "--json")
    assert [entry["ok"] for entry in json.loads(found.stdout)["files"]] == [True, False, True]
    assert found.exit_code == 1


def test_set_words_count_in_validation(kohyakit, preset) -> None:
    (found,) = validated(kohyakit, preset(), "--set", "network_dim=many")
    assert [problem["key"] for problem in found["problems"] if problem["severity"] == "error"] == ["--set network_dim"]


def test_a_replaced_key_says_so(kohyakit, preset) -> None:
    (found,) = validated(kohyakit, preset(), "--set", "network_dim=8")
    assert found["keys"]["network_dim"]["why"] == "replaced by --set network_dim"


def test_for_people(kohyakit, preset) -> None:
    shown = kohyakit("validate", preset())
    assert "kohya-gui, sd15, lora: ok" in shown.stdout
    assert "network_dim" in kohyakit("validate", preset(), "--keys").stdout


def test_presets_are_listed_and_shown(kohyakit) -> None:
    listed = json.loads(kohyakit("presets", "--json").stdout)["presets"]
    assert [row["name"] for row in listed] == [path.stem for path in presets()]
    assert json.loads(kohyakit("presets", "toy").stdout)["LoRA_type"] == "Standard"
    assert kohyakit("presets", "nothing").exit_code == 1


def test_every_option_can_be_explained(kohyakit) -> None:
    assert all(lookup(name) for name in table())
    shown = kohyakit("explain", "clip_skip").stdout
    assert "1 (Kohya GUI)" in shown
    assert "clipSkip (civitai)" in shown


def test_other_names_lead_to_the_argument(kohyakit) -> None:
    assert json.loads(kohyakit("explain", "unetLR", "--json").stdout)["argument"] == "unet_lr"
    assert json.loads(kohyakit("explain", "max_resolution", "--json").stdout)["argument"] == "resolution"
    found = kohyakit("explain", "clipskip")
    assert (found.exit_code, "clip_skip" in found.stderr) == (2, True)
