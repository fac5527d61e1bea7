"""The published schema, and validation against it."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema

from launcher.formats.kohya_gui import defaults, keys, read, schema, validate_document

ROOT = Path(__file__).resolve().parents[3]


def test_the_schema_is_one_and_covers_every_key() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    assert set(keys()) <= set(schema()["properties"])


def test_the_committed_schema_is_fresh() -> None:
    committed = json.loads((ROOT / "schemas" / "kohya-gui.schema.json").read_text(encoding="utf-8"))
    assert committed == json.loads(json.dumps(schema()))


def test_todays_form_and_odd_spellings_pass() -> None:
    odd = {"$schema": "x", "epoch": "3", "seed": "", "flip_aug": 1, "vae": None, "xformers": True, "LoRA_type": "LoCon"}
    assert validate_document(defaults() | odd | {"min_timestep": False, "no_such_key": 1}) == []


def test_findings_have_key_line_and_fix() -> None:
    found = validate_document({"epoch": "x", "LoRA_type": "Standrad"}, {"epoch": 2, "LoRA_type": 3})
    assert {(p.code, p.key, p.line, p.fix) for p in found} == {
        ("bad-value", "epoch", 2, "--set epoch=1, what an untouched form has"),
        ("bad-value", "LoRA_type", 3, "did you mean Standard?"),
    }


def test_read_and_schema_say_the_same() -> None:
    text = '{"epoch": "x",\n"flip_aug": "no",\n"LoRA_type": "Standrad",\n"vae": [1]}'
    told = set(map(str, read(text).problems))
    lines = {"epoch": 1, "flip_aug": 2, "LoRA_type": 3, "vae": 4}
    assert {str(problem) for problem in validate_document(json.loads(text), lines)} <= told


def test_a_list_is_no_form() -> None:
    assert validate_document([1])[0].must == "must be one object: {...}"
