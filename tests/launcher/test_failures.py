from __future__ import annotations

import datetime
import os
import runpy
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.distributed
from torch.utils.data import DataLoader, Dataset

from launcher.run.failures import KINDS, diagnose, last_error
from schemas.config import table
from trainer.watch.stopping import NotFinite, TrainingStopped

ROOT = Path(__file__).parents[2]
WRAPPED = ["subprocess.CalledProcessError: Command '['python']' returned non-zero exit status 3."]


def said(action: Callable[[], object]) -> list[str]:
    """What Python prints of the exception that `action` ends with."""
    try:
        action()
    except Exception:
        return traceback.format_exc().splitlines()
    raise AssertionError("nothing failed")


class Killed(Dataset):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return index


def full_disk() -> None:
    with open("/dev/full", "wb", buffering=0) as stream:
        stream.write(b"x")


def port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        torch.distributed.TCPStore("127.0.0.1", taken.getsockname()[1], 2, True)


def nobody_comes() -> None:
    torch.distributed.TCPStore("127.0.0.1", 0, 2, True, timeout=datetime.timedelta(seconds=1))


def not_a_number() -> None:
    raise TrainingStopped(f"step 3: {NotFinite('loss', float('nan'))}; likely causes: a high rate")


def wrong_shape() -> None:
    torch.nn.Linear(2, 2).load_state_dict({"weight": torch.zeros(3, 2), "bias": torch.zeros(2)})


def damaged(name: str, data: bytes, read: Callable[[Path], object]) -> Callable[[Path], object]:
    def act(folder: Path) -> object:
        (folder / name).write_bytes(data)
        return read(folder / name)

    return act


def saved(content: object) -> Callable[[Path], object]:
    def act(folder: Path) -> object:
        torch.save(content, folder / "saved.ckpt")
        return loaded(folder / "saved.ckpt")

    return act


def plain(action: Callable[[], object]) -> Callable[[Path], object]:
    return lambda folder: action()


def loaded(path: Path) -> object:
    return torch.load(path, weights_only=True)


PROVOKED: list[tuple[str, Callable[[Path], object]]] = [
    ("main-memory", plain(lambda: torch.empty(1 << 50))),
    ("main-memory", plain(lambda: bytearray(1 << 62))),
    ("worker-killed", plain(lambda: list(DataLoader(Killed(), num_workers=1)))),
    ("nan", plain(not_a_number)),
    ("port-in-use", plain(port_in_use)),
    ("no-answer", plain(nobody_comes)),
    ("missing-package", plain(lambda: __import__("prodigyopt_of_nobody"))),
    ("wrong-shape", plain(wrong_shape)),
    ("corrupt-file", damaged("a.safetensors", b"\x10" + b"\0" * 7 + b"{}", safetensors.torch.load_file)),
    ("corrupt-file", damaged("a.ckpt", b"not a pickle", loaded)),
    ("corrupt-file", damaged("b.ckpt", b"", loaded)),
    ("corrupt-file", damaged("c.ckpt", b"PK\x03\x04" + b"\0" * 99, loaded)),
    ("unsafe-file", saved(subprocess.Popen)),
    ("disk-full", plain(full_disk)),
]


@pytest.mark.parametrize(("name", "action"), PROVOKED)
def test_real_failures_are_recognised(name: str, action, tmp_path: Path) -> None:
    found = diagnose([*said(lambda: action(tmp_path)), *WRAPPED], 3)
    assert found.kind is not None, found
    assert found.kind.name == name
    assert found.advice


def test_a_real_kill_is_recognised() -> None:
    ended = subprocess.run([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])
    assert diagnose(["step 1"], ended.returncode).kind.name == "killed"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_the_message_kept_of_each_failure_is_recognised(kind) -> None:
    lines = ["Traceback (most recent call last):", "  File", *kind.example.splitlines(), *WRAPPED]
    assert diagnose(lines, 3).kind is kind


# As other versions and systems word them.
REPLAYED = [
    ("gpu-memory", "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ("no-answer", "torch.distributed.DistNetworkError: Failed to recv, got 0 bytes. Connection was likely closed."),
    ("no-answer", "RuntimeError: [/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting "
     "1800000ms for recv operation to complete"),
    ("bitsandbytes", "NameError: name 'str2optimizer8bit_blockwise' is not defined"),
    ("bitsandbytes", "AttributeError: module 'bitsandbytes.functional' has no attribute 'cadam_8bit_blockwise_grad'"),
    ("disk-full", "safetensors_rust.SafetensorError: Error while serializing: I/O error: No space left on device (os "
     "error 28)"),
    ("gpu-fault", "RuntimeError: cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    ("old-driver", "RuntimeError: The NVIDIA driver on your system is too old (found version 11040)."),
    ("wrong-shape", "RuntimeError: mat1 and mat2 shapes cannot be multiplied (154x2048 and 768x320)"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "line"), REPLAYED)
def test_other_words_for_the_same(name: str, line: str) -> None:
    assert diagnose([line, *WRAPPED], 3).kind.name == name


def test_the_first_real_cause_counts_and_not_what_follows_from_it() -> None:
    lines = [
        "[rank1]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
        "[rank0]: RuntimeError: [gloo] Connection closed by peer [127.0.0.1]:5123",
        *WRAPPED,
    ]
    assert diagnose(lines, 3).kind.name == "gpu-memory"
    assert diagnose(lines[::-1], 3).kind.name == "gpu-memory"


def test_a_remark_is_no_failure() -> None:
    lines = ["A matching Triton is not available: No module named 'triton'", "ValueError: strange", *WRAPPED]
    assert (diagnose(lines, 3).cause, diagnose(lines, 3).kind) == ("ValueError: strange", None)


def test_what_is_not_known_keeps_its_own_words() -> None:
    assert (
        diagnose(["trainer.watch.stopping.TrainingStopped: odd"], 3).cause
        == "trainer.watch.stopping.TrainingStopped: odd"
    )
    assert diagnose(["step 4"], 5).cause == "it ended with code 5"
    assert diagnose(["step 4"], -11).cause == "it was ended by signal 11"


def test_a_wrappers_error_is_not_the_cause() -> None:
    assert last_error(["ValueError: real", *WRAPPED]) == "ValueError: real"
    assert last_error(["step 4", "loss 0.1"]) is None


def test_options_named_are_options() -> None:
    words = [*(key for kind in KINDS for key in kind.keys), *(word.split("=")[0] for k in KINDS for word in k.sets)]
    assert set(words) <= set(table())


def test_the_page_is_fresh() -> None:
    written = runpy.run_path(str(ROOT / "docs" / "write_failures.py"))["PAGE"]
    from launcher.run.failures import page

    assert written.read_text(encoding="utf-8") == page(), "run: python docs/write_failures.py"
