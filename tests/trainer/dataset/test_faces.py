import random

import pytest

from trainer.dataset.faces import Face, cut_around, face_in

FACE = Face(300, 200, 80, 100)


@pytest.mark.parametrize(
    ("stem", "face"),
    [
        ("n0m3_300_200_80_100", FACE),
        ("a_long_name_300_200_80_100", FACE),
        ("300_200_80_100", None),
        ("a_b_c_d_e", None),
        ("n0m3_300_200_0_100", None),
        ("n0m3_-3_200_80_100", None),
    ],
)
def test_the_last_four_numbers_of_a_name_tell_of_a_face(stem, face):
    assert face_in(stem) == face


def cut(face=FACE, size=(1000, 800), window=(200, 200), times=(1.0, 4.0), anywhere=False, seed=0):
    return cut_around(face, size, window, times, anywhere=anywhere, rng=random.Random(seed))


def test_the_cut_is_so_many_times_the_face_and_centred_on_it():
    assert cut(times=(4.0, 4.0)) == ((500, 400), (50, 0))  # 200 = 4 * 100 * 0.5; 300 * 0.5 - 100 = 50
    assert cut(times=(2.0, 2.0)) == ((1000, 800), (200, 100))


def test_no_picture_is_enlarged_nor_left_with_a_gap():
    assert cut(times=(0.1, 0.1))[0] == (1000, 800)  # a hundredfold face would need enlarging
    assert cut(times=(50.0, 50.0))[0] == (250, 200)  # no smaller than the window
    assert cut(size=(100, 150), window=(200, 200), times=(2.0, 4.0))[0] == (200, 300)  # but to fill the window


@pytest.mark.parametrize("anywhere", [False, True])
def test_scales_and_places_vary_within_their_bounds(anywhere):
    found = [cut(times=(1.0, 4.0), anywhere=anywhere, seed=seed) for seed in range(200)]
    widths = {width for (width, _), _ in found}
    assert 500 <= min(widths) < 560
    assert 940 < max(widths) <= 1000
    for (width, height), (left, top) in found:
        assert 0 <= left <= width - 200
        assert 0 <= top <= height - 200
        scale = width / 1000
        assert left <= scale * 300 <= left + 200  # the face's centre is in the cut
        if not anywhere and left:
            assert abs(left + 100 - scale * 300) <= scale * 80 / 20 + 1


def test_random_crop_moves_the_face_but_keeps_it_inside():
    lefts = {cut(times=(2.0, 2.0), anywhere=True, seed=seed)[1][0] for seed in range(200)}
    assert min(lefts) >= 300 + 40 - 200
    assert max(lefts) <= 300 - 40
    assert max(lefts) - min(lefts) > 60
