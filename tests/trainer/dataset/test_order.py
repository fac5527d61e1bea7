import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import TrainConfig
from trainer.dataset.files import Sample, Scan
from trainer.dataset.order import assign, batches_per_epoch, bucket_info, epoch_batches, sample_rng, shard
from trainer.dataset.spec import DatasetSpec, SubsetSpec

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "buckets.json").read_text(encoding="utf-8"))["cases"]
BATCHES = [case for case in GOLDEN if case["kind"] == "batches"]
NAMES = ("enable_bucket", "min_bucket_reso", "max_bucket_reso", "bucket_reso_steps", "bucket_no_upscale")


def sample(name, size=(512, 512), repeats=1, dataset=0, is_reg=False, subset=0):
    return Sample(Path(name), *size, name, repeats, is_reg, dataset, subset, True)


def golden_scan(case):
    given = {name: case[name] for name in NAMES if case[name] is not None}
    spec = DatasetSpec(
        resolution=tuple(case["resolution"]), batch_size=case["batch_size"], subsets=(SubsetSpec(),), **given
    )
    return Scan((spec,), tuple(sample(image["key"], image["size"], image["repeats"]) for image in case["images"]))


def scan_of(*counts, batch_size=2):
    spec = DatasetSpec(
        resolution=(64, 64),
        enable_bucket=True,
        min_bucket_reso=64,
        max_bucket_reso=128,
        batch_size=batch_size,
        subsets=(SubsetSpec(),),
    )
    sizes = [(64, 64), (128, 64), (64, 128)]
    samples = tuple(sample(f"{number}", sizes[number % 3], repeats) for number, repeats in enumerate(counts))
    return Scan((spec,), samples)


@pytest.mark.parametrize("case", BATCHES, ids=lambda case: case["name"])
def test_the_order_is_that_of_the_references_dataset(case):
    found = golden_scan(case)
    assignment = assign(found, TrainConfig())
    assert batches_per_epoch(assignment) == case["batches_per_epoch"]
    for name, wanted in case["epochs"].items():
        made = epoch_batches(assignment, case["dataset_seed"], int(name.split()[0]))
        assert [[found.samples[index].caption for index in batch.samples] for batch in made] == wanted


@pytest.mark.parametrize("case", BATCHES, ids=lambda case: case["name"])
def test_the_bucket_table_is_that_of_the_reference(case):
    found = golden_scan(case)
    made = bucket_info(found, assign(found, TrainConfig()), 0)
    if case["bucket_info"] is None:
        assert made is None
    else:
        assert made["buckets"] == case["bucket_info"]["buckets"]
        assert made["mean_img_ar_error"] == pytest.approx(case["bucket_info"]["mean_img_ar_error"])


def test_epochs_do_not_depend_on_the_order_they_are_asked_for():
    assignment = assign(scan_of(3, 2, 1, 4), TrainConfig())
    later = epoch_batches(assignment, 5, 4)
    assert epoch_batches(assignment, 5, 1) == epoch_batches(assign(scan_of(3, 2, 1, 4), TrainConfig()), 5, 1)
    assert epoch_batches(assignment, 5, 4) == later
    assert epoch_batches(assignment, 6, 4) != later


@given(st.lists(st.integers(1, 5), min_size=1, max_size=8), st.integers(1, 4), st.integers(1, 3), st.integers(1, 5))
def test_every_sample_comes_as_often_as_its_repeats(counts, batch_size, processes, epoch):
    assignment = assign(scan_of(*counts, batch_size=batch_size), TrainConfig())
    batches = epoch_batches(assignment, 1, epoch)
    assert len(batches) == batches_per_epoch(assignment)
    assert Counter(index for batch in batches for index in batch.samples) == dict(enumerate(counts))
    shards = [shard(batches, processes, rank) for rank in range(processes)]
    assert len({len(part) for part in shards}) == 1
    assert {batch.position for part in shards for batch in part} == set(range(len(batches)))


def test_datasets_keep_their_own_batch_size_and_are_mixed():
    specs = tuple(
        DatasetSpec(resolution=(side, side), batch_size=size, subsets=(SubsetSpec(),))
        for side, size in ((64, 1), (128, 3))
    )
    samples = tuple(sample(str(number), dataset=number % 2) for number in range(18))
    batches = epoch_batches(assign(Scan(specs, samples), TrainConfig()), 0, 1)
    assert Counter((batch.dataset, batch.bucket, len(batch.samples)) for batch in batches) == {
        (0, (64, 64), 1): 9,
        (1, (128, 128), 3): 3,
    }
    assert [batch.dataset for batch in batches] != sorted(batch.dataset for batch in batches)


def test_left_over_regularisation_pictures_take_turns():
    spec = DatasetSpec(resolution=(64, 64), subsets=(SubsetSpec(), SubsetSpec(is_reg=True)))
    regs = [sample(f"r{number}", repeats=int(number < 2), is_reg=True, subset=1) for number in range(5)]
    assignment = assign(Scan((spec,), (sample("a"), sample("b"), *regs)), TrainConfig())
    epochs = [
        {index for batch in epoch_batches(assignment, 0, epoch) for index in batch.samples} for epoch in (1, 2, 3)
    ]
    assert epochs[0] == {0, 1, 2, 3}
    assert set.union(*epochs) == set(range(7))
    assert {len(epoch) for epoch in epochs} == {4}


def test_a_samples_randomness_hangs_on_its_place_alone():
    assert sample_rng(1, 2, 3, 0).random() == sample_rng(1, 2, 3, 0).random()
    assert len({sample_rng(*place).random() for place in ((1, 2, 3, 0), (1, 2, 3, 1), (1, 2, 4, 0), (1, 3, 3, 0))}) == 4
