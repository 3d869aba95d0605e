"""Metric scale: each source finds a known factor or refuses, and one factor is kept over time."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from wristworld_ros.errors import CalibrationError, InvalidInputError
from wristworld_ros.reconstruction.metric_scale import (
    MetricScale,
    ScaleEstimate,
    scale_from_depth,
    scale_from_extrinsics,
    scale_from_forward_motion,
    scale_from_kinematics,
)

SCALE = 2.5


def poses_at(positions, rotations=None):
    T = np.tile(np.eye(4), (len(positions), 1, 1))
    T[:, :3, 3] = positions
    if rotations is not None:
        T[:, :3, :3] = rotations
    return T


def path(n=60, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(0, [0.15, 0.1, 0.05], (n, 3)) + [0.4, 0, 0.3]


def test_extrinsics_give_the_ratio_of_the_baselines():
    known = poses_at([[0, 0, 0], [1, 0, 0], [0, 2, 0]])
    result = scale_from_extrinsics(poses_at(known[:, :3, 3] / SCALE + [5, 5, 5]), known)
    assert result.scale == pytest.approx(SCALE, rel=1e-9)
    assert (result.inliers, result.total, result.source) == (3, 3, "extrinsics")
    assert result.residual < 1e-9


def test_one_wrong_camera_of_five_is_told_from_the_others():
    rng = np.random.default_rng(1)
    known = rng.normal(0, 1, (5, 3))
    estimated = known / SCALE
    estimated[4] *= 4
    result = scale_from_extrinsics(poses_at(estimated), poses_at(known))
    assert result.scale == pytest.approx(SCALE, rel=1e-6)
    assert (result.inliers, result.total) == (6, 10)


@pytest.mark.parametrize(
    ("estimated", "known", "message"),
    [
        ([[0, 0, 0]], [[0, 0, 0]], "1 estimated and 1 known"),
        ([[0, 0, 0], [1, 0, 0]], [[0, 0, 0], [0.001, 0, 0]], "no baseline"),
        ([[0, 0, 0], [0, 0, 0]], [[0, 0, 0], [1, 0, 0]], "at one place"),
        ([[0, 0, np.nan], [0, 0, 0]], [[0, 0, 0], [1, 0, 0]], "finite"),
    ],
)
def test_extrinsics_without_a_baseline_are_refused(estimated, known, message):
    with pytest.raises(CalibrationError, match=message):
        scale_from_extrinsics(poses_at(estimated), poses_at(known))


def test_depth_gives_the_ratio_in_spite_of_holes_and_wrong_pixels():
    rng = np.random.default_rng(2)
    measured = rng.uniform(0.5, 2, (64, 64))
    predicted = measured / SCALE * np.exp(rng.normal(0, 0.02, measured.shape))
    measured[:20] = 0
    measured[20:28] *= 3  # 8 of 44 rows: flying pixels
    result = scale_from_depth(predicted, measured)
    assert result.scale == pytest.approx(SCALE, rel=2e-3)
    assert result.residual == pytest.approx(0.02, rel=0.1)
    assert result.inliers == pytest.approx(36 * 64, rel=0.02)
    # 2304 pixels do not count as 2304 independent measurements.
    assert result.sigma == pytest.approx(0.02 / np.sqrt(63), rel=0.1)


def test_depth_leaves_out_pixels_of_low_confidence():
    measured = np.full((40, 40), 1.0)
    predicted = measured / SCALE
    predicted[:25] *= 3
    confidence = np.ones((40, 40))
    confidence[:25] = 0.2
    result = scale_from_depth(predicted, measured, confidence=confidence, min_confidence=0.5)
    assert result.scale == pytest.approx(SCALE)


def test_too_little_depth_is_refused():
    measured = np.zeros((100, 100))
    measured[0, :50] = 1
    with pytest.raises(CalibrationError, match="50 of 10000 pixels"):
        scale_from_depth(np.ones((100, 100)), measured)
    with pytest.raises(InvalidInputError, match="resize"):
        scale_from_depth(np.ones((10, 10)), measured)


def test_kinematics_align_the_path_with_a_quarter_of_outliers():
    rng = np.random.default_rng(3)
    known = path()
    R = Rotation.from_rotvec([0.3, -0.8, 1.2]).as_matrix()
    estimated = ((known - [1, 2, 3]) @ R) / SCALE + rng.normal(0, 0.002 / SCALE, known.shape)
    estimated[::4] += rng.normal(0, 0.3, (15, 3))
    result = scale_from_kinematics(estimated, known)
    assert result.estimate.scale == pytest.approx(SCALE, rel=0.01)
    assert 43 <= result.estimate.inliers <= 46
    assert abs(np.log(result.estimate.scale / SCALE)) < 3 * result.estimate.sigma
    np.testing.assert_allclose(result.rotation, R, atol=0.02)
    np.testing.assert_allclose(result.translation, [1, 2, 3], atol=0.05)


@pytest.mark.parametrize(
    ("estimated", "known", "message"),
    [
        (path()[:3], path()[:3], "at least 4"),
        (path(), path() * 1e-3, "moved by only"),
        (path(), path() * [1, 0, 0], "along a line"),
        (np.zeros((60, 3)), path(), "does not move"),
        (path(seed=5), path(seed=6), "agree"),
    ],
)
def test_paths_that_give_no_scale_are_refused(estimated, known, message):
    with pytest.raises(CalibrationError, match=message):
        scale_from_kinematics(estimated, known)


def test_forward_moves_give_the_ratio_without_extrinsics():
    R = Rotation.from_rotvec([2.0, 0.5, 0.0]).as_matrix()
    travelled = np.array([0.1, 0.05, -0.08, 0.001])
    along = np.concatenate([[0], np.cumsum(travelled)]) / SCALE
    sideways = np.outer([0, 1, 2, 3, 4], R[:, 0]) * 0.3
    estimated = poses_at(along[:, None] * R[:, 2] + sideways, np.tile(R, (5, 1, 1)))
    result = scale_from_forward_motion(estimated, travelled)
    assert result.scale == pytest.approx(SCALE, rel=1e-9)
    assert (result.inliers, result.total) == (3, 3)  # the move of 1 mm is not used
    with pytest.raises(CalibrationError, match="other way"):
        scale_from_forward_motion(estimated, -travelled)
    with pytest.raises(CalibrationError, match="longest move is 0.001 m"):
        scale_from_forward_motion(estimated, travelled / 100)


def estimate(scale, sigma=0.02):
    return ScaleEstimate(scale, sigma, sigma, 10, 10, "depth")


def test_one_scale_is_kept_over_noisy_estimates_and_outliers():
    rng = np.random.default_rng(4)
    tracker = MetricScale()
    believed = []
    for i in range(200):
        wrong = i % 10 == 5
        value = 3 * SCALE if wrong else SCALE * np.exp(rng.normal(0, 0.02))
        believed.append(tracker.add(estimate(value)) != wrong)
    assert np.mean(believed) > 0.98
    assert tracker.scale == pytest.approx(SCALE, rel=0.005)
    assert tracker.sigma == pytest.approx(0.01 / 3)
    assert tracker.restarts == 0


def test_a_lasting_change_replaces_the_scale():
    tracker = MetricScale(patience=5)
    for _ in range(50):
        tracker.add(estimate(SCALE))
    for i in range(5):
        assert tracker.add(estimate(4.0)) == (i == 4)
    assert tracker.scale == pytest.approx(4.0)
    assert tracker.restarts == 1


def test_a_scale_survives_a_restart():
    tracker = MetricScale()
    with pytest.raises(CalibrationError, match="no metric scale yet"):
        tracker.scale
    for _ in range(10):
        tracker.add(estimate(SCALE))
    again = MetricScale.from_state(dict(tracker.state()))
    assert again.scale == pytest.approx(SCALE)
    with pytest.raises(CalibrationError, match="no metric_scale"):
        MetricScale.from_state({})
    with pytest.raises(InvalidInputError, match="scale -1"):
        again.add(estimate(-1))
