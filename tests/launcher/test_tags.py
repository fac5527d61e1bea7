"""`dataset tags`: every change shown, undone byte by byte, and nothing outside the folder touched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from launcher.commands.dataset import dataset

TEXTS = {
    "a": b"ohwx, smile, red hat",
    "b": b"\xef\xbb\xbfohwx, Smile, smile, blue sky\r\nohwx, sky\r\n",
    "c": b"a man,smile",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "set" / "training_images" / "10_ohwx"
    place.mkdir(parents=True)
    for name, text in TEXTS.items():
        Image.new("RGB", (64, 64)).save(place / f"{name}.png")
        (place / f"{name}.txt").write_bytes(text)
    Image.new("RGB", (64, 64)).save(place / "d.png")
    return place


def run(folder: Path, *words: str) -> Result:
    return CliRunner().invoke(dataset, ["tags", str(folder.parent.parent), *words])


def document(folder: Path, *words: str) -> dict[str, Any]:
    return json.loads(run(folder, *words, "--json").stdout)


def texts(folder: Path) -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in sorted(folder.glob("*.txt"))}


def test_list_counts_captions_not_occurrences(folder: Path) -> None:
    found = document(folder, "list", "sm*")
    assert (found["images"], found["captions"]) == (4, 3)
    assert (found["tags"]["smile"], found["tags"]["ohwx"], found["tags"]["sky"]) == (3, 2, 1)
    assert found["files"]["sm*"] == [f"training_images/10_ohwx/{name}.txt" for name in "abc"]


@pytest.mark.parametrize(
    ("words", "after"),
    [
        (("add", "ohwx", "--first"), {"c": b"ohwx, a man, smile", "b": None}),
        (("add", "new, tag"), {"a": b"ohwx, smile, red hat, new, tag"}),
        (("remove", "SMILE"), {"a": b"ohwx, red hat", "c": b"a man"}),
        (("remove", "* hat", "?mile"), {"a": b"ohwx"}),
        (("replace", "smile", "grin", "happy"), {"a": b"ohwx, grin, happy, red hat"}),
        (("replace", "smile", "red hat"), {"a": b"ohwx, red hat"}),
        (("replace", "hat", "cap", "--text"), {"a": b"ohwx, smile, red cap", "c": None}),
        (("dedupe",), {"a": None, "c": None}),
        (("sort",), {"a": b"ohwx, red hat, smile"}),
        (("sort", "--by", "count", "--keep", "0"), {"a": b"smile, ohwx, red hat"}),
    ],
)
def test_a_change_and_its_undoing(folder: Path, words: tuple[str, ...], after: dict[str, bytes | None]) -> None:
    shown = document(folder, *words, "--dry-run")
    assert texts(folder) == TEXTS
    made = document(folder, *words)
    assert made["changed"] == shown["changed"]
    for name, text in after.items():
        assert texts(folder)[name] == (TEXTS[name] if text is None else text), name
    assert run(folder, "undo").exit_code == 0
    assert texts(folder) == TEXTS


def test_lines_marks_and_line_ends_stay(folder: Path) -> None:
    run(folder, "dedupe")
    assert texts(folder)["b"] == b"\xef\xbb\xbfohwx, Smile, blue sky\r\nohwx, sky\r\n"


def test_captions_are_created_only_when_asked(folder: Path) -> None:
    assert "1 images have no caption" in run(folder, "add", "x").stdout
    assert not (folder / "d.txt").exists()
    run(folder, "undo")
    run(folder, "add", "x", "--create")
    assert (folder / "d.txt").read_bytes() == b"x"
    run(folder, "undo")
    assert texts(folder) == TEXTS


def test_undo_leaves_what_was_changed_since(folder: Path) -> None:
    run(folder, "add", "x")
    (folder / "a.txt").write_bytes(b"mine")
    undone = document(folder, "undo")
    assert [one["file"] for one in undone["left_out"]] == ["training_images/10_ohwx/a.txt"]
    assert texts(folder) == TEXTS | {"a": b"mine"}
    assert document(folder, "undo")["problems"][0]["code"] == "nothing-to-undo"


def test_several_changes_are_undone_newest_first(folder: Path) -> None:
    run(folder, "add", "x")
    run(folder, "remove", "x")
    run(folder, "undo")
    assert texts(folder)["a"].endswith(b", x")
    run(folder, "undo")
    assert texts(folder) == TEXTS


def test_what_is_no_text_or_lies_outside_is_named_and_the_rest_done(folder: Path, tmp_path: Path) -> None:
    (folder / "a.txt").write_bytes(b"caf\xe9")
    (tmp_path / "secret.txt").write_text("key", encoding="utf-8")
    (folder / "b.txt").unlink()
    (folder / "b.txt").symlink_to(tmp_path / "secret.txt")
    result = run(folder, "add", "x")
    assert result.exit_code == 1
    assert "a.txt: is not UTF-8 text at byte 3" in result.stderr
    assert "b.txt: is a link that leads out of the folder" in result.stderr
    assert (folder / "c.txt").read_bytes() == b"a man, smile, x"
    assert (tmp_path / "secret.txt").read_text(encoding="utf-8") == "key"


@pytest.mark.parametrize("history", ["{", '{"changes": [{}]}', '{"changes": [{"words": [], "files": [{"file": 1}]}]}'])
def test_a_history_that_is_not_ours_is_named(folder: Path, history: str) -> None:
    (folder.parent.parent / ".kohyakit-tags.json").write_text(history, encoding="utf-8")
    assert document(folder, "undo")["problems"][0]["code"] == "bad-history"
    assert document(folder, "add", "x")["problems"][0]["code"] == "bad-history"
    assert texts(folder) == TEXTS


@pytest.mark.parametrize(
    "words", [("add",), ("replace", "a"), ("sort", "x"), ("replace", "a", "b", "c", "--text"), ("list", "--first")]
)
def test_wrong_words_exit_2(folder: Path, words: tuple[str, ...]) -> None:
    assert run(folder, *words).exit_code == 2
