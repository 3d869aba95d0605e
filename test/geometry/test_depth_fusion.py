"""Fusion of measured and predicted depth against depth that is known."""

import numpy as np
import pytest

from wristworld_ros.errors import InvalidInputError
from wristworld_ros.geometry.depth_fusion import (
    ERROR_SCALE,
    align_depth,
    confidence_of,
    expected_error,
    fuse_depth,
    resize_depth,
)

SIZE = (96, 128)
ROWS, COLUMNS = np.mgrid[: SIZE[0], : SIZE[1]]
#: A table that recedes, with a box on it.
TRUE = (0.8 + 0.6 * (SIZE[0] - ROWS) / SIZE[0]).astype(np.float32)
TRUE[40:70, 50:80] -= 0.15
CONFIDENCE = np.full(SIZE, 0.52, np.float32)  # 2.4 %, the mean size of 3 % of Gaussian noise


def predicted(scale=1.0, shift=0.0, noise=0.03):
    """What a network might say whose inverse depth is off by ``scale`` and ``shift``."""
    error = np.exp(noise * np.random.default_rng(0).standard_normal(SIZE))
    return (error / (scale / TRUE + shift)).astype(np.float32)


def measured(first=0.001, second=0.002):
    noise = (first + second * TRUE**2) * np.random.default_rng(1).standard_normal(SIZE)
    return (TRUE + noise).astype(np.float32)


def off(depth, part=slice(None)):
    return float(np.abs(depth / TRUE - 1)[part].mean())


def test_confidence_and_expected_error_are_inverse():
    np.testing.assert_allclose(expected_error([0, 0.5, 1]), [ERROR_SCALE, ERROR_SCALE / 2, 0])
    assert np.isinf(expected_error([-1.0]))[0]
    np.testing.assert_allclose(confidence_of(expected_error([0, 0.3, 1])), [0, 0.3, 1], atol=1e-6)
    assert confidence_of([9.0])[0] == 0


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1.1, 0.0), (0.9, 0.08)])
def test_alignment_finds_scale_and_shift_through_outliers(scale, shift):
    m = measured()
    m[:20] = 4.0  # a fifth of the sensor's pixels are nonsense
    e = np.full(SIZE, 0.024, np.float32)
    found = align_depth(predicted(scale, shift), e, m, np.full(SIZE, 0.003, np.float32))
    np.testing.assert_allclose(found(predicted(scale, shift, noise=0)), TRUE, rtol=0.012)
    assert found.pixels == TRUE.size


def test_alignment_makes_the_least_correction_that_the_depths_ask_for():
    wall = np.ones(SIZE, np.float32)  # one depth: scale and shift cannot be told apart
    e = np.full(SIZE, 0.01, np.float32)
    found = align_depth(wall * 1.05, e, wall, e)
    np.testing.assert_allclose(found(wall * 1.05), wall, rtol=2e-3)
    assert abs(found.scale - 1) < 0.05 and abs(found.shift) < 0.03
    few = np.zeros(SIZE, np.float32)
    few[0, :20] = 1
    alone = align_depth(wall * 1.05, e, few, e)
    assert (alone.scale, alone.shift, alone.pixels) == (1, 0, 20)


def test_fused_depth_is_better_than_either_and_knows_it():
    p, m = predicted(), measured(0.004, 0.01)
    depth, confidence = fuse_depth(p, CONFIDENCE, m, noise=(0.004, 0.01))
    assert off(depth) < 0.95 * off(m) < off(p)
    assert confidence.mean() > confidence_of(0.004 + 0.01).mean() > CONFIDENCE.mean()
    far, _ = fuse_depth(p, CONFIDENCE, m, noise=(0.5, 0.0))  # a useless sensor changes little
    assert np.abs(far / p - 1).mean() < 0.01


@pytest.mark.parametrize("nothing", [0.0, -1.0, np.nan, np.inf, -np.inf])
def test_holes_take_the_aligned_prediction_with_its_confidence(nothing):
    m = measured()
    hole = (slice(10, 40), slice(0, 60))
    m[hole] = nothing
    depth, confidence = fuse_depth(predicted(1.1), CONFIDENCE, m)
    assert np.isfinite(depth).all() and (depth > 0).all()
    assert off(depth, hole) < 0.03 < off(predicted(1.1), hole)
    assert confidence[hole].max() <= CONFIDENCE.max() + 1e-6 < confidence[50:].min()


def test_a_prediction_that_overrates_itself_loses_confidence():
    m = measured()
    m[:40] = 0
    honest = fuse_depth(predicted(noise=0.03), CONFIDENCE, m)[1][:40].mean()
    boasting = fuse_depth(predicted(noise=0.06), CONFIDENCE, m)[1][:40].mean()
    assert honest == pytest.approx(0.52, abs=0.05) and boasting < 0.2


def test_lone_wrong_pixels_lose_and_supported_surfaces_win():
    m = measured()
    m[20, 20], m[80, 100], m[55, 60] = 0.2, 5.0, 0.3
    p = predicted()
    p[40:70, 50:80] += 0.15  # the network misses the box that the sensor sees
    depth, confidence = fuse_depth(p, CONFIDENCE, m)
    for pixel in ((20, 20), (80, 100)):
        assert depth[pixel] == pytest.approx(TRUE[pixel], rel=0.12)
        assert confidence[pixel] < 0.6
    inner = (slice(42, 54), slice(52, 78))
    assert off(depth, inner) < 0.005
    assert confidence[inner].min() > 0.9


def test_unusable_predictions_fill_no_hole_and_spoil_no_measurement():
    m, c = measured(), CONFIDENCE.copy()
    m[:10] = 0
    c[:, :30] = -1
    p = predicted()
    p[:, :30] *= 3
    depth, confidence = fuse_depth(p, c, m)
    assert (confidence[:10, :30] == -1).all() and (confidence[10:] > 0.8).all()
    assert off(depth, (slice(10, None), slice(0, 30))) < 0.005
    nothing = fuse_depth(p, c, np.zeros(SIZE, np.float32))
    np.testing.assert_allclose(nothing[0], p, rtol=1e-6)
    np.testing.assert_allclose(nothing[1], c, atol=1e-6)


def test_resize_averages_surfaces_and_mixes_no_edges():
    depth = measured(0.01, 0.0)
    depth[:4] = np.nan
    small = resize_depth(depth, (64, 48))
    assert (small[:2] == 0).all()
    flat = (slice(2, 18), slice(None))
    assert np.abs(small / TRUE[::2, ::2] - 1)[flat].mean() < 0.8 * off(depth, (slice(4, 36),))
    step = np.ones((8, 8), np.float32)
    step[:, 3:] = 2
    assert set(resize_depth(step, (4, 4)).ravel().tolist()) == {1.0, 2.0}
    np.testing.assert_array_equal(resize_depth(step, (16, 16))[::2, ::2], step)


def test_impossible_inputs_are_named():
    m = measured()
    with pytest.raises(InvalidInputError, match="resize"):
        fuse_depth(predicted(), CONFIDENCE, m[:10])
    with pytest.raises(InvalidInputError, match="positive"):
        fuse_depth(predicted() * 0, CONFIDENCE, m)
