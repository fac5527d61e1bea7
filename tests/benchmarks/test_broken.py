"""Faults put in on purpose: each one is really there, and the tests that fail are named."""

from __future__ import annotations

import pytest

from benchmarks import broken


def test_names_the_tests_that_see_a_fault(capsys: pytest.CaptureFixture[str]) -> None:
    assert broken.main(["wrong-schedule", "--tests", "tests/trainer/test_objective.py"]) == 0
    told = capsys.readouterr().out
    assert "wrong-schedule: seen by" in told
    assert "tests/trainer/test_objective.py::" in told


def test_says_so_where_no_test_sees_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert broken.main(["wrong-schedule", "--tests", "tests/trainer/test_pixels.py"]) == 0
    assert capsys.readouterr().out == "wrong-schedule: SEEN BY NO TEST\n"


def test_unknown_fault_is_a_wrong_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        broken.main(["no-such"])
    assert ended.value.code == 2
    assert "wrong-sign" in capsys.readouterr().err
