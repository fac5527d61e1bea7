from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.processes import Row, apart, sent, table


def result(place: Path, up: float) -> Path:
    (place / "out").mkdir(parents=True)
    tensors = {
        "a.lora_up.weight": torch.tensor([[1.0, up]]),
        "a.lora_down.weight": torch.ones(1, 2),
        "a.alpha": torch.ones(()),
    }
    save_file(tensors, place / "out" / "n0m3.safetensors")
    return place


def test_gradients_are_compared_over_the_largest_of_them(tmp_path: Path) -> None:
    one, other = result(tmp_path / "one", 4.0), result(tmp_path / "other", 4.4)
    assert apart(one, one) == 0
    assert abs(apart(one, other) - 0.1) < 1e-6
    assert sent(one) == 16e-6


def test_the_table_says_where_and_what_was_not_compared() -> None:
    text = table([Row("this machine", 2, 0.05, 40.0, 1e-7, 0.5), Row("two machines, 1gbit", 2, 0.06, 33.3, None, 0.5)])
    assert "| this machine | 2 | 0.0500 | 40.0 | 0.50 MB | 1.0e-07 of the largest |" in text
    assert "| two machines, 1gbit | 2 | 0.0600 | 33.3 | 0.50 MB | not compared |" in text
