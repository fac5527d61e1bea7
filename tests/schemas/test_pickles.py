"""What a pickled file would run is told without running it."""

from __future__ import annotations

import collections
import os
import pickle
import zipfile
from pathlib import Path

import pytest

from schemas import TrainConfig
from schemas.files.pickles import check, foreign_names, trusted_file


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/kohyakit-was-here",)


def zipped(path: Path, content: object, protocol: int = 2) -> Path:
    """The form of torch since 1.6."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(content, protocol))
        archive.writestr("archive/data/0", b"0000")
    return path


@pytest.mark.parametrize("protocol", range(6))
def test_what_would_run_is_named_in_every_protocol(protocol: int, tmp_path: Path) -> None:
    file = zipped(tmp_path / "a.ckpt", {"state_dict": collections.OrderedDict(a=1), "x": Evil()}, protocol)
    named = [name for name in foreign_names(file) if not name.startswith("copyreg")]
    assert named == [f"{os.name}.system"]
    assert not Path("/tmp/kohyakit-was-here").exists()


def test_the_same_name_used_twice_is_followed_through_the_memo(tmp_path: Path) -> None:
    assert foreign_names(zipped(tmp_path / "a.pt", ["system", "posix", Evil(), Evil()], 4)) == [f"{os.name}.system"]


def test_old_files_are_pickles_one_after_the_other(tmp_path: Path) -> None:
    file = tmp_path / "old.ckpt"
    parts = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {"a": Evil()}, []]
    file.write_bytes(b"".join(pickle.dumps(part, 2) for part in parts) + b"\0" * 64)
    assert foreign_names(file) == [f"{os.name}.system"]


def test_tensors_and_damaged_files_name_nothing(tmp_path: Path) -> None:
    assert foreign_names(zipped(tmp_path / "a.ckpt", collections.OrderedDict(a={1, 2}))) == []
    (tmp_path / "b.ckpt").write_bytes(b"no pickle at all")
    (tmp_path / "c.ckpt").write_bytes((tmp_path / "a.ckpt").read_bytes()[:50])
    assert foreign_names(tmp_path / "b.ckpt") == foreign_names(tmp_path / "c.ckpt") == []


def test_a_path_inside_a_harmless_module_is_not_harmless(tmp_path: Path) -> None:
    file = tmp_path / "a.ckpt"
    file.write_bytes(b"\x80\x02ctorch\nhub.load\n.")
    assert foreign_names(file) == ["torch.hub.load"]


def test_trust_names_one_file_and_not_what_its_name_begins_or_ends_with() -> None:
    assert trusted_file(("a.ckpt",), "/models/a.ckpt")
    assert trusted_file(("my", "old", "model.ckpt"), "models/my old model.ckpt")  # split on the way
    assert trusted_file(("/models/a.ckpt",), "/models/a.ckpt")
    for trust in ((), ("a",), ("aa.ckpt",), ("a.ckpt.ckpt",), ("other/a.ckpt",), ("models",)):
        assert not trusted_file(trust, "/models/a.ckpt")


def test_every_weight_file_of_the_run_is_looked_at(tmp_path: Path) -> None:
    names = ["m.ckpt", "v.pt", "n.bin", "b.pt"]
    m, v, n, b = (str(zipped(tmp_path / name, Evil())) for name in names)
    config = TrainConfig(pretrained_model_name_or_path=m, vae=v, network_weights=n, base_weights=(b,), trust=("v.pt",))
    found = check(config)
    assert [(one.key, one.got) for one in found] == [
        ("pretrained_model_name_or_path", m), ("network_weights", n), ("base_weights", b)
    ]  # fmt: skip
    assert "posix.system" in found[0].must or "nt.system" in found[0].must
    assert found[0].fix is not None
    assert found[0].fix.endswith("--trust m.ckpt")
