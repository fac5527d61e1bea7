from __future__ import annotations

import pytest

from launcher.failures import diagnose, last_error

WRAPPED = ["subprocess.CalledProcessError: Command '['python']' returned non-zero exit status 3."]


@pytest.mark.parametrize(
    ("line", "cause", "advice"),
    [
        (
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
            "the GPU's memory is full",
            "--vram",
        ),
        ("ModuleNotFoundError: No module named 'prodigyopt'", "ModuleNotFoundError", "pip install prodigyopt"),
        ("RuntimeError: Error(s) in loading state_dict: size mismatch for x", "size mismatch", "network_dim"),
        ("OSError: [Errno 28] No space left on device", "the disk is full", "output_dir"),
        ("trainer.stopping.TrainingStopped: no known shape", "it ended with code 3", ""),
        ("ValueError: strange", "ValueError: strange", ""),
    ],
)
def test_causes(line, cause, advice) -> None:
    found = diagnose(["Traceback (most recent call last):", "  File", line, *WRAPPED], 3)
    assert cause in found.cause
    assert advice in found.advice


def test_a_killed_trainer_probably_lacked_memory() -> None:
    found = diagnose(["step 1"], -9)
    assert "main memory is full, or" in found.cause


def test_a_wrappers_error_is_not_the_cause() -> None:
    assert last_error(["ValueError: real", *WRAPPED]) == "ValueError: real"
    assert last_error(["step 4", "loss 0.1"]) is None
