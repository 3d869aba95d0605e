"""Stage-1 losses vanish at the truth and see each kind of error; lifting and relative poses."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from wristworld_ros.geometry.transforms import from_quaternion
from wristworld_ros.reconstruction.backbone import Features
from wristworld_ros.reconstruction.heads import (
    BASE_LANDMARKS,
    WRIST_KEYPOINTS,
    Keypoints,
    project,
)
from wristworld_ros.reconstruction.heatmaps import HeatPeaks
from wristworld_ros.reconstruction.model import Stage1Output
from wristworld_ros.reconstruction.pose_encoding import encode_pose, fov_from_intrinsics
from wristworld_ros.training.shard_data import Batch
from wristworld_ros.training.stage1 import (
    Stage1Losses,
    apply,
    lift,
    pose_errors,
    stage1_loss,
)

SIZE = 64
K = torch.tensor([[60.0, 0, 32], [0, 60, 32], [0, 0, 1]])


def pose(t, q):
    return torch.from_numpy(from_quaternion(t, np.array(q) / np.linalg.norm(q))).float()


@pytest.fixture
def batch():
    """Two anchors and a wrist camera that all look down at the plane z = 0."""
    anchors = torch.stack([pose([0, 0, 1.0], [1, 0, 0, 0]), pose([0.1, 0.05, 1.2], [1, 0, 0, 0])])
    return Batch(
        anchors=torch.rand(1, 2, 3, SIZE, SIZE),
        anchor_depth=torch.stack([torch.full((SIZE, SIZE), 1.0), torch.full((SIZE, SIZE), 1.2)])[
            None
        ],
        anchor_K=K.expand(1, 2, 3, 3),
        T_world_anchor=anchors[None],
        wrist=torch.rand(1, 3, SIZE, SIZE),
        wrist_depth=torch.full((1, SIZE, SIZE), 0.4),
        wrist_K=K[None],
        T_world_wrist=pose([0.05, 0, 0.4], [1, 0, 0, 0])[None],
    )


def peaks(points, K, T):
    """Found exactly where they are, by heat maps of 16 x 16 cells."""
    pixels, depth = project(points, K, T)
    count = points.shape[1]
    heat = torch.zeros(1, 2, count, 16 * 16 + 1).log_softmax(-1)
    ones = torch.ones(1, 2, count)
    return HeatPeaks(heat, pixels, ones, ones, (16, 16), SIZE / 16), depth.clamp_min(0.05)


def perfect(batch):
    cameras = encode_pose(batch.T_world_anchor, fov_from_intrinsics(batch.anchor_K, SIZE, SIZE))
    wrist = encode_pose(batch.T_world_wrist, fov_from_intrinsics(batch.wrist_K, SIZE, SIZE))
    points = apply(batch.T_world_wrist, torch.tensor(WRIST_KEYPOINTS))
    landmarks, _ = peaks(torch.tensor(BASE_LANDMARKS)[None], batch.depth_K, batch.T_world_anchor)
    found, depth = peaks(points, batch.depth_K, batch.T_world_anchor)
    keypoints = Keypoints(found, depth, points)
    return Stage1Output(
        depth=batch.anchor_depth,
        confidence=torch.ones_like(batch.anchor_depth),
        first_depth=batch.anchor_depth[..., 2::4, 2::4],
        cameras=[cameras, cameras],
        landmarks=landmarks,
        wrist=[wrist, wrist],
        T_base_anchor=batch.T_world_anchor,
        anchor_K=batch.anchor_K,
        keypoints=keypoints,
        close=keypoints,
        crop_K=batch.anchor_K,
        wrist_pose=wrist,
        wrist_fits=(batch.T_world_wrist, batch.T_world_wrist),
        wrist_covariance=torch.eye(6)[None],
        features=Features([], (torch.empty(0),) * 3, (1, 1), 0),
        dense=torch.empty(0),
    )


WEIGHTS = Stage1Losses(heat=0.0)  # cross-entropy does not vanish


def test_the_truth_costs_nothing(batch):
    loss, figures = stage1_loss(perfect(batch), batch, WEIGHTS)
    assert loss.abs() < 1e-4
    assert all(abs(v) < 1e-4 for k, v in figures.items() if k != "heat")


@pytest.mark.parametrize(
    "part", ["depth_log_error", "camera", "wrist_pose", "wrist_fit", "spc_reprojection", "place"]
)
def test_each_error_is_seen(batch, part):
    output = perfect(batch)
    changed = dict(output.__dict__)
    if part == "depth_log_error":
        changed["depth"] = output.depth * 1.1
    elif part == "camera":
        changed["cameras"] = [output.cameras[0] + 0.1, output.cameras[1]]
    elif part in ("wrist_fit", "spc_reprojection"):
        moved = output.wrist_fits[1].clone()
        moved[:, 0, 3] += 0.02
        changed["wrist_fits"] = (output.wrist_fits[0], moved)
    elif part == "place":
        off = replace(output.landmarks, pixels=output.landmarks.pixels + 1.0)
        changed["landmarks"] = off
    else:
        changed["wrist"] = [output.wrist[0], output.wrist[1] + torch.tensor([0.02, *[0] * 8])]
    loss, figures = stage1_loss(Stage1Output(**changed), batch, WEIGHTS)
    assert loss > 1e-3 and figures[part] > 1e-3


def test_quaternions_of_either_sign_are_the_same_rotation(batch):
    output = perfect(batch)
    flipped = output.wrist[1].clone()
    flipped[:, 3:7] *= -1
    changed = Stage1Output(**{**output.__dict__, "wrist": [output.wrist[0], flipped]})
    assert stage1_loss(changed, batch, WEIGHTS)[0].abs() < 1e-4


def test_a_wrist_that_fits_the_estimated_anchors_is_right(batch):
    """Anchors and wrist estimated in another base frame agree among themselves: no wrist error."""
    output = perfect(batch)
    moved = pose([0.3, -0.2, 0.1], [0.1, 0.2, 0.3, 0.9])
    T_anchor = moved @ batch.T_world_anchor
    fov = fov_from_intrinsics(batch.wrist_K, SIZE, SIZE)
    wrist = encode_pose(moved @ batch.T_world_wrist, fov)
    points = apply(moved[None], output.keypoints.points)
    changed = {
        **output.__dict__,
        "T_base_anchor": T_anchor,
        "wrist": [wrist, wrist],
        "wrist_pose": wrist,
        "wrist_fits": (moved @ batch.T_world_wrist, moved @ batch.T_world_wrist),
        "keypoints": replace(output.keypoints, points=points),
        "close": replace(output.close, points=points),
    }
    loss, figures = stage1_loss(Stage1Output(**changed), batch, WEIGHTS)
    assert loss.abs() < 1e-4 and figures["wrist_pose"] < 1e-5
    torch.testing.assert_close(
        Stage1Output(**changed).wrist_encoding, output.wrist_encoding, atol=1e-5, rtol=0
    )


def test_lift_gives_world_points(batch):
    pixels = torch.tensor([[[[32.0, 32.0], [62.0, 32.0]], [[32.0, 32.0], [32.0, 2.0]]]])
    points = lift(pixels, batch.anchor_depth, batch.anchor_K, batch.T_world_anchor)
    torch.testing.assert_close(points[0, 0, 0], torch.tensor([0.0, 0, 0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(points[0, 0, 1], torch.tensor([0.5, 0, 0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(points[0, 1, 1], torch.tensor([0.1, 0.65, 0]), atol=1e-5, rtol=0)


def test_pose_errors_in_metres_and_radians():
    a = torch.linalg.inv(pose([0, 0, 1], [0, 0, 0, 1]))[None]
    b = torch.linalg.inv(pose([0.03, 0.04, 1], [0, 0, np.sin(0.1), np.cos(0.1)]))[None]
    t, r = pose_errors(a, b)
    assert t.item() == pytest.approx(0.05, abs=1e-5)
    assert r.item() == pytest.approx(0.2, abs=1e-3)
