from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import pytest

from launcher.about.inspect import (
    all_zero,
    describe,
    finite,
    health,
)
from schemas.files.weights import read_header
from tests.launcher.conftest import MODULE, safetensors

WIDE = {"F16": "e", "F32": "f", "F64": "d"}


def packed(dtype: str, *numbers: float) -> bytes:
    if dtype == "BF16":
        return b"".join(struct.pack("<f", number)[2:] for number in numbers)
    return struct.pack(f"<{len(numbers)}{WIDE[dtype]}", *numbers)


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32", "F64"])
@pytest.mark.parametrize(
    ("numbers", "sound"),
    [
        ((0.0, 1.0, -2.5, 65000.0, 6e-8), True),
        ((1.0, math.nan), False),
        ((math.inf, 1.0), False),
        ((1.0, -math.inf, 0.0), False),
    ],
)
def test_numbers_that_are_none(dtype, numbers, sound) -> None:
    assert finite(packed(dtype, *numbers), dtype) is sound


@pytest.mark.parametrize("number", [3.0e38, -3.3e38, 1.8e38])
def test_very_large_numbers_are_numbers(number) -> None:
    assert finite(packed("F32", number), "F32")
    assert finite(packed("BF16", number), "BF16")


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32", "F64"])
def test_zeros(dtype) -> None:
    assert all_zero(packed(dtype, 0.0, -0.0, 0.0), dtype)
    assert not all_zero(packed(dtype, 0.0, 1e-7), dtype)


def test_a_trained_lora_has_moved(lora) -> None:
    assert health(read_header(lora())).as_json() == {
        "ok": True,
        "finite": True,
        "not_finite": [],
        "zero_tensors": 0,
        "moved_modules": 1,
        "modules": 1,
    }


def test_an_untrained_and_a_broken_one(lora) -> None:
    assert not health(read_header(lora(up=0.0))).ok
    assert len(health(read_header(lora(up=math.nan))).not_finite) == 1


def test_facts(lora) -> None:
    found = describe(str(lora(rank=8, alpha=4, metadata={"ss_steps": "10", "ss_tag_frequency": '{"frog": 3}'})))
    assert (found["family"], found["algo"], found["dim"], found["alpha"]) == ("sd15", "lora", 8, 4.0)
    assert (found["ranks"], found["alphas"], found["parts"]) == ({"8": 1}, {"4": 1}, {"unet": 1})
    assert found["metadata"]["ss_tag_frequency"] == {"frog": 3}
    assert found["hashes"]["model_hash_matches"] is None


def test_a_hash_that_does_not_fit(lora) -> None:
    assert describe(str(lora(metadata={"sshs_model_hash": "0" * 64})))["hashes"]["model_hash_matches"] is False


def test_every_value_says_how_it_is_known(kohyakit, lora) -> None:
    file = lora(rank=8, alpha=4, metadata={"ss_learning_rate": "0.0003"})
    document = json.loads(kohyakit("inspect", file, "--json").stdout)
    assert document["config"]["learning_rate"] == {"value": 0.0003, "known": "stated"}
    assert document["config"]["network_dim"] == {"value": 8, "known": "inferred"}
    assert document["config"]["seed"] == {"value": None, "known": "unknown"}


def test_the_recovered_config_can_be_written(kohyakit, lora, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    assert kohyakit("inspect", lora(rank=8), "--to", "kohya-gui", "-o", out).exit_code == 0
    assert json.loads(out.read_text())["network_dim"] == 8


def test_for_people(kohyakit, lora) -> None:
    shown = kohyakit("inspect", lora()).stdout
    assert "rank 4, alpha 2.0" in shown
    assert "1 of 1 modules have moved" in shown


def test_other_files_are_refused(kohyakit, checkpoint, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"no")
    assert kohyakit("inspect", tmp_path / "x.safetensors").exit_code == 1
    assert kohyakit("inspect", checkpoint("sd15")).exit_code == 1


@pytest.mark.parametrize(("scale", "wrong"), [((320, 1), {"ComfyUI", "A1111", "Forge", "InvokeAI", "diffusers"}),
                                              ((1, 768), {"diffusers"})])  # fmt: skip
def test_where_a_dora_works_is_said(kohyakit, tmp_path: Path, scale, wrong) -> None:
    shapes = {f"{MODULE}.lora_down.weight": (4, 768), f"{MODULE}.lora_up.weight": (320, 4),
              f"{MODULE}.alpha": (), f"{MODULE}.dora_scale": scale}  # fmt: skip
    file = safetensors(tmp_path / "dora.safetensors", shapes, dict.fromkeys(shapes, 1.0), None)
    found = json.loads(kohyakit("inspect", file, "--json").stdout)
    assert {name for name, one in found["programs"].items() if one["reads"] == "wrong"} == wrong
    assert found["config"]["network_args"]["value"].count("wd_on_output=False") == (scale[0] == 1)
    assert "wrong in" in kohyakit("inspect", file).stdout


def test_a_plain_lora_works_everywhere(kohyakit, lora) -> None:
    assert "as trained in ComfyUI, A1111, Forge, InvokeAI, diffusers" in kohyakit("inspect", lora()).stdout
