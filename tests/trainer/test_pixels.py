import random

import numpy as np
import pytest
import torch
from PIL import Image

from trainer.dataset.buckets import Choice
from trainer.dataset.draws import anywhere
from trainer.dataset.images import TURNS
from trainer.input import pixels


def noise(width, height, channels=3):
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


@pytest.mark.parametrize(
    ("size", "to"), [((7, 5), (3, 2)), ((64, 48), (33, 25)), ((10, 10), (10, 4)), ((9, 6), (3, 3))]
)
def test_shrinking_is_the_mean_over_areas(size, to):
    values = noise(*size)
    # Every pixel as a block of the other size: then each area holds whole pixels only.
    fine = values.repeat(to[1], axis=0).repeat(to[0], axis=1).astype(float)
    exact = fine.reshape(to[1], size[1], to[0], size[0], 3).mean(axis=(1, 3))
    assert np.abs(pixels.resize(values, to) - exact).max() <= 0.51


def test_enlarging_is_lanczos_and_a_named_filter_wins():
    values = noise(8, 8)
    lanczos = np.asarray(Image.fromarray(values).resize((20, 16), Image.Resampling.LANCZOS))
    assert np.array_equal(pixels.resize(values, (20, 16)), lanczos)
    nearest = pixels.resize(values, (4, 4), "nearest")
    assert all(pixel.tolist() in values.reshape(-1, 3).tolist() for pixel in nearest.reshape(-1, 3))


def test_one_channel_stays_one_channel():
    assert pixels.resize(noise(8, 8, 1), (16, 12)).shape == (12, 16, 1)
    assert pixels.resize(noise(8, 8, 1), (4, 3)).shape == (3, 4, 1)


@pytest.mark.parametrize("turn", range(1, 9))
def test_pictures_are_turned_upright(tmp_path, turn):
    upright = Image.fromarray(noise(6, 4))
    back = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}.get(
        turn, getattr(Image.Transpose, TURNS.get(turn, ""), None)
    )
    exif = Image.Exif()
    exif[0x0112] = turn
    (upright if back is None else upright.transpose(back)).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(pixels.read(tmp_path / "a.png")[0], np.asarray(upright))


def test_transparency_becomes_white_or_the_mask(tmp_path):
    picture = np.zeros((2, 2, 4), np.uint8)
    picture[0] = (255, 0, 0, 255)
    Image.fromarray(picture).save(tmp_path / "a.png")
    colours, mask = pixels.read(tmp_path / "a.png")
    assert mask is None
    assert colours[:, 0].tolist() == [[255, 0, 0], [255, 255, 255]]
    colours, mask = pixels.read(tmp_path / "a.png", alpha=True)
    assert colours[:, 0].tolist() == [[255, 0, 0], [0, 0, 0]]
    assert mask[:, 0, 0].tolist() == [255, 0]


def test_sixteen_bit_grey_is_scaled_not_cut(tmp_path):
    Image.fromarray(np.array([[0, 32896, 65535]], np.uint16)).save(tmp_path / "a.png")
    assert pixels.read(tmp_path / "a.png")[0][0, :, 0].tolist() == [0, 128, 255]


def test_random_cuts_reach_every_place_and_no_further():
    choice = Choice((4, 4), (6, 4), (1, 0), (0.0, 0.0, 4.0, 4.0))
    rng = random.Random(0)
    assert {anywhere(choice, rng) for _ in range(50)} == {(0, 0), (1, 0), (2, 0)}
    assert pixels.fit(noise(6, 4), choice, (2, 0), None).shape == (4, 4, 3)


def test_tensors_have_the_range_of_the_model():
    made = pixels.to_tensor(np.array([[[0, 255, 51]]], np.uint8))
    assert torch.allclose(made.flatten(), torch.tensor([-1.0, 1.0, -0.6]))


def test_recolouring_changes_a_third_of_the_pictures():
    values, rng = noise(4, 4), random.Random(1)
    changed = sum(not np.array_equal(pixels.recolour(values, rng), values) for _ in range(300))
    assert 70 < changed < 130
    assert np.abs(pixels.shift_hue(values, 0.0).astype(int) - values).max() <= 8
