import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from schemas import ConfigError, TrainConfig
from trainer.dataset.files import Sample, Scan
from trainer.dataset.order import assign
from trainer.dataset.spec import DatasetSpec, SubsetSpec
from trainer.families import Conditioning
from trainer.input.cache import LatentCache, TextCache

DISK = TrainConfig(cache_latents=True, cache_latents_to_disk=True)


def make_scan(folder, names=("a.png", "b.png"), resolution=(64, 64), alpha=False, **subset):
    samples = []
    for number, name in enumerate(names):
        colour = (40 * number, 90, 200, 128) if alpha else (40 * number, 90, 200)
        if not (folder / name).exists():
            Image.new("RGBA" if alpha else "RGB", (80, 64), colour).save(folder / name)
        samples.append(Sample(folder / name, 80, 64, f"cat {number}", 1, False, 0, 0, True, alpha=alpha))
    return Scan((DatasetSpec(resolution=resolution, subsets=(SubsetSpec(**subset),)),), tuple(samples))


def encode(pixels):
    return pixels[:, :1, ::8, ::8].repeat(1, 4, 1, 1)


def cache_of(scan, config=DISK):
    return LatentCache(scan, assign(scan, config), config, "sd")


def filled(scan, config=DISK):
    cache = cache_of(scan, config)
    cache.fill(encode)
    return cache


def test_memory_is_the_default_and_writes_nothing(tmp_path):
    scan = make_scan(tmp_path, flip_aug=True)
    cache = cache_of(scan, TrainConfig(cache_latents=True, vae_batch_size=2))
    assert cache.missing() == [0, 1]
    seen = []
    cache.fill(encode, lambda done, total: seen.append((done, total)))
    assert seen == [(2, 2)]
    assert cache.missing() == []
    assert cache.get(1, True).dtype == torch.float32
    assert cache.get(1).shape == (4, 8, 8)
    assert len(list(tmp_path.iterdir())) == 2


def test_files_have_the_references_names_and_arrays(tmp_path):
    filled(make_scan(tmp_path, flip_aug=True, alpha_mask=True, alpha=True))
    with np.load(tmp_path / "a_0080x0064_sd.npz") as stored:
        assert set(stored.files) == {
            "latents",
            "latents_flipped",
            "alpha_mask",
            "original_size",
            "crop_ltrb",
            "kohyakit_fingerprint",
        }
        assert stored["latents"].shape == (4, 8, 8)
        assert stored["latents"].dtype == np.float32
        assert stored["original_size"].tolist() == [80, 64]
        assert stored["crop_ltrb"].tolist() == [0.0, 6.0, 64.0, 57.2]
        assert stored["alpha_mask"].shape == (64, 64)
        assert stored["alpha_mask"][0, 0] == pytest.approx(128 / 255)
    assert not list(tmp_path.glob(".*.tmp"))


def test_what_is_on_disk_is_used_again(tmp_path):
    first = filled(make_scan(tmp_path))
    again = cache_of(make_scan(tmp_path))
    assert again.missing() == []
    assert torch.equal(again.get(1), first.get(1))


@pytest.mark.parametrize(
    "change",
    [{"resolution": (128, 128)}, {"flip_aug": True}, {"resize_interpolation": "nearest"}, {"alpha_mask": True}],
    ids=str,
)
def test_other_settings_make_files_stale(tmp_path, change):
    filled(make_scan(tmp_path))
    cache = cache_of(make_scan(tmp_path, **change))
    assert cache.missing() == [0, 1]
    assert [note.code for note in cache.notes] == ["stale-cache"]


def test_another_picture_or_vae_makes_files_stale(tmp_path):
    scan = make_scan(tmp_path)
    filled(scan)
    Image.new("RGB", (80, 64), "white").save(tmp_path / "a.png")
    assert cache_of(scan).missing() == [0]
    vae = tmp_path / "other.safetensors"
    vae.write_bytes(b"weights")
    assert cache_of(scan, replace(DISK, vae=str(vae))).missing() == [0, 1]


def test_a_new_date_alone_changes_nothing(tmp_path):
    scan = make_scan(tmp_path)
    filled(scan)
    os.utime(tmp_path / "a.png", (1, 1))
    assert cache_of(scan).missing() == []


def test_a_truncated_file_is_made_again(tmp_path):
    filled(make_scan(tmp_path))
    path = tmp_path / "a_0080x0064_sd.npz"
    path.write_bytes(path.read_bytes()[:300])
    assert filled(make_scan(tmp_path)).get(0).shape == (4, 8, 8)


@pytest.mark.parametrize(
    ("shape", "date", "used"), [((4, 8, 8), None, True), ((4, 16, 16), None, False), ((4, 8, 8), 1, False)]
)
def test_files_of_others_are_used_only_when_they_fit(tmp_path, shape, date, used):
    scan = make_scan(tmp_path, names=("a.png",))
    path = tmp_path / "a_0080x0064_sd.npz"
    np.savez(path, latents=np.zeros(shape, np.float32), original_size=[80, 64], crop_ltrb=[0, 0, 64, 64])
    if date:
        os.utime(path, (date, date))
    cache = cache_of(scan)
    assert cache.missing() == ([] if used else [0])
    assert [note.code for note in cache.notes] == ["foreign-cache" if used else "stale-cache"]


def test_skipping_the_check_still_refuses_other_sizes(tmp_path):
    filled(make_scan(tmp_path))
    cache = cache_of(make_scan(tmp_path, resolution=(128, 128)), replace(DISK, skip_cache_check=True))
    assert cache.missing() == []
    with pytest.raises(ConfigError, match="another size"):
        cache.get(0)


def test_pictures_of_one_stem_have_files_of_their_own(tmp_path):
    cache = filled(make_scan(tmp_path, names=("a.png", "a.bmp")))
    assert not torch.equal(cache.get(0), cache.get(1))
    assert len(list(tmp_path.glob("*.npz"))) == 2


def test_one_picture_in_two_sizes_has_two_files(tmp_path):
    scan = make_scan(tmp_path, names=("a.png",))
    large = replace(scan.specs[0], resolution=(128, 128))
    both = Scan((scan.specs[0], large), (scan.samples[0], replace(scan.samples[0], dataset=1)))
    cache = filled(both)
    assert [cache.get(index).shape[1] for index in (0, 1)] == [8, 16]
    assert cache_of(both).missing() == []


def test_processes_share_the_files(tmp_path):
    scan = make_scan(tmp_path, names=("a.png", "b.png", "c.png"))
    cache_of(scan).fill(encode, processes=2, rank=1)
    assert cache_of(scan).missing() == [0, 2]


def test_latents_that_are_no_numbers_are_tried_again_then_named(tmp_path):
    def broken(pixels):
        return encode(pixels) * torch.tensor(float("nan"))

    cache = cache_of(make_scan(tmp_path))
    cache.fill(broken, retry=encode)
    assert cache.get(0).isfinite().all()
    with pytest.raises(ConfigError, match=r"c\.png.*not numbers"):
        cache_of(make_scan(tmp_path, names=("c.png",))).fill(broken, retry=broken)
    assert not list(tmp_path.glob("c*.npz"))


def encode_texts(texts):
    hidden = torch.stack([torch.full((77, 2048), float(len(text))) for text in texts])
    return Conditioning(hidden, hidden[:, 0, :1280])


def test_texts_are_encoded_once_each_as_training_would_see_them(tmp_path):
    scan = make_scan(tmp_path, names=("a.png", "b.png", "c.png"), caption_prefix="P,")
    scan = replace(
        scan, samples=tuple(replace(sample, caption="x" if n else "yy") for n, sample in enumerate(scan.samples))
    )
    seen = []
    cache = TextCache(scan, TrainConfig())
    cache.fill(lambda texts: seen.extend(texts) or encode_texts(texts))
    assert seen == ["P, yy", "P, x"]
    made = cache.get([2, 0])
    assert made.hidden.shape == (2, 77, 2048)
    assert made.pooled[:, 0].tolist() == [4.0, 5.0]


def test_text_files_have_the_references_arrays_and_follow_the_text(tmp_path):
    scan = make_scan(tmp_path)
    config = TrainConfig(cache_text_encoder_outputs_to_disk=True)
    TextCache(scan, config).fill(encode_texts)
    with np.load(tmp_path / "a_te_outputs.npz") as stored:
        shapes = {name: stored[name].shape for name in ("hidden_state1", "hidden_state2", "pool2")}
    assert shapes == {"hidden_state1": (77, 768), "hidden_state2": (77, 1280), "pool2": (1280,)}
    again = TextCache(scan, config)
    assert again.missing() == []
    assert again.get([0]).hidden.shape == (1, 77, 2048)
    other = replace(scan, specs=(replace(scan.specs[0], subsets=(SubsetSpec(caption_prefix="new"),)),))
    assert TextCache(other, config).missing() == ["new cat 0", "new cat 1"]
    assert TextCache(scan, replace(config, max_token_length=150)).missing() == ["cat 0", "cat 1"]
    assert TextCache(scan, replace(config, sdxl_text_projection="as_stored")).missing() == ["cat 0", "cat 1"]


def test_captions_that_change_cannot_be_cached(tmp_path):
    with pytest.raises(ConfigError, match="shuffle_caption"):
        TextCache(make_scan(tmp_path, shuffle_caption=True), TrainConfig())
