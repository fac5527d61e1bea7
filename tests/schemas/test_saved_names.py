"""Names of saved LoRA files are read for what they are, whatever the run is called."""

from __future__ import annotations

import pytest

from schemas.files.saved_names import BESIDE, SAVED, saved_as


@pytest.mark.parametrize("name", ["frog", "frog.v1", "frog-000002x", "a b-step", "frog(1)"])
@pytest.mark.parametrize("copy", ["", "-000003", "-step00000010"])
def test_every_name_that_is_written_is_read_back(name: str, copy: str) -> None:
    for ending in ("safetensors", "ckpt", "pt"):
        for kind in ("", *BESIDE):
            file = f"{name}{copy}{kind}.{ending}"
            match = SAVED.fullmatch(file)
            assert match is not None
            assert (match["name"], match["copy"] or "", match["beside"] or "") == (name, copy, kind)
            assert saved_as(name).fullmatch(file)


@pytest.mark.parametrize(
    "file", ["frogs.ema.safetensors", "frog.emax.safetensors", "frog.ema.json", "frog-v1.ema.safetensors"]
)
def test_others_are_none_of_that_run(file: str) -> None:
    assert saved_as("frog").fullmatch(file) is None
