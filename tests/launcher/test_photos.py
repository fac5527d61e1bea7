"""From a folder or zip of photos to a training folder, and what `dataset check` says of one."""

from __future__ import annotations

import base64
import importlib
import io
import json
import os
import random
import stat
import zipfile
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image, ImageFilter

from launcher.commands.dataset import dataset
from launcher.photos.prepare import auto_repeats
from schemas import from_flat
from trainer.dataset.files import scan
from trainer.toy import world


def run(*words: object) -> Result:
    return CliRunner().invoke(dataset, [str(word) for word in words])


def document(*words: object) -> dict[str, Any]:
    return json.loads(run(*words, "--json").stdout)


def draw(seed: int, size: int) -> Image.Image:
    """Four pictures of the toy world in one."""
    page, half = Image.new("RGB", (size, size)), size // 2
    for number in range(4):
        rng = random.Random(f"{seed}/{number}")
        page.paste(world.draw(world.chosen(rng), rng, half), (half * (number % 2), half * (number // 2)))
    return page


def photo(path: Path, seed: int = 0, size: int = 300, **save: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    draw(seed, size).save(path, **save)
    return path


@pytest.fixture
def shoot(tmp_path: Path) -> Path:
    """Three photos, two captions, one stray file."""
    folder = tmp_path / "shoot"
    for number in (1, 2, 10):
        photo(folder / f"IMG_{number}.jpg", number)
    (folder / "IMG_1.txt").write_text("N0m3, first", encoding="utf-8")
    (folder / "IMG_2.txt").write_text("\ufeffN0m3, zweite ä", encoding="utf-8")
    (folder / "notes.pdf").write_bytes(b"%PDF")
    return folder


def trained(folder: Path) -> Path:
    """A checked folder of three different pictures: parent/10_N0m3."""
    for number in range(3):
        photo(folder / "10_N0m3" / f"N0m3_{number}.png", number)
        (folder / "10_N0m3" / f"N0m3_{number}.txt").write_text(f"N0m3, tag{number}", encoding="utf-8")
    return folder


def codes(folder: Path, *words: object) -> dict[str, int]:
    found: dict[str, int] = {}
    for problem in document("check", folder, *words)["problems"]:
        found[problem["code"]] = found.get(problem["code"], 0) + 1
    return found


# prepare


def test_prepare_makes_the_three_folders(shoot: Path, tmp_path: Path) -> None:
    made = document("prepare", shoot, "--name", "N0m3")
    target = tmp_path / "shoot_N0m3"
    assert made["directory"] == str(target)
    names = ["names_N0m3.txt", "result_current", "training_images", "txt2img-images"]
    assert sorted(path.name for path in target.iterdir()) == names
    assert sorted(path.name for path in (target / "training_images" / "133_N0m3").iterdir()) == [
        "N0m3_001.png",
        "N0m3_001.txt",
        "N0m3_002.png",
        "N0m3_002.txt",
        "N0m3_003.png",
    ]


def test_captions_follow_their_pictures_without_bom(shoot: Path, tmp_path: Path) -> None:
    run("prepare", shoot, "--name", "N0m3", "--to", tmp_path / "out", "--repeats", 5)
    folder = tmp_path / "out" / "training_images" / "5_N0m3"
    assert (folder / "N0m3_002.txt").read_bytes() == "N0m3, zweite ä".encode()


def test_nothing_is_left_out_silently(shoot: Path, tmp_path: Path) -> None:
    (shoot / "IMG_9.heic").write_bytes(b"x")
    (shoot / "lonely.txt").write_text("caption", encoding="utf-8")
    made = document("prepare", shoot, "--name", "N0m3")
    assert {one["file"] for one in made["left_out"]} == {"notes.pdf", "IMG_9.heic", "lonely.txt"}
    assert [one["from"] for one in made["written"]] == ["IMG_1.jpg", "IMG_2.jpg", "IMG_10.jpg"]


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "shoot").mkdir()
    draw(0, 300).resize((300, 200)).save(tmp_path / "shoot" / "a.jpg", exif=exif)
    made = document("prepare", tmp_path / "shoot", "--name", "x")
    with Image.open(Path(made["folder"]) / "x_001.png") as image:
        assert image.size == (200, 300)
        assert 0x0112 not in image.getexif()


def test_keep_format_keeps_the_bytes(shoot: Path, tmp_path: Path) -> None:
    made = document("prepare", shoot, "--name", "N0m3", "--keep-format")
    assert (Path(made["folder"]) / "N0m3_001.jpg").read_bytes() == (shoot / "IMG_1.jpg").read_bytes()


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    (tmp_path / "shoot").mkdir()
    Image.new("I;16", (300, 300), 32768).save(tmp_path / "shoot" / "a.png")
    made = document("prepare", tmp_path / "shoot", "--name", "x")
    with Image.open(Path(made["folder"]) / "x_001.png") as image:
        assert image.getpixel((0, 0)) in [(127, 127, 127), (128, 128, 128)]


def test_source_stays_as_it_is(shoot: Path) -> None:
    before = {path: path.read_bytes() for path in shoot.iterdir()}
    run("prepare", shoot, "--name", "N0m3")
    assert {path: path.read_bytes() for path in shoot.iterdir()} == before


def test_existing_target_is_refused_and_kept(shoot: Path, tmp_path: Path) -> None:
    run("prepare", shoot, "--name", "N0m3")
    again = run("prepare", shoot, "--name", "N0m3", "--repeats", 7)
    assert again.exit_code == 1
    assert "is not overwritten" in again.stderr
    assert [path.name for path in (tmp_path / "shoot_N0m3" / "training_images").iterdir()] == ["133_N0m3"]


def test_second_concept_joins_the_first(shoot: Path, tmp_path: Path) -> None:
    run("prepare", shoot, "--name", "one", "--to", tmp_path / "out", "--repeats", 1)
    assert run("prepare", shoot, "--name", "two", "--to", tmp_path / "out", "--repeats", 1).exit_code == 0
    assert sorted(path.name for path in (tmp_path / "out" / "training_images").iterdir()) == ["1_one", "1_two"]


def test_what_cannot_be_read_is_named_and_the_rest_is_used(shoot: Path) -> None:
    (shoot / "IMG_1.jpg").write_bytes((shoot / "IMG_1.jpg").read_bytes()[:600])
    (shoot / "IMG_2.txt").write_bytes(b"caf\xe9")
    assert run("prepare", shoot, "--name", "N0m3", "--to", shoot.parent / "first").exit_code == 3
    made = document("prepare", shoot, "--name", "N0m3")
    assert not made["ok"]
    assert [(one["from"], one["to"], one["caption"]) for one in made["written"]] == [
        ("IMG_2.jpg", "N0m3_001.png", None),
        ("IMG_10.jpg", "N0m3_002.png", None),
    ]
    left_out = {one["file"]: one["why"] for one in made["left_out"]}
    assert left_out.keys() == {"IMG_1.jpg", "IMG_2.txt", "notes.pdf"}
    assert "UTF-8" in left_out["IMG_2.txt"]
    assert made["repeats"] == 200  # of the two that are there


def test_nothing_is_written_where_no_picture_can_be_read(shoot: Path, tmp_path: Path) -> None:
    for photo_file in shoot.glob("*.jpg"):
        photo_file.write_bytes(photo_file.read_bytes()[:600])
    refused = run("prepare", shoot, "--name", "N0m3")
    assert refused.exit_code == 1
    assert all(f"IMG_{number}.jpg" in refused.stderr for number in (1, 2, 10))
    assert not (tmp_path / "shoot_N0m3").exists()


def test_skip_unreadable_of_older_scripts_is_still_taken(shoot: Path) -> None:
    (shoot / "IMG_1.jpg").write_bytes(b"not a picture")
    assert run("prepare", shoot, "--name", "x", "--skip-unreadable").exit_code == 0
    made = document("prepare", shoot, "--name", "N0m3", "--skip-unreadable")
    assert made["images"] == 2
    assert "IMG_1.jpg" in {one["file"] for one in made["left_out"]}


def test_old_and_new_names_are_told_in_a_list(shoot: Path, tmp_path: Path) -> None:
    shown = run("prepare", shoot, "--name", "N0m3").stdout
    listed = (tmp_path / "shoot_N0m3" / "names_N0m3.txt").read_text(encoding="utf-8")
    assert "IMG_10.jpg\tN0m3_003.png" in listed
    assert "IMG_1.jpg -> N0m3_001.png" in shown
    assert "names_N0m3.txt" in shown


def test_a_list_of_names_that_is_not_ours_is_kept(shoot: Path, tmp_path: Path) -> None:
    mine = tmp_path / "out" / "names_N0m3.txt"
    mine.parent.mkdir()
    mine.write_text("mine", encoding="utf-8")
    assert run("prepare", shoot, "--name", "N0m3", "--to", tmp_path / "out").exit_code == 1
    assert mine.read_text(encoding="utf-8") == "mine"


def test_captions_are_matched_whatever_their_case_and_unicode_form(tmp_path: Path) -> None:
    for name in ("U.JPG", "cafe\u0301.png"):
        photo(tmp_path / "a" / name, len(name))
    (tmp_path / "a" / "u.TXT").write_text("upper", encoding="utf-8")
    (tmp_path / "a" / "caf\xe9.txt").write_text("accent", encoding="utf-8")
    made = document("prepare", tmp_path / "a", "--name", "x")
    assert {one["from"]: one["caption"] for one in made["written"]} == {"U.JPG": "upper", "cafe\u0301.png": "accent"}
    assert made["left_out"] == []


def test_images_are_known_by_their_content(tmp_path: Path) -> None:
    for name in ("a.jfif", "b", "c.txt.jpeg"):
        photo(tmp_path / "a" / name, len(name), format="JPEG")
    assert document("prepare", tmp_path / "a", "--name", "x")["images"] == 3


def test_a_caption_that_links_out_of_the_folder_is_not_copied(shoot: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("key", encoding="utf-8")
    (shoot / "IMG_1.txt").unlink()
    (shoot / "IMG_1.txt").symlink_to(tmp_path / "secret")
    made = document("prepare", shoot, "--name", "N0m3")
    assert made["captions"] == 1
    assert "IMG_1.txt" in {one["file"] for one in made["left_out"]}


@pytest.mark.parametrize("token", ["", "a/b", "..", "a:b", " x", "x."])
def test_token_that_cannot_be_a_file_name_is_refused(shoot: Path, token: str) -> None:
    assert document("prepare", shoot, "--name", token)["problems"][0]["code"] == "bad-name"


def test_target_inside_the_source_is_refused(shoot: Path) -> None:
    assert document("prepare", shoot, "--name", "x", "--to", shoot / "out")["problems"][0]["code"] == "target-in-source"


def test_empty_folder_says_what_it_found(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.pdf").write_bytes(b"x")
    assert "1 files, none an image" in run("prepare", tmp_path / "a", "--name", "x").stderr


def test_json_refusal_is_one_document(tmp_path: Path) -> None:
    refused = run("prepare", tmp_path / "missing", "--name", "x", "--json")
    assert refused.exit_code == 1
    assert json.loads(refused.stdout)["problems"][0]["code"] == "no-source"


@pytest.mark.parametrize("words", [["--repeats", "0"], ["--repeats", "some"], []])
def test_wrong_words_exit_2(shoot: Path, words: list[str]) -> None:
    name = ["--name", "x"] if words else []
    assert run("prepare", shoot, *name, *words).exit_code == 2


@pytest.mark.parametrize(("images", "repeats"), [(1, 400), (7, 57), (20, 20), (36, 11), (800, 1), (2000, 1)])
def test_auto_repeats(images: int, repeats: int) -> None:
    assert auto_repeats(images) == repeats


# zip


def packed(path: Path, members: dict[str, bytes], **modes: int) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = modes.get(name, stat.S_IFREG | 0o644) << 16
            archive.writestr(info, content)
    return path


def test_zip_is_read_with_its_captions(shoot: Path, tmp_path: Path) -> None:
    content = (shoot / "IMG_1.jpg").read_bytes()
    members = {"photos/a.jpg": content, "photos/a.txt": b"hello", "__MACOSX/photos/._a.jpg": b"junk"}
    made = document("prepare", packed(tmp_path / "album.zip", members), "--name", "x")
    assert made["directory"] == str(tmp_path / "album_x")
    assert [(one["from"], one["caption"]) for one in made["written"]] == [("photos/a.jpg", "hello")]


@pytest.mark.parametrize("name", ["../evil.png", "/etc/evil.png", "a/../../evil.png", "C:/evil.png", "..\\evil.png"])
def test_zip_with_path_tricks_is_refused_whole(tmp_path: Path, name: str) -> None:
    archive = packed(tmp_path / "a.zip", {name: b"x", "good.png": b"x"})
    assert [(one["code"], one["key"]) for one in document("prepare", archive, "--name", "x")["problems"]] == [
        ("unsafe-archive", name)
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip"]


def test_zip_with_a_link_is_refused(tmp_path: Path) -> None:
    archive = packed(tmp_path / "a.zip", {"link": b"/etc/passwd"}, link=stat.S_IFLNK | 0o777)
    assert "is a link" in run("prepare", archive, "--name", "x").stderr


def test_zip_bomb_is_refused(tmp_path: Path) -> None:
    archive = packed(tmp_path / "a.zip", {"bomb.png": bytes(20 << 20)})
    assert "suspicious multiple" in run("prepare", archive, "--name", "x").stderr


def test_broken_zip_member_is_named(shoot: Path, tmp_path: Path) -> None:
    archive = packed(tmp_path / "a.zip", {"a.jpg": (shoot / "IMG_1.jpg").read_bytes()})
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 0xFF
    archive.write_bytes(content)
    assert document("prepare", archive, "--name", "x")["problems"][0]["key"] == "a.jpg"


def test_a_zip_of_odd_names_is_read_or_refused(tmp_path: Path) -> None:
    photo(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    long = packed(tmp_path / "long.zip", {"1" * 5000 + ".png": content, "\u0663\xb2.png": content})
    assert document("prepare", long, "--name", "x")["images"] == 2
    bad = packed(tmp_path / "bad.zip", {"\xe9.png": content})
    bad.write_bytes(bad.read_bytes().replace("\xe9".encode(), b"\xff\xff"))
    assert document("prepare", bad, "--name", "x")["problems"][0]["code"] == "unreadable-archive"


def test_a_source_without_an_end_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "photos.zip")
    assert document("prepare", tmp_path / "photos.zip", "--name", "x")["problems"][0]["code"] == "not-a-source"


def test_new_photos_are_added_and_none_of_the_old_is_renamed(shoot: Path, tmp_path: Path) -> None:
    made = document("prepare", shoot, "--name", "N0m3")
    folder = Path(made["folder"])
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    photo(shoot / "IMG_0.jpg", 77)  # first by name, and still last in the folder
    (shoot / "IMG_0.txt").write_text("N0m3, new", encoding="utf-8")
    again = document("prepare", shoot, "--name", "N0m3")
    assert ([(one["from"], one["to"]) for one in again["written"]], again["already_there"]) == (
        [("IMG_0.jpg", "N0m3_004.png")],
        3,
    )
    assert before.items() <= {path.name: path.read_bytes() for path in folder.iterdir()}.items()
    names = (tmp_path / "shoot_N0m3" / "names_N0m3.txt").read_text(encoding="utf-8").splitlines()
    assert [line.split("\t")[1] for line in names[1:]] == [f"N0m3_00{number}.png" for number in (1, 2, 3, 4)]
    assert document("prepare", shoot, "--name", "N0m3")["images"] == 0


def test_a_preset_makes_a_config_that_plans(shoot: Path, tmp_path: Path) -> None:
    from launcher.check.resolve import resolve

    made = document("prepare", shoot, "--name", "N0m3", "--preset", "sd15-character", "--reg", shoot)
    assert made["next"].startswith(f"kohyakit launch {tmp_path / 'shoot_N0m3' / 'N0m3.json'}")
    config = resolve(made["config"]).config
    assert (config.train_data_dir, config.output_name) == (made["train_data_dir"], "N0m3")
    assert config.reg_data_dir == str(tmp_path / "shoot_N0m3" / "reg_images")
    seen = scan(config)
    assert {(sample.path.parent.name, sample.is_reg) for sample in seen.samples} == {
        ("133_N0m3", False),
        ("1_shoot", True),
    }
    Path(made["config"]).write_text("{}", encoding="utf-8")
    run("prepare", shoot, "--name", "N0m3", "--preset", "sd15-character")
    assert Path(made["config"]).read_text(encoding="utf-8") == "{}"


def test_an_unknown_preset_is_refused_before_anything_is_written(shoot: Path, tmp_path: Path) -> None:
    assert run("prepare", shoot, "--name", "N0m3", "--preset", "no-such").exit_code in (1, 2)
    assert not (tmp_path / "shoot_N0m3").exists()


@pytest.mark.parametrize(("module", "suffix"), [("pillow_heif", ".heic"), ("pillow_jxl", ".jxl"), (None, ".avif")])
def test_photos_of_phones_are_read(shoot: Path, module: str | None, suffix: str) -> None:
    plugin = importlib.import_module(module) if module else None
    if module == "pillow_heif":
        assert plugin is not None
        plugin.register_heif_opener()
    draw(5, 320).save(shoot / f"phone{suffix}")
    made = document("prepare", shoot, "--name", "N0m3")
    written = {one["from"]: (one["width"], one["height"]) for one in made["written"]}
    assert written[f"phone{suffix}"] == (320, 320)


def test_a_missing_plugin_is_named_with_its_package(shoot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trainer.dataset import images

    monkeypatch.setattr(images, "_plugin", lambda kind: None)
    (shoot / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(64))
    left_out = {one["file"]: one["why"] for one in document("prepare", shoot, "--name", "N0m3")["left_out"]}
    assert "pip install pillow-heif" in left_out["a.heic"]


def test_captions_in_utf16_become_utf8(shoot: Path) -> None:
    (shoot / "IMG_1.txt").write_bytes("N0m3, ä".encode("utf-16"))
    made = document("prepare", shoot, "--name", "N0m3")
    assert made["written"][0]["caption"] == "N0m3, ä"
    assert (Path(made["folder"]) / "N0m3_001.txt").read_bytes() == "N0m3, ä".encode()


# check


def test_clean_folder_has_a_bucket_table_and_tags(tmp_path: Path) -> None:
    found = document("check", trained(tmp_path / "t"))
    assert found["ok"]
    assert sum(bucket["images"] for bucket in found["buckets"]) == 3
    assert found["tags"]["N0m3"] == 3
    assert {problem["code"] for problem in found["problems"]} == {"image-count", "crop-loss"}  # 300 pixels in 256


def test_what_prepare_makes_passes_check(shoot: Path) -> None:
    made = document("prepare", shoot, "--name", "N0m3")
    assert run("check", made["directory"]).exit_code == 0
    assert run("check", made["train_data_dir"]).exit_code == 0


def test_truncated_picture_is_an_error(tmp_path: Path) -> None:
    folder = trained(tmp_path / "t")
    file = folder / "10_N0m3" / "N0m3_1.png"
    file.write_bytes(file.read_bytes()[:800])
    result = run("check", folder)
    assert result.exit_code == 1
    assert "10_N0m3/N0m3_1.png: cannot be read whole" in result.stdout


def test_exact_duplicate(tmp_path: Path) -> None:
    folder = trained(tmp_path / "t")
    photo(folder / "10_N0m3" / "again.png", 1)
    pairs = document("check", folder)["duplicates"]
    assert [(pair["kind"], sorted(pair["files"])) for pair in pairs] == [
        ("exact", ["10_N0m3/N0m3_1.png", "10_N0m3/again.png"])
    ]


def test_near_duplicate_survives_scaling_and_jpeg(tmp_path: Path) -> None:
    folder = trained(tmp_path / "t")
    draw(1, 300).resize((280, 280)).save(folder / "10_N0m3" / "again.jpg", quality=70)
    assert [pair["kind"] for pair in document("check", folder)["duplicates"]] == ["near"]


def test_mirrored_duplicate(tmp_path: Path) -> None:
    folder = trained(tmp_path / "t")
    draw(1, 300).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "10_N0m3" / "again.png")
    assert codes(folder)["mirrored-duplicate"] == 1


def test_captions_missing_empty_and_not_utf8(tmp_path: Path) -> None:
    folder = trained(tmp_path / "t")
    (folder / "10_N0m3" / "N0m3_0.txt").unlink()
    (folder / "10_N0m3" / "N0m3_1.txt").write_text(" \n", encoding="utf-8")
    (folder / "10_N0m3" / "N0m3_2.txt").write_bytes(b"caf\xe9")
    found = codes(folder)
    assert (found["caption-missing"], found["caption-empty"], found["caption-encoding"]) == (1, 1, 1)


def test_captions_of_another_extension_are_pointed_out(tmp_path: Path) -> None:
    assert codes(trained(tmp_path / "t"), "--caption-extension", ".caption")["caption-extension"] == 1


def test_numbered_folder_itself_names_its_parent(tmp_path: Path) -> None:
    folder = trained(tmp_path / "t")
    problem = next(p for p in document("check", folder / "10_N0m3")["problems"] if p["code"] == "numbered-folder")
    assert str(folder) in problem["fix"]


def test_plain_folder_of_pictures_is_the_wrong_level(shoot: Path) -> None:
    assert run("check", shoot).exit_code == 1
    assert "no-numbered-folder" in codes(shoot)


def test_numbered_folders_too_deep(tmp_path: Path) -> None:
    trained(tmp_path / "top" / "inner")
    assert "wrong-level" in codes(tmp_path / "top")


def test_small_turned_and_transparent_pictures(tmp_path: Path) -> None:
    folder = trained(tmp_path / "t") / "10_N0m3"
    exif = Image.Exif()
    exif[0x0112] = 8
    draw(5, 300).save(folder / "turned.jpg", exif=exif)
    photo(folder / "small.png", 6, size=100)
    image = draw(7, 300).convert("RGBA")
    image.putalpha(100)
    image.save(folder / "clear.png")
    found = codes(folder.parent)
    assert (found["small-image"], found["exif-rotation"], found["transparency"]) == (1, 1, 1)


def test_same_stem_twice(tmp_path: Path) -> None:
    folder = trained(tmp_path / "t")
    photo(folder / "10_N0m3" / "N0m3_0.webp", 9)
    assert codes(folder)["same-stem"] == 1


def test_many_alike_are_summed_up(tmp_path: Path) -> None:
    for number in range(9):
        photo(tmp_path / "t" / "1_x" / f"{number}.png", number, size=64)
    shown = run("check", tmp_path / "t").stdout
    assert "warning[small-image]: 9 images: has a side below 256 pixels: 1_x/0.png (64x64)" in shown
    assert "and 4 more (--json lists all)" in shown


def test_sheet_is_one_page_with_every_picture(tmp_path: Path) -> None:
    run("check", trained(tmp_path / "t"), "--sheet", tmp_path / "sheet.html")
    page = (tmp_path / "sheet.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64,") == 3
    assert "http" not in page


def test_the_sheet_shows_every_error_and_reads_on_a_phone_in_the_dark(tmp_path: Path) -> None:
    folder = trained(tmp_path / "t")
    image = Image.new("RGBA", (300, 300), (0, 0, 0, 0))
    image.save(folder / "10_N0m3" / "clear.png")
    broken = folder / "10_N0m3" / "broken.png"
    broken.write_bytes(b"text")
    (folder / "10_N0m3" / "N0m3_2.txt").write_bytes(b"caf\xe9")
    run("check", folder, "--sheet", tmp_path / "sheet.html")
    page = (tmp_path / "sheet.html").read_text(encoding="utf-8")
    assert "name='viewport'" in page
    assert "prefers-color-scheme: dark" in page
    figures = page[page.index("<main>") : page.index("</main>")].split("<figure")[1:]
    wrong = [figure for figure in figures if "class='error'" in figure]
    assert [name for figure in wrong for name in ("broken.png", "N0m3_2.png") if name in figure] == [
        "broken.png",
        "N0m3_2.png",
    ]
    assert figures[: len(wrong)] == wrong
    assert page.index("<main>") < page.index("<summary>Tags")
    shown = next(figure for figure in figures if "clear.png" in figure).split("base64,")[1].partition("'")[0]
    with Image.open(io.BytesIO(base64.b64decode(shown))) as thumbnail:
        assert min(thumbnail.convert("L").tobytes()) > 250  # as it is trained: on white


def test_a_sheet_into_a_missing_folder_is_refused_at_once(tmp_path: Path) -> None:
    refused = run("check", trained(tmp_path / "t"), "--sheet", tmp_path / "none" / "sheet.html")
    assert (refused.exit_code, "no such folder" in refused.stderr) == (1, True)


def test_photos_that_teach_little_are_hinted_at_with_their_numbers(tmp_path: Path) -> None:
    folder = tmp_path / "t" / "10_N0m3"
    folder.mkdir(parents=True)
    draw(1, 600).save(folder / "sharp.png")
    draw(2, 600).filter(ImageFilter.GaussianBlur(5)).save(folder / "soft.png")
    draw(3, 600).point(lambda value: value // 12).save(folder / "dark.png")
    draw(4, 600).point(lambda value: min(255, value * 4)).save(folder / "bright.png")
    found = {
        (problem["code"], problem["key"]): problem
        for problem in document("check", folder.parent)["problems"]
        if problem["code"] in ("blurred-image", "dark-image", "burnt-out-image")
    }
    assert found.keys() == {
        ("blurred-image", "10_N0m3/soft.png"),
        ("dark-image", "10_N0m3/dark.png"),
        ("burnt-out-image", "10_N0m3/bright.png"),
    }
    assert found["blurred-image", "10_N0m3/soft.png"]["got"] < 60
    assert {problem["severity"] for problem in found.values()} == {"note"}


def test_captions_without_the_word_are_counted(tmp_path: Path) -> None:
    folder = trained(tmp_path / "t")
    (folder / "10_N0m3" / "N0m3_1.txt").write_text("a cat, N0m3", encoding="utf-8")
    (folder / "10_N0m3" / "N0m3_2.txt").write_text("n0m3 sits", encoding="utf-8")
    (remark,) = [p for p in document("check", folder)["problems"] if p["code"] == "caption-trigger"]
    assert remark["must"].startswith("1 of 3 captions")
    assert remark["got"] == ["N0m3_1.png: a cat, N0m3"]


def test_what_lies_too_deep_or_beside_is_named_by_check_and_plan_alike(tmp_path: Path) -> None:
    folder = trained(tmp_path / "t")
    photo(folder / "10_N0m3" / "more" / "z.png", 7)
    photo(folder / "loose.png", 8)
    photo(folder / "others" / "y.png", 9)
    wanted = {"too-deep", "loose-images", "ignored-folder"}
    assert wanted <= codes(folder).keys()
    scanned = scan(from_flat({"train_data_dir": str(folder), "resolution": "64", "caption_extension": ".txt"})[0])
    assert wanted <= {problem.code for problem in scanned.problems}
    assert "10_more" not in run("check", folder).stdout


def test_files_that_are_no_files_do_not_hang(tmp_path: Path) -> None:
    folder = trained(tmp_path / "t") / "10_N0m3"
    for number, make in enumerate((os.mkfifo, lambda path: os.symlink("/dev/zero", path))):
        (folder / f"N0m3_{number}.txt").unlink()
        make(folder / f"N0m3_{number}.txt")
    os.symlink("loop.png", folder / "loop.png")
    os.mkfifo(folder / "pipe.png")
    found = codes(folder.parent)
    assert (found["unreadable-caption"], found["unreadable-image"]) == (2, 2)


def test_a_file_name_that_is_no_text_is_shown_escaped(tmp_path: Path) -> None:
    folder = trained(tmp_path / "t")
    (folder / "10_N0m3" / os.fsdecode(b"caf\xe9.png")).write_bytes(b"no image")
    shown = run("check", folder, "--sheet", tmp_path / "sheet.html")
    assert "caf\\xe9.png" in shown.stdout
    assert any("caf" in (problem["key"] or "") for problem in document("check", folder)["problems"])


def test_long_captions_are_counted_against_the_limit_of_the_training(tmp_path: Path) -> None:
    folder = trained(tmp_path / "t")
    (folder / "10_N0m3" / "N0m3_1.txt").write_text("N0m3" + ", green frog" * 30, encoding="utf-8")
    (problem,) = [p for p in document("check", folder)["problems"] if p["code"] == "caption-tokens"]
    assert (problem["got"], problem["fix"]) == (["N0m3_1.png: 94 tokens"], "set max_token_length to 150")
    assert "caption-tokens" not in codes(folder, "--max-token-length", "150")


def test_the_verdict_on_a_set_that_shows_both_ways_round(tmp_path: Path) -> None:
    folder = trained(tmp_path / "t")
    assert document("check", folder)["orientation"]["verdict"] == "unknown"
    draw(1, 300).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "10_N0m3" / "turned.png")
    draw(1, 300).save(folder / "10_N0m3" / "twice.jpg", quality=80)
    found = document("check", folder)
    assert found["orientation"]["verdict"] == "both-ways"
    assert found["orientation"]["turned"] == ["10_N0m3/turned.png"]  # two against one
    assert "mixed-orientation" in {problem["code"] for problem in found["problems"]}


def test_every_image_is_told_with_its_crop_and_scale(tmp_path: Path) -> None:
    folder = tmp_path / "t" / "10_N0m3"
    folder.mkdir(parents=True)
    draw(1, 600).resize((1200, 200)).save(folder / "wide.png")
    draw(2, 512).save(folder / "square.png")
    found = document("check", folder.parent, "--upscale", "--resolution", "512")
    square, wide = found["files"]
    assert (square["crop"], square["crop_loss"], square["scale"]) == ([0, 0, 512, 512], 0, 1)
    left, top, width, height = wide["crop"]
    assert (round(left * 2 + width), top, height) == (1200, 0, 200)
    assert wide["crop_loss"] == pytest.approx(1 - width / 1200, abs=1e-3)
    assert {"crop-loss", "enlarged-image"} <= codes(folder.parent, "--upscale").keys()


def test_what_a_tagger_saw_and_no_caption_names(tmp_path: Path) -> None:
    folder = trained(tmp_path / "t") / "10_N0m3"
    for number in range(3):
        (folder / f"N0m3_{number}.tags").write_text("N0m3, round glasses, tag1", encoding="utf-8")
    (remark,) = [p for p in document("check", folder.parent)["problems"] if p["code"] == "caption-tags"]
    assert remark["got"] == ["round glasses (3)", "tag1 (2)"]


def test_photos_of_a_front_camera_are_pointed_out(tmp_path: Path) -> None:
    folder = trained(tmp_path / "t") / "10_N0m3"
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA434] = "iPhone 15 front camera 2.69mm f/1.9"
    draw(5, 300).save(folder / "self.jpg", exif=exif)
    assert document("check", folder.parent)["orientation"]["front_camera"] == ["10_N0m3/self.jpg"]


def test_a_folder_two_levels_above_is_recognised(tmp_path: Path) -> None:
    trained(tmp_path / "top" / "mine" / "training_images")
    found = document("check", tmp_path / "top")
    assert (found["ok"], found["images"]) == (True, 3)
    assert "found-deeper" in {problem["code"] for problem in found["problems"]}


def test_a_check_ends_with_what_to_do_next(tmp_path: Path) -> None:
    folder = trained(tmp_path / "t")
    (folder / "10_N0m3" / "N0m3_1.txt").unlink()
    shown = run("check", folder).stdout
    assert f"kohyakit dataset check {folder} --sheet sheet.html" in shown
    assert "kohyakit dataset caption" in shown
    assert f"--set train_data_dir={folder}" in shown


# pack


def test_pack_refuses_what_lies_outside_the_folder(tmp_path: Path) -> None:
    folder = trained(tmp_path / "t")
    (tmp_path / "secret").write_text("key", encoding="utf-8")
    (folder / "10_N0m3" / "N0m3_1.txt").unlink()
    (folder / "10_N0m3" / "N0m3_1.txt").symlink_to(tmp_path / "secret")
    refused = document("pack", folder, "-o", tmp_path / "out.zip")
    assert [(one["code"], one["key"]) for one in refused["problems"]] == [("link-outside", "10_N0m3/N0m3_1.txt")]
    assert not (tmp_path / "out.zip").exists()


def test_pack_into_a_missing_folder_is_refused(tmp_path: Path) -> None:
    refused = run("pack", trained(tmp_path / "t"), "-o", tmp_path / "none" / "out.zip")
    assert (refused.exit_code, "no such folder" in refused.stderr) == (1, True)


def test_pack_holds_pictures_and_captions(tmp_path: Path) -> None:
    assert run("pack", trained(tmp_path / "t"), "-o", tmp_path / "out.zip").exit_code == 0
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert archive.namelist()[:2] == ["N0m3_0.png", "N0m3_0.txt"]
        assert len(archive.namelist()) == 6


def test_pack_does_not_overwrite(tmp_path: Path) -> None:
    (tmp_path / "out.zip").write_bytes(b"mine")
    assert run("pack", trained(tmp_path / "t"), "-o", tmp_path / "out.zip").exit_code == 1
    assert (tmp_path / "out.zip").read_bytes() == b"mine"


def test_pack_refuses_what_the_site_refuses(tmp_path: Path) -> None:
    folder = trained(tmp_path / "t")
    draw(5, 300).save(folder / "10_N0m3" / "a.bmp")
    refused = document("pack", folder, "-o", tmp_path / "out.zip")
    assert [(one["code"], one["key"], one["got"]) for one in refused["problems"]] == [
        ("not-for-civitai", "10_N0m3/a.bmp", "BMP")
    ]
    (folder / "10_N0m3" / "a.bmp").unlink()
    (folder / "10_N0m3").rename(folder / "3000_N0m3")
    refused = document("pack", folder, "-o", tmp_path / "out.zip", "--preset", "civitai-sd15")
    assert [(one["key"], one["got"]) for one in refused["problems"]] == [("targetSteps", 15000)]
    assert list(tmp_path.glob("out.*")) == []


def test_pack_writes_the_training_json_of_a_preset(tmp_path: Path) -> None:
    made = document("pack", trained(tmp_path / "t"), "-o", tmp_path / "out.zip", "--preset", "civitai-sd15")
    params = json.loads(Path(made["json"]).read_text(encoding="utf-8"))
    assert (params["numRepeats"], params["maxTrainEpochs"], params["trainBatchSize"]) == (10, 10, 6)
    assert params["targetSteps"] == 3 * 10 * 10 / 6
    assert list(params)[:2] == ["engine", "unetLR"]
    assert any("seed" in entry for entry in made["lost"])


# caption


def test_caption_hands_its_words_to_the_trainer_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []
    monkeypatch.setattr("launcher.commands.demo.run_module", lambda *words: heard.extend(words) or 0)
    assert run("caption", trained(tmp_path), "--model", "blip", "--prefix", "N0m3, ", "--append").exit_code == 0
    assert heard[:3] == ["trainer.captioning", str(tmp_path), "--mode=append"]
    assert {"--model=blip", "--prefix=N0m3, ", "--beams=9", "--min-length=15", "--batch-size=4"} <= set(heard)


def test_caption_of_a_missing_folder_exits_1(tmp_path: Path) -> None:
    refused = run("caption", tmp_path / "missing", "--model", "blip")
    assert refused.exit_code == 1
    assert "no such folder" in refused.stderr
