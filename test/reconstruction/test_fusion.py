"""Pose source fused: hand-eye, robust window fit, honest covariance, refusal, bumps, saving."""

import numpy as np
import pytest

from wristworld_ros.errors import CalibrationError, InvalidInputError
from wristworld_ros.evaluation.fusion import lasting_error, share_inside, wrong_mount
from wristworld_ros.geometry.transforms import invert, pose_error
from wristworld_ros.reconstruction.bump import ShiftDetector
from wristworld_ros.reconstruction.bundle import (
    BASE,
    ErrorModel,
    KeypointSight,
    PoseSight,
    Prior,
    Source,
    WristObservation,
)
from wristworld_ros.reconstruction.calibration_file import load_calibration, save_calibration
from wristworld_ros.reconstruction.fusion import MountEstimator
from wristworld_ros.reconstruction.hand_eye import (
    average_pose,
    difference,
    perturb,
    solve_robot_world_hand_eye,
)
from wristworld_ros.reconstruction.heads import WRIST_KEYPOINTS

KEYPOINTS = np.array(WRIST_KEYPOINTS)
K = np.array([[140.0, 0, 64], [0, 140, 64], [0, 0, 1]])
MOUNT = perturb(np.eye(4), np.array([0.08, 0, 0.02, 0, 0.3, 0]))
DOWN = np.diag([1.0, -1, -1, 1])
DOWN[:3, 3] = [0.45, 0, 0.35]


def look_from(eye):
    z = np.array([0.45, 0, 0.2]) - eye
    z /= np.linalg.norm(z)
    x = np.cross(z, [0, 0, 1.0])
    x /= np.linalg.norm(x)
    T = np.eye(4)
    T[:3, :3] = np.stack([x, np.cross(z, x), z], 1)
    T[:3, 3] = eye
    return T


CAMERAS = {
    "front": look_from([1.3, 0, 0.6]),
    "left": look_from([0.8, 0.8, 0.7]),
    "right": look_from([0.6, -0.9, 0.6]),
}


def change_of(seed):
    return difference(np.eye(4), wrong_mount(np.eye(4), seed, (0.02, np.deg2rad(3.0))).T)


def hands(n, rng, turn=0.35, axes=(1, 1, 1), step=1.0):
    """A smooth walk of the hand above the table."""
    phase, pace = rng.uniform(0, 6, 6), step * rng.uniform(0.02, 0.09, 6)
    s = np.sin(2 * np.pi * pace * np.arange(n)[:, None] + phase)
    return np.stack(
        [perturb(DOWN, np.r_[0.12 * v[:3], turn * v[3:] * np.asarray(axes)]) for v in s]
    )


def simulate(
    n, seed, *, lasting=0.7, varying=0.7, wild=0.05, moved=None, at=0, turn=0.35, names=None, **walk
):
    """Keypoint sights with lasting, varying (correlated) and wild errors; and the truth at the end.

    ``moved`` (``mount`` or a camera) moves by 20 mm and 3 degrees at frame ``at``.
    """
    rng = np.random.default_rng(seed)
    cameras = {c: CAMERAS[c] for c in names or CAMERAS}
    path = hands(n, rng, turn, **walk)
    shape = (len(KEYPOINTS), 2)
    bias = {c: lasting * (rng.normal(size=2) + rng.normal(size=shape)) / 2**0.5 for c in cameras}
    noise = {c: varying * rng.normal(size=shape) for c in cameras}
    mount, observations = MOUNT, []
    for i in range(n):
        if i == at and moved == "mount":
            mount = perturb(mount, change_of(seed))
        elif i == at and moved:
            cameras[moved] = perturb(cameras[moved], change_of(seed))
        sights = {}
        for c, T in cameras.items():
            noise[c] = 0.6 * noise[c] + 0.8 * varying * rng.normal(size=shape)
            x = KEYPOINTS @ mount[:3, :3].T + mount[:3, 3]
            x = (x @ path[i, :3, :3].T + path[i, :3, 3] - T[:3, 3]) @ T[:3, :3]
            pixels = x[:, :2] / x[:, 2:] * 140 + 64 + bias[c] + noise[c]
            if rng.random() < wild:
                pixels = pixels + rng.normal(0, 15, 2)
            sights[c] = KeypointSight(pixels, np.ones(len(KEYPOINTS)), K)
        observations.append(WristObservation(200_000_000 * i, path[i], sights))
    return observations, mount, cameras


def estimator(seed=0, cameras=CAMERAS, lasting=0.7, **more):
    errors = ErrorModel(lasting, 6.0, 4.0)
    return MountEstimator(
        wrong_mount(MOUNT, seed), cameras, keypoints=KEYPOINTS, errors=errors, **more
    )


def mm_deg(T, truth):
    metres, radians = pose_error(T, truth)
    return 1e3 * metres, np.rad2deg(radians)


# --- hand-eye ---------------------------------------------------------------------------------


def test_change_and_difference_are_inverse():
    T = perturb(MOUNT, np.array([0.1, -0.2, 0.3, 0.4, -0.5, 0.6]))
    np.testing.assert_allclose(difference(MOUNT, T), [0.1, -0.2, 0.3, 0.4, -0.5, 0.6], atol=1e-12)


def test_mean_pose_ignores_two_fifths_of_wrong_poses():
    rng = np.random.default_rng(0)
    poses = np.stack([perturb(MOUNT, rng.normal(0, 0.003, 6)) for _ in range(50)])
    poses[::5] = perturb(MOUNT, np.full(6, 0.5))
    poses[1::5] = perturb(MOUNT, np.r_[0, 0, 0, 1.0, 0, 0])
    mean, weights = average_pose(poses)
    assert np.abs(difference(MOUNT, mean)).max() < 0.002
    assert (weights[::5] == 0).all()
    assert (weights[1::5] == 0).all()


def test_robot_world_hand_eye_finds_both_poses_among_outliers():
    rng = np.random.default_rng(1)
    camera, path = CAMERAS["left"], hands(40, rng)
    exact = invert(camera) @ path @ MOUNT
    result = solve_robot_world_hand_eye(path, exact)
    np.testing.assert_allclose(result.T_hand_wrist, MOUNT, atol=1e-9)
    np.testing.assert_allclose(result.T_base_camera, camera, atol=1e-9)
    scale = np.array([0.002] * 3 + [0.005] * 3)
    noisy = np.stack([perturb(T, rng.normal(0, scale)) for T in exact])
    noisy[::5] = exact[rng.permutation(40)][::5]
    result = solve_robot_world_hand_eye(path, noisy)
    wrong = np.array([pose_error(a, b)[0] > 0.05 for a, b in zip(noisy, exact, strict=True)])
    assert not result.inliers[wrong].any()
    assert result.inliers[~wrong].mean() > 0.9
    assert mm_deg(result.T_hand_wrist, MOUNT)[0] < 5
    assert mm_deg(result.T_base_camera, camera)[0] < 5
    error = np.r_[difference(result.T_hand_wrist, MOUNT), difference(result.T_base_camera, camera)]
    assert error @ np.linalg.solve(result.covariance, error) < 40  # chi-square, 12 values: 1e-4
    assert result.rms_m == pytest.approx(0.002 * 3**0.5, rel=0.3)


def test_hand_eye_without_a_second_axis_is_refused():
    path = hands(40, np.random.default_rng(2), axes=(0, 0, 1))
    with pytest.raises(CalibrationError, match="second axis"):
        solve_robot_world_hand_eye(path, invert(CAMERAS["left"]) @ path @ MOUNT)
    with pytest.raises(CalibrationError, match="at least 3"):
        solve_robot_world_hand_eye(path[:2], path[:2])


@pytest.mark.parametrize("kind", ["keypoints", "pose"])
def test_derivatives_of_sights_are_those_of_the_residuals(kind):
    observations, _, _ = simulate(3, 0, lasting=0, varying=0, wild=0)
    name = "left"
    if kind == "pose":
        covariance = np.diag([1.0, 2, 3, 4, 5, 6]) * 1e-4
        observations = [
            WristObservation(
                o.stamp_ns,
                o.T_base_hand,
                {name: PoseSight(invert(CAMERAS[name]) @ o.T_base_hand @ MOUNT, covariance)},
            )
            for o in observations
        ]
    source = Source(name, observations, KEYPOINTS)
    poses = {"mount": MOUNT, **CAMERAS}
    error, jacobian = source.residuals(poses)
    np.testing.assert_allclose(error, 0, atol=1e-9)
    for i in range(12):
        step = np.zeros(12)
        step[i] = 1e-6
        changed = {
            **poses,
            "mount": perturb(MOUNT, step[:6]),
            name: perturb(CAMERAS[name], step[6:]),
        }
        numeric = (source.residuals(changed)[0] - error) / 1e-6
        np.testing.assert_allclose(jacobian[..., i], numeric, atol=2e-3 * np.abs(numeric).max())


# --- estimating the mount ---------------------------------------------------------------------


def test_a_wrong_mount_is_found_and_its_bound_holds():
    finals, errors, covariances = [], [], []
    for seed in range(12):
        observations, truth, _ = simulate(40, seed, step=1.5)
        e = estimator(seed, false_alarm_rate=None)
        for o in observations:
            e.add(o)
        result = e.estimate()
        assert result.reason == ""
        assert result.inliers > 0.85
        finals.append(mm_deg(result.T_hand_wrist, truth))
        errors.append(difference(result.T_hand_wrist, truth))
        covariances.append(result.covariance)
    mm, deg = np.median(finals, 0)
    assert mm < 5  # from 20 mm; each camera's lasting error is 0.7 px or 5 mm
    assert deg < 1.3  # from 4 degrees
    assert 0.7 <= share_inside(errors, covariances) <= 1
    squared = [d @ np.linalg.solve(C, d) for d, C in zip(errors, covariances, strict=True)]
    assert 2 < np.mean(squared) < 12  # 6 on average where the stated covariance is right


def test_more_frames_do_not_promise_what_lasting_errors_forbid():
    observations, _, _ = simulate(200, 3)
    e, sigmas = estimator(3, false_alarm_rate=None), []
    for i, o in enumerate(observations, 1):
        e.add(o)
        if i in (5, 50, 200):
            sigmas.append(np.sqrt(np.diag(e.estimate().covariance)[:3].max()))
    assert sigmas[1] < sigmas[0]
    assert sigmas[2] > 0.6 * sigmas[1]  # independent errors would halve it


def test_poses_in_the_base_frame_do_as_well():
    rng = np.random.default_rng(4)
    scale = np.array([0.008] * 3 + [0.04] * 3)
    e = MountEstimator(wrong_mount(MOUNT, 4), errors=ErrorModel(0.1))
    for i, hand in enumerate(hands(60, rng)):
        T = perturb(hand @ MOUNT, rng.normal(0, scale))
        if i % 6 == 0:
            T = perturb(T, np.array([0.2, 0, 0, 1.0, 0, 0]))
        e.add(WristObservation(i, hand, {BASE: PoseSight(T, np.diag(scale**2))}))
    result = e.estimate()
    mm, deg = mm_deg(result.T_hand_wrist, MOUNT)
    assert mm < 5
    assert deg < 1.5
    assert result.inliers == pytest.approx(5 / 6, abs=0.05)
    T, covariance = result.wrist_pose(DOWN)
    np.testing.assert_allclose(T, DOWN @ result.T_hand_wrist)
    # A half turn about x: the hand's y axis is the base's -y.
    assert covariance[0, 1] == pytest.approx(-result.covariance[0, 1])
    assert covariance[1, 1] == pytest.approx(result.covariance[1, 1])


def test_cameras_at_unknown_places_are_estimated_too():
    observations, truth, cameras = simulate(100, 5, lasting=0.1, varying=0.4, turn=0.6)
    e = estimator(5, cameras=None, lasting=0.1, false_alarm_rate=None)
    for o in observations:
        e.add(o)
    result = e.estimate()
    assert result.reason == ""
    mm, deg = mm_deg(result.T_hand_wrist, truth)
    assert mm < 5
    assert deg < 1
    for name, T in cameras.items():
        assert mm_deg(result.cameras[name], T)[0] < 10
        assert name in result.camera_covariances


def test_unknown_cameras_and_a_hand_that_does_not_turn_are_refused():
    observations, _, _ = simulate(40, 6, turn=0.0)
    e = estimator(6, cameras=None, false_alarm_rate=None)
    for o in observations:
        e.add(o)
    result = e.estimate()
    assert "mount is not determined" in result.reason
    assert "turn it about two axes" in result.reason
    np.testing.assert_array_equal(result.T_hand_wrist, wrong_mount(MOUNT, 6).T)
    np.testing.assert_array_equal(result.covariance, wrong_mount(MOUNT, 6).covariance)


def test_a_hand_that_stands_still_fills_no_window():
    observations, _, _ = simulate(3, 7)
    e = estimator(7)
    assert e.estimate().reason == "no frame has come yet."
    for _ in range(10):
        e.add(observations[0])
    assert e.estimate().frames == 1
    e = estimator(7, window=25)
    for o in simulate(60, 7, step=2.0)[0]:
        e.add(o)
    assert e.estimate().frames == 25


# --- bumps ------------------------------------------------------------------------------------


@pytest.mark.parametrize("moved", ["mount", "front"])
def test_a_bump_is_noticed_named_and_estimated(moved):
    observations, truth, cameras = simulate(130, 8, moved=moved, at=70)
    e, bumps = estimator(8), []
    for i, o in enumerate(observations):
        bump = e.add(o)
        if bump:
            bumps.append((i, bump))
        if i % 10 == 9:
            result = e.estimate()
    assert len(bumps) == 1
    frame, bump = bumps[0]
    assert bump.moved == moved
    assert bump.certain
    assert 70 <= frame < 85
    assert abs(bump.stamp_ns / 2e8 - 70) <= 6
    assert 0.01 < bump.metres < 0.035
    assert e.bumps == [bump]
    assert mm_deg(result.T_hand_wrist, truth)[0] < 8
    assert mm_deg(result.cameras["front"], cameras["front"])[0] < 25
    assert ("wrist camera's mount" if moved == "mount" else "camera 'front'") in str(bump)


def test_500_frames_without_a_bump_give_no_alarm():
    e = estimator(9)
    for i, o in enumerate(simulate(500, 9)[0]):
        assert e.add(o) is None
        if i % 30 == 29:
            e.estimate()


def test_the_detector_keeps_its_false_alarm_rate_and_finds_shifts():
    rng = np.random.default_rng(10)
    alarms, rate = 0, 1e-3
    for _ in range(8):
        detector, x = ShiftDetector(false_alarm_rate=rate), np.zeros(2)
        for _ in range(500):
            x = 0.6 * x + rng.normal(size=2)
            alarms += detector.add(x)
    assert alarms <= 4 * rate * 8 * 500  # alarms come in runs: one cause, several tests
    detector = ShiftDetector()
    values = rng.normal(size=(100, 2))
    assert not any(detector.add(v) for v in values)
    assert any(detector.add(v + [4, 0]) for v in rng.normal(size=(8, 2)))
    assert 3 <= detector.onset() <= 8
    with pytest.raises(InvalidInputError, match="false_alarm_rate"):
        ShiftDetector(false_alarm_rate=0)


# --- keeping, bad input -----------------------------------------------------------------------


def test_a_restarted_robot_goes_on_from_the_saved_calibration(tmp_path):
    observations, truth, _ = simulate(60, 11)
    e = estimator(11)
    for o in observations[:40]:
        e.add(o)
    before = e.estimate()
    save_calibration(tmp_path / "c.yaml", e.calibration(made="test"))
    loaded = load_calibration(tmp_path / "c.yaml")
    again = MountEstimator.from_calibration(loaded, keypoints=KEYPOINTS)
    start = again.estimate()
    np.testing.assert_allclose(start.T_hand_wrist, before.T_hand_wrist, atol=1e-9)
    np.testing.assert_allclose(start.covariance, before.covariance, rtol=1e-6)
    again.add(observations[45])
    assert np.trace(again.estimate().covariance) < np.trace(before.covariance)
    assert mm_deg(again.estimate().T_hand_wrist, truth)[0] < 8
    with pytest.raises(CalibrationError, match="mount"):
        MountEstimator.from_calibration(type(loaded)())


def test_bound_of_90_percent_holds_90_percent_of_true_errors():
    rng = np.random.default_rng(12)
    A = rng.normal(size=(6, 6))
    C = A @ A.T
    errors = rng.multivariate_normal(np.zeros(6), C, 4000)
    assert share_inside(errors, [C] * 4000, 0.9) == pytest.approx(0.9, abs=0.02)
    assert share_inside(errors, [C / 4] * 4000, 0.9) < 0.5
    assert np.isnan(share_inside([], []))
    with pytest.raises(InvalidInputError, match="1 errors but 2"):
        share_inside(errors[:1], [C, C])


def test_lasting_error_is_measured_at_the_truth():
    measured = []
    for seed in range(8):
        observations, truth, cameras = simulate(100, seed, lasting=0.7, varying=0.5)
        source = Source("front", observations, KEYPOINTS)
        measured += lasting_error(source, {"mount": truth, **cameras})
    assert np.median(measured) == pytest.approx(0.7, rel=0.25)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KeypointSight(np.zeros((8, 2)), np.zeros(8), K), "positive sigmas"),
        (lambda: KeypointSight(np.full((8, 2), np.nan), np.ones(8), K), "finite pixels"),
        (lambda: KeypointSight(np.zeros((7, 2)), np.ones(8), K), "need P x 2"),
        (lambda: PoseSight(np.eye(4), -np.eye(6)), "eigenvalue"),
        (lambda: WristObservation(0, np.zeros((4, 4)), {}), "T_base_hand"),
        (lambda: Prior.from_sigma(np.eye(4), (0.0, 0.1)), "positive"),
        (lambda: MountEstimator(Prior(np.eye(4), np.eye(6)), window=3), "window 3"),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(InvalidInputError, match=message):
        make()
