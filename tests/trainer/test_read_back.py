"""A file that is not what was written never replaces a good one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from trainer.output import lora_file
from trainer.output.lora_file import save_weights
from trainer.output.read_back import UnsoundFile, untouched
from trainer.output.states import newest_state

Start = Callable[..., int]
LORA = {"lora_unet_proj.lora_down.weight": torch.ones(2, 4), "lora_unet_proj.alpha": torch.tensor(3.0),
        "lora_unet_proj.lora_up.weight": torch.full((5, 2), 0.5)}  # fmt: skip
UP = "lora_unet_proj.lora_up.weight"


def corrupted(patch: pytest.MonkeyPatch, damage: Callable[[bytes], bytes], only: str = "") -> None:
    """What the disk keeps of files whose names hold `only` is `damage` of what was written."""
    real = lora_file.write_atomically

    def write(path: Path, fill: Callable[[Any], object], check: Any = None) -> None:
        def look(scratch: Path) -> None:
            if only in path.name:
                scratch.write_bytes(damage(scratch.read_bytes()))
            if check is not None:
                check(scratch)

        real(path, fill, look)

    patch.setattr(lora_file, "write_atomically", write)


def flipped(data: bytes) -> bytes:
    return data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]


def zeroed(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes(len(data) - len(data) // 2)


@pytest.mark.parametrize(("damage", "said"), [
    (flipped, "has other values than were written"), (lambda data: data[:-8], "bytes were written and"),
    (lambda data: b"\0" * len(data), "cannot be read again"), (lambda data: data + b"more", "bytes were written and"),
    (lambda data: data.replace(b"proj.alpha", b"proj.alphb"), "is in it and was not written"),
])  # fmt: skip
def test_a_corrupted_write_is_caught_and_the_older_file_stays(
    damage: Callable[[bytes], bytes], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.safetensors"
    save_weights(path, LORA, {})
    before = path.read_bytes()
    corrupted(monkeypatch, damage)
    with pytest.raises(UnsoundFile, match=said):
        save_weights(path, {**LORA, UP: torch.full((5, 2), 0.7)}, {})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("save_as", ["ckpt", "pt"])
def test_pickled_files_are_read_back_too(save_as: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_weights(tmp_path / f"a.{save_as}", LORA, {}, save_as=save_as)
    corrupted(monkeypatch, zeroed)
    with pytest.raises(UnsoundFile):
        save_weights(tmp_path / f"b.{save_as}", LORA, {}, save_as=save_as)
    assert not (tmp_path / f"b.{save_as}").exists()


@pytest.mark.parametrize(("value", "dtype", "said", "sound"), [
    (float("nan"), None, "is not finite", False), (1e6, torch.float16, "a value too large for float16", True),
    (1e-9, torch.float16, "too small for float16", True), (float("inf"), torch.float16, "is not finite", False),
])  # fmt: skip
def test_values_that_the_file_cannot_hold(value: float, dtype: Any, said: str, sound: bool, tmp_path: Path) -> None:
    with pytest.raises(UnsoundFile, match=said) as caught:
        save_weights(tmp_path / "a.safetensors", {**LORA, UP: torch.full((5, 2), value)}, {}, dtype=dtype)
    assert caught.value.weights == sound
    assert not list(tmp_path.iterdir())


def test_a_strange_name_is_refused(tmp_path: Path) -> None:
    save_weights(tmp_path / "a.safetensors", LORA, {}, modules=["lora_unet_proj"])
    with pytest.raises(UnsoundFile, match="is no name that other programs know"):
        save_weights(tmp_path / "b.safetensors", LORA, {}, modules=["lora_unet_other"])
    with pytest.raises(UnsoundFile, match="no name"):
        save_weights(tmp_path / "b.safetensors", {**LORA, "lora_unet_proj.up": torch.ones(1)}, {},
                     modules=["lora_unet_proj"])  # fmt: skip


def test_an_untrained_adapter_is_all_zero_and_may_be_saved(tmp_path: Path) -> None:
    fresh = {**LORA, UP: torch.zeros(5, 2)}
    assert untouched(fresh)
    assert not untouched(LORA)
    assert not untouched({"theirs.weight": torch.zeros(2)})  # a plug-in's own names
    save_weights(tmp_path / "a.safetensors", fresh, {})


def test_a_run_stops_at_a_bad_file_says_so_and_goes_on_later(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, bad = tmp_path / "out", "n0m3-step00000002.safetensors"
    with monkeypatch.context() as patch:
        corrupted(patch, flipped, only=bad)
        assert start(save_every_n_steps=2) == 3
    said = capsys.readouterr().err
    assert f"{bad} was written and not kept" in said
    assert "the training state of step 2 is whole" in said
    assert f"kohyakit resume {out / 'n0m3.run'}" in said
    assert not (out / bad).exists()
    assert newest_state(out / "n0m3.run") == out / "n0m3.run" / "state-00000002"
    assert start(save_every_n_steps=2, resume=out / "n0m3.run") == 0
    assert not untouched(load_file(out / "n0m3.safetensors"))


def test_a_lora_that_learnt_nothing_is_pointed_out(
    start: Start, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, closure=None: None)
    assert start(max_train_steps=1) == 0
    assert "warning: n0m3.safetensors changes nothing yet: it is still 0 after 1 steps" in capsys.readouterr().out
