"""Conversion between numpy and the fields of ROS messages, without ROS.

Decoders take any object with the attributes of the message (of rclpy or of rosbags). Encoders
return *fields*: a nested dict with the names of the message definition, whose arrays are numpy
arrays; ``nodes`` and ``data.message_types`` turn fields into their own kind of message.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from wristworld_ros.errors import CalibrationError, InvalidInputError
from wristworld_ros.geometry.camera import camera_from_ros_k, camera_to_ros_k
from wristworld_ros.geometry.transforms import from_quaternion, to_quaternion
from wristworld_ros.types import CameraModel, FloatArray, Image, PointCloud, check_image

Fields = dict[str, Any]

#: Encodings of sensor_msgs/Image that are read: item type, channels, and what brings them to RGB.
ENCODINGS: Mapping[str, tuple[str, int, int | None]] = {
    "rgb8": ("u1", 3, None),
    "bgr8": ("u1", 3, cv2.COLOR_BGR2RGB),
    "mono8": ("u1", 1, cv2.COLOR_GRAY2RGB),
    "rgba8": ("u1", 4, cv2.COLOR_RGBA2RGB),
    "bgra8": ("u1", 4, cv2.COLOR_BGRA2RGB),
    "16UC1": ("u2", 1, None),
    "32FC1": ("f4", 1, None),
}
COLOR_ENCODINGS = ("rgb8", "bgr8", "mono8", "rgba8", "bgra8")
DEPTH_ENCODINGS = ("16UC1", "32FC1")
#: Longest side that is believed [px]; more means a corrupt message.
MAX_SIDE = 16384

NANOSECONDS = 1_000_000_000
_FLOAT32, _UINT32 = 7, 6  # sensor_msgs/PointField datatypes


# --- time and header ------------------------------------------------------------------------------


def stamp_to_ns(stamp: Any, topic: str = "message") -> int:
    """builtin_interfaces/Time -> nanoseconds.

    Raises:
        InvalidInputError: negative seconds, or nanoseconds outside [0, 1e9).
    """
    sec, nanosec = int(stamp.sec), int(stamp.nanosec)
    if sec < 0 or not 0 <= nanosec < NANOSECONDS:
        raise InvalidInputError(
            f"{topic}: stamp sec={sec}, nanosec={nanosec}; need sec >= 0 and 0 <= nanosec < 1e9. "
            "Correct the clock of the publisher."
        )
    return sec * NANOSECONDS + nanosec


def stamp_fields(stamp_ns: int) -> Fields:
    """Nanoseconds -> fields of builtin_interfaces/Time."""
    sec, nanosec = divmod(int(stamp_ns), NANOSECONDS)
    return {"sec": sec, "nanosec": nanosec}


def header_fields(stamp_ns: int, frame_id: str) -> Fields:
    """Fields of std_msgs/Header."""
    return {"stamp": stamp_fields(stamp_ns), "frame_id": frame_id}


def byte_array(data: NDArray) -> array:
    """Bytes of an array as ``array('B')``: the only type that rclpy takes without a slow check."""
    out = array("B")
    out.frombytes(np.ascontiguousarray(data).data.cast("B"))
    return out


# --- images ---------------------------------------------------------------------------------------


def image_from_fields(
    encoding: str,
    height: int,
    width: int,
    step: int,
    is_bigendian: int | bool,
    data: Any,
    *,
    topic: str = "image",
) -> NDArray:
    """Pixels of a sensor_msgs/Image as they are encoded.

    Args:
        data: bytes, ``array('B')`` or uint8 array of ``step * height`` bytes.
        topic: named in errors.

    Returns:
        H x W (1 channel) or H x W x C, uint8, uint16 or float32 in native byte order. It shares
        memory with ``data`` where it can: do not write to it.

    Raises:
        InvalidInputError: unknown encoding, impossible size, or data that does not fit the size.
    """
    if encoding not in ENCODINGS:
        raise InvalidInputError(
            f"{topic}: encoding '{encoding}' is not supported; known are {', '.join(ENCODINGS)}. "
            "Convert it where it is published (image_proc, or the driver's pixel format)."
        )
    kind, channels, _ = ENCODINGS[encoding]
    if not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE):
        raise InvalidInputError(
            f"{topic}: image size {width} x {height} px; both sides must be 1 to {MAX_SIDE}. "
            "Check the driver's resolution."
        )
    dtype = np.dtype(kind).newbyteorder(">" if is_bigendian else "<")
    row = width * channels * dtype.itemsize
    raw = np.frombuffer(data, np.uint8)
    if step < row or raw.size < step * (height - 1) + row:
        raise InvalidInputError(
            f"{topic}: step {step} and {raw.size} bytes do not hold {width} x {height} px of "
            f"{encoding} (need step >= {row} and {max(step, row) * height} bytes). "
            "The message is truncated or its fields are wrong."
        )
    if raw.size < step * height:  # a last row without padding
        raw = np.concatenate([raw, np.zeros(step * height - raw.size, np.uint8)])
    rows = raw[: step * height].reshape(height, step)[:, :row]
    pixels = rows.reshape(-1) if step == row else np.ascontiguousarray(rows).reshape(-1)
    typed = pixels.view(dtype)
    if not dtype.isnative:
        typed = typed.astype(dtype.newbyteorder("="))
    return typed.reshape((height, width) if channels == 1 else (height, width, channels))


def decode_image(message: Any, topic: str = "image") -> Image:
    """sensor_msgs/Image -> H x W x 3 uint8 RGB (may share memory with the message).

    Raises:
        InvalidInputError: as ``image_from_fields``, or a depth encoding.
    """
    if message.encoding in DEPTH_ENCODINGS:
        raise InvalidInputError(
            f"{topic}: encoding '{message.encoding}' is depth, a colour image is needed; use one "
            f"of {', '.join(COLOR_ENCODINGS)}. Check the topic name."
        )
    pixels = image_from_fields(*_image_attributes(message), topic=topic)
    conversion = ENCODINGS[message.encoding][2]
    return pixels if conversion is None else np.asarray(cv2.cvtColor(pixels, conversion), np.uint8)


def decode_depth(message: Any, topic: str = "depth") -> NDArray[np.float32]:
    """Depth image (16UC1 in mm or 32FC1 in m) -> H x W float32 [m], 0 where unknown.

    Raises:
        InvalidInputError: as ``image_from_fields``, or a colour encoding.
    """
    if message.encoding not in DEPTH_ENCODINGS:
        raise InvalidInputError(
            f"{topic}: encoding '{message.encoding}' is not depth; use 16UC1 [mm] or 32FC1 [m]."
        )
    pixels = image_from_fields(*_image_attributes(message), topic=topic)
    if message.encoding == "16UC1":
        return pixels.astype(np.float32) * np.float32(1e-3)
    return np.where(np.isfinite(pixels) & (pixels > 0), pixels, np.float32(0))


def decode_compressed_image(message: Any, topic: str = "image/compressed") -> Image:
    """sensor_msgs/CompressedImage (PNG or JPEG) -> H x W x 3 uint8 RGB.

    Raises:
        InvalidInputError: the data is no picture, truncated, or has 16 bits.
    """
    raw = np.frombuffer(message.data, np.uint8)
    fmt = message.format or "unnamed format"
    if "compresseddepth" in fmt.lower():
        raise InvalidInputError(
            f"{topic}: format '{fmt}' is depth, a colour image is needed. Check the topic name."
        )
    if not _complete(raw):
        raise InvalidInputError(
            f"{topic}: {raw.size} bytes ('{fmt}') are not a complete PNG or JPEG. Use one of these "
            "formats; if it is one, the message is truncated."
        )
    image = cv2.imdecode(raw, cv2.IMREAD_COLOR)
    if image is None or image.size == 0:
        raise InvalidInputError(f"{topic}: {raw.size} bytes ('{fmt}') cannot be decoded.")
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


def _complete(raw: NDArray[np.uint8]) -> bool:
    """Whether a PNG or JPEG has its end marker (opencv fills a cut JPEG with grey, silently)."""
    data = raw.tobytes()
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return b"IEND" in data[-16:]
    return data.startswith(b"\xff\xd8") and b"\xff\xd9" in data[-64:]


def image_fields(
    image: NDArray, encoding: str, stamp_ns: int, frame_id: str, topic: str = "image"
) -> Fields:
    """Fields of sensor_msgs/Image.

    Args:
        image: H x W x 3 uint8 for rgb8 and bgr8 (stored as given, no reordering), x 4 for rgba8 and
            bgra8; H x W uint8 for mono8, uint16 for 16UC1, float32 for 32FC1.

    Raises:
        InvalidInputError: the array does not fit the encoding.
    """
    if encoding not in ENCODINGS:
        raise InvalidInputError(f"{topic}: encoding '{encoding}' is not one of {list(ENCODINGS)}.")
    kind, channels, _ = ENCODINGS[encoding]
    dtype = np.dtype(kind)
    want = 2 if channels == 1 else 3
    shaped = image.ndim == want and (want == 2 or image.shape[2] == channels)
    if image.dtype != dtype or not shaped or image.size == 0:
        raise InvalidInputError(
            f"{topic}: {image.dtype} array of shape {image.shape} cannot be sent as {encoding}; "
            f"need {dtype} with {channels} channel(s), not empty."
        )
    height, width = image.shape[:2]
    little = np.ascontiguousarray(image, dtype.newbyteorder("<"))
    return {
        "header": header_fields(stamp_ns, frame_id),
        "height": height,
        "width": width,
        "encoding": encoding,
        "is_bigendian": 0,
        "step": width * channels * dtype.itemsize,
        "data": little.reshape(-1).view(np.uint8),
    }


def compressed_image_fields(
    image: Image, fmt: str, stamp_ns: int, frame_id: str, *, quality: int = 90
) -> Fields:
    """Fields of sensor_msgs/CompressedImage from H x W x 3 uint8 RGB.

    Args:
        fmt: ``png`` or ``jpeg``.
        quality: of JPEG, 1 to 100.
    """
    check_image(image)
    if fmt not in ("png", "jpeg"):
        raise InvalidInputError(f"compressed format '{fmt}' is not one of png, jpeg.")
    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if fmt == "jpeg" else []
    done, data = cv2.imencode("." + fmt, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    if not done:
        raise InvalidInputError(f"image of shape {image.shape} cannot be encoded as {fmt}.")
    return {
        "header": header_fields(stamp_ns, frame_id),
        "format": f"rgb8; {fmt} compressed bgr8",
        "data": data.reshape(-1),
    }


def depth_to_millimetres(depth: NDArray) -> NDArray[np.uint16]:
    """H x W depth [m] -> uint16 [mm]; 0 where unknown or beyond 65.5 m."""
    mm = np.round(np.nan_to_num(np.asarray(depth, np.float64), posinf=0.0) * 1e3)
    return np.where((mm > 0) & (mm < 65536), mm, 0).astype(np.uint16)


def _image_attributes(m: Any) -> tuple[str, int, int, int, int, Any]:
    return m.encoding, int(m.height), int(m.width), int(m.step), m.is_bigendian, m.data


# --- camera_info ----------------------------------------------------------------------------------


def decode_camera_info(message: Any, topic: str = "camera_info") -> CameraModel | None:
    """sensor_msgs/CameraInfo -> CameraModel, or None when K is all zero (not calibrated, in ROS).

    Binning and a region of interest are refused, since K would not belong to the image.

    Raises:
        CalibrationError: naming the topic, when K, D or the size cannot be.
    """
    k = [float(x) for x in message.k]
    if not any(k):
        return None
    roi = message.roi
    cropped = int(roi.width) and (int(roi.width), int(roi.height)) != (
        int(message.width),
        int(message.height),
    )
    if max(int(message.binning_x), int(message.binning_y)) > 1 or cropped:
        raise CalibrationError(
            f"{topic}: binning {message.binning_x} x {message.binning_y} or a region of interest "
            f"of {roi.width} x {roi.height} px is set, which is not supported. Publish the "
            "camera_info of the image as it is sent."
        )
    try:
        return camera_from_ros_k(
            k, int(message.width), int(message.height), message.distortion_model, list(message.d)
        )
    except CalibrationError as error:
        raise CalibrationError(f"{topic}: {error}") from error


def camera_info_fields(camera: CameraModel, stamp_ns: int, frame_id: str) -> Fields:
    """Fields of sensor_msgs/CameraInfo (rectification identity, P = [K 0])."""
    k, model, d = camera_to_ros_k(camera)
    p = np.zeros((3, 4))
    p[:, :3] = np.reshape(k, (3, 3))
    return {
        "header": header_fields(stamp_ns, frame_id),
        "height": camera.height,
        "width": camera.width,
        "distortion_model": model,
        "d": np.array(d, np.float64),
        "k": np.array(k, np.float64),
        "r": np.eye(3).reshape(-1),
        "p": p.reshape(-1),
    }


# --- transforms, joints, text ---------------------------------------------------------------------


def decode_transform(message: Any, topic: str = "/tf") -> tuple[str, str, int, FloatArray]:
    """geometry_msgs/TransformStamped -> parent, child, stamp [ns], ``T_parent_child``.

    Raises:
        CalibrationError: values not finite, or the quaternion is not of unit length.
    """
    t, q = message.transform.translation, message.transform.rotation
    parent, child = (frame_name(message.header.frame_id), frame_name(message.child_frame_id))
    try:
        T = from_quaternion((t.x, t.y, t.z), (q.x, q.y, q.z, q.w))
    except CalibrationError as error:
        raise CalibrationError(f"{topic}: transform '{parent}' -> '{child}': {error}") from error
    return parent, child, stamp_to_ns(message.header.stamp, topic), T


def frame_name(name: str) -> str:
    """Frame name without the leading slash of old."""
    return name.lstrip("/")


def pose_fields(T: FloatArray) -> Fields:
    """4 x 4 transform -> fields of geometry_msgs/Pose."""
    t, q = to_quaternion(T)
    return {"position": _named("xyz", t), "orientation": _named("xyzw", q)}


def transform_fields(T: FloatArray, stamp_ns: int, parent: str, child: str) -> Fields:
    """``T_parent_child`` -> fields of geometry_msgs/TransformStamped."""
    t, q = to_quaternion(T)
    return {
        "header": header_fields(stamp_ns, parent),
        "child_frame_id": child,
        "transform": {"translation": _named("xyz", t), "rotation": _named("xyzw", q)},
    }


def tf_fields(transforms: Sequence[Fields]) -> Fields:
    """Fields of tf2_msgs/TFMessage."""
    return {"transforms": list(transforms)}


def _named(names: str, values: Sequence[float] | FloatArray) -> Fields:
    return {name: float(value) for name, value in zip(names, values, strict=True)}


def decode_joint_state(message: Any, topic: str = "/joint_states") -> dict[str, float]:
    """sensor_msgs/JointState -> joint name -> position [rad or m].

    Raises:
        InvalidInputError: numbers of names and positions differ, or a position is not finite.
    """
    names, positions = list(message.name), [float(p) for p in message.position]
    if len(names) != len(positions):
        raise InvalidInputError(
            f"{topic}: {len(names)} names but {len(positions)} positions; publish both together."
        )
    bad = [n for n, p in zip(names, positions, strict=True) if not math.isfinite(p)]
    if bad:
        raise InvalidInputError(
            f"{topic}: positions of {bad} are not finite. Check the joint encoders' driver."
        )
    return dict(zip(names, positions, strict=True))


def joint_state_fields(joints: Mapping[str, float], stamp_ns: int, frame_id: str = "") -> Fields:
    """Fields of sensor_msgs/JointState, positions only [rad or m]."""
    return {
        "header": header_fields(stamp_ns, frame_id),
        "name": list(joints),
        "position": np.array(list(joints.values()), np.float64),
    }


# --- point clouds ---------------------------------------------------------------------------------

_CLOUD_DTYPE = np.dtype(
    [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("rgb", "<u4"), ("confidence", "<f4")]
)


def point_cloud_fields(cloud: PointCloud, stamp_ns: int, frame_id: str) -> Fields:
    """Fields of sensor_msgs/PointCloud2: x, y, z [m], rgb (packed 0x00RRGGBB), confidence."""
    points = np.zeros(len(cloud), _CLOUD_DTYPE)
    for i, name in enumerate("xyz"):
        points[name] = cloud.points[:, i]
    r, g, b = cloud.colors.astype(np.uint32).T
    points["rgb"] = r << 16 | g << 8 | b
    points["confidence"] = cloud.confidence
    fields = []
    for name in _CLOUD_DTYPE.names or ():
        offset = int(_CLOUD_DTYPE.fields[name][1])  # type: ignore[index]
        # rgb is declared float32, as RViz and PCL expect; its bits are the packed integer
        fields.append({"name": name, "offset": offset, "datatype": _FLOAT32, "count": 1})
    return {
        "header": header_fields(stamp_ns, frame_id),
        "height": 1,
        "width": len(cloud),
        "fields": fields,
        "is_bigendian": False,
        "point_step": _CLOUD_DTYPE.itemsize,
        "row_step": _CLOUD_DTYPE.itemsize * len(cloud),
        "data": points.view(np.uint8).reshape(-1),
        "is_dense": bool(np.isfinite(cloud.points).all()),
    }


def decode_point_cloud(
    message: Any, topic: str = "points"
) -> tuple[NDArray[np.float32], Image, NDArray[np.float32]]:
    """PointCloud2 as written by ``point_cloud_fields`` -> points N x 3, colours N x 3, confidence.

    Raises:
        InvalidInputError: other fields, or data that does not fit.
    """
    names = tuple(f.name for f in message.fields)
    known = all(f.datatype in (_FLOAT32, _UINT32) for f in message.fields)
    count = int(message.width) * int(message.height)
    raw = np.frombuffer(message.data, np.uint8)
    if (
        names != _CLOUD_DTYPE.names
        or not known
        or message.is_bigendian
        or message.point_step != _CLOUD_DTYPE.itemsize
        or raw.size != count * _CLOUD_DTYPE.itemsize
    ):
        raise InvalidInputError(
            f"{topic}: point cloud with fields {names}, {message.point_step} bytes per point and "
            f"{raw.size} bytes; need {_CLOUD_DTYPE.names} as this package publishes."
        )
    points = raw.view(_CLOUD_DTYPE)
    rgb = points["rgb"]
    colors = np.stack([rgb >> 16 & 255, rgb >> 8 & 255, rgb & 255], -1).astype(np.uint8)
    xyz = np.stack([points["x"], points["y"], points["z"]], -1)
    return xyz, colors, points["confidence"].copy()
