"""The Reconstructor: sources, frames, measured depth, refusals."""

import dataclasses

import cv2
import numpy as np
import pytest
import torch

from wristworld_ros.errors import CalibrationError, InvalidInputError, WeightsError
from wristworld_ros.geometry.transforms import from_quaternion, invert, pose_error
from wristworld_ros.reconstruction import Reconstructor, ReconstructorConfig
from wristworld_ros.reconstruction.backbone import BackboneConfig
from wristworld_ros.reconstruction.bundle import Prior
from wristworld_ros.reconstruction.cross_view import cross_view_error
from wristworld_ros.reconstruction.model import Stage1Model
from wristworld_ros.types import AnchorFrame, AnchorView, CameraModel

TINY = BackboneConfig(dim=48, pairs=2, heads=4, stem=(16, 16, 16), kept=(0, 1))
WRIST = CameraModel.from_fov(1.2, 64, 48)


def plane_view(name, T, size=64):
    """A camera that looks at the plane z = 0, with its true depth and a gradient as picture."""
    camera = CameraModel.from_fov(0.9, size, size)
    u, v = np.meshgrid(np.arange(size) + 0.5, np.arange(size) + 0.5)
    rays = np.stack(
        [(u - size / 2) / camera.K[0, 0], (v - size / 2) / camera.K[1, 1], np.ones_like(u)], -1
    )
    depth = -T[2, 3] / (rays @ T[:3, :3].T)[..., 2]
    points = T[:3, 3] + (rays @ T[:3, :3].T) * depth[..., None]
    image = np.clip(np.stack([points[..., 0], points[..., 1], 0 * u], -1) * 200 + 128, 0, 255)
    return AnchorView(name, image.astype(np.uint8), 7, camera, T, depth.astype(np.float32))


DOWN = from_quaternion([0, 0, 0.8], [1, 0, 0, 0])  # x right, y back, z down
TILTED = from_quaternion([0.1, 0.3, 0.7], [np.cos(0.15), 0, 0, np.sin(0.15)])
POSE = from_quaternion([0.02, -0.01, 0.3], [1, 0, 0, 0])


def frame(**changes):
    views = (plane_view("left", DOWN), plane_view("right", TILTED))
    values = {"stamp_ns": 7, "views": views, "T_world_wrist": POSE, "wrist_camera": WRIST}
    return AnchorFrame(**{**values, **changes})


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Stage1Model(TINY)


def test_measured_depth_and_kinematics_give_the_true_view(model):
    result = Reconstructor(model)(frame())
    assert result.estimate.source == "kinematic" and result.world_frame == "base_link"
    assert pose_error(result.estimate.T_world_wrist, POSE) == (0, 0)
    truth = plane_view("wrist", POSE)  # same colours by construction
    condition = result.condition
    assert condition.coverage > 0.99
    np.testing.assert_allclose(condition.depth[condition.mask], 0.3, atol=2e-3)
    centre = condition.image[24, 32].astype(int)
    np.testing.assert_allclose(centre, truth.image[32, 32].astype(int), atol=4)
    assert result.estimate.front_facing_fraction == 1
    assert result.estimate.reprojection_error < 1.0
    assert set(result.latency) == {"network", "hand", "cloud", "splat", "estimate"}


def test_auto_falls_back_to_learned_and_says_so(model):
    bare = tuple(
        dataclasses.replace(v, camera=None, T_world_camera=None, depth=None) for v in frame().views
    )
    result = Reconstructor(model)(frame(views=bare))
    assert result.estimate.source == "learned"
    assert result.world_frame == "left_optical_frame"
    no_pose = Reconstructor(model)(frame(T_world_wrist=None))
    assert no_pose.estimate.source == "learned" and no_pose.world_frame == "base_link"
    # A learned pose is worth less than a kinematic one, and its covariance says so.
    kinematic = Reconstructor(model)(frame())
    assert no_pose.estimate.covariance[0, 0] > kinematic.estimate.covariance[0, 0]


def test_learned_pose_moves_with_the_world(model):
    """The pose is estimated relative to the first anchor: moving the world moves it along."""
    shift = from_quaternion([0.3, -0.2, 0.0], [0, 0, np.sin(0.4), np.cos(0.4)])
    learned = Reconstructor(model, pose_source="learned")
    intrinsics_only = tuple(dataclasses.replace(v, T_world_camera=None) for v in frame().views)
    result = learned(frame(views=intrinsics_only))
    assert result.world_frame == "left_optical_frame"
    again = learned(frame(views=intrinsics_only, T_world_wrist=shift @ POSE))
    assert pose_error(result.estimate.T_world_wrist, again.estimate.T_world_wrist) == (0, 0)


def test_kinematic_without_inputs_is_refused_with_what_is_missing(model):
    kinematic = Reconstructor(model, pose_source="kinematic")
    with pytest.raises(CalibrationError, match="no wrist pose"):
        kinematic(frame(T_world_wrist=None))
    blind = dataclasses.replace(frame().views[1], camera=None)
    with pytest.raises(CalibrationError, match=r"\['right'\]"):
        kinematic(frame(views=(frame().views[0], blind)))
    with pytest.raises(InvalidInputError, match="'fancy'"):
        Reconstructor(model, pose_source="fancy")


def test_fused_keeps_the_given_mount_until_the_hand_has_moved(model):
    """One frame tells nothing of a mount: the pose stays, its covariance is that of the mount."""
    fused = Reconstructor(model, pose_source="fused")
    result = fused(frame())
    assert result.estimate.source == "fused"
    assert pose_error(result.estimate.T_world_wrist, POSE) == (0, 0)
    sigma = fused.config.mount_sigma[0]
    np.testing.assert_allclose(np.sqrt(np.diag(result.estimate.covariance)[:3]), sigma, rtol=1e-6)
    assert fused.mount_estimator.estimate().reason
    with pytest.raises(CalibrationError, match="'fused'.*no wrist pose"):
        fused(frame(T_world_wrist=None))


def test_fused_starts_from_a_saved_mount_and_again_when_a_camera_was_moved(model):
    offset = from_quaternion([0.02, -0.01, 0.0], [0, 0, 0, 1])
    fused = Reconstructor(model, pose_source="fused", mount=Prior.from_sigma(offset, (1e-3, 1e-2)))
    result = fused(frame())
    assert pose_error(result.estimate.T_world_wrist, POSE @ offset) == (0, 0)
    first = fused.mount_estimator
    turned = POSE @ from_quaternion([0.1, 0, 0], [0, 0, np.sin(0.2), np.cos(0.2)])
    fused(frame(T_world_wrist=turned))
    assert fused.mount_estimator is first
    left, right = frame().views
    moved = dataclasses.replace(right, T_world_camera=DOWN)
    fused(frame(views=(left, moved), T_world_wrist=turned))
    assert fused.mount_estimator is not first
    assert fused.mount_estimator.estimate().frames == 1


def test_lens_distortion_is_removed_from_picture_and_depth(model):
    """A view that is distorted and then calibrated as such gives the condition map of the plain
    one, up to what resampling loses."""
    camera = CameraModel(frame().views[0].camera.K, 64, 64, "plumb_bob", (-0.4, 0.0, 0.0, 0.0))
    plain = frame().views[0]
    u, v = np.meshgrid(np.arange(64) + 0.5, np.arange(64) + 0.5)
    x = (np.stack([u, v], -1) - camera.K[:2, 2]) / camera.K[[0, 1], [0, 1]]
    ideal = x.copy()
    for _ in range(20):  # pixel of the plain view that each distorted pixel shows
        ideal = x / (1 - 0.4 * (ideal**2).sum(-1, keepdims=True))
    place = (ideal * camera.K[[0, 1], [0, 1]] + camera.K[:2, 2] - 0.5).astype(np.float32)
    image = cv2.remap(plain.image, place[..., 0], place[..., 1], cv2.INTER_LINEAR)
    depth = cv2.remap(plain.depth, place[..., 0], place[..., 1], cv2.INTER_NEAREST)
    bent = dataclasses.replace(plain, image=image, depth=depth, camera=camera)
    unaware = dataclasses.replace(bent, camera=plain.camera)
    corner = POSE.copy()
    corner[:2, 3] += 0.2  # where distortion is strong
    truth, got, wrong = (
        Reconstructor(model)(frame(views=(view,), T_world_wrist=corner)).condition
        for view in (plain, bent, unaware)
    )
    both = truth.mask & got.mask & wrong.mask
    error, off = (
        np.abs(c.image[both].astype(float) - truth.image[both]).mean() for c in (got, wrong)
    )
    assert 3 * error < off and off > 1.5
    np.testing.assert_allclose(got.depth[both], truth.depth[both], atol=0.01)


def test_untrusted_points_hide_what_is_behind_them_when_asked(model):
    """Predicted depth of an untrained model in one view, a measured plane in the other."""
    views = frame().views
    untrusted = dataclasses.replace(views[1], depth=None)
    changed = frame(views=(views[0], untrusted))
    drawn = Reconstructor(model, config=ReconstructorConfig(min_confidence=0.9))(changed)
    hidden = Reconstructor(model, config=ReconstructorConfig(min_confidence=0.9, occlude=True))(
        changed
    )
    assert len(hidden.cloud) == len(drawn.cloud)
    assert hidden.condition.coverage < drawn.condition.coverage


def test_missing_wrist_camera_is_estimated(model):
    result = Reconstructor(model)(frame(wrist_camera=None))
    assert (result.estimate.camera.width, result.estimate.camera.height) == (128, 128)


def test_holes_in_measured_depth_are_filled_by_prediction(model):
    views = frame().views
    holes = views[0].depth.copy()
    holes[:32] = 0
    partial = (dataclasses.replace(views[0], depth=holes),)
    full = Reconstructor(model)(frame(views=views[:1])).estimate.point_count
    mixed = Reconstructor(model)(frame(views=partial)).estimate.point_count
    none = Reconstructor(model, config=ReconstructorConfig(min_confidence=2.0))(
        frame(views=partial)
    ).estimate.point_count
    assert none == 0 and full // 2 <= mixed <= full


def test_same_input_same_output(model):
    a, b = Reconstructor(model)(frame()), Reconstructor(model)(frame())
    np.testing.assert_array_equal(a.condition.image, b.condition.image)
    np.testing.assert_array_equal(a.cloud.points, b.cloud.points)


def test_missing_model_folder_is_a_clear_error(tmp_path):
    with pytest.raises(WeightsError, match="nowhere"):
        Reconstructor.from_pretrained(tmp_path / "nowhere")


def test_cross_view_error_grows_with_a_wrong_extrinsic():
    views = (plane_view("a", DOWN), plane_view("b", TILTED))
    depths, cameras = [v.depth for v in views], [v.camera for v in views]
    right = cross_view_error(depths, cameras, [DOWN, TILTED])
    bumped = TILTED @ from_quaternion([0, 0, 0], [0, 0, 0, 1])
    bumped = bumped.copy()
    bumped[2, 3] += 0.03
    wrong = cross_view_error(depths, cameras, [DOWN, bumped])
    assert right < 1 < wrong
    assert np.isnan(cross_view_error(depths[:1], cameras[:1], [DOWN]))
    assert pose_error(invert(DOWN) @ DOWN, np.eye(4))[0] == 0
