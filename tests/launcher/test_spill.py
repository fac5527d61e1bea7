from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.run.spill import SpillWatch

CARD = 8 * 2**30


def watched(path: Path, steps: list[tuple[float, float]], capacity: int | None = CARD) -> list[str]:
    said: list[str] = []
    watch = SpillWatch(path, capacity, said.append)
    with path.open("a") as log:
        log.writelines(json.dumps({"seconds": seconds, "memory": memory}) + "\n" for seconds, memory in steps)
        log.write('{"sec')
    watch.look(1.0)
    watch.look(99.0)
    return said


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        ([(1, 0.97 * CARD)] * 12 + [(12, 0.97 * CARD)] * 3, True),
        ([(1, 0.97 * CARD)] * 12 + [(12, 0.97 * CARD)] * 2, False),
        ([(1, 0.5 * CARD)] * 12 + [(12, 0.5 * CARD)] * 3, False),
        ([(9, 1.3 * CARD)] * 3, True),
        ([(1, 0.97 * CARD)] * 40, False),
    ],
)
def test_slowness_on_a_full_card_is_told_once(tmp_path: Path, steps, told) -> None:
    said = watched(tmp_path / "log.jsonl", steps)
    assert len(said) == told
    assert all("kohyakit plan" in line for line in said)


def test_without_a_card_nothing_is_watched(tmp_path: Path) -> None:
    assert watched(tmp_path / "log.jsonl", [(9, 1.3 * CARD)] * 3, None) == []


def test_steps_of_an_earlier_start_do_not_count(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    watched(log, [(9, 1.3 * CARD)] * 3)
    log.write_text(log.read_text().removesuffix('{"sec'))
    assert watched(log, [(1, 0.5 * CARD)] * 3) == []
