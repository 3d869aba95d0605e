"""Pose source fused: anchors without a pose are placed by where they see the wrist camera."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest

from wristworld_ros.errors import InvalidInputError
from wristworld_ros.geometry.transforms import pose_error
from wristworld_ros.reconstruction.bundle import ErrorModel, Prior
from wristworld_ros.reconstruction.fused_pose import FusedPose
from wristworld_ros.types import AnchorFrame, AnchorView, CameraModel

sys.path.insert(0, str(Path(__file__).parent))

from test_fusion import CAMERAS, MOUNT, K, perturb, simulate

EXACT = Prior.from_sigma(MOUNT, (1e-4, 1e-3))


def frame(observation, known=()):
    """The moment of an observation; only the cameras of ``known`` have a pose."""
    views = tuple(
        AnchorView(
            name,
            np.zeros((128, 128, 3), np.uint8),
            observation.stamp_ns,
            CameraModel(K, 128, 128),
            CAMERAS[name] if name in known else None,
        )
        for name in CAMERAS
    )
    return AnchorFrame(observation.stamp_ns, views, T_world_wrist=observation.T_base_hand)


def run(fused, observations, known=()):
    placed, poses = None, []
    for o in observations:
        placed = fused.place(frame(o, known))
        poses.append(fused.wrist_pose(placed, o))
    return placed, poses


def test_cameras_are_placed_once_they_are_sure_and_stay_placed():
    fused = FusedPose(EXACT, errors=ErrorModel(0.1))
    observations, truth, _ = simulate(80, 1, lasting=0.1, varying=0.3, wild=0, turn=0.6)
    placed, poses = run(fused, observations)
    given = [p is not None for p in poses]
    first = given.index(True)
    assert 3 <= first < 60
    assert all(given[first:])
    assert placed.calibrated
    for view in placed.views:
        metres, radians = pose_error(view.T_world_camera, CAMERAS[view.name])
        assert metres < 0.03
        assert radians < 0.05
    T, covariance = poses[-1]
    metres, radians = pose_error(T, observations[-1].T_base_hand @ truth)
    assert metres < 1e-3 and radians < 1e-2
    assert np.linalg.eigvalsh(covariance)[0] > 0


def test_a_place_near_the_hand_is_surer_than_the_camera_itself():
    """Its stated sigma is that of many estimates from other noise."""
    places, stated = [], []
    for seed in range(20):
        fused = FusedPose(EXACT, errors=ErrorModel(0.01))
        observations, _, _ = simulate(30, seed, lasting=0, varying=0.5, wild=0, turn=0.6)
        run(fused, observations)
        estimator = fused.estimator
        middle = np.mean([o.T_base_hand[:3, 3] for o in observations], 0)
        found = estimator.estimate().cameras["front"]
        true = CAMERAS["front"]
        places.append(
            (middle - found[:3, 3]) @ found[:3, :3] - (middle - true[:3, 3]) @ true[:3, :3]
        )
        point, turn = estimator.camera_sigma("front")
        covariance = estimator.estimate().camera_covariances["front"]
        assert point < np.sqrt(np.linalg.eigvalsh(covariance[:3, :3])[-1])
        assert turn == pytest.approx(np.sqrt(np.linalg.eigvalsh(covariance[3:, 3:])[-1]))
        stated.append(point)
    spread = np.sqrt(np.linalg.eigvalsh(np.cov(np.transpose(places)))[-1])
    assert 0.3 < spread / np.mean(stated) < 2


def test_a_camera_without_estimate_is_not_sure_at_all():
    fused = FusedPose(EXACT)
    observation = simulate(1, 0)[0][0]
    run(fused, [observation])
    assert fused.estimator.camera_sigma("front") == (np.inf, np.inf)


def test_saved_cameras_are_where_it_starts():
    starts = {n: Prior.from_sigma(T, (1e-3, 1e-3)) for n, T in CAMERAS.items()}
    observation = simulate(1, 2, wild=0)[0][0]
    placed = FusedPose(EXACT, starts).place(frame(observation))
    assert placed.calibrated
    for view in placed.views:
        np.testing.assert_array_equal(view.T_world_camera, CAMERAS[view.name])
    vague = {n: Prior.from_sigma(T, (0.2, 0.3)) for n, T in CAMERAS.items()}
    for fused in (FusedPose(EXACT, vague), FusedPose(EXACT)):
        assert not fused.place(frame(observation)).calibrated


def test_given_poses_are_never_replaced_and_new_ones_start_again():
    known = ("front", "left", "right")
    observations, _, _ = simulate(6, 3, step=3.0)
    fused = FusedPose(EXACT)
    placed, poses = run(fused, observations, known)
    assert None not in poses
    assert all(v.T_world_camera is CAMERAS[v.name] for v in placed.views)
    first = fused.estimator
    again = frame(observations[-1], known)
    moved = dataclasses.replace(
        again.views[0], T_world_camera=perturb(CAMERAS["front"], np.full(6, 0.01))
    )
    fused.place(dataclasses.replace(again, views=(moved, *again.views[1:])))
    assert fused.estimator is not first


def test_order_of_calls_is_checked():
    observation = simulate(1, 0)[0][0]
    with pytest.raises(InvalidInputError, match="place the frame"):
        FusedPose(EXACT).wrist_pose(frame(observation), observation)
