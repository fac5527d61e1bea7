import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import ConfigError, TrainConfig
from trainer.dataset.buckets import choose, limits, refusals, spec_buckets
from trainer.dataset.checks import bucket_steps
from trainer.dataset.spec import DatasetSpec

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "buckets.json").read_text(encoding="utf-8"))["cases"]
SELECT = [case for case in GOLDEN if case["kind"] == "select"]
NAMES = ("enable_bucket", "min_bucket_reso", "max_bucket_reso", "bucket_reso_steps", "bucket_no_upscale")


def spec_of(case):
    given = {name: case[name] for name in NAMES if case[name] is not None}
    return DatasetSpec(resolution=tuple(case["resolution"]), batch_size=case.get("batch_size", 1), **given)


@pytest.mark.parametrize("case", [case for case in SELECT if "refused" not in case], ids=lambda case: case["name"])
def test_the_sizes_and_limits_are_those_of_the_reference(case):
    spec = spec_of(case)
    if case.get("buckets_made") is not None:
        assert [list(bucket) for bucket in spec_buckets(spec)] == case["buckets_made"]
    if case["min_bucket_reso"] is not None:
        assert limits(spec) == (case["min_bucket_reso_used"], case["max_bucket_reso_used"])


@pytest.mark.parametrize("case", [case for case in SELECT if "refused" not in case], ids=lambda case: case["name"])
def test_every_picture_is_cut_as_in_the_reference(case):
    spec = spec_of(case)
    for image in case["images"]:
        if "fails" in image or "zero_sized_bucket" in image:
            with pytest.raises(ConfigError, match="sides of at least"):
                choose(*image["size"], spec)
            continue
        made = choose(*image["size"], spec)
        assert [list(made.bucket), list(made.resized), list(made.crop)] == [
            image["bucket"],
            image["resized"],
            image["crop_xy"],
        ]
        assert list(made.crop_ltrb) == image["crop_ltrb"]


@pytest.mark.parametrize("case", [case for case in SELECT if "refused" in case], ids=lambda case: case["name"])
def test_limits_that_exclude_the_resolution_are_refused(case):
    (problem,) = [found for found in refusals(spec_of(case), "it") if found.severity == "error"]
    assert problem.key == case["refused"].split()[0]


def test_sdxl_with_the_default_limit_is_warned():
    problems = list(refusals(DatasetSpec(resolution=(1024, 1024), enable_bucket=True), "it"))
    assert [(problem.code, problem.severity) for problem in problems] == [("narrow-buckets", "warning")]


@given(st.integers(64, 4000), st.integers(64, 4000), st.booleans())
def test_the_cut_lies_inside_the_resized_picture(width, height, no_upscale):
    spec = DatasetSpec(resolution=(512, 512), enable_bucket=True, bucket_no_upscale=no_upscale, bucket_reso_steps=8)
    try:
        made = choose(width, height, spec)
    except ConfigError:
        return
    for axis in (0, 1):
        assert 0 <= made.crop[axis] <= made.resized[axis] - made.bucket[axis]
        assert made.bucket[axis] % 8 == 0


@pytest.mark.parametrize(("family", "wrong"), [("sd15", ["bucket-step"]), ("sdxl", []), (None, [])])
def test_sides_of_32_are_for_sdxl_alone(family, wrong):
    spec = DatasetSpec(resolution=(512, 512), enable_bucket=True, bucket_reso_steps=32)
    found = bucket_steps([spec], TrainConfig(dataset_config="d.toml"), family)
    assert [problem.code for problem in found] == wrong
