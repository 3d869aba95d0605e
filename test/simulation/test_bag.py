from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wristworld_ros.data.bags import BagReader
from wristworld_ros.data.messages import (
    decode_camera_info,
    decode_compressed_image,
    decode_joint_state,
    decode_transform,
)
from wristworld_ros.data.simulation.bag import START_NS, bag_path, write_bag, write_bags
from wristworld_ros.errors import BagError
from wristworld_ros.geometry.tf_tree import TransformTree


def read_all(path: Path) -> tuple[dict[str, list[tuple[int, Any]]], BagReader]:
    """Topic -> (log time, decoded message), and the closed reader with its description."""
    content: dict[str, list[tuple[int, Any]]] = {}
    with BagReader(path) as reader:
        for message in reader.messages():
            content.setdefault(message.topic, []).append((message.log_time_ns, message.decode()))
        assert reader.damage == []
    return content, reader


@pytest.fixture(scope="module")
def bag(episode, tmp_path_factory):
    return read_all(write_bag(episode, tmp_path_factory.mktemp("bag") / "sim.mcap"))


def test_all_topics_are_there_with_one_message_per_frame(bag, episode):
    content, reader = bag
    expected = {"/joint_states", "/tf", "/tf_static", "/instruction", "/robot_description"}
    for camera in (*episode.anchor_names, "wrist_true"):
        expected |= {f"/{camera}/image_raw", f"/{camera}/camera_info"}
    expected |= {f"/{camera}/depth/image_raw" for camera in episode.anchor_names}
    assert set(content) == expected
    once = {"/tf_static", "/instruction", "/robot_description"}
    assert {t: len(m) for t, m in content.items()} == {
        t: 1 if t in once else len(episode) for t in expected
    }
    assert {c.topic for c in reader.connections if c.latched} == once


def test_images_are_recorded_byte_for_byte(bag, episode):
    content, _ = bag
    for frame in range(len(episode)):
        stamp = START_NS + episode.stamp_ns(frame)
        pictures = {"wrist_true": (episode.wrist_rgb[frame], "wrist_camera_optical_frame")}
        for view, name in enumerate(episode.anchor_names):
            pictures[name] = (episode.anchor_rgb[view, frame], f"{name}_optical_frame")
        for name, (picture, frame_id) in pictures.items():
            log_time, message = content[f"/{name}/image_raw"][frame]
            assert bytes(message.data) == picture.tobytes()
            assert (message.height, message.width, message.encoding) == (
                *picture.shape[:2],
                "rgb8",
            )
            assert message.header.frame_id == frame_id
            assert message.header.stamp.sec * 10**9 + message.header.stamp.nanosec == stamp
            assert log_time == stamp


def test_depth_is_recorded_in_millimetres(bag, episode):
    content, _ = bag
    message = content["/anchor_1/depth/image_raw"][3][1]
    assert message.encoding == "16UC1"
    depth = np.frombuffer(bytes(message.data), "<u2").reshape(message.height, message.width)
    np.testing.assert_allclose(depth * 1e-3, episode.anchor_depth[1, 3], atol=0.51e-3)


def test_camera_info_is_in_the_convention_of_ros(bag, episode):
    content, _ = bag
    for name, camera in (
        ("wrist_true", episode.wrist_camera),
        ("anchor_2", episode.anchor_cameras[2]),
    ):
        message = content[f"/{name}/camera_info"][0][1]
        k = np.reshape(message.k, (3, 3))
        assert k[0, 2] == (camera.width - 1) / 2 and k[1, 2] == (camera.height - 1) / 2
        np.testing.assert_array_equal(np.reshape(message.p, (3, 4))[:, :3], k)
        decoded = decode_camera_info(message)
        assert decoded is not None and (decoded.width, decoded.height) == (
            camera.width,
            camera.height,
        )
        np.testing.assert_allclose(decoded.K, camera.K, atol=1e-12)


def test_tf_gives_every_camera_pose(bag, episode):
    content, _ = bag
    tree = TransformTree()
    for topic in ("/tf_static", "/tf"):
        for _, message in content[topic]:
            for transform in message.transforms:
                parent, child, stamp, T = decode_transform(transform, topic)
                tree.set_transform(parent, child, stamp, T, static=topic == "/tf_static")
    for frame in range(len(episode)):
        stamp = START_NS + episode.stamp_ns(frame)
        for child, expected in (
            ("hand", episode.T_world_hand[frame]),
            ("wrist_camera_optical_frame", episode.T_world_wrist[frame]),
            ("anchor_1_optical_frame", episode.T_world_camera[1]),
        ):
            found = tree.lookup("base_link", child, stamp)
            np.testing.assert_allclose(found, expected, atol=1e-6)


def test_joints_and_instruction(bag, episode):
    content, reader = bag
    joints = decode_joint_state(content["/joint_states"][5][1])
    assert tuple(joints) == episode.joint_names
    np.testing.assert_array_equal(list(joints.values()), episode.joint_positions[5])
    assert content["/instruction"][0][1].data == episode.instruction
    assert dict(reader.metadata)["wristworld_simulation"] == {
        "split": "val",
        "seed": "100000",
        "robot": "panda_2f85",
        "fps": "5",
    }


def test_compressed_images_lose_nothing(episode, tmp_path):
    path = write_bag(episode, tmp_path / "png", compressed=True, with_depth=False)
    content, _ = read_all(path)
    assert path.is_dir() and (path / "metadata.yaml").is_file()
    assert not any("depth" in topic for topic in content)
    message = content["/wrist_true/image_raw/compressed"][4][1]
    np.testing.assert_array_equal(decode_compressed_image(message), episode.wrist_rgb[4])
    message = content["/anchor_0/image_raw/compressed"][4][1]
    np.testing.assert_array_equal(decode_compressed_image(message), episode.anchor_rgb[0, 4])


def test_the_same_episode_gives_the_same_bag(episode, tmp_path):
    first = write_bag(episode, tmp_path / "first" / "a.mcap").read_bytes()
    assert write_bag(episode, tmp_path / "again" / "a.mcap").read_bytes() == first


def test_existing_bags_are_kept_unless_told_otherwise(tmp_path):
    path = bag_path(tmp_path, "val", 100_003)
    path.write_bytes(b"mine")
    with pytest.raises(BagError, match=r"exist already.*val_100003"):
        write_bags("val", [100_003], tmp_path)
    assert path.read_bytes() == b"mine"


def test_an_unfinished_bag_has_no_final_name(episode, tmp_path):
    import dataclasses

    broken = dataclasses.replace(episode, anchor_rgb=episode.anchor_rgb.astype(np.float32))
    with pytest.raises(ValueError, match="rgb8"):
        write_bag(broken, tmp_path / "sim.mcap")
    assert not (tmp_path / "sim.mcap").exists()
