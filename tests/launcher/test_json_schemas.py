from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from launcher.check.preflight import check_file
from launcher.check.resolve import presets, resolve
from launcher.json_schemas import FOLDER, PUBLISHED, SCHEMAS, text
from schemas.config import table

GOOD = {
    "dataset": {"general": {"resolution": [64, 64]}, "datasets": [{"subsets": [{"image_dir": "a", "num_repeats": 2}]}]},
    "civitai": {"unetLR": 5e-4, "networkDim": 32, "shuffleCaption": True, "lrScheduler": "cosine"},
    "sd-scripts": {"network_dim": 4, "text_encoder_lr": [1e-4]},
}
BAD = {
    "dataset": {"datasets": [{"subsets": [{"num_repeats": "two"}]}]},
    "civitai": {"networkDim": "big"},
    "sd-scripts": {"netwrk_dim": 4},
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_schema_is_one(name) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMAS[name]())


@pytest.mark.parametrize("name", GOOD)
def test_it_tells_good_from_bad(name) -> None:
    validator = jsonschema.Draft202012Validator(SCHEMAS[name]())
    assert list(validator.iter_errors(GOOD[name])) == []
    assert list(validator.iter_errors(BAD[name])) != []


@pytest.mark.parametrize("path", [path for path in presets() if path.suffix == ".json"], ids=lambda path: path.stem)
def test_shipped_presets_fit_the_forms_schema(path: Path) -> None:
    jsonschema.validate(json.loads(path.read_text()), SCHEMAS["kohya-gui"]())


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_schema_is_fresh(name) -> None:
    assert (FOLDER / f"{name}.schema.json").read_text(encoding="utf-8") == text(name)


@pytest.mark.parametrize("name", ["kohya-gui", "sd-scripts", "civitai"])
def test_every_key_has_a_title_and_a_meaning(name) -> None:
    shapes = {key: shape for key, shape in SCHEMAS[name]()["properties"].items() if key not in ("$schema", "params")}
    assert {key for key, shape in shapes.items() if shape.get("title") != key} == set()
    assert {key for key, shape in shapes.items() if not shape.get("description")} <= {"engine", "loraType"}


def said(tmp_path: Path, name: str, content: str) -> list[tuple[str | None, int | None]]:
    (tmp_path / name).write_text(content, encoding="utf-8")
    found = check_file(resolve(str(tmp_path / name))).problems
    return [(problem.key, problem.line) for problem in found if problem.code == "bad-value"]


def test_validate_runs_the_schema(tmp_path: Path) -> None:
    data = "[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'a'\nnum_repeats = 'two'\n"
    assert said(tmp_path, "d.toml", data) == [("datasets.0.subsets.0.num_repeats", 4)]
    data = (
        '[[datasets]]\nresolution = [512, 0]\n[[datasets.subsets]]\nimage_dir = "\\"d/2_frog\\""\nnum_repeats = nan\n'
    )
    faults = [("num_repeats", 5), ("image_dir", 4)]
    wanted = [(f"datasets.0.subsets.0.{name}", line) for name, line in faults]
    assert sorted(said(tmp_path, "e.toml", data)) == sorted([*wanted, ("datasets.0.resolution", 2)])
    assert said(tmp_path, "t.toml", "seed = 'x'\nnetwork_dim = '4'\nepoch = 2\n") == [("seed", 1)]
    assert said(tmp_path, "g.json", '{"LoRA_type": "Standard",\n"epoch": "x"}') == [("epoch", 2)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("g.json", '{"$schema": "x", "LoRA_type": "Standard", "epoch": 1}'),
        ("t.toml", '"$schema" = "x"\nseed = 1\nnetwork_dim = 4\n'),
        ("c.json", '{"$schema": "x", "unetLR": 0.1, "minSnrGamma": 5}'),
        ("d.json", '{"$schema": "x", "datasets": [{"subsets": [{"image_dir": "a"}]}]}'),
    ],
)
def test_a_file_may_name_its_schema(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    found = resolve(str(tmp_path / name))
    assert [problem for problem in found.problems if problem.key == "$schema"] == []
    assert found.draft.keys["$schema"].status in ("gui-only", "no-effect")


def test_the_command_prints_it(kohyakit) -> None:
    assert json.loads(kohyakit("schema", "dataset").stdout)["title"] == "sd-scripts dataset_config"
    assert kohyakit("schema", "datset").exit_code == 2


@pytest.mark.parametrize(
    "name", ["stop_text_encoder_training", "save_peft", "skip_image_check", "sdxl_text_projection"]
)
def test_options_of_our_own_may_stand_in_a_toml(name: str, tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    text = f'network_module = "networks.lora"\n{name} = {json.dumps(table()[name].default)}\n'
    file.write_text(text, encoding="utf-8")
    assert [one.code for one in check_file(resolve(str(file))).problems if one.key == name] == []
