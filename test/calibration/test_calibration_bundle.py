"""A camera on a moving hand, found from tracks of points that it sees; the truth is known."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from wristworld_ros.calibration.bundle import Motion, Sightings, solve, triangulate
from wristworld_ros.calibration.search import mount_starts, search
from wristworld_ros.errors import CalibrationError
from wristworld_ros.types import CameraModel

CAMERA = CameraModel(np.array([[200.0, 0, 160], [0, 200, 120], [0, 0, 1]]), 320, 240)
PERIOD = 0.2


def pose(rotation, translation):
    T = np.eye(4)
    T[:3, :3] = Rotation.from_rotvec(rotation).as_matrix()
    T[:3, 3] = translation
    return T


MOUNT = pose([0.05, -0.02, 1.5], [0.05, -0.03, 0.04])


@pytest.fixture(scope="module")
def scene():
    """40 hand poses over a table with 60 points; pixels with 0.2 px of noise."""
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.uniform(-0.4, 0.4, (60, 2)), rng.uniform(0, 0.1, (60, 1))], 1)
    phase = np.linspace(0, 2 * np.pi, 40)
    hands = np.stack(
        [
            pose([np.pi, 0, 0], [0.15 * np.cos(a), 0.15 * np.sin(a), 0.6 + 0.1 * np.sin(2 * a)])
            @ pose([0.3 * np.sin(a), 0.3 * np.cos(2 * a), 0.5 * np.sin(a)], [0, 0, 0])
            for a in phase
        ]
    )
    motion = Motion.of(hands, PERIOD)
    R, t = motion.world_to_camera(MOUNT[None], 0.0)
    x = np.einsum("tij,pj->pti", R, points) + t
    pixels = x[..., :2] / x[..., 2:] * 200 + [160, 120]
    seen = ((pixels > 0) & (pixels < [320, 240])).all(-1) & (x[..., 2] > 0.1)
    point, index = np.nonzero(seen)
    noisy = pixels[seen] + 0.2 * rng.normal(size=(len(point), 2))
    _, point = np.unique(point, return_inverse=True)
    return Sightings(point.astype(np.int64), index, noisy), motion, points


def off(T, truth):
    change = np.linalg.inv(truth) @ T
    return np.linalg.norm(change[:3, 3]), np.linalg.norm(
        Rotation.from_matrix(change[:3, :3]).as_rotvec()
    )


def test_mount_and_focal_length_are_found_from_a_start_that_is_off(scene):
    sightings, motion, _ = scene
    start = MOUNT @ pose([0.1, -0.1, 0.15], [0.03, 0.02, -0.04])
    camera = CameraModel(np.array([[230.0, 0, 160], [0, 230, 120], [0, 0, 1]]), 320, 240)
    found = solve(sightings, motion, camera, start[None], free=("focal",), aspect=1.0)
    metres, radians = off(found.X[0], MOUNT)
    assert metres < 2e-3 and radians < 3e-3
    assert found.camera.K[0, 0] == pytest.approx(200, rel=5e-3)
    assert np.sqrt((found.errors**2).mean()) < 0.5


def test_a_late_video_is_noticed(scene):
    """Pictures taken 50 ms after their poses."""
    sightings, motion, points = scene
    R, t = motion.world_to_camera(MOUNT[None], 0.05)
    x = np.einsum("tij,pj->pti", R, points) + t
    late = (x[..., :2] / x[..., 2:] * 200 + [160, 120])[
        np.unique(sightings.point)[sightings.point], sightings.pose
    ]
    found = solve(
        Sightings(sightings.point, sightings.pose, late),
        motion,
        CAMERA,
        MOUNT[None],
        free=("latency",),
    )
    assert found.latency == pytest.approx(0.05, abs=5e-3)


def test_points_are_triangulated_where_they_are(scene):
    sightings, motion, points = scene
    found, residuals = triangulate(sightings, motion, CAMERA, MOUNT[None])
    often = np.bincount(sightings.point) >= 10
    assert np.linalg.norm(found - points, axis=1)[often].max() < 0.02
    assert np.abs(residuals).mean() < 0.4


def test_too_few_observations_are_refused(scene):
    sightings, motion, _ = scene
    few = sightings.select(np.arange(len(sightings)) < 4)
    with pytest.raises(CalibrationError, match="4 observations"):
        solve(few, motion, CAMERA, MOUNT[None])


@pytest.mark.parametrize("tilt_deg", [0.0, 40.0])
def test_the_mount_is_found_though_some_points_move_with_the_hand(scene, tilt_deg):
    """A quarter of the tracks are shadows of the hand, which fit no mount at all."""
    sightings, motion, _ = scene
    rng = np.random.default_rng(3)
    shadows = [
        rng.uniform(20, 300, 2) + np.cumsum(rng.normal(0, 6, (len(motion.A), 2)), axis=0)
        for _ in range(20)
    ]
    count = sightings.count
    joined = Sightings(
        np.concatenate([sightings.point, np.repeat(count + np.arange(20), len(motion.A))]),
        np.concatenate([sightings.pose, np.tile(np.arange(len(motion.A)), 20)]),
        np.concatenate([sightings.pixel, *shadows]),
    )
    turn = pose([np.deg2rad(tilt_deg), 0, 0], [0, 0, 0])
    hands = Motion.of(motion.A @ turn, PERIOD)
    found = search(joined, hands, mount_starts((320, 240), 1.0), np.random.default_rng(0))
    metres, radians = off(found.X[0], np.linalg.inv(turn) @ MOUNT)
    assert metres < 0.01 and radians < 0.02
    assert found.camera.K[0, 0] == pytest.approx(200, rel=0.02)
