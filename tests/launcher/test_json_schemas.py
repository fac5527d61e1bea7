from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from launcher.json_schemas import SCHEMAS
from launcher.resolve import presets

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


def test_the_command_prints_it(kohyakit) -> None:
    assert json.loads(kohyakit("schema", "dataset").stdout)["title"] == "sd-scripts dataset_config"
    assert kohyakit("schema", "datset").exit_code == 2
