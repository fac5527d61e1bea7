from __future__ import annotations

import json

import bitsandbytes
import pytest
import torch
from torch import nn

from schemas.problems import ConfigError
from trainer.output import states
from trainer.output.states import load_state, newest_state, save_state

SHAPE = (64, 96)  # above the size from which 8-bit optimizers really use 8 bits


class Weights:
    """An adapter's face, as far as a state needs it."""

    def __init__(self, value):
        self.parameter = nn.Parameter(torch.full(SHAPE, value))

    def exact_state(self):
        return {"lora.weight": self.parameter}

    def load_exact_state(self, state):
        self.parameter.data.copy_(state["lora.weight"])


OPTIMIZERS = {
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "AdamW8bit": lambda p: bitsandbytes.optim.AdamW8bit(p, lr=1e-2),
    "PagedAdamW8bit": lambda p: bitsandbytes.optim.PagedAdamW8bit(p, lr=1e-2),
    "Lion8bit": lambda p: bitsandbytes.optim.Lion8bit(p, lr=1e-2),
}


def run(name, steps, parts=None):
    """Parts after `steps` more updates; gradients depend on the step alone."""
    if parts is None:
        weights = Weights(0.5)
        optimizer = OPTIMIZERS[name]([weights.parameter])
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
        parts = {"adapter": weights, "optimizer": optimizer, "scheduler": scheduler,
                 "scaler": torch.amp.GradScaler("cpu")}  # fmt: skip
    for _ in range(steps):
        step = parts["scheduler"].last_epoch
        parts["adapter"].parameter.grad = torch.randn(SHAPE, generator=torch.Generator().manual_seed(step))
        parts["optimizer"].step()
        parts["scheduler"].step()
    return parts


def tensors(value):
    """Every tensor and number in nested containers, in order."""
    if isinstance(value, dict):
        return [leaf for key in sorted(value, key=str) for leaf in tensors(value[key])]
    if isinstance(value, (list, tuple)):
        return [leaf for item in value for leaf in tensors(item)]
    return [value]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_resumed_run_equals_the_uninterrupted_one(tmp_path, name):
    whole = run(name, 5)
    save_state(tmp_path / "state-3", run(name, 3), {"step": 3})
    resumed = run(name, 0)
    assert load_state(tmp_path / "state-3", resumed) == {"step": 3}
    run(name, 2, resumed)
    assert torch.equal(whole["adapter"].parameter, resumed["adapter"].parameter)
    one, other = (tensors(parts["optimizer"].state_dict()) for parts in (whole, resumed))
    assert len(one) == len(other)
    for left, right in zip(one, other, strict=True):
        assert torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right


def test_eight_bit_states_stay_eight_bit(tmp_path):
    parts = run("AdamW8bit", 1)
    save_state(tmp_path / "s", parts, {"step": 1})
    fresh = run("AdamW8bit", 0)
    load_state(tmp_path / "s", fresh)
    (state,) = fresh["optimizer"].state.values()
    assert state["state1"].dtype == torch.uint8
    assert state["qmap1"].dtype == torch.float32


def test_progress_can_be_read_by_people(tmp_path):
    save_state(tmp_path / "s", run("AdamW", 1), {"step": 1, "epoch": 2})
    said = json.loads((tmp_path / "s" / "progress.json").read_text())
    assert {name: said[name] for name in ("step", "epoch")} == {"step": 1, "epoch": 2}
    assert {path.name for path in (tmp_path / "s").iterdir()} == {
        "adapter.safetensors", "optimizer.pt", "scheduler.pt", "scaler.pt", "progress.json", "complete",
    }  # fmt: skip


def test_failed_save_leaves_the_older_state_and_nothing_else(tmp_path):
    save_state(tmp_path / "s", run("AdamW", 1), {"step": 1})

    class Broken:
        def state_dict(self):
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save_state(tmp_path / "s", {"adapter": Weights(0.0), "optimizer": Broken()}, {"step": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
    assert load_state(tmp_path / "s", run("AdamW", 0)) == {"step": 1}


def test_same_name_is_replaced(tmp_path):
    for step in (1, 2):
        save_state(tmp_path / "s", run("AdamW", step), {"step": step})
    assert load_state(tmp_path / "s", run("AdamW", 0)) == {"step": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_newest_state_ignores_unfinished_ones(tmp_path):
    assert newest_state(tmp_path / "none") is None
    for step in (2, 10):
        save_state(tmp_path / f"state-{step}", {"adapter": Weights(0.0)}, {"step": step})
    (tmp_path / "state-99").mkdir()
    (tmp_path / ".state-98.1.tmp").mkdir()
    assert newest_state(tmp_path) == tmp_path / "state-10"
    (tmp_path / "state-10" / "complete").unlink()
    assert newest_state(tmp_path) == tmp_path / "state-2"


def test_unfinished_state_is_refused(tmp_path):
    (tmp_path / "state-1").mkdir()
    with pytest.raises(ConfigError, match="not a finished training state"):
        load_state(tmp_path / "state-1", {})


def test_state_of_another_run_is_refused_with_the_part(tmp_path):
    save_state(tmp_path / "s", run("AdamW", 1), {"step": 1})
    other = run("AdamW", 0)
    other["optimizer"].add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
    with pytest.raises(ConfigError, match="does not fit this run: optimizer"):
        load_state(tmp_path / "s", other)


def test_states_that_run_code_are_refused(tmp_path):
    class Harmful:
        def state_dict(self):
            return {"x": tmp_path}

    save_state(tmp_path / "s", {"optimizer": Harmful()}, {"step": 1})
    with pytest.raises(ConfigError, match="optimizer"):
        load_state(tmp_path / "s", {"optimizer": run("AdamW", 0)["optimizer"]})


def test_a_state_with_a_file_cut_short_is_none(tmp_path):
    for step in (1, 2):
        save_state(tmp_path / f"state-{step}", run("AdamW", 1), {"step": step})
    whole = (tmp_path / "state-2" / "optimizer.pt").read_bytes()
    (tmp_path / "state-2" / "optimizer.pt").write_bytes(whole[:-1])
    assert newest_state(tmp_path) == tmp_path / "state-1"
    (tmp_path / "state-1" / "optimizer.pt").unlink()
    assert newest_state(tmp_path) is None


def test_a_removal_cut_off_leaves_no_state(tmp_path, monkeypatch):
    save_state(tmp_path / "state-1", run("AdamW", 1), {"step": 1})
    monkeypatch.setattr(states.shutil, "rmtree", lambda *rest, **more: None)
    states.remove_state(tmp_path / "state-1")
    assert newest_state(tmp_path) is None
    monkeypatch.undo()
    states.sweep_states(tmp_path)
    assert list(tmp_path.iterdir()) == []
