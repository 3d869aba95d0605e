from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from wristworld_ros.data.simulation.episode import SimulatedEpisode, simulate_episode
from wristworld_ros.data.simulation.robots import ROBOTS, get_robot
from wristworld_ros.errors import InvalidInputError
from wristworld_ros.geometry import camera as cameras
from wristworld_ros.geometry.transforms import apply, invert

SMALL = {"wrist_size": (48, 48), "anchor_size": (64, 64), "n_frames": 2}


def digest(episode: SimulatedEpisode) -> str:
    arrays = (
        episode.wrist_rgb,
        episode.wrist_depth,
        episode.anchor_rgb,
        episode.anchor_depth,
        episode.T_world_wrist,
        episode.joint_positions,
    )
    return hashlib.sha256(b"".join(a.tobytes() for a in arrays)).hexdigest()


def test_shapes_and_types(episode):
    assert len(episode) == 8 and episode.robot == "panda_2f85" and episode.split == "val"
    assert episode.wrist_rgb.shape == (8, 48, 64, 3) and episode.wrist_rgb.dtype == np.uint8
    assert episode.wrist_depth.shape == (8, 48, 64) and episode.wrist_depth.dtype == np.float32
    assert episode.anchor_rgb.shape == (3, 8, 96, 128, 3)
    assert episode.anchor_depth.shape == (3, 8, 96, 128)
    assert episode.T_world_wrist.shape == episode.T_world_hand.shape == (8, 4, 4)
    assert episode.T_world_camera.shape == (3, 4, 4)
    assert episode.joint_positions.shape == (8, len(episode.joint_names))
    assert episode.joint_names[:7] == tuple(f"panda_joint{i}" for i in range(1, 8))
    assert episode.gripper_width.shape == (8,) and episode.instruction
    assert episode.frame_index[0] == 0 and (np.diff(episode.frame_index) > 0).all()


def test_stamps_are_those_of_the_5_hz_script(episode):
    assert episode.fps == 5.0
    assert episode.stamp_ns(3) == int(episode.frame_index[3]) * 200_000_000


def test_intrinsics_are_symmetric_with_square_pixels(episode):
    for camera, (width, height), fov in (
        (episode.wrist_camera, (64, 48), (68, 82)),
        (episode.anchor_cameras[0], (128, 96), (42, 58)),
    ):
        K = camera.K
        assert (camera.width, camera.height) == (width, height)
        assert (K[0, 2], K[1, 2]) == (width / 2, height / 2)
        assert K[0, 0] == K[1, 1]
        assert fov[0] <= np.rad2deg(camera.fov[1]) <= fov[1]


def test_same_seed_gives_the_same_bytes_whatever_was_rendered_before():
    first = digest(simulate_episode(100_007, "val", **SMALL))
    simulate_episode(700_000, "test-all", **SMALL)
    assert digest(simulate_episode(100_007, "val", **SMALL)) == first
    assert digest(simulate_episode(100_008, "val", **SMALL)) != first


def test_same_seed_gives_the_same_bytes_in_another_process():
    code = (
        "import sys; sys.path[:0] = ['.', 'test/simulation']; from test_episode import *; "
        "print(digest(simulate_episode(100_007, 'val', **SMALL)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == digest(simulate_episode(100_007, "val", **SMALL))


def test_fewer_anchors_or_another_robot_leave_the_remaining_cameras_alone(episode):
    alone = simulate_episode(100_000, "val", n_anchors=1, robot="panda", **SMALL)
    assert alone.robot == "panda" and len(alone.anchor_names) == 1
    np.testing.assert_array_equal(alone.T_world_camera[0], episode.T_world_camera[0])


@pytest.mark.parametrize("name", ["episode", "panda_episode", "ur5e_episode"])
def test_wrist_depth_agrees_with_anchor_depth(name, request):
    """Points of the wrist's depth lie on the surfaces that the anchors measure."""
    episode = request.getfixturevalue(name)
    agreeing = behind = total = 0
    colour_errors = []
    for frame in range(len(episode)):
        depth = episode.wrist_depth[frame]
        points = cameras.unproject(depth, episode.wrist_camera)[depth > 0]
        colours = episode.wrist_rgb[frame][depth > 0].astype(float)
        world = apply(episode.T_world_wrist[frame], points)
        for view, camera in enumerate(episode.anchor_cameras):
            local = apply(invert(episode.T_world_camera[view]), world)
            pixels, z = cameras.project(local, camera)
            seen = (z > 0) & (pixels >= 0).all(1) & (pixels < (camera.width, camera.height)).all(1)
            u, v = np.floor(pixels[seen]).astype(int).T
            difference = episode.anchor_depth[view, frame][v, u] - z[seen]
            close = np.abs(difference) < 0.01
            total += seen.sum()
            agreeing += close.sum()
            behind += (difference > 0.02).sum()  # the anchor looks through the point
            colour = episode.anchor_rgb[view, frame][v, u].astype(float)
            colour_errors.append(np.abs(colour - colours[seen]).max(1)[close])
    assert total > 5000
    assert agreeing / total > 0.5
    assert behind / total < 0.03
    assert np.median(np.concatenate(colour_errors)) < 16


def panda_flange(q: np.ndarray) -> np.ndarray:
    """Forward kinematics of the Panda from its published Denavit-Hartenberg table (Craig)."""
    a = [0, 0, 0, 0.0825, -0.0825, 0, 0.088]
    d = [0.333, 0, 0.316, 0, 0.384, 0, 0]
    alpha = [0, -np.pi / 2, np.pi / 2, np.pi / 2, -np.pi / 2, np.pi / 2, np.pi / 2]
    T = np.eye(4)
    for ai, di, al, th in zip(a, d, alpha, q, strict=True):
        ct, st, ca, sa = np.cos(th), np.sin(th), np.cos(al), np.sin(al)
        T = T @ np.array(
            [
                [ct, -st, 0, ai],
                [st * ca, ct * ca, -sa, -di * sa],
                [st * sa, ct * sa, ca, di * ca],
                [0, 0, 0, 1],
            ]
        )
    c = np.sqrt(0.5)
    hand = np.array([[c, c, 0, 0], [-c, c, 0, 0], [0, 0, 1, 0.107], [0, 0, 0, 1]])
    return T @ hand


def test_joints_give_the_hand_pose_by_the_data_sheet(panda_episode):
    for frame in range(len(panda_episode)):
        expected = panda_flange(panda_episode.joint_positions[frame, :7])
        np.testing.assert_allclose(panda_episode.T_world_hand[frame], expected, atol=1e-4)


@pytest.mark.parametrize("name", ["episode", "panda_episode", "ur5e_episode"])
def test_tool_centre_projects_between_the_fingers_and_into_every_anchor(name, request):
    episode = request.getfixturevalue(name)
    tool = np.array([get_robot(episode.robot).tool_centre])
    for frame in range(len(episode)):
        world = apply(episode.T_world_hand[frame], tool)
        pixels, z = cameras.project(
            apply(invert(episode.T_world_wrist[frame]), world), episode.wrist_camera
        )
        u, v = pixels[0] / (episode.wrist_camera.width, episode.wrist_camera.height)
        assert 0.05 < z[0] < 0.25
        assert 0.25 < u < 0.75 and 0.4 < v < 1.1
        if world[0, 2] > 0.12:
            continue  # lifted: an anchor that looks at the table may miss it
        for T_world_camera, camera in zip(
            episode.T_world_camera, episode.anchor_cameras, strict=True
        ):
            pixels, z = cameras.project(apply(invert(T_world_camera), world), camera)
            assert (pixels[0] > 0).all() and (pixels[0] < (camera.width, camera.height)).all()
            assert z[0] > 0.3


def test_mount_is_constant_and_moves_only_where_the_split_says(episode, ur5e_episode):
    for one in (episode, ur5e_episode):
        for frame in range(len(one)):
            mount = invert(one.T_world_hand[frame]) @ one.T_world_wrist[frame]
            np.testing.assert_allclose(mount, one.T_hand_wrist, atol=1e-9)
    for one, low, high in ((episode, 0.0, 0.02), (ur5e_episode, 0.025, 0.065)):
        nominal = np.array(ROBOTS[one.robot].mount.position)
        assert low <= np.linalg.norm(one.T_hand_wrist[:3, 3] - nominal) <= high


def test_side_and_rear_cameras_stand_elsewhere(episode, ur5e_episode):
    centre = np.array([0.47, 0.0])
    front = episode.T_world_camera[:, :2, 3] - centre
    other = ur5e_episode.T_world_camera[:, :2, 3] - (centre + np.array([0.1, 0]))
    assert (front[:, 0] > 0.1).all()
    assert (other[:, 0] < 0.2).all()


def test_anchor_frame_carries_what_a_robot_knows(episode):
    frame = episode.anchor_frame(2, with_depth=True)
    assert frame.calibrated and frame.instruction == episode.instruction
    assert [view.name for view in frame.views] == ["anchor_0", "anchor_1", "anchor_2"]
    np.testing.assert_array_equal(frame.views[1].image, episode.anchor_rgb[1, 2])
    np.testing.assert_array_equal(frame.views[1].depth, episode.anchor_depth[1, 2])
    np.testing.assert_array_equal(frame.T_world_wrist, episode.T_world_wrist[2])
    assert frame.joints is not None
    assert frame.joints["panda_joint4"] == episode.joint_positions[2, 3]
    assert episode.anchor_frame(2).views[0].depth is None


def test_stride_keeps_every_nth_frame():
    strided = simulate_episode(
        100_007, "val", wrist_size=(16, 16), anchor_size=(16, 16), n_anchors=1, stride=10
    )
    assert strided.fps == 0.5
    assert strided.frame_index.tolist() == list(range(0, strided.frame_index[-1] + 1, 10))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"wrist_size": (8, 48)}, "16 to 1024"),
        ({"anchor_size": (4096, 64)}, "16 to 1024"),
        ({"n_anchors": 0}, "1 to 8"),
        ({"n_frames": 0}, "at least 1"),
        ({"robot": "ur10"}, "ur5e"),
        ({"split": "training"}, "train"),
        ({"seed": 5}, "100000 to 199999"),
    ],
)
def test_impossible_arguments_are_refused(change, words):
    arguments = {"seed": 100_007, "split": "val", **SMALL, **change}
    with pytest.raises(InvalidInputError, match=words):
        simulate_episode(arguments.pop("seed"), arguments.pop("split"), **arguments)
