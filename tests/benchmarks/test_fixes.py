"""Suggested fixes are applied: each ends its finding and brings no new error."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import toml

from benchmarks import fixes
from launcher.check.resolve import presets
from launcher.commands import BUNDLED_FROM, bundled
from schemas.config import table
from schemas.problems import Problem

STRANGE: tuple[Any, ...] = ("", "yes please", "0,0001", -1, 0, 1e9, True, None, [1], "nan", " 5 ", "auto")
STRANGE_TEXT = tuple(one for one in STRANGE if one not in (None, " 5 "))  # TOML has no null


@pytest.fixture
def world(tmp_path: Path) -> fixes.World:
    return fixes.World(tmp_path)


@pytest.mark.parametrize("preset", presets(), ids=lambda path: path.stem)
def test_fixes_of_shipped_presets_work(preset: Path, world: fixes.World) -> None:
    assert list(fixes.failures(preset, world)) == []


@pytest.mark.parametrize("seed", range(40))
def test_fixes_of_mutated_tomls_work(seed: int, world: fixes.World, tmp_path: Path) -> None:
    chosen = random.Random(seed)
    options = sorted(table())
    words: dict[str, Any] = {"network_module": "networks.lora", "network_dim": 4, "max_train_steps": 10}
    words |= {name: chosen.choice((*STRANGE_TEXT, 0.5, 3)) for name in chosen.sample(options, 4)}
    file = tmp_path / "run.toml"
    file.write_text(toml.dumps(words), encoding="utf-8")
    assert list(fixes.failures(file, world)) == []


@pytest.mark.parametrize("seed", range(40))
def test_fixes_of_mutated_forms_work(seed: int, world: fixes.World, tmp_path: Path) -> None:
    from launcher.formats.kohya_gui.table import defaults

    chosen = random.Random(seed)
    form: dict[str, Any] = {**defaults(), "LoRA_type": "Standard", "network_dim": 4, "sdxl": chosen.random() < 0.3}
    for name in chosen.sample(sorted(form), 4):
        form[name] = chosen.choice(STRANGE)
    file = tmp_path / "form.json"
    file.write_text(json.dumps(form), encoding="utf-8")
    assert list(fixes.failures(file, world)) == []


def test_alternatives_are_told_apart_and_placeholders_left_out() -> None:
    fix = "--set vae=PATH, or --set vae= to go without, or --trust a.b, or --overwrite"
    assert list(fixes.groups(fix)) == [[("set", "vae=")], [("trust", "a.b")], [("overwrite", "")]]
    assert list(fixes.groups('--set optimizer_args="betas=0.9,0.99 eps=1"')) == [
        [("set", "optimizer_args=betas=0.9,0.99 eps=1")]
    ]


def test_near_identical_findings_are_said_as_one() -> None:
    found = [Problem(code="bad", must="must be 1", key=f"datasets[{n}].size", line=n) for n in range(22)]
    (one,) = bundled(found)
    assert "and 21 more like it" in one.must
    few = found[: BUNDLED_FROM - 1]
    assert bundled(few) == few
