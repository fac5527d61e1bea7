"""What plan, launch and resume say of images and captions before anything is trained or written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image, ImageOps

from schemas.diagnostics import relative


def cut_off(path: Path) -> Path:
    Image.effect_noise((64, 64), 90).convert("RGB").save(path)
    path.write_bytes(path.read_bytes()[:2000])
    return path


def named(kohyakit, *words: object) -> list[tuple[str, str | None]]:
    return [(one["code"], one.get("file")) for one in json.loads(kohyakit(*words, "--json").stdout)["problems"]]


def test_a_truncated_image_is_found_before_a_run_begins(kohyakit, preset, trainer, photos, tmp_path, files) -> None:
    file, broken = preset(), cut_off(photos / "3_frog" / "cut.png")
    before = files(tmp_path)
    assert kohyakit("plan", file).exit_code == 0  # headers only
    refused = kohyakit("launch", file)
    assert (refused.exit_code, trainer.starts, files(tmp_path)) == (1, [], before)
    assert f"{relative(str(broken))}: image_dir: cannot be read whole" in refused.stderr
    assert kohyakit("launch", file, "--set", "skip_image_check=true").exit_code == 0
    assert len(trainer.starts) == 1


@pytest.mark.parametrize("where", ["regularisation", "validation", "masks"])
def test_so_is_one_that_is_not_trained_on_itself(kohyakit, preset, trainer, photos, tmp_path, where: str) -> None:
    changes: dict[str, object] = {}
    if where == "regularisation":
        (tmp_path / "reg" / "1_animal").mkdir(parents=True)
        broken = cut_off(tmp_path / "reg" / "1_animal" / "cut.png")
        changes["reg_data_dir"] = str(tmp_path / "reg")
    elif where == "validation":
        broken = cut_off(photos / "3_frog" / "cut.png")
        changes["additional_parameters"] = "--validation_split 0.9 --validation_seed 3"
    else:
        (tmp_path / "masks").mkdir()
        for image in (photos / "3_frog").glob("*.png"):
            Image.new("L", (64, 64), 255).save(tmp_path / "masks" / image.name)
        broken = cut_off(tmp_path / "masks" / "1.png")
        place = {"image_dir": str(photos / "3_frog"), "conditioning_data_dir": str(tmp_path / "masks")}
        document = {"datasets": [{"resolution": 64, "subsets": [place]}]}
        (tmp_path / "set.json").write_text(json.dumps(document), encoding="utf-8")
        changes |= {"dataset_config": str(tmp_path / "set.json"), "masked_loss": True, "train_data_dir": ""}
    refused = kohyakit("launch", preset(**changes))
    assert (refused.exit_code, trainer.starts) == (1, [])
    assert relative(str(broken)) in refused.stderr


def test_what_is_no_image_is_named_by_plan_and_in_its_json(kohyakit, preset, photos) -> None:
    (photos / "3_frog" / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    file = preset()
    assert "a.png: image_dir: is not an image that can be read: it is PostScript" in kohyakit("plan", file).stderr
    assert ("unreadable-image", str(photos / "3_frog" / "a.png")) in named(kohyakit, "plan", file)


def test_what_prepare_made_is_answered_with_its_training_images(kohyakit, preset, photos, tmp_path) -> None:
    photos.rename(tmp_path / "training_images")
    refused = kohyakit("plan", preset(train_data_dir=str(tmp_path)))
    assert "wrong-level" in [code for code, _ in named(kohyakit, "plan", preset(train_data_dir=str(tmp_path)))]
    assert f"add /training_images: set train_data_dir to {tmp_path / 'training_images'}" in refused.stderr
    assert "10_" not in refused.stderr


def test_raw_photos_are_answered_with_prepare(kohyakit, preset, tmp_path) -> None:
    (tmp_path / "my photos").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "my photos" / "IMG_1.jpg")
    refused = kohyakit("plan", preset(train_data_dir=str(tmp_path / "my photos")))
    assert f"kohyakit dataset prepare '{tmp_path / 'my photos'}' --name WORD" in refused.stderr


def test_a_caption_in_capitals_and_an_image_of_another_name_are_used_and_said(kohyakit, preset, photos) -> None:
    Image.new("RGB", (64, 64), "red").save(photos / "3_frog" / "U.JPG")
    (photos / "3_frog" / "U.TXT").write_text("frog, upper", encoding="utf-8")
    Image.new("RGB", (64, 64), "blue").save(photos / "3_frog" / "j.jfif", "JPEG")
    found = json.loads(kohyakit("plan", preset(), "--json").stdout)
    assert (found["dataset"]["images"], found["dataset"]["without_caption"]) == (6, 1)
    codes = {problem["code"] for problem in found["problems"]}
    assert {"caption-case", "unusual-extension"} <= codes


def test_two_captions_of_one_image_are_named(kohyakit, preset, photos) -> None:
    (photos / "3_frog" / "1.TXT").write_text("frog, other", encoding="utf-8")
    (one,) = [
        p for p in json.loads(kohyakit("plan", preset(), "--json").stdout)["problems"] if p["code"] == "two-captions"
    ]
    assert one["got"] == ["1.png: 1.txt or 1.TXT"]


def test_masks_are_matched_without_regard_to_case(tmp_path, kohyakit, preset, photos) -> None:
    (tmp_path / "masks").mkdir()
    for number, image in enumerate(sorted((photos / "3_frog").glob("*.png"))):
        Image.new("L", (64, 64), 255).save(tmp_path / "masks" / f"{image.stem}.PNG")
        ImageOps.mirror(Image.open(image)).save(image.with_name(f"x{number}.png"))
        Image.new("L", (64, 64), 255).save(tmp_path / "masks" / f"X{number}.png")
    place = {"image_dir": str(photos / "3_frog"), "conditioning_data_dir": str(tmp_path / "masks")}
    document = {"datasets": [{"resolution": 64, "batch_size": 4, "subsets": [place]}]}
    (tmp_path / "set.json").write_text(json.dumps(document), encoding="utf-8")
    shown = kohyakit("plan", preset(dataset_config=str(tmp_path / "set.json"), masked_loss=True, train_data_dir=""))
    assert shown.exit_code == 0
    assert "in batches of 4, bucket by bucket" in shown.stdout  # the dataset's own, not the form's 2


def test_a_line_belongs_to_the_file_that_is_named(kohyakit, preset, photos, tmp_path) -> None:
    """The form's line of a key is not told of a dataset_config file that has the same key."""
    subset = {"image_dir": str(photos / "3_frog"), "caption_extension": ".caption"}
    document = {"datasets": [{"resolution": 64, "subsets": [subset]}]}
    (tmp_path / "set.json").write_text(json.dumps(document), encoding="utf-8")
    file = preset(dataset_config=str(tmp_path / "set.json"), train_data_dir="")
    form = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(form, indent=1), encoding="utf-8")
    found = json.loads(kohyakit("plan", file, "--json").stdout)["problems"]
    (elsewhere,) = [problem for problem in found if problem["code"] == "captions-elsewhere"]
    assert (elsewhere["line"], elsewhere["file"]) == (None, str(photos / "3_frog"))


def test_captions_beyond_the_limit_say_how_many_and_what_to_set(kohyakit, preset, photos) -> None:
    (photos / "3_frog" / "1.txt").write_text("frog" + ", very green" * 60, encoding="utf-8")
    shown = kohyakit("plan", preset())
    assert "1 captions have more than the 75 tokens" in shown.stderr
    assert "1.png: 181 tokens" in shown.stderr
    assert "set max_token_length to 225" in shown.stderr
    assert "tokens" not in kohyakit("plan", preset(max_token_length="225")).stderr
