"""BagFrames: what of a bag becomes an AnchorFrame, and what is said about the rest."""

from __future__ import annotations

import numpy as np
import pytest

from wristworld_ros.data.bag_writer import BagWriter
from wristworld_ros.data.bags import BagReader
from wristworld_ros.data.frames import BagFrames, find_cameras, iterate_frames
from wristworld_ros.data.messages import (
    camera_info_fields,
    compressed_image_fields,
    image_fields,
    tf_fields,
    transform_fields,
)
from wristworld_ros.errors import BagError, CalibrationError, InvalidInputError
from wristworld_ros.types import CameraModel


def drops(source: BagFrames) -> dict[str, int]:
    return {cause: n for cause, n in source.drops.items() if n}


def test_everything_that_is_known_is_in_the_frames(make_bag, scene):
    with BagReader(make_bag(frames=4)) as bag:
        source = iterate_frames(bag, use_depth=True)
        pairs = list(source.with_truth())
        assert source.expected == source.frames == len(pairs) == 4
    for i, (frame, truth) in enumerate(pairs):
        assert frame.stamp_ns == scene.start_ns + i * scene.period_ns
        assert source.log_time_ns(frame.stamp_ns) == frame.stamp_ns
        assert frame.instruction == "lift the cube"
        assert frame.world_frame == "base_link"
        assert frame.calibrated
        assert frame.joints == {"joint_1": i / 4}
        assert np.allclose(frame.T_world_wrist, scene.pose(i / 10, 0, 0.6))
        for j, view in enumerate(frame.views):
            assert view.name == f"anchor_{j}"
            assert np.array_equal(view.image, scene.picture(j, i))
            assert np.allclose(view.camera.K, scene.camera.K)
            assert np.allclose(view.T_world_camera, scene.pose(0, j))
            assert np.allclose(view.depth, 1.5)
        assert np.array_equal(truth.image, scene.picture(2, i, scene.wrist_camera))
        assert np.allclose(truth.camera.K, scene.wrist_camera.K)
        assert np.allclose(truth.T_world_camera, frame.T_world_wrist)
    assert source.notes == []
    assert drops(source) == {}


def test_iterating_twice_gives_the_same(make_bag):
    with BagReader(make_bag()) as bag:
        source = BagFrames(bag)
        stamps = [frame.stamp_ns for frame in source]
        assert [frame.stamp_ns for frame in source] == stamps
        assert source.frames == 4


def test_cameras_can_be_named_and_unknown_ones_are_errors(make_bag):
    with BagReader(make_bag()) as bag:
        assert list(find_cameras(bag, None)) == ["anchor_0", "anchor_1"]
        [frame, *_] = BagFrames(bag, ["/anchor_1"])
        assert [view.name for view in frame.views] == ["anchor_1"]
        with pytest.raises(
            BagError, match=r"no camera 'anchor_7'; cameras .*: anchor_0, anchor_1\."
        ):
            BagFrames(bag, ["anchor_0", "anchor_7"])


def test_a_bag_without_cameras_says_so(make_bag):
    skip = ("/anchor_0/image_raw", "/anchor_1/image_raw")
    text = r"has 0 third-person cameras \(none\)"
    with BagReader(make_bag(skip=skip)) as bag, pytest.raises(BagError, match=text):
        BagFrames(bag)


def test_missing_camera_info_gives_an_uncalibrated_view_and_a_reason(make_bag):
    with BagReader(make_bag(skip=("/anchor_1/camera_info",))) as bag:
        source = BagFrames(bag)
        [frame, *_] = source
    assert [view.calibrated for view in frame.views] == [True, False]
    assert source.notes == ["camera 'anchor_1' is uncalibrated: no topic '/anchor_1/camera_info'"]


def test_missing_transforms_give_uncalibrated_views_and_a_reason(make_bag):
    with BagReader(make_bag(skip=("/tf_static",))) as bag:
        source = BagFrames(bag)
        frames = list(source)
    assert len(frames) == 4
    assert all(view.T_world_camera is None for view in frames[0].views)
    assert frames[0].T_world_wrist is None
    assert frames[0].world_frame == "anchor_0_optical_frame"
    assert "the world is the frame of the first camera, 'anchor_0_optical_frame'" in source.notes[0]
    assert "frame 'anchor_0_optical_frame' is not in the transform tree" in source.notes[0]


def test_without_a_base_the_first_camera_is_the_world(tmp_path, scene):
    path = tmp_path / "a.mcap"
    with BagWriter(path) as bag:
        bag.add_topic("/tf_static", "tf2_msgs/msg/TFMessage", "tf_static")
        bag.write("/tf_static", tf_fields([transform_fields(scene.pose(1), 1, "left", "right")]), 1)
        for name in ("left", "right"):
            bag.add_topic(f"/{name}/image_raw", "sensor_msgs/msg/Image", "image")
            bag.add_topic(f"/{name}/camera_info", "sensor_msgs/msg/CameraInfo", "image")
            bag.write(f"/{name}/camera_info", camera_info_fields(scene.camera, 1, name), 1)
            image = image_fields(scene.picture(0, 0), "bgr8", 1, name)
            bag.write(f"/{name}/image_raw", image, 1)
    with BagReader(path) as bag:
        [frame] = BagFrames(bag)
    assert frame.world_frame == "left"
    assert np.allclose(frame.views[0].T_world_camera, np.eye(4))
    assert np.allclose(frame.views[1].T_world_camera, scene.pose(1))
    assert frame.calibrated
    assert np.array_equal(frame.views[0].image, scene.picture(0, 0)[..., ::-1])


def test_nan_in_k_is_an_error_that_names_the_topic(make_bag):
    path, text = make_bag(camera_k=np.full(9, np.nan)), "/anchor_0/camera_info: camera matrix K"
    with BagReader(path) as bag, pytest.raises(CalibrationError, match=text):
        BagFrames(bag)


def test_k_of_zeros_means_uncalibrated(make_bag):
    with BagReader(make_bag(camera_k=np.zeros(9))) as bag:
        source = BagFrames(bag)
        [frame, *_] = source
    assert frame.views[0].camera is None
    assert "K is all zero in '/anchor_0/camera_info'" in source.notes[0]


def test_a_camera_info_of_another_size_is_an_error(tmp_path, scene):
    path = tmp_path / "a.mcap"
    with BagWriter(path) as bag:
        bag.add_topic("/cam/image_raw", "sensor_msgs/msg/Image", "image")
        bag.add_topic("/cam/camera_info", "sensor_msgs/msg/CameraInfo", "image")
        other = CameraModel.from_fov(1.0, 64, 48)
        bag.write("/cam/camera_info", camera_info_fields(other, 1, "cam"), 1)
        bag.write("/cam/image_raw", image_fields(scene.picture(0, 0), "rgb8", 1, "cam"), 1)
    with BagReader(path) as bag, pytest.raises(CalibrationError, match="'cam': camera_info is for"):
        list(BagFrames(bag))


def test_skewed_cameras_need_slop_and_drops_are_counted(make_bag):
    path = make_bag(frames=4, skew_ns=30_000_000)
    with BagReader(path) as bag:
        source = BagFrames(bag, slop_s=0.01)
        assert list(source) == []
        assert drops(source) == {"unmatched": 8}
        assert source.images == 8
        source = BagFrames(bag, slop_s=0.01, offsets_s={"anchor_1": -0.03})
        assert len(list(source)) == 4
        assert drops(source) == {}
        frames = list(BagFrames(bag, slop_s=0.05))
        assert [v.stamp_ns - frames[0].stamp_ns for v in frames[0].views] == [0, 30_000_000]


def write_images(path, images, topic="/cam/image_raw", msgtype="sensor_msgs/msg/Image"):
    with BagWriter(path) as bag:
        bag.add_topic(topic, msgtype, "image")
        for fields, log_time in images:
            bag.write(topic, fields, log_time)
    return path


def test_wrong_encoding_and_zero_size_are_errors_that_name_the_topic(tmp_path, scene):
    good = image_fields(scene.picture(0, 0), "rgb8", 1, "cam")
    for i, (changes, text) in enumerate(
        [
            ({"encoding": "bayer_rggb8"}, "/cam/image_raw: encoding 'bayer_rggb8'"),
            ({"width": 0}, "/cam/image_raw: image size 0 x 24"),
        ]
    ):
        path = write_images(tmp_path / f"{i}.mcap", [({**good, **changes}, 1)])
        with BagReader(path) as bag, pytest.raises(InvalidInputError, match=text):
            list(BagFrames(bag))


def test_one_bad_picture_among_good_ones_is_dropped_and_counted(tmp_path, scene):
    images = []
    for i in range(3):
        fields = compressed_image_fields(scene.picture(0, i), "jpeg", i + 1, "cam")
        if i == 1:
            fields["data"] = fields["data"][:100]
        images.append((fields, i + 1))
    topic = "/cam/image_raw/compressed"
    path = write_images(tmp_path / "a.mcap", images, topic, "sensor_msgs/msg/CompressedImage")
    with BagReader(path) as bag:
        source = BagFrames(bag)
        assert [frame.stamp_ns for frame in source] == [1, 3]
    assert drops(source) == {"undecodable": 1}
    assert "/cam/image_raw/compressed: 100 bytes" in source.notes[-1]


def test_stamps_of_zero_are_replaced_by_the_time_of_recording(tmp_path, scene):
    fields = image_fields(scene.picture(0, 0), "rgb8", 0, "cam")
    path = write_images(tmp_path / "a.mcap", [(fields, 77), (fields, 99)])
    with BagReader(path) as bag:
        source = BagFrames(bag)
        assert [frame.stamp_ns for frame in source] == [77, 99]
    assert any("stamps of '/cam/image_raw' are 0" in note for note in source.notes)


def test_a_truncated_bag_gives_the_frames_before_the_cut(make_bag, tmp_path):
    data = make_bag(frames=60).read_bytes()
    part = tmp_path / "part.mcap"
    counts = []
    for share in (0.4, 0.6, 0.8):
        part.write_bytes(data[: int(len(data) * share)])
        with BagReader(part) as bag:
            frames = list(BagFrames(bag))
            counts.append(len(frames))
            assert bag.damage
            assert all(frame.calibrated for frame in frames)
    assert counts == sorted(counts)
    assert 10 < counts[0] < counts[-1] < 60


def test_an_instruction_given_wins_and_missing_topics_are_fine(make_bag):
    skip = ("/instruction", "/joint_states", "/wrist_true/image_raw")
    with BagReader(make_bag(skip=skip)) as bag:
        [(frame, truth), *_] = BagFrames(bag).with_truth()
        assert (frame.instruction, frame.joints, truth) == ("", None, None)
        [frame, *_] = BagFrames(bag, instruction="wipe the table")
        assert frame.instruction == "wipe the table"


def test_transforms_that_end_early_leave_later_frames_without_pose(make_bag):
    with BagReader(make_bag(skip=("/tf",))) as bag:
        source = BagFrames(bag)
        [frame, *_] = source
    assert frame.calibrated
    assert frame.T_world_wrist is None
    assert any("no kinematic wrist pose" in note and "'hand'" in note for note in source.notes)


def test_one_bad_transform_does_not_take_the_others_along(make_bag, scene, tmp_path):
    source = make_bag()
    path = tmp_path / "b.mcap"
    with BagReader(source) as bag, BagWriter(path, types=bag.types) as out:
        ids = {c: out.add_connection(c) for c in bag.connections}
        for m in bag.messages():
            out.copy(ids[m.connection], m)
        bad = transform_fields(scene.pose(0), scene.start_ns, "base_link", "broken")
        bad["transform"]["rotation"]["w"] = float("nan")
        out.add_topic("/tf", "tf2_msgs/msg/TFMessage", beside=True)
        out.write("/tf", tf_fields([bad]), scene.start_ns)
    with BagReader(path) as bag:
        frames = BagFrames(bag)
        assert all(frame.calibrated and frame.T_world_wrist is not None for frame in frames)
    assert len(frames.notes) == 1
    assert "transform left out: /tf: transform 'base_link' -> 'broken'" in frames.notes[0]
