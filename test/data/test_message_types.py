"""Message types without ROS: hashes as a ROS installation has them, CDR, defaults, errors."""

from __future__ import annotations

import numpy as np
import pytest

from wristworld_ros.data.message_types import MessageTypes, own_definitions
from wristworld_ros.errors import BagError, InvalidInputError


def test_hashes_equal_those_of_the_installed_messages():
    # as `ros2 interface` and the generated sensor_msgs of Jazzy have them
    types = MessageTypes()
    assert types.type_hash("sensor_msgs/msg/Image") == (
        "RIHS01_d31d41a9a4c4bc8eae9be757b0beed306564f7526c88ea6a4588fb9582527d47"
    )
    assert types.type_hash("std_msgs/msg/String") == (
        "RIHS01_df668c740482bbd48fb39d76a70dfd4bd59db1288021743503259e948f6b1a18"
    )


@pytest.mark.ros
def test_own_messages_are_understood_by_ros_and_the_other_way_round():
    from rclpy.serialization import deserialize_message, serialize_message

    from wristworld_ros.msg import GenerationStatus, WristEstimate

    types = MessageTypes()
    fields = {
        "header": {"stamp": {"sec": 7, "nanosec": 8}, "frame_id": "base_link"},
        "child_frame_id": "wrist",
        "pose": {"pose": {"position": {"z": 0.5}}, "covariance": np.arange(36.0)},
        "source": 2,
        "point_count": 12345,
        "latency_stages": ["network", "splat"],
        "latency_seconds": np.array([0.25, 0.5]),
        "error_message": "a cure",
    }
    raw = types.serialize("wristworld_ros/msg/WristEstimate", fields)
    estimate = deserialize_message(raw, WristEstimate)
    assert (estimate.header.stamp.sec, estimate.header.frame_id) == (7, "base_link")
    assert (estimate.pose.pose.position.z, estimate.pose.covariance[35]) == (0.5, 35.0)
    assert (estimate.source, estimate.point_count, estimate.error_message) == (2, 12345, "a cure")
    assert list(estimate.latency_seconds) == [0.25, 0.5]

    status = GenerationStatus(mode="chunk", seed=2**63, drop_causes=["late"], error_code=7)
    status.drop_counts.append(3)
    got = types.deserialize("wristworld_ros/msg/GenerationStatus", serialize_message(status))
    assert (got.mode, got.seed, got.error_code) == ("chunk", 2**63, 7)
    assert (got.drop_causes, got.drop_counts.tolist()) == (["late"], [3])


def test_messages_round_trip_with_defaults_for_what_is_left_out():
    types = MessageTypes()
    assert set(own_definitions()) == {
        "wristworld_ros/msg/WristEstimate",
        "wristworld_ros/msg/GenerationStatus",
    }
    raw = types.serialize(
        "wristworld_ros/msg/GenerationStatus",
        {
            "header": {"stamp": {"sec": 3}},
            "mode": "stream",
            "drop_causes": ["late", "unmatched"],
            "drop_counts": [2, 5],
            "coverage": 0.25,
        },
    )
    got = types.deserialize("wristworld_ros/msg/GenerationStatus", raw)
    assert (got.header.stamp.sec, got.mode, got.coverage, got.steps) == (3, "stream", 0.25, 0)
    assert got.drop_causes == ["late", "unmatched"]
    assert got.drop_counts.tolist() == [2, 5]


def test_fixed_arrays_and_nested_lists():
    types = MessageTypes()
    info = types.deserialize(
        "sensor_msgs/msg/CameraInfo",
        types.serialize("sensor_msgs/msg/CameraInfo", {"k": np.arange(9.0)}),
    )
    assert info.k.tolist() == list(range(9))
    assert info.p.shape == (12,)
    with pytest.raises(InvalidInputError, match=r"CameraInfo\.k takes 9 values, got 3"):
        types.serialize("sensor_msgs/msg/CameraInfo", {"k": [1, 2, 3]})


def test_unknown_fields_types_and_damaged_bytes_are_named():
    types = MessageTypes()
    with pytest.raises(InvalidInputError, match=r"no field \['colour'\]"):
        types.make("sensor_msgs/msg/Image", {"colour": 1})
    with pytest.raises(InvalidInputError, match="my_msgs/msg/Thing is not known"):
        types.serialize("my_msgs/msg/Thing", {})
    assert not types.knows("my_msgs/msg/Thing")
    raw = types.serialize("std_msgs/msg/String", {"data": "hello"})
    for cut in range(len(raw) - 1):
        with pytest.raises(InvalidInputError, match="are not a std_msgs/msg/String"):
            types.deserialize("std_msgs/msg/String", raw[:cut])


def test_definitions_of_a_bag_come_first():
    types = MessageTypes()
    types.register("my_msgs/msg/Thing", "ros2msg", "float64 x\ngeometry_msgs/Point where\n")
    raw = types.serialize("my_msgs/msg/Thing", {"x": 2.0, "where": {"y": 4.0}})
    got = types.deserialize("my_msgs/msg/Thing", raw)
    assert (got.x, got.where.y) == (2.0, 4.0)
    with pytest.raises(BagError, match="the definition of my_msgs/msg/Broken cannot be used"):
        types.register("my_msgs/msg/Broken", "ros2msg", "float64[ x\n")
