"""The images' page: what `dataset check` says, captions that are saved where they are read, and undone."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from launcher.ui import sheet


@pytest.fixture
def checked(page):
    """`checked(folder)`: the document of the check, when it is done."""

    def ask(folder: Path) -> dict[str, Any]:
        for _ in range(600):
            answer = page.get("/api/dataset/check", params={"dir": str(folder)})
            if answer.status_code != 202:
                found: dict[str, Any] = answer.json()
                return found
            time.sleep(0.02)
        raise AssertionError("the check does not end")

    return ask


def test_the_document_is_that_of_the_command(kohyakit, checked, photos: Path) -> None:
    assert checked(photos) == json.loads(kohyakit("dataset", "check", photos, "--json").stdout)


def test_the_sheet_shows_images_captions_findings_tags_and_twins(page, checked, photos: Path) -> None:
    Image.new("RGB", (64, 64), (0, 90, 30)).save(photos / "3_frog" / "twin.png")
    (photos / "3_frog" / "broken.png").write_bytes(b"no image")
    checked(photos)
    text = page.get("/images", params={"dir": str(photos)}).text
    assert "frog, 2</textarea>" in text
    assert "broken.png" in text
    assert "Alike" in text
    assert "frog <span" in text  # the tag, with its count
    flagged = page.get("/images", params={"dir": str(photos), "only": "flagged"}).text
    assert "broken.png" in flagged
    without = page.get("/images", params={"dir": str(photos), "only": "without"}).text
    assert "twin.png" in without
    assert "0.png</b>" not in without
    assert "1.png</b>" in page.get("/images", params={"dir": str(photos), "q": "frog, 1"}).text
    assert "2 images" not in page.get("/images", params={"dir": str(photos), "tag": "2"}).text


def test_a_thumbnail_is_a_small_jpeg_and_what_is_no_image_says_so(page, photos: Path) -> None:
    Image.new("RGB", (2000, 1000)).save(photos / "3_frog" / "large.png")
    answer = page.get("/images/thumb", params={"file": str(photos / "3_frog" / "large.png")})
    assert (answer.headers["content-type"], len(answer.content) < 40_000) == ("image/jpeg", True)
    assert page.get("/images/thumb", params={"file": str(photos / "3_frog" / "0.txt")}).status_code == 422
    assert page.get("/images/thumb", params={"file": str(photos / "none.png")}).status_code == 404


def test_a_caption_is_saved_at_once_and_undone(page, photos: Path, checked) -> None:
    checked(photos)
    image, file = photos / "3_frog" / "0.png", photos / "3_frog" / "0.txt"

    def save(text: str, target: Path = image) -> None:
        answer = page.post("/api/dataset/caption", json={"file": str(target), "caption": text})
        assert answer.status_code == 200, answer.text
        assert answer.json()["caption"] == text

    save("frog, ünder <water>")
    assert file.read_text(encoding="utf-8") == "frog, ünder <water>"
    save("frog, again")
    new = photos / "3_frog" / "new.png"
    Image.new("RGB", (64, 64)).save(new)
    save("fresh", new)
    assert (photos / "3_frog" / "new.txt").read_text() == "fresh"
    undo = {"dir": str(photos)}
    assert page.post("/api/dataset/undo", json=undo).json()["file"] == "new.txt"
    assert not (photos / "3_frog" / "new.txt").exists()  # as it was: none
    page.post("/api/dataset/undo", json=undo)
    assert file.read_text(encoding="utf-8") == "frog, ünder <water>"
    page.post("/api/dataset/undo", json=undo)
    assert file.read_text(encoding="utf-8") == "frog, 0"
    assert page.post("/api/dataset/undo", json=undo).status_code == 422


def test_the_caption_that_training_reads_is_the_one_that_is_written(page, photos: Path) -> None:
    folder = photos / "3_frog"
    (folder / "0.txt").rename(folder / "0.TXT")
    page.post("/api/dataset/caption", json={"file": str(folder / "0.png"), "caption": "mine"})
    assert (folder / "0.TXT").read_text() == "mine"
    assert not (folder / "0.txt").exists() or (folder / "0.txt").samefile(folder / "0.TXT")


@pytest.mark.parametrize("values", [{"extension": "/../x"}, {"extension": ".t/x"}, {"caption": "x" * (2**20 + 1)}])
def test_what_is_no_caption_is_refused(page, photos: Path, values: dict[str, str]) -> None:
    sent = {"file": str(photos / "3_frog" / "0.png"), "caption": "x", **values}
    assert page.post("/api/dataset/caption", json=sent).status_code == 422
    assert page.post(
        "/api/dataset/caption", json={**sent, **values, "file": str(photos / "3_frog" / "0.txt")}
    ).status_code in (404, 422)
    assert (photos / "3_frog" / "0.txt").read_text() == "frog, 0"


def test_a_folder_of_many_images_comes_in_pages_and_at_once(page, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(sheet, "_check", lambda job: None)  # as if it were still under way
    folder = tmp_path / "many" / "1_x"
    folder.mkdir(parents=True)
    for number in range(2000):
        (folder / f"{number}.png").touch()
    begin = time.perf_counter()
    text = page.get("/images", params={"dir": str(folder.parent)}).text
    assert time.perf_counter() - begin < 5
    assert text.count("<figure") == sheet.PAGE
    assert "page 1 of 42" in text
    assert "Looking at the folder" in text
    assert "1999.png" in page.get("/images", params={"dir": str(folder.parent), "page": "42"}).text


def test_a_folder_without_images_says_what_to_do(page, tmp_path: Path, checked) -> None:
    (tmp_path / "empty").mkdir()
    assert checked(tmp_path / "empty")["problems"][0]["fix"]
    assert "holds none" in page.get("/images", params={"dir": str(tmp_path / "empty")}).text
    assert page.get("/images").status_code == 200
