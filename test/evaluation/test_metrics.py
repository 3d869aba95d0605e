"""Picture metrics against closed forms and scikit-image; LPIPS against recorded values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import data
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from wristworld_ros.errors import InvalidInputError
from wristworld_ros.evaluation.metrics import (
    PSNR_LIMIT,
    fit_truth,
    pose_error_mm_deg,
    psnr,
    ssim,
)
from wristworld_ros.generation.lpips import LPIPS, lpips

ASTRONAUT = data.astronaut()[30:158, 160:288]


def noisy(sigma: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, sigma, ASTRONAUT.shape)
    return np.clip(np.round(ASTRONAUT + noise), 0, 255).astype(np.uint8)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 255), st.integers(0, 254))
def test_psnr_of_a_constant_difference(level, base):
    difference = min(level, 255 - base)
    a = np.full((9, 8, 3), base, np.uint8)
    b = a + np.uint8(difference)
    assert psnr(a, b) == pytest.approx(20 * np.log10(255 / difference))


def test_psnr_and_ssim_agree_with_scikit_image():
    for sigma in (2, 10, 40):
        other = noisy(sigma)
        assert psnr(other, ASTRONAUT) == pytest.approx(peak_signal_noise_ratio(ASTRONAUT, other))
        expected = structural_similarity(ASTRONAUT, other, channel_axis=2)
        assert ssim(other, ASTRONAUT) == pytest.approx(expected)


def test_equal_pictures_have_the_best_scores():
    assert psnr(ASTRONAUT, ASTRONAUT) == PSNR_LIMIT
    assert ssim(ASTRONAUT, ASTRONAUT) == pytest.approx(1.0)


def test_masked_psnr_looks_at_the_mask_only():
    a = np.zeros((8, 8, 3), np.uint8)
    b = a.copy()
    b[:4] = 255
    b[4:] = 51
    mask = np.zeros((8, 8), bool)
    mask[4:] = True
    assert psnr(a, b, mask) == pytest.approx(20 * np.log10(5))
    assert psnr(a, b, ~mask) == 0.0
    assert np.isnan(psnr(a, b, np.zeros((8, 8), bool)))
    with pytest.raises(InvalidInputError, match=r"mask \(4, 4\)"):
        psnr(a, b, np.zeros((4, 4), bool))


def test_pictures_that_cannot_be_compared_are_refused():
    with pytest.raises(InvalidInputError, match="8 x 8 and 8 x 9 px cannot be compared"):
        psnr(np.zeros((8, 8, 3), np.uint8), np.zeros((9, 8, 3), np.uint8))
    with pytest.raises(InvalidInputError, match="float64"):
        psnr(np.zeros((8, 8, 3)), np.zeros((8, 8, 3)))
    with pytest.raises(InvalidInputError, match="at least 7 px"):
        ssim(np.zeros((6, 9, 3), np.uint8), np.zeros((6, 9, 3), np.uint8))


def test_pose_error_in_millimetres_and_degrees():
    T = np.eye(4)
    T[:3, 3] = 0.003, 0, -0.004
    c, s = np.cos(np.radians(30)), np.sin(np.radians(30))
    T[:3, :3] = [[c, -s, 0], [s, c, 0], [0, 0, 1]]
    assert pose_error_mm_deg(T, np.eye(4)) == pytest.approx((5.0, 30.0))


def test_truth_is_cropped_to_the_aspect_and_averaged():
    image = np.zeros((4, 10, 3), np.uint8)
    image[:, 3:5], image[:, 5:7] = 100, 200
    assert fit_truth(image, 2, 2)[..., 0].tolist() == [[100, 200]] * 2
    assert fit_truth(image, 10, 4) is image
    assert fit_truth(image, 20, 8).shape == (8, 20, 3)


def test_lpips_is_zero_for_equal_pictures_and_grows_with_noise():
    values = lpips([ASTRONAUT, noisy(4), noisy(15), noisy(50)], [ASTRONAUT])
    assert values[0] == 0.0
    assert values == sorted(values)
    assert lpips([noisy(15)], [ASTRONAUT]) == pytest.approx(lpips([ASTRONAUT], [noisy(15)]))


def test_lpips_has_the_recorded_values():
    # `python test/evaluation/record_lpips.py` prints them, next to those of the lpips package
    assert lpips([noisy(10)], [ASTRONAUT], "alexnet") == pytest.approx([0.028741], abs=1e-4)
    assert lpips([noisy(10)], [ASTRONAUT], "vgg16") == pytest.approx([0.144891], abs=1e-4)


def test_lpips_of_pairs_equals_lpips_one_by_one():
    a, b = [noisy(5), noisy(30)], [noisy(9, 1), noisy(9, 2)]
    together = lpips(a, b)
    assert together == pytest.approx([*lpips(a[:1], b[:1]), *lpips(a[1:], b[1:])], abs=1e-6)


def test_lpips_refuses_what_it_cannot_compare():
    with pytest.raises(InvalidInputError, match="2 and 3 pictures"):
        lpips([ASTRONAUT] * 2, [ASTRONAUT] * 3)
    with pytest.raises(InvalidInputError, match="'squeeze' is not one of alexnet, vgg16"):
        LPIPS("squeeze")
    with pytest.raises(InvalidInputError, match="31 px"):
        LPIPS()(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16))
