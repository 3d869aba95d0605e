"""Small bags for the tests: a static scene with two cameras and a moving hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from wristworld_ros.data.bag_writer import BagWriter
from wristworld_ros.data.messages import (
    camera_info_fields,
    depth_to_millimetres,
    image_fields,
    joint_state_fields,
    tf_fields,
    transform_fields,
)
from wristworld_ros.types import CameraModel

CAMERA = CameraModel.from_fov(1.0, 32, 24)
WRIST_CAMERA = CameraModel.from_fov(1.2, 48, 48)
PERIOD_NS = 200_000_000
START_NS = 1_700_000_000_000_000_000


def picture(camera: int, frame: int, camera_model: CameraModel = CAMERA) -> np.ndarray:
    """A different picture for each camera and frame."""
    rng = np.random.default_rng((camera, frame))
    return rng.integers(0, 255, (camera_model.height, camera_model.width, 3)).astype(np.uint8)


def pose(x: float, y: float = 0.0, z: float = 0.5) -> np.ndarray:
    T = np.eye(4)
    T[:3, 3] = x, y, z
    return T


def write_scene(
    path: Path,
    frames: int = 4,
    *,
    cameras: tuple[str, ...] = ("anchor_0", "anchor_1"),
    skip: tuple[str, ...] = (),
    depth: bool = True,
    camera_k: np.ndarray | None = None,
    skew_ns: int = 0,
    compression: str = "zstd",
) -> Path:
    """Write a bag with the contract's topics; ``skip`` leaves out topics by name.

    The hand is at x = frame / 10; camera i at y = i; wrist camera 0.1 m above the hand.
    """

    def declare(bag: BagWriter, topic: str, msgtype: str, qos: str) -> None:
        if topic not in skip:
            bag.add_topic(topic, msgtype, qos)

    def put(bag: BagWriter, topic: str, fields: dict, stamp: int) -> None:
        if topic not in skip:
            bag.write(topic, fields, stamp)

    with BagWriter(path, compression=compression) as bag:
        for name in (*cameras, "wrist_true"):
            declare(bag, f"/{name}/image_raw", "sensor_msgs/msg/Image", "image")
            declare(bag, f"/{name}/camera_info", "sensor_msgs/msg/CameraInfo", "image")
            if depth and name != "wrist_true":
                declare(bag, f"/{name}/depth/image_raw", "sensor_msgs/msg/Image", "image")
        declare(bag, "/joint_states", "sensor_msgs/msg/JointState", "state")
        declare(bag, "/tf", "tf2_msgs/msg/TFMessage", "tf")
        declare(bag, "/tf_static", "tf2_msgs/msg/TFMessage", "tf_static")
        declare(bag, "/instruction", "std_msgs/msg/String", "latched")
        put(bag, "/instruction", {"data": "lift the cube"}, START_NS)
        static = [
            transform_fields(pose(0, i), START_NS, "base_link", f"{name}_optical_frame")
            for i, name in enumerate(cameras)
        ]
        static.append(
            transform_fields(pose(0, 0, 0.1), START_NS, "hand", "wrist_camera_optical_frame")
        )
        put(bag, "/tf_static", tf_fields(static), START_NS)
        for frame in range(frames):
            stamp = START_NS + frame * PERIOD_NS
            hand = transform_fields(pose(frame / 10), stamp, "base_link", "hand")
            put(bag, "/tf", tf_fields([hand]), stamp)
            put(bag, "/joint_states", joint_state_fields({"joint_1": frame / 4}, stamp), stamp)
            for i, name in enumerate((*cameras, "wrist_true")):
                model = WRIST_CAMERA if name == "wrist_true" else CAMERA
                at = stamp + (0 if name == "wrist_true" else i * skew_ns)
                frame_id = f"{name}_optical_frame"
                if name == "wrist_true":
                    frame_id = "wrist_camera_optical_frame"
                info = camera_info_fields(model, at, frame_id)
                if camera_k is not None and i == 0:
                    info["k"] = camera_k
                put(bag, f"/{name}/camera_info", info, at)
                image = picture(i, frame, model)
                put(bag, f"/{name}/image_raw", image_fields(image, "rgb8", at, frame_id), at)
                if depth and name != "wrist_true":
                    plane = depth_to_millimetres(np.full((24, 32), 1.5))
                    fields = image_fields(plane, "16UC1", at, frame_id)
                    put(bag, f"/{name}/depth/image_raw", fields, at)
    return path


@pytest.fixture(scope="session")
def scene() -> SimpleNamespace:
    """What ``write_scene`` writes: cameras, pictures, poses, times."""
    return SimpleNamespace(
        camera=CAMERA,
        wrist_camera=WRIST_CAMERA,
        picture=picture,
        pose=pose,
        start_ns=START_NS,
        period_ns=PERIOD_NS,
    )


@pytest.fixture
def make_bag(tmp_path: Path) -> Callable[..., Path]:
    """Write a bag into the test's folder; arguments as for ``write_scene``."""

    def make(name: str = "scene.mcap", **options: object) -> Path:
        return write_scene(tmp_path / name, **options)

    return make
