"""Anchors and wrist fitted together: exact cases, derivatives, outliers, and what is stated."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from wristworld_ros.errors import InvalidInputError
from wristworld_ros.geometry.transforms import invert
from wristworld_ros.reconstruction.heads import BASE_LANDMARKS, WRIST_KEYPOINTS
from wristworld_ros.reconstruction.scene_fit import (
    PointSights,
    ScenePriors,
    _Problem,
    fit_scene,
)

LOOSE = ScenePriors(camera=(10.0, 10.0), log_focal=10.0, wrist=(10.0, 10.0))


def look_at(place, target):
    forward = np.subtract(target, place) / np.linalg.norm(np.subtract(target, place))
    right = np.cross(forward, [0, 0, 1.0])
    right /= np.linalg.norm(right)
    T = np.eye(4)
    T[:3, :3] = np.stack([right, np.cross(forward, right), forward], 1)
    T[:3, 3] = place
    return T


def turned(T, rotvec, shift):
    out = T.copy()
    out[:3, :3] = Rotation.from_rotvec(rotvec).as_matrix() @ T[:3, :3]
    out[:3, 3] += shift
    return out


def station(focals=(260.0, 300.0, 230.0)):
    places = ([1.4, -0.7, 0.7], [1.5, 0.1, 0.9], [1.3, 0.8, 0.6])
    cameras = np.stack([look_at(p, [0.35, 0.0, 0.2]) for p in places])
    K = np.array([[[f, 0, 128], [0, f, 128], [0, 0, 1.0]] for f in focals])
    wrist = np.eye(4)
    wrist[:3, :3] = Rotation.from_euler("xyz", [2.8, 0.3, 0.6]).as_matrix()
    wrist[:3, 3] = [0.45, -0.05, 0.35]
    return cameras, K, wrist


def project(points, K, T):
    x = points @ invert(T)[:3, :3].T + invert(T)[:3, 3]
    return x[:, :2] / x[:, 2:] * K[[0, 1], [0, 1]] + K[:2, 2]


def sights(model, T, cameras, K, noise=0.0, sigma=1.0, rng=None):
    model = np.array(model)
    points = model @ T[:3, :3].T + T[:3, 3]
    pixels = np.stack([project(points, k, c) for k, c in zip(K, cameras, strict=True)])
    if noise:
        pixels = pixels + rng.normal(0, noise, pixels.shape)
    return PointSights(model, pixels, np.full(pixels.shape[:2], sigma))


def start_of(cameras, K, wrist):
    moved = np.stack([turned(T, [0.05, -0.08, 0.06], [0.08, -0.06, 0.1]) for T in cameras])
    wrong = K.copy()
    wrong[:, 0, 0] *= [1.1, 0.9, 1.12]
    wrong[:, 1, 1] = wrong[:, 0, 0]
    return moved, wrong, turned(wrist, [0.2, -0.3, 0.1], [0.05, 0.08, -0.05])


def test_exact_points_give_the_exact_scene():
    cameras, K, wrist = station()
    base = sights(BASE_LANDMARKS, np.eye(4), cameras, K)
    hand = sights(WRIST_KEYPOINTS, wrist, cameras, K)
    fit = fit_scene([base], [hand], *start_of(cameras, K, wrist), priors=LOOSE)
    np.testing.assert_allclose(fit.T_base_camera, cameras, atol=1e-4)
    np.testing.assert_allclose(fit.K, K, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(fit.T_base_wrist, wrist, atol=1e-4)
    assert fit.residual < 1e-3


def test_what_is_known_stays():
    cameras, K, wrist = station()
    hand = sights(WRIST_KEYPOINTS, wrist, cameras, K)
    start = start_of(cameras, K, wrist)
    fit = fit_scene([], [hand], cameras, K, start[2], free_poses=False, free_focal=False)
    np.testing.assert_allclose(fit.T_base_camera, cameras, atol=1e-12)
    np.testing.assert_array_equal(fit.K, K)
    # The weak prior of the start pulls by less than a tenth of a millimetre.
    np.testing.assert_allclose(fit.T_base_wrist, wrist, atol=1e-3)

    base = sights(BASE_LANDMARKS, np.eye(4), cameras, K)
    fit = fit_scene([base], [hand], start[0], K, start[2], free_focal=False, priors=LOOSE)
    np.testing.assert_array_equal(fit.K, K)
    np.testing.assert_allclose(fit.T_base_camera, cameras, atol=1e-4)


def test_together_is_better_than_one_after_the_other():
    """Landmarks of one picture err together, as if lens or distance were another. Anchors that are
    fitted to them alone put the hand at several places; there is but one."""
    cameras, K, wrist = station()
    rng = np.random.default_rng(0)
    apart, together = [], []
    true = (invert(cameras[0]) @ wrist)[:3, 3]
    for _ in range(30):
        base = sights(BASE_LANDMARKS, np.eye(4), cameras, K, sigma=10.0)
        grown = rng.normal(1, 0.06, (3, 1, 1)) * (base.pixels - 128) + 128
        base.pixels[:] = grown + rng.normal(0, 5, (3, 1, 2))
        hand = sights(WRIST_KEYPOINTS, wrist, cameras, K, noise=1.0, rng=rng)
        unseen = PointSights(hand.model, hand.pixels, np.full(hand.sigma.shape, np.inf))
        start = (cameras, K, turned(wrist, rng.normal(0, 0.2, 3), rng.normal(0, 0.05, 3)))
        first = fit_scene([base], [unseen], *start)
        then = fit_scene(
            [], [hand], first.T_base_camera, first.K, start[2], free_poses=False, free_focal=False
        )
        for fit, out in ((then, apart), (fit_scene([base], [hand], *start), together)):
            seen = invert(fit.T_base_camera[0]) @ fit.T_base_wrist
            out.append(np.linalg.norm(seen[:3, 3] - true))
    assert np.median(together) < 0.8 * np.median(apart)


def test_derivatives_are_those_of_the_cost():
    cameras, K, wrist = station()
    rng = np.random.default_rng(1)
    base = sights(BASE_LANDMARKS, np.eye(4), cameras, K, noise=1.0, rng=rng)
    hand = sights(WRIST_KEYPOINTS, wrist, cameras, K, noise=3.0, rng=rng)  # some beyond HUBER
    problem = _Problem([base], [hand], *start_of(cameras, K, wrist), ScenePriors())
    # Away from the start, where the priors have slopes too.
    state = problem.moved(problem.start(), rng.normal(0, 0.01, problem.size))
    _, gradient = problem.normal_equations(state)
    h = 1e-6
    for i in range(problem.size):
        step = np.zeros(problem.size)
        step[i] = h
        slope = (
            problem.cost(problem.moved(state, step)) - problem.cost(problem.moved(state, -step))
        ) / (2 * h)
        assert gradient[i] == pytest.approx(slope, rel=0.02, abs=0.5)


def test_a_wrong_point_does_not_decide():
    cameras, K, wrist = station()
    base = sights(BASE_LANDMARKS, np.eye(4), cameras, K)
    hand = sights(WRIST_KEYPOINTS, wrist, cameras, K)
    hand.pixels[1, 3] += 60.0
    fit = fit_scene([base], [hand], *start_of(cameras, K, wrist))
    assert np.linalg.norm(fit.T_base_wrist[:3, 3] - wrist[:3, 3]) < 0.01


def test_errors_are_as_large_as_stated():
    cameras, K, wrist = station()
    rng = np.random.default_rng(2)
    ratios = []
    for _ in range(60):
        base = sights(BASE_LANDMARKS, np.eye(4), cameras, K, noise=1.0, rng=rng)
        hand = sights(WRIST_KEYPOINTS, wrist, cameras, K, noise=1.0, rng=rng)
        fit = fit_scene([base], [hand], *start_of(cameras, K, wrist), priors=LOOSE)
        # In the first anchor's frame: its own error is part of the wrist's.
        seen = invert(fit.T_base_camera[0]) @ fit.T_base_wrist
        true = invert(cameras[0]) @ wrist
        turn = Rotation.from_matrix(seen[:3, :3] @ true[:3, :3].T).as_rotvec()
        off = np.concatenate([seen[:3, 3] - true[:3, 3], turn])
        ratios.append(off @ np.linalg.solve(fit.covariance, off) / 6)
    assert 0.8 < np.mean(ratios) < 1.4


def test_points_that_are_seen_nowhere_leave_the_start():
    cameras, K, wrist = station()
    hand = sights(WRIST_KEYPOINTS, wrist, cameras, K)
    unseen = PointSights(hand.model, np.full_like(hand.pixels, np.nan), np.inf * hand.sigma)
    start = start_of(cameras, K, wrist)
    fit = fit_scene([], [unseen], *start)
    np.testing.assert_allclose(fit.T_base_wrist, start[2], atol=1e-9)
    np.testing.assert_allclose(fit.T_base_camera, start[0], atol=1e-9)
    assert fit.residual == 0


def test_bad_points_are_refused():
    cameras, K, wrist = station()
    hand = sights(WRIST_KEYPOINTS, wrist, cameras, K)
    with pytest.raises(InvalidInputError, match="got points in \\[3\\] views"):
        fit_scene([], [hand], cameras[:2], K[:2], wrist)
    with pytest.raises(InvalidInputError, match="needs points of the wrist"):
        fit_scene([hand], [], cameras, K, wrist)
    with pytest.raises(InvalidInputError, match="V x K positive"):
        PointSights(hand.model, hand.pixels, -hand.sigma)
    with pytest.raises(InvalidInputError, match="finite place"):
        PointSights(hand.model, np.full_like(hand.pixels, np.nan), hand.sigma)
    with pytest.raises(InvalidInputError, match="V x K x 2"):
        PointSights(hand.model, hand.pixels[..., :1], hand.sigma)
