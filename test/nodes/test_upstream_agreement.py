"""Our conversions against ROS's own, where those are installed (PyPI has no wheels of them)."""

from __future__ import annotations

import numpy as np
import pytest
from sensor_msgs.msg import Image, PointCloud2

from wristworld_ros.data import messages
from wristworld_ros.nodes.conversions import fill
from wristworld_ros.types import PointCloud

pytestmark = pytest.mark.ros
STAMP = 1_704_067_200_123_456_789
SHAPES = {"rgb8": (6, 5, 3), "bgr8": (6, 5, 3), "mono8": (6, 5), "rgba8": (6, 5, 4)}


def random_image(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def with_padded_rows(message: Image, padding: int) -> Image:
    """The same picture with unused bytes at the end of each row, as some drivers send it."""
    rows = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)
    padded = np.pad(rows, ((0, 0), (0, padding)))
    message.step += padding
    message.data = messages.byte_array(padded)
    return message


@pytest.mark.parametrize("encoding", sorted(SHAPES))
@pytest.mark.parametrize("padding", [0, 12])  # whole pixels: cv_bridge knows no others
def test_images_as_cv_bridge_reads_them(encoding: str, padding: int) -> None:
    bridge = pytest.importorskip("cv_bridge", reason="no cv_bridge here").CvBridge()
    image = random_image(SHAPES[encoding])
    message = fill(Image(), messages.image_fields(image, encoding, STAMP, "camera"))
    message = with_padded_rows(message, padding)
    np.testing.assert_array_equal(bridge.imgmsg_to_cv2(message, "passthrough"), image)
    np.testing.assert_array_equal(
        messages.decode_image(message), bridge.imgmsg_to_cv2(message, "rgb8")
    )


@pytest.mark.parametrize(("encoding", "kind"), [("16UC1", np.uint16), ("32FC1", np.float32)])
def test_depth_as_cv_bridge_writes_it(encoding: str, kind: type) -> None:
    bridge = pytest.importorskip("cv_bridge", reason="no cv_bridge here").CvBridge()
    depth = np.random.default_rng(1).integers(0, 5000, (4, 3)).astype(kind)
    message = bridge.cv2_to_imgmsg(depth, encoding)
    metres = depth / 1000 if encoding == "16UC1" else depth
    np.testing.assert_allclose(messages.decode_depth(message), metres, rtol=1e-6)


def test_clouds_as_sensor_msgs_py_reads_them() -> None:
    point_cloud2 = pytest.importorskip(
        "sensor_msgs_py.point_cloud2", reason="no sensor_msgs_py here"
    )
    rng = np.random.default_rng(0)
    n = 50
    cloud = PointCloud(
        rng.normal(size=(n, 3)).astype(np.float32),
        rng.integers(0, 256, (n, 3)).astype(np.uint8),
        rng.random(n, np.float32),
        np.ones(n, np.float32),
        np.zeros(n, np.uint8),
    )
    message = fill(PointCloud2(), messages.point_cloud_fields(cloud, STAMP, "base_link"))
    read = point_cloud2.read_points(message)
    assert len(read) == n
    for i, name in enumerate("xyz"):
        np.testing.assert_array_equal(read[name], cloud.points[:, i])
    np.testing.assert_array_equal(read["confidence"], cloud.confidence)
    packed = np.ascontiguousarray(read["rgb"]).view(np.uint32)
    colors = np.stack([packed >> 16 & 255, packed >> 8 & 255, packed & 255], -1)
    np.testing.assert_array_equal(colors, cloud.colors)
