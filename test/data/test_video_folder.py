"""Folders of videos and states as bags, and the forward kinematics that checks them."""

from __future__ import annotations

import json
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wristworld_ros.cli import import_
from wristworld_ros.cli.main import main
from wristworld_ros.data.bags import BagReader
from wristworld_ros.data.frames import BagFrames
from wristworld_ros.data.kinematics import FRANKA_JOINTS, franka_flange, pose_from_xyz_rpy
from wristworld_ros.data.video_folder import (
    VideoCalibration,
    decode_video,
    import_video_folder,
    read_video_folder,
)
from wristworld_ros.errors import BagError, InvalidInputError
from wristworld_ros.geometry.transforms import from_quaternion
from wristworld_ros.reconstruction.calibration_file import (
    PlacedCamera,
    StationCalibration,
    save_calibration,
)
from wristworld_ros.types import CameraModel

JOINTS = [0.1, -0.4, 0.2, -2.1, 0.1, 1.8, 0.3]


def write_video(path: Path, frames: int, fps: int = 5, size: tuple[int, int] = (64, 48)) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for i in range(frames):
            image = np.full((size[1], size[0], 3), 40 + 10 * i, np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def state(joints) -> list[float]:
    from transforms3d.euler import mat2euler

    T = franka_flange(joints)
    return [*T[:3, 3].tolist(), *mat2euler(T[:3, :3], "sxyz")]


@pytest.fixture
def folder(tmp_path) -> Path:
    path = tmp_path / "episode"
    path.mkdir()
    for name in ("exterior_1", "exterior_2", "wrist"):
        write_video(path / f"{name}.mp4", 4)
    joints = [[*JOINTS[:6], 0.1 * i] for i in range(4)]
    write_episode(
        path,
        texts=["stack the cups"],
        states=[[*state(j), 0.25 * i] for i, j in enumerate(joints)],
        joints=[[*j, 0.0] for j in joints],
    )
    return path


def write_episode(path: Path, **content) -> None:
    (path / "episode.json").write_text(json.dumps(content))


def change(path: Path, **changes) -> None:
    content = json.loads((path / "episode.json").read_text())
    write_episode(path, **{**content, **changes})


def station(name="exterior_1", size=(64, 48), **residuals):
    """A calibration of one view and the wrist camera."""
    camera = CameraModel.from_fov(0.8, *size)
    placed = from_quaternion([0.5, 0.4, 0.6], [0, 1, 0, 0])
    return StationCalibration(
        mount=from_quaternion([0.07, 0, 0.03], [0, 0, 0, 1]),
        wrist_camera=CameraModel.from_fov(1.0, 64, 48),
        cameras={name: PlacedCamera(camera, placed)},
        residuals=residuals,
    )


def test_a_calibration_gives_camera_info_and_tf(folder, tmp_path, capsys):
    saved = station(exterior_1_latency_s=0.05, wrist_latency_s=0.0)
    save_calibration(tmp_path / "station.yaml", saved)
    out = tmp_path / "out.mcap"
    arguments = ["import", str(folder), str(out), "--calibration", str(tmp_path / "station.yaml")]
    assert main(arguments) == 0
    assert "calibrated: exterior_1, wrist_true" in capsys.readouterr().out
    with BagReader(out) as bag:
        source = BagFrames(bag, slop_s=0.06)
        pairs = list(source.with_truth())
        frame, truth = pairs[1]
        one, two = (next(v for v in frame.views if v.name == f"exterior_{i}") for i in (1, 2))
        np.testing.assert_allclose(one.T_world_camera, saved.cameras["exterior_1"].T_base_camera)
        np.testing.assert_allclose(one.camera.K, saved.cameras["exterior_1"].camera.K)
        assert two.camera is None and two.T_world_camera is None
        assert one.stamp_ns - two.stamp_ns == 50_000_000
        hand = source.tree.lookup("base_link", "hand", frame.stamp_ns)
        np.testing.assert_allclose(truth.T_world_camera, hand @ saved.mount, atol=1e-9)
        np.testing.assert_allclose(truth.camera.K, saved.wrist_camera.K)


def test_a_calibration_of_other_cameras_is_refused(folder, tmp_path):
    found = read_video_folder(folder)
    for calibration, message in (
        (station("front"), "camera front; .* has exterior_1, exterior_2"),
        (station(size=(128, 96)), "exterior_1 is for 128 x 96 px, the video has 64 x 48"),
    ):
        given = VideoCalibration(dict(calibration.cameras), calibration.wrist_camera)
        with pytest.raises(InvalidInputError, match=message):
            import_video_folder(found, tmp_path / "no.mcap", calibration=given)
        assert not (tmp_path / "no.mcap").exists()


def test_a_folder_becomes_a_bag(folder, tmp_path):
    out = tmp_path / "out.mcap"
    found = read_video_folder(folder)
    assert (found.fps, found.length, found.state_rate) == (5.0, 4, 5.0)
    assert found.fk_error < 1e-9
    assert import_video_folder(found, out) == 4
    with BagReader(out) as bag:
        source = BagFrames(bag)
        pairs = list(source.with_truth())
        assert len(pairs) == 4
        assert bag.counts["/tf"] == bag.counts["/joint_states"] == 4
        assert not any(topic.endswith("camera_info") for topic in bag.topics)
        assert [name for name, _ in bag.metadata] == ["wristworld_import"]
    decoded = list(decode_video(folder / "wrist.mp4"))
    for i, (frame, truth) in enumerate(pairs):
        assert [view.name for view in frame.views] == ["exterior_1", "exterior_2"]
        assert not frame.calibrated
        assert frame.instruction == "stack the cups"
        assert frame.stamp_ns - pairs[0][0].stamp_ns == i * 200_000_000
        assert np.array_equal(truth.image, decoded[i])
        assert frame.joints["panda_joint7"] == pytest.approx(0.1 * i)
        assert frame.joints["robotiq_85_left_knuckle_joint"] == pytest.approx(0.2 * i)
        T = source.tree.lookup("base_link", "hand", frame.stamp_ns)
        assert np.allclose(T, franka_flange([*JOINTS[:6], 0.1 * i]), atol=1e-9)


def test_states_at_the_robots_rate_are_kept(folder, tmp_path):
    joints = [[*JOINTS[:6], 0.03 * i] for i in range(10)]
    write_episode(
        folder,
        texts=[""],
        **{
            "observation.state.cartesian_position": [state(j) for j in joints],
            "observation.state.joint_position": joints,
            "observation.state.gripper_position": [0.0] * 10,
        },
    )
    found = read_video_folder(folder)
    assert (found.state_rate, len(found.poses)) == (15.0, 10)
    import_video_folder(found, tmp_path / "out.mcap")
    with BagReader(tmp_path / "out.mcap") as bag:
        assert bag.counts["/tf"] == 10
        [frame] = [f for i, f in enumerate(BagFrames(bag)) if i == 2]
    assert frame.joints["panda_joint7"] == pytest.approx(0.18)  # 6 states of 15 Hz at 0.4 s
    with pytest.raises(BagError, match=r"do not fit 4 frames at 5 frames/s"):
        change(folder, **{"observation.state.cartesian_position": [state(JOINTS)] * 40})
        read_video_folder(folder)


def test_videos_alone_are_enough(folder, tmp_path):
    (folder / "episode.json").unlink()
    (folder / "wrist.mp4").unlink()
    found = read_video_folder(folder, fps=10)
    assert (found.fps, found.wrist, found.poses) == (10, None, [])
    import_video_folder(found, tmp_path / "out.mcap", compressed=True)
    with BagReader(tmp_path / "out.mcap") as bag:
        assert bag.topics == [
            "/exterior_1/image_raw/compressed",
            "/exterior_2/image_raw/compressed",
            "/instruction",
        ]
        frames = list(BagFrames(bag))
    expected = list(decode_video(folder / "exterior_1.mp4"))
    assert np.array_equal(frames[3].views[0].image, expected[3])  # PNG loses nothing
    assert frames[1].stamp_ns - frames[0].stamp_ns == 100_000_000


def test_a_repeated_last_picture_is_left_out_and_said(folder, tmp_path, caplog):
    for name in ("exterior_1", "exterior_2", "wrist"):
        write_video(folder / f"{name}.mp4", 5)
    with pytest.raises(BagError, match="4 states but 5 video frames"):
        read_video_folder(folder)
    change(folder, video_length=4)
    read = read_video_folder(folder)
    assert (read.length, len(read.poses)) == (4, 4)
    assert "5 frames, 4 by episode.json; the last is left out" in caplog.text
    assert import_video_folder(read, tmp_path / "out.mcap") == 4


def test_what_does_not_fit_together_is_named(folder):
    write_video(folder / "exterior_2.mp4", 3)
    with pytest.raises(BagError, match=r"differ in length: .*'exterior_2.mp4': 3"):
        read_video_folder(folder)
    write_video(folder / "exterior_2.mp4", 4, fps=7)
    with pytest.raises(BagError, match="say which holds with --fps"):
        read_video_folder(folder)
    assert read_video_folder(folder, fps=5).fps == 5
    write_video(folder / "exterior_2.mp4", 4)
    change(folder, states=[[0.0] * 7] * 3)
    with pytest.raises(BagError, match="3 states but 4 video frames"):
        read_video_folder(folder)
    change(folder, states=[[float("nan")] * 7] * 4)
    with pytest.raises(BagError, match=r"'states' has shape \(4, 7\) with 28 non-finite"):
        read_video_folder(folder)
    (folder / "episode.json").write_text("{")
    with pytest.raises(BagError, match=r"episode\.json cannot be read"):
        read_video_folder(folder)


def test_what_is_missing_or_damaged_is_named(folder, tmp_path):
    with pytest.raises(BagError, match="folder .* does not exist"):
        read_video_folder(tmp_path / "nowhere")
    data = (folder / "exterior_1.mp4").read_bytes()
    (folder / "exterior_1.mp4").write_bytes(data[:100])
    with pytest.raises(BagError, match=r"exterior_1\.mp4 cannot be decoded"):
        read_video_folder(folder)
    (folder / "exterior_1.mp4").unlink()
    (folder / "exterior_2.mp4").unlink()
    with pytest.raises(BagError, match="has no third-person video .*wrist.mp4"):
        read_video_folder(folder)


def test_the_command_writes_the_bag_and_says_what_is_in_it(folder, tmp_path, capsys):
    out = tmp_path / "bag.mcap"
    assert main(["import", str(folder), str(out)]) == 0
    text = capsys.readouterr().out
    assert "4 frames at 5 Hz of exterior_1, exterior_2" in text
    assert "no camera calibration" in text
    assert main(["import", str(folder), str(out)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert import_.HELP


def test_flange_of_the_straight_arm_and_of_a_bent_one():
    # all angles zero: 0.333 + 0.316 + 0.384 - 0.107 up, 0.088 out, the hand looking down
    T = franka_flange([0.0] * 7)
    assert np.allclose(T[:3, 3], [0.088, 0, 0.926])
    assert np.allclose(T[:3, :3], np.diag([1.0, -1.0, -1.0]))
    named = franka_flange(dict(zip(FRANKA_JOINTS, JOINTS, strict=True)))
    assert np.array_equal(named, franka_flange(JOINTS))
    with pytest.raises(InvalidInputError, match="need 7 finite values"):
        franka_flange([0.0] * 6)
    with pytest.raises(InvalidInputError, match="lack"):
        franka_flange({"panda_joint1": 0.0})


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(-2.5, 2.5), min_size=7, max_size=7), st.floats(-1, 1))
def test_turning_the_base_turns_the_flange(joints, angle):
    turned = franka_flange([joints[0] + angle, *joints[1:]])
    c, s = np.cos(angle), np.sin(angle)
    R = np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    assert np.allclose(turned, R @ franka_flange(joints), atol=1e-12)


def test_roll_pitch_yaw_are_about_fixed_axes():
    T = pose_from_xyz_rpy([1, 2, 3, np.pi / 2, 0, np.pi / 2])
    assert np.allclose(T[:3, 3], [1, 2, 3])
    assert np.allclose(T[:3, :3] @ [0, 1, 0], [0, 0, 1])  # roll takes y to z, yaw leaves z
    with pytest.raises(InvalidInputError, match="6 finite values"):
        pose_from_xyz_rpy([1, 2, 3])


@pytest.mark.real
def test_real_recordings_agree_with_the_kinematics(realdata, tmp_path):
    for name, fps in (("droid/val_199", 5.0), ("station/0008", 4.0)):
        found = read_video_folder(realdata / name)
        assert found.fps == fps
        assert found.fk_error < 1e-6
    out = tmp_path / "out.mcap"
    assert import_video_folder(found, out, compressed=False) == found.length
    with BagReader(out) as bag:
        frame, truth = next(BagFrames(bag).with_truth())
    assert frame.views[0].image.shape == (192, 320, 3)
    assert frame.instruction == "pull one tissue out of the box"
    first = next(decode_video(realdata / "station/0008/wrist.mp4"))
    assert np.array_equal(truth.image, first)
    assert cv2.cvtColor(first, cv2.COLOR_RGB2GRAY).std() > 10
