"""The two messages: fields, codes, and what they say where they are built."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest

MESSAGES = Path(__file__).resolve().parents[2] / "msg"


def definition(name: str) -> str:
    return (MESSAGES / f"{name}.msg").read_text()


def error_codes(name: str) -> dict[str, int]:
    found = re.findall(r"^uint16 (ERROR_\w+)=(\d+)", definition(name), re.MULTILINE)
    return {code: int(value) for code, value in found}


def test_error_codes_are_the_same_in_both_messages() -> None:
    codes = error_codes("WristEstimate")
    assert codes == error_codes("GenerationStatus")
    assert list(codes.values()) == list(range(len(codes)))


@pytest.mark.parametrize("name", ["WristEstimate", "GenerationStatus"])
def test_every_field_is_explained(name) -> None:
    lines = definition(name).splitlines()
    fields = [line for line in lines if re.match(r"[\w/]+(\[\])? \w+", line) and "=" not in
              line.split("#")[0]]  # fmt: skip
    assert len(fields) >= 14
    assert [line for line in fields if "#" not in line] == []


@pytest.mark.ros
def test_wrist_estimate_survives_the_wire() -> None:
    from rclpy.serialization import deserialize_message, serialize_message

    from wristworld_ros.msg import WristEstimate

    sent = WristEstimate(
        child_frame_id="wrist_camera_virtual_optical_frame",
        source=WristEstimate.SOURCE_FUSED,
        confidence=0.75,
        coverage=0.5,
        point_count=123456,
        front_facing_fraction=0.25,
        reprojection_error=float("nan"),
        latency=0.125,
        latency_stages=["backbone", "splatting"],
        latency_seconds=[0.1, 0.025],
        error_code=WristEstimate.ERROR_LOW_COVERAGE,
        error_message="coverage 0.02 is below 0.05",
    )
    sent.header.stamp.sec, sent.header.frame_id = 12, "base_link"
    sent.pose.pose.position.x = 0.5
    sent.pose.covariance[35] = 0.01
    got = deserialize_message(serialize_message(sent), WristEstimate)
    assert got.source == 3
    assert got.error_code == 6
    assert (got.header.stamp.sec, got.header.frame_id) == (12, "base_link")
    assert (got.pose.pose.position.x, got.pose.covariance[35]) == (0.5, 0.01)
    assert got.point_count == 123456
    assert got.reprojection_error != got.reprojection_error  # NaN
    assert list(got.latency_stages) == ["backbone", "splatting"]
    assert got.latency_seconds[1] == pytest.approx(0.025)
    assert got.error_message == sent.error_message


@pytest.mark.ros
def test_generation_status_survives_the_wire() -> None:
    from rclpy.serialization import deserialize_message, serialize_message

    from wristworld_ros.msg import GenerationStatus

    sent = GenerationStatus(
        state=GenerationStatus.STATE_DEGRADED,
        mode="stream",
        backend="torch",
        steps=2,
        seed=2**63 + 1,
        model_sha256="a" * 64,
        frames_in=10,
        frames_out=7,
        drop_causes=["late", "no_transform"],
        drop_counts=[2, 1],
    )
    got = deserialize_message(serialize_message(sent), GenerationStatus)
    assert got.state == 2
    assert (got.mode, got.backend, got.steps) == ("stream", "torch", 2)
    assert got.seed == 2**63 + 1
    assert dict(zip(got.drop_causes, got.drop_counts, strict=True)) == {
        "late": 2,
        "no_transform": 1,
    }
    assert got.frames_in == got.frames_out + sum(got.drop_counts)


@pytest.mark.ros
def test_the_tf_message_has_the_type_hash_of_the_real_one() -> None:
    """Else /tf would not connect with real ROS installations; rosbags knows the real definition."""
    from rosbags.typesys import Stores, get_typestore

    prefixes = [*os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep), sys.prefix]
    paths = [Path(prefix, "share/tf2_msgs/msg/TFMessage.json") for prefix in prefixes if prefix]
    found = [path for path in paths if path.is_file()]
    if not found:
        pytest.skip("this ROS distribution has no type hashes (before Iron)")
    entries = json.loads(found[0].read_text())["type_hashes"]
    hashes = {entry["type_name"]: entry["hash_string"] for entry in entries}
    real = get_typestore(Stores.ROS2_JAZZY).hash_rihs01("tf2_msgs/msg/TFMessage")
    assert hashes["tf2_msgs/msg/TFMessage"] == real
