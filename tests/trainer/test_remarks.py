"""What a run says of itself though it goes on: on the console, once, and in run.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from trainer.watch.remarks import Movement, Remark, Remarks

Start = Callable[..., int]


@pytest.fixture
def record(tmp_path: Path) -> Callable[[], list[str]]:
    """A run.json as the launcher begins it; gives the codes of the remarks that are kept there."""
    file = tmp_path / "out" / "n0m3.run" / "run.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"starts": [{"begin": "now"}]}), encoding="utf-8")

    def codes() -> list[str]:
        return [remark["code"] for remark in json.loads(file.read_text(encoding="utf-8")).get("remarks", [])]

    return codes


def test_a_usual_run_has_no_remarks(start: Start, record: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert start(max_train_steps=10) == 0
    assert record() == []
    assert "warning" not in capsys.readouterr().out


def test_captions_that_are_all_empty(start: Start, record: Any, tmp_path: Path,
                                     capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    folder = tmp_path / "train" / "2_"
    folder.mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(folder / "a.png")
    assert start(train_data_dir=folder.parent, max_train_steps=1) == 0
    assert record() == ["captions-empty"]
    assert "the captions of all 1 images are empty" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "empty"),
    [({"caption_dropout_rate": 1.0}, True), ({"caption_dropout_rate": 0.99}, False),
     ({"caption_dropout_every_n_epochs": 1}, True), ({"caption_dropout_every_n_epochs": 2}, False)],
)  # fmt: skip
def test_dropping_every_caption_leaves_none(start: Start, record: Any, options: Any, empty: bool) -> None:
    assert start(max_train_steps=1, **options) == 0
    assert (record() == ["captions-empty"]) == empty


@pytest.mark.parametrize("options", [{"text_encoder_lr": [0.0], "unet_lr": 1e-3}], ids=["rate"])
def test_a_text_encoder_whose_rate_is_0(start: Start, record: Any, options: Any) -> None:
    assert start(max_train_steps=1, **options) == 0
    assert record() == ["text-encoder-unused"]


def test_a_text_encoder_that_no_gradient_reaches(
    start: Start, record: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from trainer.input.texts import TextStates

    real = TextStates.__call__
    monkeypatch.setattr(TextStates, "__call__", lambda states, captions: real(states, captions).detach_cpu())
    assert start(max_train_steps=10, optimizer_type="SGD") == 0
    assert record() == ["text-encoder-unused"]
    assert "the text encoder (textencoder) has not learned in 10 steps" in capsys.readouterr().out


def test_weights_that_do_not_move(start: Start, record: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert start(max_train_steps=12, learning_rate=1e-50, optimizer_type="SGD") == 0
    assert record() == ["weights-not-moved"]
    assert "raise learning_rate" in capsys.readouterr().out


def test_movement_is_looked_at_once_after_fifty_steps() -> None:
    one, other = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    groups = [{"params": [one], "name": "unet"}, {"params": [other], "name": "unet plus"}]
    movement = Movement(torch.optim.SGD(groups, lr=1.0), first=100, total=1000)
    with torch.no_grad():
        one.add_(1e-6)
        other.add_(1e-6)  # rounded away
    assert movement.look(149) is None
    found = movement.look(150)
    assert found is not None
    assert "not moved in 50 steps: unet plus" in found.text
    assert movement.look(150) is None


def test_short_runs_are_not_judged() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    assert Movement(torch.optim.SGD([weight], lr=1.0), first=0, total=9).look(9) is None


def test_a_remark_is_kept_once_and_only_where_there_is_a_record(tmp_path: Path) -> None:
    said: list[str] = []
    remarks = Remarks(tmp_path, lambda text, severity: said.append(f"{severity} {text}"), main=True)
    remarks.add(Remark("code", "seen", "mend"))
    assert not (tmp_path / "run.json").exists()
    (tmp_path / "run.json").write_text('{"starts": [{}], "kept": 1}', encoding="utf-8")
    for _ in range(2):
        remarks.add(Remark("code", "seen", "mend"), step=3)
    found = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert found["kept"] == 1
    assert found["remarks"] == [{"code": "code", "text": "seen", "fix": "mend", "step": 3}]
    assert said[0] == "warning warning: seen\n    fix: mend"
    Remarks(tmp_path, said.append, main=False).add(Remark("other", "", ""))  # type: ignore[arg-type]
    assert len(said) == 3
