import argparse
import json
import shlex
from pathlib import Path

import pytest

from schemas import from_flat
from schemas.derive import add_flags
from trainer.dataset.buckets import limits, refusals
from trainer.dataset.checks import bucket_steps
from trainer.dataset.spec import resolve_datasets

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "dataset_config.json").read_text(encoding="utf-8"))["cases"]


def resolve(case, folder, monkeypatch):
    monkeypatch.chdir(folder)
    for name in case.get("folders", ()):
        Path(name).mkdir(parents=True)
    parser = argparse.ArgumentParser()
    add_flags(parser)
    flat = vars(parser.parse_args(shlex.split(case["args"])))
    if case["config"] is not None:
        flat["dataset_config"] = "data" + case["config_extension"]
        Path(flat["dataset_config"]).write_text(case["config"], encoding="utf-8")
    problems = []
    return resolve_datasets(from_flat(flat)[0], problems), problems


UNUSED = ("network_multiplier", "debug_dataset")  # no part of a dataset here


def plain(value):
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize("case", [case for case in GOLDEN if case.get("datasets")], ids=lambda case: case["name"])
def test_values_are_those_of_the_reference(case, tmp_path, monkeypatch):
    specs, _ = resolve(case, tmp_path, monkeypatch)
    for spec, wanted in zip(specs, case["datasets"], strict=True):
        assert spec.kind == wanted["kind"]
        params = {name: value for name, value in wanted["params"].items() if name not in UNUSED}
        assert {name: plain(getattr(spec, name)) for name in params} == params
        for subset, expected in zip(sorted(spec.subsets, key=lambda s: s.image_dir), wanted["subsets"], strict=True):
            # The reference copies the dataset's validation settings onto its subsets.
            names = [name for name in expected if not name.startswith("validation_")]
            assert {name: plain(getattr(subset, name)) for name in names} == {name: expected[name] for name in names}


@pytest.mark.parametrize("case", [case for case in GOLDEN if "refused" in case], ids=lambda case: case["name"])
def test_what_the_reference_refuses_is_refused_at_the_same_keys(case, tmp_path, monkeypatch):
    specs, problems = resolve(case, tmp_path, monkeypatch)
    assert not specs
    assert {problem.severity for problem in problems} == {"error"}
    assert set(case.get("refused_paths", ())) <= {problem.key for problem in problems}


@pytest.mark.parametrize("case", [case for case in GOLDEN if case.get("datasets")], ids=lambda case: case["name"])
def test_bucket_limits_are_those_of_the_reference(case, tmp_path, monkeypatch):
    specs, _ = resolve(case, tmp_path, monkeypatch)
    for spec, wanted in zip(specs, case["datasets"], strict=True):
        if "bucket_limits_used" in wanted:
            assert list(limits(spec)) == wanted["bucket_limits_used"]
        refused = any(problem.severity == "error" for problem in refusals(spec, "it"))
        assert refused == ("build_refused" in wanted)
        config = from_flat({"dataset_config": "data.toml"})[0]
        assert bool(list(bucket_steps([spec], config, "sd15"))) == ("sd15_training_refused" in wanted)


def config_file(folder, text):
    path = folder / "data.toml"
    path.write_text(text, encoding="utf-8")
    return from_flat({"dataset_config": str(path), "resolution": "512"})[0]


def test_a_config_without_datasets_is_refused(tmp_path):
    problems = []
    assert resolve_datasets(config_file(tmp_path, "[general]\nflip_aug = true\n"), problems) == []
    assert [problem.code for problem in problems] == ["no-datasets"]


def test_whole_numbers_pass_as_decimals(tmp_path):
    text = "[[datasets]]\nvalidation_split = 0\n[[datasets.subsets]]\nimage_dir = 'a'\nface_crop_aug_range = [1, 3]\n"
    problems = []
    (spec,) = resolve_datasets(config_file(tmp_path, text), problems)
    assert not problems
    assert spec.subsets[0].face_crop_aug_range == (1.0, 3.0)


def test_a_misplaced_key_is_told_its_place(tmp_path):
    text = "[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'a'\nvalidation_split = 0.1\n"
    problems = []
    resolve_datasets(config_file(tmp_path, text), problems)
    assert problems[0].key == "datasets/0/subsets/0/validation_split"
    assert "[[datasets]]" in problems[0].fix


@pytest.mark.parametrize("level", ["datasets", "datasets.subsets"])
def test_filters_are_checked_at_every_level(tmp_path, level):
    lines = ["[[datasets]]", "[[datasets.subsets]]", "image_dir = 'a'"]
    lines.insert(1 if level == "datasets" else 3, "resize_interpolation = 'foo'")
    problems = []
    resolve_datasets(config_file(tmp_path, "\n".join(lines)), problems)
    assert [problem.code for problem in problems] == ["bad-value"]


def test_values_outside_their_bounds_are_refused(tmp_path):
    text = "[[datasets]]\nbatch_size = 0\n[[datasets.subsets]]\nimage_dir = 'a'\ncaption_dropout_rate = 1.5\n"
    problems = []
    resolve_datasets(config_file(tmp_path, text), problems)
    assert [problem.key.rpartition("/")[2] for problem in problems] == ["batch_size", "caption_dropout_rate"]


def test_broken_toml_names_the_file(tmp_path):
    problems = []
    assert resolve_datasets(config_file(tmp_path, "[[datasets]"), problems) == []
    assert problems[0].code == "not-toml"
    assert problems[0].file.endswith("data.toml")


def test_a_strength_of_the_adapter_is_said_to_have_no_effect(tmp_path):
    path = tmp_path / "data.toml"
    path.write_text(f"[[datasets]]\nnetwork_multiplier = 0.5\n[[datasets.subsets]]\nimage_dir = '{tmp_path}'\n")
    problems = []
    assert len(resolve_datasets(from_flat({"dataset_config": str(path), "resolution": "64"})[0], problems)) == 1
    assert [(one.code, one.severity, one.key) for one in problems] == [
        ("no-effect", "warning", "datasets/0/network_multiplier")
    ]
