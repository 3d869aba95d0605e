"""Conversion between numpy and message fields: round trips, byte layouts, and clear refusals."""

from __future__ import annotations

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wristworld_ros.data import messages as m
from wristworld_ros.errors import CalibrationError, InvalidInputError
from wristworld_ros.types import CameraModel, PointCloud

RNG = np.random.default_rng(0)


def as_message(fields):
    """Fields as an object with attributes, like a message of rclpy or rosbags."""
    if isinstance(fields, dict):
        return SimpleNamespace(**{k: as_message(v) for k, v in fields.items()})
    return [as_message(v) for v in fields] if isinstance(fields, list) else fields


def image_message(**changes):
    fields = {
        "height": 2,
        "width": 2,
        "encoding": "rgb8",
        "is_bigendian": 0,
        "step": 6,
        "data": np.arange(12, dtype=np.uint8),
    }
    return SimpleNamespace(**{**fields, **changes})


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(["rgb8", "bgr8", "mono8", "rgba8", "bgra8", "16UC1", "32FC1"]),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(0, 5),
    st.booleans(),
)
def test_every_encoding_survives_padding_and_byte_order(encoding, height, width, padding, big):
    kind, channels, _ = m.ENCODINGS[encoding]
    dtype = np.dtype(kind)
    shape = (height, width) if channels == 1 else (height, width, channels)
    image = RNG.integers(0, 255, shape).astype(dtype)
    wire = image.astype(dtype.newbyteorder(">" if big else "<"))
    rows = wire.reshape(height, -1).view(np.uint8)
    padded = np.concatenate([rows, np.zeros((height, padding), np.uint8)], 1)
    got = m.image_from_fields(
        encoding, height, width, padded.shape[1], big, padded.tobytes(), topic="/cam"
    )
    assert got.dtype == dtype
    assert np.array_equal(got, image)


def test_fields_round_trip_and_are_little_endian():
    depth = RNG.integers(0, 60000, (3, 4)).astype(np.uint16)
    fields = m.image_fields(depth, "16UC1", 1_500_000_001, "cam")
    assert (fields["step"], fields["is_bigendian"]) == (8, 0)
    assert fields["header"] == {"stamp": {"sec": 1, "nanosec": 500_000_001}, "frame_id": "cam"}
    assert fields["data"].tobytes() == depth.astype("<u2").tobytes()
    got = m.decode_depth(as_message(fields))
    assert np.array_equal(got, (depth.astype(np.float32) * np.float32(1e-3)))


def test_colours_come_out_as_rgb():
    rgb = np.array([[[10, 20, 30]]], np.uint8)
    for encoding, pixel in (
        ("rgb8", [10, 20, 30]),
        ("bgr8", [30, 20, 10]),
        ("rgba8", [10, 20, 30, 255]),
        ("bgra8", [30, 20, 10, 255]),
    ):
        image = np.array([[pixel]], np.uint8)
        fields = m.image_fields(image, encoding, 0, "")
        assert np.array_equal(m.decode_image(as_message(fields)), rgb), encoding
    grey = m.image_fields(np.array([[7]], np.uint8), "mono8", 0, "")
    assert m.decode_image(as_message(grey)).tolist() == [[[7, 7, 7]]]


def test_a_plain_rgb8_image_is_not_copied():
    message = image_message()
    assert np.shares_memory(m.decode_image(message), message.data)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"encoding": "yuv422"}, "/cam: encoding 'yuv422' is not supported; known are rgb8"),
        ({"encoding": "8UC3"}, "encoding '8UC3'"),
        ({"width": 0}, "/cam: image size 0 x 2 px"),
        ({"height": 0}, "image size 2 x 0 px"),
        ({"width": 10**6, "step": 3 * 10**6}, "image size 1000000 x 2"),
        ({"step": 5}, "step 5 and 12 bytes do not hold 2 x 2 px of rgb8"),
        ({"data": np.zeros(11, np.uint8)}, "truncated or its fields are wrong"),
        ({"encoding": "16UC1", "step": 4}, "is depth, a colour image is needed"),
    ],
)
def test_images_that_cannot_be_are_refused_by_name(changes, text):
    with pytest.raises(InvalidInputError, match=text):
        m.decode_image(image_message(**changes), "/cam")


def test_a_last_row_without_padding_is_read():
    data = np.concatenate([np.arange(8, dtype=np.uint8), np.arange(6, dtype=np.uint8)])
    got = m.image_from_fields("rgb8", 2, 2, 8, 0, data)
    assert got[1].reshape(-1).tolist() == [0, 1, 2, 3, 4, 5]


def test_depth_in_metres_loses_what_is_not_a_distance():
    depth = np.array([[1.5, np.nan], [np.inf, -1.0]], np.float32)
    fields = m.image_fields(depth, "32FC1", 0, "")
    assert m.decode_depth(as_message(fields)).tolist() == [[1.5, 0], [0, 0]]
    with pytest.raises(InvalidInputError, match="encoding 'rgb8' is not depth"):
        m.decode_depth(image_message())


def test_millimetres_are_rounded_and_limited():
    depth = np.array([[0.0004, 0.0006, 1.2345], [np.nan, 65.535, 65.6]])
    assert m.depth_to_millimetres(depth).tolist() == [[0, 1, 1234], [0, 65535, 0]]


def test_compressed_images_png_exact_jpeg_close():
    image = cv2.GaussianBlur(RNG.integers(0, 255, (24, 32, 3)).astype(np.uint8), (0, 0), 3)
    png = as_message(m.compressed_image_fields(image, "png", 5, "cam"))
    assert np.array_equal(m.decode_compressed_image(png), image)
    jpeg = as_message(m.compressed_image_fields(image, "jpeg", 5, "cam", quality=95))
    assert np.abs(m.decode_compressed_image(jpeg).astype(int) - image).max() < 16


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_truncated_pictures_are_refused(kind):
    image = RNG.integers(0, 255, (64, 64, 3)).astype(np.uint8)
    message = as_message(m.compressed_image_fields(image, kind, 0, ""))
    message.data = message.data[: len(message.data) // 2]
    with pytest.raises(InvalidInputError, match="/cam: .* bytes .* not a complete PNG or JPEG"):
        m.decode_compressed_image(message, "/cam")


def test_a_picture_of_another_kind_is_refused():
    with pytest.raises(InvalidInputError, match="not a complete PNG or JPEG"):
        m.decode_compressed_image(SimpleNamespace(format="webp", data=b"RIFFxxxxWEBP"), "/cam")
    with pytest.raises(InvalidInputError, match="is depth"):
        m.decode_compressed_image(SimpleNamespace(format="16UC1; compressedDepth", data=b""))


@settings(deadline=None, max_examples=40)
@given(
    st.floats(50, 900),
    st.floats(50, 900),
    st.floats(-20, 700),
    st.floats(-20, 500),
    st.sampled_from([("none", 0), ("plumb_bob", 5), ("rational_polynomial", 8)]),
)
def test_camera_info_both_ways(fx, fy, cx, cy, distortion):
    model, count = distortion
    K = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    camera = CameraModel(K, 640, 480, model, tuple(np.linspace(0.01, 0.05, count)))
    fields = m.camera_info_fields(camera, 7, "cam")
    assert fields["k"][2] == pytest.approx(cx - 0.5)  # pixel centres at integers in ROS
    assert fields["p"].reshape(3, 4)[:, :3].reshape(-1).tolist() == fields["k"].tolist()
    fields |= {"binning_x": 0, "binning_y": 0, "roi": {"width": 0, "height": 0}}
    got = m.decode_camera_info(as_message(fields))
    assert np.allclose(got.K, camera.K)
    assert (got.width, got.height) == (640, 480)
    assert (got.distortion_model, got.D) == (model, camera.D)


def camera_info(**changes):
    fields = m.camera_info_fields(CameraModel.from_fov(1.0, 64, 48), 0, "cam")
    fields |= {"binning_x": 0, "binning_y": 0, "roi": {"width": 0, "height": 0}}
    return as_message({**fields, **changes})


def test_camera_info_that_is_not_calibrated_is_none_and_nan_is_named():
    assert m.decode_camera_info(camera_info(k=np.zeros(9))) is None
    k = np.array(camera_info().k)
    k[0] = np.nan
    with pytest.raises(CalibrationError, match="/cam/camera_info: camera matrix K is"):
        m.decode_camera_info(camera_info(k=k), "/cam/camera_info")
    with pytest.raises(CalibrationError, match="image size 0 x 48"):
        m.decode_camera_info(camera_info(width=0))
    with pytest.raises(CalibrationError, match="binning 2 x 2"):
        m.decode_camera_info(camera_info(binning_x=2, binning_y=2))
    with pytest.raises(CalibrationError, match="region of interest of 10 x 10"):
        m.decode_camera_info(camera_info(roi={"width": 10, "height": 10}))


def test_transforms_both_ways():
    T = np.eye(4)
    T[:3, :3] = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
    T[:3, 3] = 1, 2, 3
    message = as_message(m.transform_fields(T, 42, "/base", "hand"))
    parent, child, stamp, got = m.decode_transform(message)
    assert (parent, child, stamp) == ("base", "hand", 42)
    assert np.allclose(got, T)
    message.transform.rotation.w = 5.0
    with pytest.raises(CalibrationError, match="/tf: transform 'base' -> 'hand': quaternion"):
        m.decode_transform(message)


def test_stamps_are_checked():
    assert m.stamp_to_ns(SimpleNamespace(sec=3, nanosec=5)) == 3_000_000_005
    for sec, nanosec in ((-1, 0), (0, 10**9)):
        with pytest.raises(InvalidInputError, match=f"sec={sec}, nanosec={nanosec}"):
            m.stamp_to_ns(SimpleNamespace(sec=sec, nanosec=nanosec))


def test_joint_states_both_ways():
    fields = m.joint_state_fields({"a": 0.5, "b": -1.0}, 0)
    assert m.decode_joint_state(as_message(fields)) == {"a": 0.5, "b": -1.0}
    with pytest.raises(InvalidInputError, match="2 names but 1 positions"):
        m.decode_joint_state(SimpleNamespace(name=["a", "b"], position=[1.0]))
    with pytest.raises(InvalidInputError, match=r"positions of \['b'\] are not finite"):
        m.decode_joint_state(SimpleNamespace(name=["a", "b"], position=[1.0, np.nan]))


def test_point_clouds_both_ways():
    n = 5
    cloud = PointCloud(
        RNG.normal(size=(n, 3)).astype(np.float32),
        RNG.integers(0, 255, (n, 3)).astype(np.uint8),
        RNG.random(n).astype(np.float32),
        np.ones(n, np.float32),
        np.zeros(n, np.uint8),
    )
    fields = m.point_cloud_fields(cloud, 0, "base_link")
    assert (fields["point_step"], fields["row_step"], len(fields["data"])) == (20, 100, 100)
    points, colors, confidence = m.decode_point_cloud(as_message(fields))
    assert np.array_equal(points, cloud.points)
    assert np.array_equal(colors, cloud.colors)
    assert np.array_equal(confidence, cloud.confidence)
    fields["data"] = fields["data"][:-1]
    with pytest.raises(InvalidInputError, match="99 bytes"):
        m.decode_point_cloud(as_message(fields))


def test_encoding_and_array_have_to_fit():
    with pytest.raises(InvalidInputError, match=r"float64 array of shape \(2, 2\)"):
        m.image_fields(np.zeros((2, 2)), "mono8", 0, "")
    with pytest.raises(InvalidInputError, match="not empty"):
        m.image_fields(np.zeros((0, 2, 3), np.uint8), "rgb8", 0, "")
    with pytest.raises(InvalidInputError, match="encoding 'rgb16'"):
        m.image_fields(np.zeros((2, 2, 3), np.uint8), "rgb16", 0, "")
