"""What a start finds and leaves in its run folder: other people's files stay, its own half-written ones go."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from schemas import ConfigError
from schemas.files.run_lock import hold_for_launcher, hold_for_trainer
from trainer.output.run_folder import IDLE_SECONDS, RunFolder

GONE = 2**22 + 1  # no process has this number: Linux counts to 2^22


def touch(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"half")


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_file()}


def test_own_half_written_results_are_swept_and_nothing_else(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, "n0m3")
    others = {".other.safetensors.7.tmp", ".n0m3-two.safetensors.7.tmp", "n0m3.safetensors", ".hidden"}
    touch(tmp_path, *others, ".n0m3.safetensors.7.tmp", ".n0m3-000002.safetensors.7.tmp", ".n0m3-step00000004.pt.7.tmp")
    touch(run.path, "log.jsonl", "log.tmp", ".config.toml.tmp")
    touch(run.samples, "n0m3_000002_00_20260101000000_1.tmp", "n0m3_000002_00_20260101000000_1.png", "other.tmp")
    run.sweep([], [])
    assert left(tmp_path) == others
    assert left(run.path) == {"log.jsonl"}
    assert left(run.samples) == {"n0m3_000002_00_20260101000000_1.png", "other.tmp"}


def test_half_written_caches_go_when_their_writer_was_ours_or_is_long_gone(tmp_path: Path) -> None:
    mine, old, fresh = (f".a_0064x0064_sd.npz.{pid}.tmp" for pid in (GONE, GONE + 1, GONE + 2))
    alive = f".b_0064x0064_sd.npz.{os.getpid()}.tmp"
    touch(tmp_path, mine, old, fresh, alive)
    for name in (old, alive):
        os.utime(tmp_path / name, (time.time() - 2 * IDLE_SECONDS,) * 2)
    RunFolder(tmp_path / "out", "n0m3").sweep([tmp_path / "a.png"], before=[GONE])
    assert left(tmp_path) == {fresh, alive}


def test_a_second_trainer_is_kept_out_until_the_first_is_gone(tmp_path: Path) -> None:
    code = "from pathlib import Path; from schemas.files.run_lock import hold_for_trainer as hold; "
    code += f"held = hold(Path({str(tmp_path)!r}), [4194305]); print('taken', flush=True); input()"
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                             stderr=subprocess.DEVNULL, cwd=Path(__file__).parents[2])  # fmt: skip
    assert other.stdout is not None
    assert b"taken" in other.stdout.readline()
    with pytest.raises(ConfigError, match="is being trained by process 4194305"):
        hold_for_trainer(tmp_path, [1])
    with pytest.raises(ConfigError, match="is being trained by process 4194305"):
        hold_for_launcher(tmp_path)
    other.kill()
    other.wait()
    lock, before = hold_for_trainer(tmp_path, [1])
    assert before == [GONE]
    lock.free()
    assert left(tmp_path) == set()
