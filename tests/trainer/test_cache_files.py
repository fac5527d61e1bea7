"""Cache files under a disk that takes no more, and what killed writers have left beside the images."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from schemas import ConfigError
from schemas.files.writing import (
    FOREIGN_SECONDS,
    abandoned,
    scratch_of,
    sweep,
    this_host,
    write_atomically,
)
from trainer.input.cache_files import load, save


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO], ids=errno.errorcode.get)
def test_a_disk_that_fails_is_no_fault_of_the_input(number: int, tmp_path: Path, monkeypatch) -> None:
    def refuse(handle: int) -> None:
        raise OSError(number, os.strerror(number))

    save(tmp_path / "a.npz", {"x": np.ones(2)}, {})
    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(OSError, match=os.strerror(number)):
        save(tmp_path / "a.npz", {"x": np.zeros(2)}, {})
    found = load(tmp_path / "a.npz")
    assert found is not None
    assert found[0]["x"].tolist() == [1, 1]
    assert os.listdir(tmp_path) == ["a.npz"]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS], ids=errno.errorcode.get)
def test_a_folder_that_may_not_be_written_is_one(number: int, tmp_path: Path, monkeypatch) -> None:
    def refuse(*words: object, **more: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ConfigError, match="cache_latents_to_disk"):
        save(tmp_path / "a.npz", {"x": np.zeros(2)}, {})


def writer(target: Path) -> subprocess.Popen[bytes]:
    """A process in the middle of writing `target`."""
    code = f"""
import sys, time
from pathlib import Path
from schemas.files.writing import write_atomically
def slowly(stream):
    stream.write(b'half'); stream.flush(); print('writing', flush=True); time.sleep(60)
write_atomically(Path({str(target)!r}), slowly)
"""
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    assert child.stdout is not None
    assert child.stdout.readline() == b"writing\n"
    return child


@pytest.mark.parametrize("name", ["a_0064x0064_sd.npz", "n" * 230 + ".safetensors", "run.json", "1.png"])
def test_what_a_killed_process_was_writing_goes_and_what_a_living_one_writes_stays(name: str, tmp_path: Path) -> None:
    child = writer(tmp_path / name)
    (half,) = tmp_path.iterdir()
    assert half.name.startswith(".")
    sweep([tmp_path, tmp_path / "missing"])
    assert half.exists()
    child.kill()
    sweep_until_dead = time.monotonic() + 10  # not waited for: a dead process that nobody has asked is one, too
    while half.exists() and time.monotonic() < sweep_until_dead:
        sweep([tmp_path])
    assert list(tmp_path.iterdir()) == []
    child.wait()


def test_an_interrupt_leaves_nothing_half_written(tmp_path: Path) -> None:
    child = writer(tmp_path / "a.npz")
    child.send_signal(signal.SIGINT)
    child.wait()
    assert list(tmp_path.iterdir()) == []


def left_by(pid: int, host: str, age: float, folder: Path) -> Path:
    path = folder / f".a.npz.{pid}@{host}.tmp"
    path.write_bytes(b"half")
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_of_another_machine_only_time_tells(tmp_path: Path) -> None:
    assert not abandoned(left_by(os.getpid(), "0badcafe", 5, tmp_path))
    assert not abandoned(left_by(2**22 + 1, "0badcafe", 5, tmp_path))
    assert abandoned(left_by(os.getpid(), "0badcafe", FOREIGN_SECONDS + 5, tmp_path))


def test_a_number_that_was_given_out_again_is_another_process(tmp_path: Path) -> None:
    """This process is younger than the file."""
    assert not abandoned(left_by(os.getppid(), this_host(), 0, tmp_path))
    assert abandoned(left_by(os.getppid(), this_host(), 10 * 365 * 86400, tmp_path))


def test_other_files_are_nobody_s_business(tmp_path: Path) -> None:
    for name in ("a.tmp", ".a.tmp", ".a.npz.7.tmp", "a.7@0badcafe.tmp", ".hidden"):
        (tmp_path / name).write_bytes(b"x")
        os.utime(tmp_path / name, (0, 0))
    sweep([tmp_path])
    assert len(list(tmp_path.iterdir())) == 5


def test_a_temporary_name_is_of_its_process_and_beside_the_file(tmp_path: Path) -> None:
    scratch = scratch_of(tmp_path / "a.npz")
    assert (scratch.parent, scratch.name) == (tmp_path, f".a.npz.{os.getpid()}@{this_host()}.tmp")
    write_atomically(tmp_path / "new" / "a", lambda stream: stream.write(b"x"))
    assert (tmp_path / "new" / "a").read_bytes() == b"x"
