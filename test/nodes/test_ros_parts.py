"""Parts of the nodes that need messages of ROS but no running graph."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from builtin_interfaces.msg import Time
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from tf2_msgs.msg import TFMessage

from wristworld_ros.data import messages
from wristworld_ros.errors import InvalidInputError, TransformLookupError
from wristworld_ros.geometry.transforms import from_quaternion
from wristworld_ros.msg import GenerationStatus, WristEstimate
from wristworld_ros.nodes.conversions import fill, message_class
from wristworld_ros.nodes.parameters import ReconstructionParameters, from_mapping
from wristworld_ros.nodes.transforms import TransformListener
from wristworld_ros.nodes.wrist_camera import at_model_size, from_parameters
from wristworld_ros.types import CameraModel, PointCloud

pytestmark = pytest.mark.ros
STAMP = 1_704_067_200_123_456_789


def test_image_there_and_back() -> None:
    image = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)
    message = fill(Image(), messages.image_fields(image, "rgb8", STAMP, "camera"))
    assert message.header.stamp == Time(sec=1_704_067_200, nanosec=123_456_789)
    assert message.header.frame_id == "camera" and message.data.typecode == "B"
    np.testing.assert_array_equal(messages.decode_image(message), image)
    assert messages.stamp_to_ns(message.header.stamp) == STAMP


def test_camera_info_there_and_back() -> None:
    camera = CameraModel(
        np.array([[300.0, 0, 319.5], [0, 301.0, 240.25], [0, 0, 1]]), 640, 480, "plumb_bob",
        (0.1, -0.2, 0.001, 0.002, 0.05),
    )  # fmt: skip
    message = fill(CameraInfo(), messages.camera_info_fields(camera, STAMP, "camera"))
    assert message.k[2] == 319.0  # ROS counts pixel centres at integers
    again = messages.decode_camera_info(message)
    np.testing.assert_allclose(again.K, camera.K, atol=1e-12)
    assert again.D == camera.D and (again.width, again.height) == (640, 480)


def test_cloud_there_and_back() -> None:
    rng = np.random.default_rng(0)
    n = 100
    cloud = PointCloud(
        rng.normal(size=(n, 3)).astype(np.float32),
        rng.integers(0, 256, (n, 3)).astype(np.uint8),
        rng.random(n, np.float32),
        np.ones(n, np.float32),
        np.zeros(n, np.uint8),
    )
    message = fill(PointCloud2(), messages.point_cloud_fields(cloud, STAMP, "base_link"))
    points, colors, confidence = messages.decode_point_cloud(message)
    np.testing.assert_array_equal(points, cloud.points)
    np.testing.assert_array_equal(colors, cloud.colors)
    np.testing.assert_array_equal(confidence, cloud.confidence)


def test_own_messages_take_their_fields() -> None:
    fields = {
        "header": messages.header_fields(STAMP, "base_link"),
        "pose": {"pose": messages.pose_fields(np.eye(4)), "covariance": np.arange(36.0)},
        "latency_stages": ["a", "b"],
        "latency_seconds": np.array([0.5, 0.25], np.float32),
    }
    estimate = fill(WristEstimate(), fields)
    assert estimate.pose.covariance[35] == 35 and list(estimate.latency_seconds) == [0.5, 0.25]
    status = fill(
        GenerationStatus(),
        {"drop_causes": ["x"], "drop_counts": np.array([2**40], np.uint64)},
    )
    assert list(status.drop_counts) == [2**40]


def test_message_class_names_the_missing_package() -> None:
    assert message_class("sensor_msgs/msg/Image") is Image
    with pytest.raises(ImportError, match="install the package nowhere_msgs"):
        message_class("nowhere_msgs/msg/Image")


def tf(parent: str, child: str, stamp: int, x: float) -> TFMessage:
    T = from_quaternion([x, 0, 0], [0, 0, 0, 1])
    fields = messages.tf_fields([messages.transform_fields(T, stamp, parent, child)])
    return fill(TFMessage(), fields)


def test_lookup_waits_for_a_late_transform() -> None:
    listener = TransformListener("virtual", pytest.fail)
    listener.add(tf("base", "hand", 10**9, 0.0), static=False)
    late = threading.Timer(
        0.05, lambda: listener.add(tf("base", "hand", 3 * 10**9, 2.0), static=False)
    )
    late.start()
    T = listener.wait_for("base", "hand", 2 * 10**9, 30.0)
    late.join()
    assert T[0, 3] == pytest.approx(1.0)  # half way


def test_lookup_gives_up_and_says_what_is_known() -> None:
    listener = TransformListener("virtual", pytest.fail)
    listener.add(tf("base", "table", 10**9, 0.0), static=True)
    with pytest.raises(TransformLookupError, match="'hand' is not in the transform tree"):
        listener.wait_for("base", "hand", 0, 0.0)
    stopping = threading.Event()
    stopping.set()
    with pytest.raises(TransformLookupError):
        listener.wait_for("base", "hand", 0, 1e6, stopping)


def test_own_frame_is_ignored_and_a_jump_back_starts_over() -> None:
    errors: list[str] = []
    listener = TransformListener("virtual", errors.append)
    listener.add(tf("base", "virtual", 1, 0.0), static=False)
    assert listener.received == 0
    listener.add(tf("base", "hand", 100 * 10**9, 1.0), static=False)
    listener.add(tf("base", "hand", 10**9, 5.0), static=False)
    assert listener.time_jumps == 1 and errors == []
    assert listener.lookup("base", "hand", 10**9)[0, 3] == 5.0
    bad = tf("base", "hand", 2 * 10**9, 0.0)
    bad.transforms[0].transform.rotation.w = 3.0
    listener.add(bad, static=False)
    assert "'base' -> 'hand'" in errors[0] and "Normalise" in errors[0]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"wrist_width": 64}, "set both"),
        ({"wrist_width": 64, "wrist_height": 50}, "multiples of 16"),
        ({"wrist_width": 64, "wrist_height": 48}, "wrist_fov_y"),
        ({"wrist_fov_y": 1.0}, "set wrist_width and wrist_height"),
    ],
)
def test_wrist_camera_set_in_part(given: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        from_parameters(from_mapping(ReconstructionParameters, given))


def test_from_parameters() -> None:
    size = {"wrist_width": 64, "wrist_height": 48}
    assert from_parameters(ReconstructionParameters()) is None
    by_fov = from_parameters(
        from_mapping(ReconstructionParameters, {**size, "wrist_fov_y": 2 * np.arctan(0.5)})
    )
    np.testing.assert_allclose(by_fov.K, [[48, 0, 32], [0, 48, 24], [0, 0, 1]])
    by_k = from_parameters(
        from_mapping(ReconstructionParameters, {**size, "wrist_fx": 50.0, "wrist_cx": 30.0})
    )
    np.testing.assert_allclose(by_k.K, [[50, 0, 30.5], [0, 50, 24], [0, 0, 1]])


@pytest.mark.parametrize(
    ("size", "given", "expected"),
    [
        ((128, 128), {}, (128, 128)),
        ((320, 180), {}, (176, 96)),
        ((640, 480), {}, (144, 112)),
        ((640, 480), {"wrist_width": 320, "wrist_height": 240}, (320, 240)),
    ],
)
def test_known_wrist_camera_at_a_size_the_model_takes(
    size: tuple[int, int], given: dict[str, int], expected: tuple[int, int]
) -> None:
    camera = CameraModel.from_fov(1.0, *size)
    resized = at_model_size(camera, from_mapping(ReconstructionParameters, given))
    assert (resized.width, resized.height) == expected
    np.testing.assert_allclose(resized.fov, camera.fov)
