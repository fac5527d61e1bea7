import json

import pytest
from PIL import Image

from schemas import from_flat
from trainer.dataset.files import held_out, scan


def codes(found, severity="error"):
    return [problem.code for problem in found.problems if problem.severity == severity]


def folders(parent, **flat):
    return from_flat({"train_data_dir": str(parent), "resolution": "64", "caption_extension": ".txt", **flat})[0]


def test_folders_give_repeats_words_and_order(tmp_path, picture):
    picture(tmp_path / "3_cat" / "b.png", (64, 32))
    picture(tmp_path / "3_cat" / "a.webp")
    picture(tmp_path / "1_dog" / "c.jpg")
    (tmp_path / "3_cat" / "b.txt").write_text("a cat")
    found = scan(folders(tmp_path))
    assert [(s.path.name, s.repeats, s.caption, s.has_caption) for s in found.samples] == [
        ("c.jpg", 1, "dog", False),
        ("a.webp", 3, "cat", False),
        ("b.png", 3, "a cat", True),
    ]
    assert (found.samples[2].width, found.samples[2].height) == (64, 32)


def test_the_numbered_folder_itself_is_answered_with_its_parent(tmp_path, picture):
    picture(tmp_path / "10_cat" / "a.png")
    (problem,) = [p for p in scan(folders(tmp_path / "10_cat")).problems if p.severity == "error"]
    assert problem.code == "numbered-folder"
    assert str(tmp_path) in problem.fix


def test_no_pictures_says_where_was_looked_and_what_was_found(tmp_path, picture):
    picture(tmp_path / "cats" / "a.png")
    found = scan(folders(tmp_path))
    assert codes(found) == ["no-images"]
    assert "folders: cats" in found.problems[-1].must
    assert "dataset prepare" in found.problems[-1].fix


def test_a_missing_folder_is_an_error(tmp_path, one_subset):
    assert codes(scan(folders(tmp_path / "none"))) == ["missing-folder"]
    config = one_subset(tmp_path / "set", {"a.png": ""}, {"image_dir": str(tmp_path / "gone")})
    assert codes(scan(config)) == ["missing-folder"]


def test_an_empty_subset_leaves_nothing_to_train(tmp_path, one_subset):
    found = scan(one_subset(tmp_path / "set", {"a.txt": "x"}))
    assert codes(found) == ["no-images"]
    assert codes(found, "warning") == ["empty-folder"]


def test_captions_with_another_extension_are_pointed_out(tmp_path, one_subset):
    found = scan(one_subset(tmp_path / "set", {"a.png": "", "a.txt": "cat", "b.png": ""}))
    assert codes(found, "warning") == ["captions-elsewhere", "no-caption"]
    assert found.problems[0].fix == "set caption_extension to .txt"


def test_all_bad_files_are_told_at_once(tmp_path, one_subset):
    files = {"a.png": "", "a.txt": "", "b.png": "", "b.txt": "\ncat", "c.png": "", "c.txt": "cat", "d.txt": "x"}
    config = one_subset(tmp_path / "set", files, {"caption_extension": ".txt"})
    (tmp_path / "set" / "c.txt").write_bytes(b"caf\xe9")
    (tmp_path / "set" / "d.png").write_bytes(b"no picture")
    found = scan(config)
    assert sorted(codes(found)) == ["caption-encoding", "empty-caption", "unreadable-image"]
    assert codes(found, "warning") == ["blank-first-line"]


def test_truncated_pictures_are_found_by_decoding(tmp_path, one_subset):
    config = one_subset(tmp_path / "set", {"a.png": ""})
    path = tmp_path / "set" / "b.png"
    Image.effect_noise((64, 64), 90).convert("RGB").save(path)
    path.write_bytes(path.read_bytes()[:2000])
    assert codes(scan(config)) == []
    (problem,) = [p for p in scan(config, verify=True).problems if p.severity == "error"]
    assert (problem.code, problem.file) == ("unreadable-image", str(path))


def test_sizes_follow_exif_orientation(tmp_path, one_subset, picture):
    config = one_subset(tmp_path / "set", {"z.png": ""})
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(tmp_path / "set" / "a.jpg", (64, 32), exif=exif)
    found = scan(config)
    assert (found.samples[0].width, found.samples[0].height) == (32, 64)
    assert "exif-rotated" in codes(found, "note")


def test_a_tiny_picture_is_refused_by_name(tmp_path, one_subset, picture):
    dataset = {"resolution": 512, "enable_bucket": True, "bucket_no_upscale": True}
    config = one_subset(tmp_path / "set", {}, dataset=dataset)
    path = picture(tmp_path / "set" / "a.png", (500, 60))
    (problem,) = [p for p in scan(config).problems if p.severity == "error"]
    assert (problem.code, problem.file) == ("tiny-image", str(path))


def test_a_long_picture_is_too_small_once_it_is_scaled(tmp_path, one_subset, picture):
    dataset = {"resolution": 64, "enable_bucket": True, "bucket_no_upscale": True}
    config = one_subset(tmp_path / "set", {}, dataset=dataset)
    picture(tmp_path / "set" / "a.png", (400, 100))
    (problem,) = [p for p in scan(config).problems if p.code == "tiny-image"]
    assert problem.got == "400x100"
    assert "128x32 once scaled down" in problem.must


@pytest.mark.parametrize(
    ("sizes", "key"),
    [
        ({"resolution": 64, "bucket_reso_steps": 128}, "bucket_reso_steps"),
        ({"resolution": 96, "min_bucket_reso": 32}, ""),
    ],
)
def test_no_bucket_is_without_a_side(tmp_path, one_subset, picture, sizes, key):
    config = one_subset(tmp_path / "set", {}, dataset={"enable_bucket": True, **sizes})
    picture(tmp_path / "set" / "a.png", (400, 300))
    assert [problem.key for problem in scan(config).problems if problem.severity == "error"] == ([key] if key else [])


def faces(folder, one_subset, picture, name="a_20_20_9_9", **options):
    dataset = {"resolution": 64, "face_crop_aug_range": [2.0, 4.0], **options}
    config = one_subset(folder / "set", {}, dataset=dataset)
    picture(folder / "set" / f"{name}.png", (100, 90))
    return scan(config)


def test_cutting_around_faces_says_when_it_does_nothing(tmp_path, one_subset, picture):
    told = {problem.code: problem for problem in faces(tmp_path / "a", one_subset, picture).problems}
    assert not {"no-effect", "no-face", "resized-without-buckets"} & told.keys()
    found = faces(tmp_path / "b", one_subset, picture, enable_bucket=True)
    assert "no-effect" in codes(found, "warning")
    assert "no-face" in codes(faces(tmp_path / "c", one_subset, picture, name="a_b_c_d_e"), "warning")


def test_attributes_that_nothing_reads_are_named(tmp_path, one_subset, picture):
    picture(tmp_path / "set" / "a.png")
    read = {"custom_attributes": {"diff_output_preservation": True}}
    assert "no-effect" not in codes(scan(one_subset(tmp_path / "set", {}, read)), "note")
    other = {"custom_attributes": {"diff_output_preservation": True, "mine": 1}}
    (told,) = [p for p in scan(one_subset(tmp_path / "set", {}, other)).problems if p.key == "custom_attributes"]
    assert told.got == ["mine"]


def test_the_same_folder_twice_counts_once(tmp_path, picture):
    picture(tmp_path / "set" / "a.png")
    path = tmp_path / "data.json"
    subset = {"image_dir": str(tmp_path / "set")}
    path.write_text(json.dumps({"datasets": [{"subsets": [subset, subset]}, {"subsets": [subset]}]}))
    found = scan(from_flat({"dataset_config": str(path), "resolution": "64"})[0])
    assert [sample.dataset for sample in found.samples] == [0, 1]
    assert "duplicate-subset" in codes(found, "warning")


def test_validation_pictures_are_no_training_pictures(tmp_path, one_subset):
    files = {f"{number}.png": "" for number in range(20)}
    dataset = {"validation_split": 0.2}
    config = one_subset(tmp_path / "set", files, {"num_repeats": 3, "flip_aug": True}, dataset, seed=4)
    found = scan(config)
    held = held_out(found)
    assert (len(found.samples), len(held.samples)) == (16, 4)
    assert not {s.path for s in found.samples} & {s.path for s in held.samples}
    assert {s.repeats for s in held.samples} == {1}
    assert not held.specs[0].subsets[0].flip_aug
    assert scan(config).validation == found.validation


def test_regularisation_pictures_are_fitted_to_the_training_pictures(tmp_path, picture):
    picture(tmp_path / "t" / "2_cat" / "a.png")
    for name in "xyz":
        picture(tmp_path / "r" / "1_cat" / f"{name}.png")
    found = scan(folders(tmp_path / "t", reg_data_dir=str(tmp_path / "r")))
    assert [(s.path.name, s.repeats) for s in found.samples if s.is_reg] == [("x.png", 1), ("y.png", 1), ("z.png", 0)]
    assert "reg-rotated" in codes(found, "note")


def test_metadata_pictures_are_known_by_their_full_path(tmp_path, picture):
    for folder in "ab":
        picture(tmp_path / folder / "001.png")
        (tmp_path / f"{folder}.json").write_text(json.dumps({"001": {"caption": folder, "tags": "x, y"}}))
    subsets = [
        {"image_dir": str(tmp_path / folder), "metadata_file": str(tmp_path / f"{folder}.json")} for folder in "ab"
    ]
    path = tmp_path / "data.json"
    path.write_text(json.dumps({"datasets": [{"subsets": subsets}]}))
    found = scan(from_flat({"dataset_config": str(path), "resolution": "64"})[0])
    assert [(s.path.parent.name, s.caption) for s in found.samples] == [("a", "a,x, y"), ("b", "b,x, y")]


def test_metadata_of_pictures_that_are_not_there_is_an_error(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"image_path": "gone.png", "caption": "x"}\n')
    config = from_flat({"in_json": str(tmp_path / "m.jsonl"), "train_data_dir": str(tmp_path), "resolution": "64"})[0]
    assert codes(scan(config)) == ["missing-image"]


@pytest.mark.parametrize(("size", "code"), [((64, 48), None), ((48, 64), "mask-size")])
def test_masks_need_the_name_and_size_of_their_picture(tmp_path, one_subset, picture, size, code):
    config = one_subset(
        tmp_path / "set", {"a.png": ""}, {"conditioning_data_dir": str(tmp_path / "mask")}, masked_loss=True
    )
    picture(tmp_path / "mask" / "a.jpg", size)
    found = scan(config)
    assert codes(found) == ([code] if code else [])
    if not code:
        assert found.samples[0].mask == tmp_path / "mask" / "a.jpg"
        picture(tmp_path / "mask" / "b.png")
        assert codes(scan(config)) == ["extra-mask"]


@pytest.mark.parametrize(
    ("flat", "key"),
    [({"cache_latents": True}, "random_crop"), ({"cache_text_encoder_outputs": True}, "shuffle_caption")],
)
def test_what_caches_exclude_is_told_for_subsets(tmp_path, one_subset, flat, key):
    found = scan(one_subset(tmp_path / "set", {"a.png": ""}, {key: True}, **flat))
    assert [(p.code, p.key) for p in found.problems if p.severity == "error"] == [("cache-excludes", key)]


def test_same_names_and_transparency_are_told(tmp_path, one_subset, picture):
    config = one_subset(tmp_path / "set", {"a.png": "", "a.jpg": ""})
    picture(tmp_path / "set" / "b.png", colour=(1, 2, 3, 0))
    found = scan(config)
    assert "same-stem" in codes(found, "warning")
    assert {"transparency", "resized-without-buckets"} <= set(codes(found, "note"))


def test_an_empty_folder_for_regularisation_is_only_warned_of(tmp_path, picture):
    picture(tmp_path / "t" / "2_cat" / "a.png")
    (tmp_path / "r").mkdir()
    found = scan(folders(tmp_path / "t", reg_data_dir=str(tmp_path / "r")))
    assert (codes(found), len(found.samples)) == ([], 1)
    assert "no-images" in codes(found, "warning")


@pytest.mark.parametrize(
    ("subset", "codes"),
    [
        ({"caption_separator": "", "shuffle_caption": True}, ["bad-value"]),
        ({"caption_separator": ""}, []),
        ({"caption_separator": ";", "shuffle_caption": True}, ["joined-by-separator"]),
        ({"keep_tokens_separator": "|||"}, ["separator-removed"]),
    ],
)
def test_separators_that_matter_are_told(one_subset, tmp_path, subset, codes):
    found = scan(one_subset(tmp_path / "a", {"a.png": "", "a.caption": "x"}, subset))
    assert [one.code for one in found.problems if one.code != "resized-without-buckets"] == codes


def test_bad_weights_of_captions_are_told_before_training(one_subset, tmp_path):
    config = one_subset(tmp_path / "a", {"a.png": "", "a.caption": "(x:1.2.3)"}, weighted_captions=True)
    assert [problem.code for problem in scan(config).problems if problem.severity == "error"] == ["bad-weight"]


def test_a_caption_with_old_line_ends_is_its_first_line(one_subset, tmp_path):
    found = scan(one_subset(tmp_path / "a", {"a.png": "", "a.caption": "first\rsecond"}))
    assert [sample.caption for sample in found.samples] == ["first"]
