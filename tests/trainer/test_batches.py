from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from schemas import ConfigError, TrainConfig
from trainer.dataset.files import Sample, Scan
from trainer.dataset.order import assign
from trainer.dataset.spec import DatasetSpec, SubsetSpec
from trainer.input.batches import BatchLoader
from trainer.input.cache import LatentCache

CONFIG = TrainConfig(max_data_loader_n_workers=0)


def make_scan(folder, count=6, size=(80, 64), batch_size=2, resolution=(64, 64), **subset):
    spec = DatasetSpec(
        resolution=resolution,
        batch_size=batch_size,
        prior_loss_weight=0.3,
        subsets=(SubsetSpec(**subset), SubsetSpec(is_reg=True)),
    )
    samples = []
    for number in range(count):
        path = folder / f"{number}.png"
        Image.effect_noise(size, 60).convert("RGB").save(path)
        samples.append(Sample(path, *size, f"a{number}, b, c", 2, False, 0, 0, True))
    return Scan((spec,), tuple(samples))


def loader_of(scan, config=CONFIG, **more):
    return BatchLoader(scan, assign(scan, config), config, seed=7, **{"max_train_steps": 100, **more})


def same(one, other):
    return one.captions == other.captions and one.samples == other.samples and torch.equal(one.pixels, other.pixels)


def test_an_epoch_holds_every_sample_as_often_as_its_repeats(tmp_path):
    loader = loader_of(make_scan(tmp_path, 5))
    for epoch in (1, 2):
        batches = list(loader.epoch(epoch))
        assert len(batches) == len(loader) == 5
        assert Counter(index for batch in batches for index in batch.samples) == dict.fromkeys(range(5), 2)
    assert batches[0].pixels.shape == (2, 3, 64, 64)
    assert batches[0].latents is None
    assert -1 <= batches[0].pixels.min() < batches[0].pixels.max() <= 1


def test_every_picture_keeps_its_own_caption(tmp_path):
    for batch in loader_of(make_scan(tmp_path), replace(CONFIG, cache_latents=False)).epoch(1):
        assert batch.captions == [f"a{number}, b, c" for number in batch.samples]


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_change_nothing(tmp_path, persistent):
    scan = make_scan(tmp_path, shuffle_caption=True, flip_aug=True, random_crop=True, color_aug=True)
    helped = loader_of(scan, replace(CONFIG, max_data_loader_n_workers=2, persistent_data_loader_workers=persistent))
    alone = loader_of(scan)
    for epoch in (1, 2):
        assert all(same(*pair) for pair in zip(alone.epoch(epoch), helped.epoch(epoch), strict=True))


def test_an_epoch_can_be_taken_up_anywhere(tmp_path):
    scan = make_scan(tmp_path, shuffle_caption=True, flip_aug=True, random_crop=True)
    whole = list(loader_of(scan).epoch(3))
    assert all(same(*pair) for pair in zip(whole[4:], loader_of(scan).epoch(3, start=4), strict=True))


def test_processes_share_an_epoch(tmp_path):
    scan = make_scan(tmp_path, shuffle_caption=True)
    whole = list(loader_of(scan).epoch(1))
    parts = [list(loader_of(scan, processes=2, rank=rank).epoch(1)) for rank in (0, 1)]
    assert all(same(*pair) for rank in (0, 1) for pair in zip(whole[rank::2], parts[rank], strict=True))


def test_captions_know_epoch_and_step_when_they_are_made(tmp_path):
    config = replace(CONFIG, gradient_accumulation_steps=2)
    scan = make_scan(tmp_path, token_warmup_step=3, caption_dropout_every_n_epochs=2)
    lengths = [len(batch.captions[0].split(",")) for batch in loader_of(scan, config).epoch(1, step=0)]
    assert lengths == [1, 1, 1, 1, 2, 2]
    assert {text for batch in loader_of(scan, config).epoch(2) for text in batch.captions} == {""}
    assert len(next(loader_of(scan, config).epoch(1, start=4, step=2)).captions[0].split(",")) == 2


def test_flips_turn_picture_and_crop(tmp_path):
    scan = make_scan(tmp_path, size=(150, 64), flip_aug=True, batch_size=12)
    (flipped,), plain = loader_of(scan).epoch(1), make_scan(tmp_path, size=(150, 64), batch_size=12)
    (straight,) = loader_of(replace(scan, specs=plain.specs)).epoch(1)
    turned = [not torch.equal(one, other) for one, other in zip(flipped.pixels, straight.pixels, strict=True)]
    assert 0 < sum(turned) < 12
    for one, other, mirrored in zip(flipped.pixels, straight.pixels, turned, strict=True):
        assert torch.equal(one.flip(-1) if mirrored else one, other)


def test_sizes_are_those_that_sdxl_is_told(tmp_path):
    scan = make_scan(tmp_path, count=1, size=(64, 150), batch_size=2)
    (batch,) = loader_of(scan).epoch(1)
    assert batch.sizes.original.tolist() == [[150, 64]] * 2
    assert batch.sizes.target.tolist() == [[64, 64]] * 2
    assert batch.sizes.crop.tolist() == [[0, 18]] * 2  # 64 * 64/150 = 27.3 wide in the contain fit


def test_regularisation_pictures_weigh_less(tmp_path):
    scan = make_scan(tmp_path, count=2, batch_size=4)
    samples = (scan.samples[0], replace(scan.samples[1], is_reg=True, subset=1))
    (batch,) = loader_of(replace(scan, samples=samples)).epoch(1)
    weights = [1.0 if index == 0 else pytest.approx(0.3) for index in batch.samples]
    assert batch.weights.tolist() == weights


def test_masks_share_the_geometry_of_their_picture(tmp_path):
    scan = make_scan(
        tmp_path, count=2, size=(160, 96), batch_size=4, resolution=(64, 96), random_crop=True, flip_aug=True
    )
    ramp = np.tile(np.linspace(0, 255, 160, dtype=np.uint8)[None, :, None], (96, 1, 3))
    for name in ("0.png", "mask.png"):
        Image.fromarray(ramp).save(tmp_path / name)
    masked = replace(scan.samples[0], mask=tmp_path / "mask.png")
    (batch,) = loader_of(replace(scan, samples=(masked, scan.samples[1]))).epoch(1)
    assert batch.masks.shape == (4, 1, 96, 64)
    for index, picture, mask in zip(batch.samples, batch.pixels, batch.masks, strict=True):
        expected = (picture[:1] + 1) / 2 if index == 0 else torch.ones_like(mask)
        assert torch.allclose(mask, expected, atol=1e-6)


def test_transparency_is_the_mask_of_alpha_mask(tmp_path):
    scan = make_scan(tmp_path, count=1, size=(64, 64), alpha_mask=True)
    picture = np.full((64, 64, 4), 200, np.uint8)
    picture[:, :32, 3] = 0
    Image.fromarray(picture).save(tmp_path / "0.png")
    (batch,) = loader_of(scan).epoch(1)
    assert batch.masks[0, 0, 0].tolist() == [0.0] * 32 + [pytest.approx(200 / 255)] * 32


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_picture_is_named(tmp_path, workers):
    scan = make_scan(tmp_path, count=2)
    Path(scan.samples[1].path).write_bytes(b"broken")
    with pytest.raises(ConfigError, match=r"1\.png.*cannot be decoded"):
        list(loader_of(scan, replace(CONFIG, max_data_loader_n_workers=workers)).epoch(1))


def test_cached_latents_come_flipped_or_not_as_pixels_would(tmp_path):
    scan = make_scan(tmp_path, flip_aug=True, shuffle_caption=True, batch_size=3)
    cache = LatentCache(scan, assign(scan, CONFIG), CONFIG, "sd")
    cache.fill(lambda pixels: pixels[:, :, ::8, ::8])
    live, cached = loader_of(scan).epoch(1), loader_of(scan, cache=cache).epoch(1)
    for one, other in zip(live, cached, strict=True):
        assert other.pixels is None
        assert torch.equal(one.pixels[..., ::8, ::8], other.latents)
        assert one.captions == other.captions
        assert torch.equal(one.sizes.crop, other.sizes.crop)
        assert torch.equal(one.sizes.target, other.sizes.target)


def test_loading_leaves_the_global_generator_alone(tmp_path):
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    list(loader_of(make_scan(tmp_path, random_crop=True)).epoch(1))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_cuts_around_a_face_show_it_at_its_size_and_tell_sdxl_of_no_cut(tmp_path):
    spec = DatasetSpec(resolution=(64, 64), batch_size=4, subsets=(SubsetSpec(face_crop_aug_range=(2.0, 2.0)),))
    picture = np.zeros((200, 300, 3), np.uint8)
    picture[80:120, 180:220] = 255  # a face of 40 x 40 about 200, 100
    path = tmp_path / "a_200_100_40_40.png"
    Image.fromarray(picture).save(path)
    scan = Scan((spec,), (Sample(path, 300, 200, "a", 4, False, 0, 0, True),))
    (batch,) = loader_of(scan).epoch(1)
    bright = batch.pixels[0, 0] > 0
    assert (bright.any(0).sum(), bright.any(1).sum()) == (32, 32)  # half the cut's side
    assert bright[16:48, 16:48].all()
    assert (batch.sizes.original.tolist(), batch.sizes.crop.tolist()) == ([[64, 64]] * 4, [[0, 0]] * 4)
