from __future__ import annotations

import json
from pathlib import Path

from launcher.run import record


def test_the_last_step_is_that_of_the_last_whole_line(tmp_path: Path) -> None:
    assert record.last_step(tmp_path) is None
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert record.last_step(tmp_path) == 2


def test_the_newest_state_is_the_finished_one_with_the_highest_step(tmp_path: Path) -> None:
    for name in ("state-00000002", "state-00000010", "state-00000012"):
        (tmp_path / name).mkdir()
    for name in ("state-00000002", "state-00000010"):
        (tmp_path / name / "progress.json").write_text(json.dumps({"step": int(name[6:])}))
        (tmp_path / name / "complete").write_text("{}")
    assert record.newest_state(tmp_path) == tmp_path / "state-00000010"


def test_a_models_fingerprint_follows_its_content(tmp_path: Path) -> None:
    model = tmp_path / "m.safetensors"
    model.write_bytes(b"\x02" + b"\0" * 7 + b"{}" + b"a" * 100)
    first = record.model_fingerprint(str(model))
    model.write_bytes(b"\x02" + b"\0" * 7 + b"{}" + b"b" * 100)
    second = record.model_fingerprint(str(model))
    assert (first["name"], first["size"]) == ("m.safetensors", 110)
    assert first["fingerprint"] != second["fingerprint"]


def test_a_folder_has_a_fingerprint_too(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "x.bin").write_bytes(b"12")
    assert record.model_fingerprint(str(tmp_path))["size"] == 2


def test_a_damaged_record_is_taken_as_none(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{half")
    assert record.read_record(tmp_path) == {}


def test_an_end_closes_the_newest_start(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"starts": [{"exit": 130}, {"exit": None}]}))
    record.end(tmp_path, 0)
    assert [start["exit"] for start in record.read_record(tmp_path)["starts"]] == [130, 0]
