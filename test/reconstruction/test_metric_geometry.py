"""Predictions that are a known scaling of the truth come back in metres; others are refused."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from wristworld_ros.errors import CalibrationError, InvalidInputError
from wristworld_ros.geometry.transforms import from_quaternion, invert, pose_error
from wristworld_ros.reconstruction.geometry_prediction import GeometryPrediction
from wristworld_ros.reconstruction.metric_geometry import PATH, MetricGeometry, camera_misfit
from wristworld_ros.types import AnchorFrame, AnchorView, CameraModel

H, W = 30, 40
CAMERA = CameraModel.from_fov(0.9, 2 * W, 2 * H)  # pictures have twice the prediction's size
POSES = (
    from_quaternion([0, 0, 0.8], [1, 0, 0, 0]),
    from_quaternion([0.3, 0.3, 0.7], [np.cos(0.15), 0, 0, np.sin(0.15)]),
    from_quaternion([-0.3, 0.1, 0.9], [np.cos(0.1), np.sin(0.1), 0, 0]),
)
SCALE = 2.5


def pose(position, rotation_vector):
    T = np.eye(4)
    T[:3, :3] = Rotation.from_rotvec(rotation_vector).as_matrix()
    T[:3, 3] = position
    return T


def true_depth(seed=0):
    """V x H x W [m]; all but a block that moves with ``seed`` is the same."""
    depth = 0.8 + 0.5 * np.random.default_rng(9).random((3, H, W))
    depth[:, 5 : 5 + 10, seed % 20 : seed % 20 + 15] = 0.4
    return depth


def frame(*, poses=POSES, depth=None, cameras=(CAMERA,) * 3):
    views = tuple(
        AnchorView(
            f"camera_{i}",
            np.zeros((2 * H, 2 * W, 3), np.uint8),
            7,
            cameras[i],
            T,
            None if depth is None else depth[i].repeat(2, 0).repeat(2, 1).astype(np.float32),
        )
        for i, T in enumerate(poses)
    )
    return AnchorFrame(7, views)


def predicted(depth, scale=SCALE, poses=POSES, wrist=None):
    """What a perfect network with a unit of ``scale`` metres says; ``wrist``: T_world_wrist."""
    poses = [*poses, *([] if wrist is None else [wrist])]
    depth = np.concatenate([depth, depth[: len(poses) - len(depth)]])
    T = np.array([invert(p) @ poses[0] for p in poses])
    T[:, :3, 3] /= scale
    z = torch.from_numpy(depth / scale)[None].float()
    K = torch.from_numpy(CAMERA.resized(W, H).K.copy()).float().expand(1, len(poses), 3, 3)
    return GeometryPrediction(z, torch.full_like(z, 3.0), None, torch.from_numpy(T)[None], K)


NO_POSES = (None,) * 3


def test_known_extrinsics_bring_depth_to_metres_in_the_world():
    depth = true_depth()
    result = MetricGeometry()(predicted(depth), frame())
    assert result.scale == pytest.approx(SCALE, rel=1e-6)
    assert (result.source, result.measured) == ("extrinsics", True)
    assert result.residual < 1e-6 and result.sigma == pytest.approx(0.03)
    assert result.refused["depth"] == "no camera gives measured depth."
    scene = result.scene
    np.testing.assert_allclose(scene.depth[0], depth, rtol=1e-5)
    np.testing.assert_allclose(scene.T_base_anchor[0], np.array(POSES), atol=1e-6)
    # K is that of pictures of twice the depth's size, which are the pictures given.
    np.testing.assert_allclose(scene.anchor_K[0, 1], CAMERA.K, rtol=1e-6)
    assert scene.first_depth.shape == (1, 3, H // 4, W // 4)
    assert float(scene.confidence.min()) == 3


def test_a_depth_camera_gives_the_scale_of_uncalibrated_anchors():
    depth = true_depth()
    measured = depth.copy()
    measured[1:] = 0  # of one camera only
    result = MetricGeometry()(
        predicted(depth), frame(poses=NO_POSES, depth=measured, cameras=(None,) * 3)
    )
    assert result.scale == pytest.approx(SCALE, rel=1e-6) and result.source == "depth"
    assert "0 of 3 cameras have a known pose" in result.refused["extrinsics"]
    # The world is the first anchor; the other cameras are where they are, in metres.
    expected = np.array([invert(POSES[0]) @ T for T in POSES])
    np.testing.assert_allclose(result.scene.T_base_anchor[0], expected, atol=1e-6)
    np.testing.assert_allclose(result.scene.anchor_K[0, 2], CAMERA.K, rtol=1e-6)


def test_known_intrinsics_take_the_place_of_predicted_ones():
    narrow = CameraModel.from_fov(0.5, 2 * W, 2 * H)
    depth = true_depth()
    given = frame(poses=NO_POSES, depth=depth, cameras=(None, narrow, None))
    K = MetricGeometry()(predicted(depth), given).scene.anchor_K[0]
    np.testing.assert_allclose(K[1], narrow.K, rtol=1e-6)
    np.testing.assert_allclose(K[0], CAMERA.K, rtol=1e-6)


def test_two_known_poses_are_enough_without_intrinsics():
    given = frame(poses=(POSES[0], None, POSES[2]), cameras=(None,) * 3)
    result = MetricGeometry()(predicted(true_depth()), given)
    assert result.scale == pytest.approx(SCALE, rel=1e-6) and result.source == "extrinsics"


def test_both_sources_count_and_contradicting_ones_are_told():
    depth = true_depth()
    both = MetricGeometry()(predicted(depth), frame(depth=depth))
    assert both.source == "depth+extrinsics"
    # Depth in another unit: two sources of the same frame cannot both be right.
    wrong = MetricGeometry()(predicted(depth), frame(depth=2 * depth))
    assert wrong.source == "depth"
    assert "2.5 m per unit contradicts 5" in wrong.refused["extrinsics"]


def test_without_any_source_the_reasons_and_the_cure_are_given():
    uncalibrated = frame(poses=NO_POSES, cameras=(None,) * 3)
    geometry = MetricGeometry()
    with pytest.raises(CalibrationError) as error:
        geometry(predicted(true_depth()), uncalibrated)
    text = str(error.value)
    assert text.startswith("no metric scale, and none is guessed.")
    for reason in (
        "From depth: no camera gives measured depth.",
        "From extrinsics: 0 of 3 cameras have a known pose",
        "From kinematics: no picture of a real wrist camera was given",
        "Give camera_info and TF of two or more cameras",
    ):
        assert reason in text
    with pytest.raises(CalibrationError, match="no metric scale yet"):
        geometry.tracker.scale


def test_one_calibrated_camera_gives_no_scale():
    with pytest.raises(CalibrationError, match="1 of 1 cameras have a known pose; need two"):
        MetricGeometry()(predicted(true_depth()[:1], poses=POSES[:1]), frame(poses=POSES[:1]))


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (frame(poses=(POSES[0],) * 3), "no baseline"),
        (
            frame(poses=[T @ pose([0, 0, 0], [0, 0, 2 * i]) for i, T in enumerate(POSES)]),
            "predicted cameras are 119 deg off the known ones .limit 30.",
        ),
        (
            frame(poses=NO_POSES, depth=0.3 + 3 * np.random.default_rng(1).random((3, H, W))),
            "measured and predicted depth differ by .* the prediction has failed",
        ),
    ],
    ids=["one place", "turned cameras", "unlike depth"],
)
def test_geometry_that_does_not_fit_is_refused(given, reason):
    with pytest.raises(CalibrationError, match=reason):
        MetricGeometry()(predicted(true_depth()), given)


def test_baselines_that_contradict_one_another_are_refused():
    stretched = list(POSES)
    stretched[2] = POSES[2].copy()
    stretched[2][:3, 3] = POSES[0][:3, 3] + 6 * (POSES[2] - POSES[0])[:3, 3]
    with pytest.raises(CalibrationError, match="the baselines differ by"):
        MetricGeometry()(predicted(true_depth(), poses=stretched), frame())


def test_one_scale_holds_over_calls_of_different_units():
    """Every call has a unit of its own, and the scene changes; depth is there in the first."""
    rng = np.random.default_rng(3)
    geometry = MetricGeometry()
    given = frame(poses=NO_POSES, depth=true_depth())
    assert geometry(predicted(true_depth()), given).measured
    for i in range(1, 6):
        unit = float(rng.uniform(0.5, 4))
        depth = true_depth(i)
        later = geometry(predicted(depth, unit), frame(poses=NO_POSES))
        assert later.scale == pytest.approx(unit, rel=1e-5)
        assert not later.measured and later.source == "depth"
        np.testing.assert_allclose(later.scene.depth[0], depth, rtol=1e-5)
        expected = invert(POSES[0]) @ POSES[2]
        np.testing.assert_allclose(later.scene.T_base_anchor[0, 2], expected, atol=1e-5)
    assert geometry.restarts == 0


def test_noise_of_the_predicted_baselines_is_averaged_over_frames():
    """3 % of noise in the baselines of each call: what is kept is better than each of them."""
    rng = np.random.default_rng(4)
    geometry = MetricGeometry()
    single, kept = [], []
    for i in range(60):
        factor = float(np.exp(rng.normal(0, 0.03)))
        wrong = [POSES[0] @ _stretched(invert(POSES[0]) @ T, factor) for T in POSES]
        prediction = predicted(true_depth(i), float(rng.uniform(1, 3)), wrong)
        single.append(np.log(factor))
        depth = geometry(prediction, frame()).scene.depth[0].numpy()
        kept.append(np.log(np.median(depth / true_depth(i))))
    assert geometry.restarts == 0
    assert np.abs(single[30:]).max() > 0.05
    assert np.abs(kept[30:]).max() < 0.01


def _stretched(T, factor):
    out = T.copy()
    out[:3, 3] *= factor
    return out


def test_a_moved_camera_or_another_scene_begins_again():
    geometry = MetricGeometry()
    geometry(predicted(true_depth()), frame(poses=NO_POSES, depth=true_depth()))
    other = 0.8 + 0.8 * np.random.default_rng(5).random((3, H, W))
    with pytest.raises(CalibrationError, match="no metric scale"):
        geometry(predicted(other), frame(poses=NO_POSES))
    assert geometry.restarts == 1
    geometry = MetricGeometry()
    geometry(predicted(true_depth()), frame())
    moved = (*POSES[:2], pose([0, 0.5, 0.9], [np.pi, 0, 0]))
    result = geometry(predicted(true_depth(), 0.7, moved), frame(poses=moved))
    assert geometry.restarts == 1
    assert result.scale == pytest.approx(0.7, rel=1e-5)
    # Without the known poses the place of a camera is not in question.
    assert geometry(predicted(true_depth(), 0.9, moved), frame(poses=NO_POSES)).scale == (
        pytest.approx(0.9, rel=1e-5)
    )
    assert geometry.restarts == 1


def wrist_path(n=PATH, line=False, seed=0):
    """Poses of a wrist camera in the base frame that looks down and turns about."""
    rng = np.random.default_rng(seed)
    poses = []
    for i in range(n):
        turn = Rotation.from_rotvec(rng.normal(0, 0.0 if line else 0.3, 3))
        R = (Rotation.from_rotvec([np.pi, 0, 0]) * turn).as_matrix()
        T = np.eye(4)
        T[:3, :3] = R
        T[:3, 3] = rng.normal(0, 0.15, 3) + [0.3, 0, 0.3]
        if line:  # approach along the optical axis
            T[:3, 3] = [0.3, 0, 0.6 - 0.03 * i]
        poses.append(T)
    return poses


@pytest.mark.parametrize(
    ("line", "source"), [(False, "kinematics"), (True, "forward_motion")], ids=str
)
def test_the_wrist_path_gives_scale_and_place_of_uncalibrated_anchors(line, source):
    bare = frame(poses=NO_POSES, cameras=(None,) * 3)
    geometry = MetricGeometry()
    rng = np.random.default_rng(6)
    states = [
        geometry.observe_wrist(
            predicted(true_depth(i), float(rng.uniform(0.5, 4)), wrist=T), bare, T
        )
        for i, T in enumerate(wrist_path(line=line))
    ]
    assert states[0] == "1 of 12 pictures of the wrist camera so far." and states[-1] == ""
    result = geometry(predicted(true_depth(3), 1.7), bare)
    assert result.scale == pytest.approx(1.7, rel=1e-4)
    assert (result.source, result.measured) == (source, False)
    # The base frame, which no camera's calibration told.
    distance, angle = pose_error(geometry.T_base_first, POSES[0])
    assert distance < 1e-4 and angle < 1e-5
    np.testing.assert_allclose(result.scene.T_base_anchor[0], np.array(POSES), atol=1e-4)


def test_a_wrist_that_tells_nothing_is_refused_with_both_reasons():
    geometry = MetricGeometry()
    bare = frame(poses=NO_POSES)
    still = wrist_path(1)[0]
    for _ in range(PATH):
        state = geometry.observe_wrist(predicted(true_depth(), wrist=still), bare, still)
    assert "the wrist moved by only" in state and "the longest move is 0 m" in state
    with pytest.raises(CalibrationError, match="From kinematics: scale from kinematics: the wrist"):
        geometry(predicted(true_depth()), bare)


def test_a_wrong_mount_is_noticed_by_the_turns_of_the_wrist():
    geometry = MetricGeometry()
    wrong = pose([0, 0, 0], [0, 0, np.pi / 2])
    for T in wrist_path():
        state = geometry.observe_wrist(predicted(true_depth(), wrist=T), frame(), T @ wrong)
    assert "the wrist camera is turned by up to" in state and "Check its mount" in state
    assert geometry.T_base_first is None


def test_a_prediction_of_other_views_is_an_error():
    geometry = MetricGeometry()
    with pytest.raises(InvalidInputError, match="1 sets of 3 views for a frame of 2 views"):
        geometry(predicted(true_depth()), frame(poses=POSES[:2]))
    with pytest.raises(InvalidInputError, match="3 views and 1 of the wrist"):
        geometry.observe_wrist(predicted(true_depth()), frame(), np.eye(4))
    double = predicted(true_depth())
    two = {f.name: getattr(double, f.name) for f in dataclasses.fields(double)}
    for name in ("depth", "confidence", "T_camera_first", "K"):
        two[name] = torch.cat([two[name]] * 2)
    with pytest.raises(InvalidInputError, match="2 sets"):
        geometry(GeometryPrediction(**two), frame())


def test_misfit_of_cameras_is_free_of_frame_and_scale():
    known = np.array(POSES)
    moved = np.array([pose([1, 2, 3], [0.3, -0.5, 1.0]) @ _stretched(T, 3) for T in POSES])
    assert camera_misfit(moved, known) < 1e-6
    turned = known.copy()
    turned[1] = turned[1] @ pose([0, 0, 0], [0, 0, 0.2])
    # Two of the three pairs have the turned camera.
    assert camera_misfit(turned, known) == pytest.approx(0.2, abs=1e-6)


def test_more_pictures_of_the_wrist_place_the_anchors_better():
    """1 % of noise in the wrist's distance: five windows are better than the first."""
    rng = np.random.default_rng(8)
    geometry = MetricGeometry()
    bare = frame(poses=NO_POSES)
    errors = []
    for T in wrist_path(5 * PATH, seed=2):
        seen = POSES[0] @ _stretched(invert(POSES[0]) @ T, float(np.exp(rng.normal(0, 0.01))))
        if geometry.observe_wrist(predicted(true_depth(), wrist=seen), bare, T) == "":
            errors.append(pose_error(geometry.T_base_first, POSES[0])[0])
    assert len(errors) == 5
    assert errors[-1] < 0.01 and errors[-1] < errors[0]
    assert geometry.tracker.scale == pytest.approx(SCALE, rel=0.02)
