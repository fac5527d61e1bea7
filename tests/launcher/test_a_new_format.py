"""The seam of a format: one defined in tests/toy_format.py is recognised, read, explained, documented, converted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from docs.pages import formats as format_docs
from launcher.about.convert import Written
from launcher.check.resolve import Resolved, resolve
from launcher.formats import readable, recognise, registry
from schemas.problems import ConfigError
from tests.toy_format import FORMAT

ROOT = Path(__file__).parents[2]
TEXT = "#recipe\nbase model.safetensors\nphotos data\ninto out\nsize 512\nwidth-of-lora 8\nspeed 0.0002\nrounds 3\n"


@pytest.fixture(autouse=True)
def known() -> Iterator[None]:
    """The one call that makes the format known, and its undoing."""
    registry.register(FORMAT)
    yield
    registry.unregister(FORMAT.name)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "frog.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def test_no_file_of_the_product_knows_it() -> None:
    sources = [path for top in ("schemas", "launcher", "trainer") for path in (ROOT / top).rglob("*.py")]
    assert [path for path in sources if '"recipe"' in path.read_text(encoding="utf-8")] == []


def test_it_is_recognised_and_unknown_again_without_its_row() -> None:
    assert recognise(TEXT) == "recipe"
    assert "recipe" in readable()
    registry.unregister("recipe")
    with pytest.raises(ConfigError):
        recognise(TEXT)
    assert "recipe" not in readable()


def test_it_is_read_with_a_fate_for_each_key(recipe: Path, kohyakit: Any) -> None:
    document = json.loads(kohyakit("validate", recipe, "--json").stdout)["files"][0]
    assert (document["format"], document["ok"]) == ("recipe", True)
    assert document["keys"]["width-of-lora"] == {
        "status": "renamed", "argument": "network_dim", "value": "8", "why": None,
    }  # fmt: skip
    config = resolve(str(recipe)).config
    assert (config.network_dim, config.learning_rate, config.max_train_epochs) == (8, 2e-4, 3)
    assert json.loads(kohyakit("validate", recipe, "--from", "recipe", "--json").stdout)["files"][0]["ok"]


def test_what_is_wrong_in_it_is_said_with_its_line(recipe: Path, kohyakit: Any) -> None:
    recipe.write_text(TEXT.replace("rounds 3", "rounds three\nspead 1"), encoding="utf-8")
    result = kohyakit("validate", recipe)
    assert result.exit_code == 1
    assert "error[bad-value]: rounds:" in result.output
    assert "    8 | rounds three\n" in result.output
    assert "    9 | spead 1\n      | ^^^^^\n" in result.output
    assert "write speed" in result.output


def test_its_schema_is_printed_and_runs(recipe: Path, kohyakit: Any) -> None:
    assert json.loads(kohyakit("schema", "recipe").stdout)["title"] == "a recipe"
    recipe.write_text(TEXT.replace("rounds 3", "rounds 3.5"), encoding="utf-8")
    found = json.loads(kohyakit("validate", recipe, "--json").stdout)["files"][0]
    assert found["ok"] is False
    assert [(one["key"], one["line"]) for one in found["problems"] if one["severity"] == "error"] == [("rounds", 8)]


def test_its_keys_are_explained(kohyakit: Any) -> None:
    document = json.loads(kohyakit("explain", "width-of-lora", "--json").stdout)
    assert document["argument"] == "network_dim"
    assert document["names"]["recipe"] == ["width-of-lora"]
    assert document["defaults"]["recipe"] == 2
    assert "side of the images in a recipe" in kohyakit("explain", "size").output
    assert "2 (recipes)" in kohyakit("explain", "network_dim").output
    guess = kohyakit("explain", "width-of-lore").output
    assert "width-of-lora" in guess


def test_it_stands_on_the_page_of_formats() -> None:
    page = format_docs.page()
    assert "| `recipe` | A recipe of the tests' own | yes | 9 | 8 | 1 | 0 |" in page
    assert "## recipe" in page
    assert "| `cook` | the name of whoever wrote the recipe |" in page


def test_it_is_written_from_any_other_and_back(recipe: Path, preset: Any, kohyakit: Any, tmp_path: Path) -> None:
    target = tmp_path / "new.recipe"
    result = kohyakit("convert", preset(), "--to", "recipe", "-o", target)
    assert result.exit_code == 0, result.output
    assert "lost: seed = 1: a recipe has no word for it" in result.output
    assert "width-of-lora 4" in target.read_text(encoding="utf-8")
    back = kohyakit("convert", recipe, "--to", "sd-scripts")
    assert "network_dim = 8" in back.stdout
    again = kohyakit("convert", recipe, "--to", "recipe")
    assert sorted(again.stdout.splitlines()) == sorted(TEXT.splitlines())
    assert "recipe" in kohyakit("convert", "--help").output


def careless(resolved: Resolved, beside: Path | None) -> Written:
    return Written("#recipe\nwidth-of-lora 16\n", ".recipe")


def test_what_it_says_otherwise_is_told_as_lost(recipe: Path, kohyakit: Any) -> None:
    """The check on honesty holds for any format: the text is read again and compared."""
    registry.register(replace(FORMAT, writer=f"{__name__}:careless"))
    result = kohyakit("convert", recipe, "--to", "recipe")
    assert "lost: network_dim = 8: it reads as 16 there" in result.stderr
    assert "lost: max_train_epochs = 3: it reads as unset there" in result.stderr
