"""The one door through which images are opened, and what a folder of them holds."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from schemas.files.textfile import read_bytes, read_text
from schemas.problems import ConfigError
from trainer.dataset import images
from trainer.dataset.images import Unreadable, kind_of, opened
from trainer.dataset.names import Names
from trainer.dataset.pictures import ahead, list_folder, read_facts


def refused(source: Path | bytes) -> str:
    with pytest.raises(Unreadable) as caught, opened(source) as image:
        image.load()
    assert "object at 0x" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
        (b"\xc5\xd0\xd3\xc6" + bytes(60), "PostScript"),
        (b"%PDF-1.7\n", "PDF"),
        (b"<svg xmlns='x'/>", "SVG"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid x", "git lfs pull"),
        (b"", "empty"),
        (b"hello", "none of PNG"),
        (b"P6 1 1 255 abc", "none of PNG"),
        (b"\0\0\0\x18ftypheic" + bytes(40), "HEIC"),
        (b"\xff\xd8\xff\xe0junk", "cannot be read whole"),
        (b"\x89PNG\r\n\x1a\n" + bytes(30), "cannot be read whole"),
        (b"GIF89a", "cannot be read whole"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "cannot be read whole"),
    ],
)
def test_what_is_no_image_is_said_in_a_file_and_in_memory(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "a.png").write_bytes(content)
    assert said in refused(tmp_path / "a.png")
    assert said in refused(content)


def test_no_program_is_started_for_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*words: object, **settings: object) -> None:
        raise AssertionError(f"started {words}")

    monkeypatch.setattr("subprocess.Popen", started)
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    assert read_facts(tmp_path / "a.png", verify=True).fault


def test_what_is_no_plain_file_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "gone.png").symlink_to("nowhere")
    (tmp_path / "folder").mkdir()
    assert "pipe" in refused(tmp_path / "fifo.png")
    assert "device" in refused(tmp_path / "zero.png")
    assert "a folder" in refused(tmp_path / "folder")
    assert "symbolic links" in refused(tmp_path / "loop.png")
    assert "does not exist" in refused(tmp_path / "gone.png")
    assert refused(tmp_path / "missing.png") == "is missing"


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def test_a_decompression_bomb_is_refused_by_its_header() -> None:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    assert "pixels" in refused(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(999))))


def test_a_file_too_large_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.bmp")
    monkeypatch.setattr(images, "LARGEST_FILE", 1000)
    assert "at most 1000" in refused(tmp_path / "a.bmp")


def test_a_png_with_megabytes_of_text_is_read(tmp_path: Path) -> None:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("workflow", "x" * 2_800_000, zip=True)
    texts.add_text("plain", "y" * 2_800_000)
    texts.add_itxt("more", "z" * 70_000_000, zip=True)
    Image.new("RGB", (6, 4), "red").save(tmp_path / "a.png", pnginfo=texts)
    with opened(tmp_path / "a.png") as image:
        assert image.convert("RGB").getpixel((5, 3)) == (255, 0, 0)


@pytest.mark.parametrize("format", images.FORMATS)
def test_every_kind_is_known_by_its_content(tmp_path: Path, format: str) -> None:
    Image.new("RGB", (32, 32), "blue").save(tmp_path / "a", format)
    assert kind_of((tmp_path / "a").read_bytes()[: images.HEAD]) == format
    facts = read_facts(tmp_path / "a", verify=True)
    assert (facts.fault, facts.width) == (None, 32)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
def test_every_cut_off_kind_is_found(tmp_path: Path, format: str) -> None:
    path = tmp_path / "a.png"
    Image.effect_noise((128, 128), 90).convert("RGB").save(path, format)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    assert read_facts(path, verify=True).fault


def test_a_folder_is_listed_by_content_where_the_extension_says_nothing(tmp_path: Path) -> None:
    for name in ("a.png", "B.JPG", "c.jfif", "d", "e.heic", "f.png.bak", "g.txt", ".h.png", "i.png~"):
        Image.new("RGB", (8, 8)).save(tmp_path / name, "JPEG")
    Image.new("RGB", (8, 8)).save(tmp_path / "j.gif")
    (tmp_path / "k.heic").write_bytes(b"x")
    (tmp_path / "l.dat").write_bytes(b"BM is how this text begins, and no bitmap")
    (tmp_path / "m.png").mkdir()
    listing = list_folder(tmp_path)
    assert [path.name for path in listing.images] == ["B.JPG", "a.png", "c.jfif", "d", "e.heic"]
    assert listing.unusual == ("c.jfif", "d", "e.heic")
    assert listing.others == ("j.gif", "k.heic")


def test_names_are_found_as_written_first() -> None:
    names = Names(["A.txt", "a.txt", "Stra\xdfe.txt", "cafe\u0301.txt"])
    assert names.like("a.txt") == ["a.txt", "A.txt"]
    assert names.like("a.TXT") == ["A.txt", "a.txt"]
    assert names.find("STRASSE.TXT") == "Stra\xdfe.txt"
    assert names.find("CAF\xc9.txt") == "cafe\u0301.txt"
    assert names.find("b.txt") is None


def test_working_ahead_keeps_order_and_few_items() -> None:
    asked: list[int] = []

    def items() -> object:
        for number in range(100):
            asked.append(number)
            yield number

    results = ahead(lambda number: number * 2, items(), 2)  # type: ignore[arg-type]
    assert next(results) == 0
    assert len(asked) < 12
    assert list(results) == [number * 2 for number in range(1, 100)]


def code(path: Path, limit: int = 100) -> str:
    with pytest.raises(ConfigError) as caught:
        read_text(path, limit=limit, what="a caption")
    return caught.value.problems[0].code


def test_text_is_read_from_regular_files_of_bounded_size_only(tmp_path: Path) -> None:
    good = tmp_path / "good.txt"
    good.write_bytes(b"\xef\xbb\xbfcat")
    assert read_text(good, limit=6, what="a caption") == "cat"
    assert read_bytes(good, limit=6, what="a caption") == b"\xef\xbb\xbfcat"
    assert code(good, limit=5) == "file-too-large"
    good.write_bytes(b"caf\xe9")
    assert code(good) == "not-utf8"
    os.mkfifo(tmp_path / "fifo")
    assert code(tmp_path / "fifo") == "not-a-regular-file"
    (tmp_path / "zero").symlink_to("/dev/zero")
    assert code(tmp_path / "zero") == "not-a-regular-file"
    assert code(tmp_path) == "not-a-regular-file"
    assert code(tmp_path / "missing") == "no-file"
    assert code(tmp_path / "a\0b") == "cannot-read"
