"""Calibration against the truth: a simulated hand that looks around, and what a bag states."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from wristworld_ros.calibration.recordings import Recording, read_recording
from wristworld_ros.calibration.report import Difference, differences
from wristworld_ros.calibration.station import calibrate_wrist
from wristworld_ros.cli.main import main
from wristworld_ros.data.simulation.bag import write_bag
from wristworld_ros.data.simulation.episode import simulate_episode
from wristworld_ros.geometry.transforms import invert
from wristworld_ros.reconstruction.calibration_file import PlacedCamera, StationCalibration
from wristworld_ros.types import CameraModel


@pytest.fixture(scope="module")
def episode():
    return simulate_episode(
        100_003, "val", motion="look-around", wrist_size=(256, 192), anchor_size=(32, 32),
        n_anchors=1, shadows=False,
    )  # fmt: skip


def test_the_hand_looks_around_above_the_table(episode):
    assert len(episode) == 200 and episode.instruction == "look around"
    places = episode.T_world_hand[:, :3, 3]
    assert places[:, 2].min() > 0.15 and (np.ptp(places, axis=0) > [0.1, 0.15, 0.08]).all()
    turns = Rotation.from_matrix(episode.T_world_hand[:, :3, :3])
    spread = (turns.mean().inv() * turns).as_rotvec(degrees=True).std(0)
    assert (spread > 5).all()
    steps = np.linalg.norm(np.diff(places, axis=0), axis=1)
    assert steps.max() < 0.05
    assert np.ptp(episode.gripper_width) == 0


def test_the_wrist_camera_is_found_where_it_is(episode):
    recording = Recording("looking", 0.2, {}, episode.wrist_rgb, episode.T_world_hand[:, None])
    found = calibrate_wrist([recording], points=300).solution
    change = invert(episode.T_hand_wrist) @ found.X[0]
    assert np.linalg.norm(change[:3, 3]) < 0.012
    assert np.degrees(Rotation.from_matrix(change[:3, :3]).magnitude()) < 0.5
    assert found.camera.K[0, 0] == pytest.approx(episode.wrist_camera.K[0, 0], rel=0.03)
    assert abs(found.latency) < 0.02


def test_a_bag_states_its_cameras(episode, tmp_path):
    stated = read_recording(write_bag(episode, tmp_path / "bag.mcap")).stated
    np.testing.assert_allclose(stated.mount, episode.T_hand_wrist, atol=1e-6)
    np.testing.assert_allclose(stated.wrist_camera.K, episode.wrist_camera.K)
    (name,) = episode.anchor_names
    np.testing.assert_allclose(
        stated.cameras[name].T_base_camera, episode.T_world_camera[0], atol=1e-6
    )


def pose(degrees, x):
    T = np.eye(4)
    T[:3, :3] = Rotation.from_euler("y", degrees, degrees=True).as_matrix()
    T[0, 3] = x
    return T


def camera(f, width):
    return CameraModel(np.array([[f, 0, width / 2], [0, f, width / 2], [0, 0, 1]]), width, width)


def test_differences_are_those_of_the_cameras_that_both_know():
    stated = StationCalibration(
        pose(0, 0.1), None, {"a": PlacedCamera(camera(200, 256), pose(10, 0)),
                             "b": PlacedCamera(None, pose(0, 0))},
    )  # fmt: skip
    found = StationCalibration(
        pose(2, 0.13), camera(90, 128), {"a": PlacedCamera(camera(102, 128), pose(13, 0.02))}
    )
    apart = differences(stated, found)
    assert set(apart) == {"a", "wrist"}
    assert apart["a"] == Difference(*(pytest.approx(v) for v in (0.02, 3.0, 2.0)))
    assert apart["wrist"].translation_m == pytest.approx(0.03)
    assert apart["wrist"].rotation_deg == pytest.approx(2.0)
    assert apart["wrist"].focal_percent is None


def test_look_around_is_not_for_shards(tmp_path, capsys):
    arguments = ["simulate", "--seeds", "0", "--shards", tmp_path, "--motion", "look-around"]
    assert main([str(a) for a in arguments]) == 2
    assert "--motion look-around is for bags" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
