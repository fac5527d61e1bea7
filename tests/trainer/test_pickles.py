from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from schemas import ConfigError
from trainer.families.pickles import Absent, load_pickle


class Callback:
    """As old Lightning checkpoints keep one beside the weights."""

    def __init__(self) -> None:
        self.best = torch.ones(2)


@pytest.fixture
def absent_package(monkeypatch: pytest.MonkeyPatch) -> type:
    """A class of a package that is there while the file is written, and gone when it is read."""
    package = ModuleType("their_lightning")
    monkeypatch.setattr(Callback, "__module__", "their_lightning")
    package.Callback = Callback  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "their_lightning", package)
    return Callback


@pytest.mark.parametrize("old_form", [False, True])
@pytest.mark.parametrize("mapped", [False, True])
def test_a_trusted_file_needs_no_package_for_what_is_not_used(
    mapped: bool, old_form: bool, absent_package: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.ckpt"
    torch.save({"x": torch.ones(3), "callbacks": {absent_package: absent_package()}}, file,
               _use_new_zipfile_serialization=not old_form)  # fmt: skip
    monkeypatch.delitem(sys.modules, "their_lightning")
    with pytest.raises(ConfigError, match=r"their_lightning\.Callback") as caught:
        load_pickle(file, ("b.ckpt",), mapped=mapped)
    assert caught.value.problems[0].code == "untrusted-file"
    read = load_pickle(file, ("a.ckpt",), mapped=mapped)
    assert torch.equal(read["x"], torch.ones(3))
    assert isinstance(next(iter(read["callbacks"].values())), Absent)


def test_plain_tensors_need_no_trust_and_damage_is_no_danger(tmp_path: Path) -> None:
    torch.save({"x": torch.zeros(1)}, tmp_path / "a.pt")
    assert load_pickle(tmp_path / "a.pt")["x"].item() == 0
    (tmp_path / "b.pt").write_bytes((tmp_path / "a.pt").read_bytes()[:200])
    for name, code in (("b.pt", "not-readable"), ("c.pt", "no-file")):
        with pytest.raises(ConfigError) as caught:
            load_pickle(tmp_path / name, (name,))
        assert caught.value.problems[0].code == code
