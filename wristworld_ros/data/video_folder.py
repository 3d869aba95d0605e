"""Folders of videos with robot states (DROID-like) as ROS 2 bags.

Expected: ``wrist*.mp4`` (optional), any other ``*.mp4`` as third-person views, and
``episode.json`` (optional) with ``texts``, ``states`` (x y z roll pitch yaw gripper per video
frame) and joint angles per frame or at the robot's rate.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from wristworld_ros.data.bag_writer import BagWriter
from wristworld_ros.data.kinematics import FRANKA_JOINTS, franka_flange, pose_from_xyz_rpy
from wristworld_ros.data.messages import (
    camera_info_fields,
    compressed_image_fields,
    image_fields,
    joint_state_fields,
    tf_fields,
    transform_fields,
)
from wristworld_ros.errors import BagError, InvalidInputError
from wristworld_ros.types import CameraModel, FloatArray, Image

logger = logging.getLogger(__name__)

#: Rate of the arrays named ``observation.*`` in episode.json [Hz].
ROBOT_RATE = 15.0
#: Stamp of the first frame: recordings carry no date, and every import shall give the same bag.
START_NS = 1_704_067_200 * 1_000_000_000
BASE_FRAME, HAND_FRAME = "base_link", "hand"
WRIST_FRAME = "wrist_camera_optical_frame"
#: Position of the Robotiq 2F-85's drive joint when it is closed [rad]; recorded as 0 to 1.
GRIPPER_JOINT, GRIPPER_CLOSED = "robotiq_85_left_knuckle_joint", 0.8


@dataclass(frozen=True)
class VideoFolder:
    """What a folder holds, checked.

    Attributes:
        views: camera name -> video of a third-person view.
        wrist: the wrist video, or None.
        length: frames of every video; a last one that ``episode.json`` does not count is left out.
        fps: video frames per second, as played by the robot.
        instruction: task in words, may be empty.
        state_rate: of ``poses`` and ``joints`` [Hz].
        poses: hand (flange) poses ``T_base_hand``.
        joints: one dict of joint positions [rad] per pose; empty without joint angles.
        fk_error: largest distance of poses and forward kinematics [m]; NaN when unknown.
    """

    path: Path
    views: dict[str, Path]
    wrist: Path | None
    length: int
    fps: float
    instruction: str = ""
    state_rate: float = 0.0
    poses: list[FloatArray] = field(default_factory=list)
    joints: list[dict[str, float]] = field(default_factory=list)
    fk_error: float = float("nan")


@dataclass(frozen=True)
class VideoCalibration:
    """Where the cameras of a folder's videos were.

    Attributes:
        cameras: name of a view -> intrinsics (None: not known) and ``T_base_camera``.
        wrist: intrinsics of the wrist camera; mount: ``T_hand_wrist``.
        latency_s: name of a view, or ``wrist`` -> how long after its stamp by the frame rate a
            picture was taken [s]; the pictures are stamped with that time.
    """

    cameras: Mapping[str, tuple[CameraModel | None, FloatArray]] = field(default_factory=dict)
    wrist: CameraModel | None = None
    mount: FloatArray | None = None
    latency_s: Mapping[str, float] = field(default_factory=dict)


def read_video_folder(path: str | Path, fps: float | None = None) -> VideoFolder:
    """Look at a folder and check that its parts fit together.

    Args:
        fps: frame rate; that of the videos when None.

    Raises:
        BagError: missing files, videos or states of unequal length, frame rates that contradict.
    """
    path = Path(path)
    if not path.is_dir():
        raise BagError(f"folder {path} does not exist. Check the path.")
    videos = {p.stem: p for p in sorted(path.glob("*.mp4"))}
    wrist = next((p for name, p in videos.items() if name.startswith("wrist")), None)
    views = {name: p for name, p in videos.items() if not name.startswith("wrist")}
    if not views:
        raise BagError(
            f"{path} has no third-person video (any .mp4 that is not called wrist*); it has "
            f"{', '.join(p.name for p in path.iterdir()) or 'nothing'}."
        )
    found = {p.name: _probe(p) for p in videos.values()}
    lengths = {name: n for name, (n, _) in found.items()}
    if max(lengths.values()) != min(lengths.values()):
        raise BagError(f"{path}: the videos differ in length: {lengths} frames. Export them again.")
    rates = {rate for _, rate in found.values()}
    if fps is None and len(rates) > 1:
        raise BagError(f"{path}: the videos have the rates {rates}; say which holds with --fps.")
    length, rate = next(iter(lengths.values())), fps or rates.pop()
    if not 0 < rate <= 1000:
        raise BagError(f"{path}: {rate} frames/s is not a rate; give it with --fps.")
    episode = _read_json(path / "episode.json")
    texts = episode.get("texts") or [""]
    instruction = str(texts[0])
    if episode.get("video_length") == length - 1:
        # Some encoders repeat the last picture; the recording itself says how many there are.
        logger.warning(
            "%s: %d frames, %d by episode.json; the last is left out.", path, length, length - 1
        )
        length -= 1
    if not episode:
        return VideoFolder(path, views, wrist, length, rate)
    state_rate, states, joints = _states(path, episode, length, rate, fps is not None)
    poses = [pose_from_xyz_rpy(row[:6]) for row in states]
    names = [*FRANKA_JOINTS, GRIPPER_JOINT]
    named = [dict(zip(names, row.tolist(), strict=True)) for row in joints]
    errors = [
        float(np.linalg.norm(franka_flange(j)[:3, 3] - T[:3, 3]))
        for j, T in zip(named, poses, strict=bool(named))
    ]
    return VideoFolder(
        path,
        views,
        wrist,
        length,
        rate,
        instruction,
        state_rate,
        poses,
        named,
        max(errors, default=float("nan")),
    )


def _states(
    path: Path, episode: dict[str, Any], length: int, fps: float, fps_given: bool
) -> tuple[float, FloatArray, FloatArray]:
    """Rate [Hz], cartesian states (N x 6 or more) and joints (N x 8, or 0 x 8 without any)."""
    raw_states = episode.get("observation.state.cartesian_position")
    raw_joints = episode.get("observation.state.joint_position")
    gripper = episode.get("observation.state.gripper_position")
    if raw_states is not None and raw_joints is not None and gripper is not None:
        states = _array(path, "observation.state.cartesian_position", raw_states, 6)
        joints = _array(path, "observation.state.joint_position", raw_joints, 7)
        closing = np.asarray(gripper, np.float64).reshape(-1)
        stride = ROBOT_RATE / fps
        if not fps_given and not (length - 1) * stride < len(states) <= length * stride + 1:
            raise BagError(
                f"{path}: {len(states)} states at {ROBOT_RATE:g} Hz do not fit {length} frames at "
                f"{fps:g} frames/s. Give the true frame rate with --fps."
            )
        if not len(states) == len(joints) == len(closing):
            raise BagError(
                f"{path}/episode.json: {len(states)} cartesian, {len(joints)} joint and "
                f"{len(closing)} gripper states; need the same number."
            )
        return ROBOT_RATE, states, _with_gripper(joints, closing)
    if "states" not in episode:
        return fps, np.zeros((0, 6)), np.zeros((0, 8))
    states = _array(path, "states", episode["states"], 7)
    if len(states) != length:
        raise BagError(f"{path}: {len(states)} states but {length} video frames; need as many.")
    if "joints" not in episode:
        return fps, states, np.zeros((0, 8))
    joints = _array(path, "joints", episode["joints"], 7)
    if len(joints) != length:
        raise BagError(f"{path}: {len(joints)} joint states but {length} video frames.")
    return fps, states, _with_gripper(joints[:, :7], states[:, 6])


def _with_gripper(joints: FloatArray, closing: FloatArray) -> FloatArray:
    return np.concatenate([joints, GRIPPER_CLOSED * closing[:, None]], 1)


def _array(path: Path, name: str, values: Any, columns: int) -> FloatArray:
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise BagError(f"{path}/episode.json: '{name}' is not a table of numbers.") from error
    if array.ndim != 2 or array.shape[1] < columns or not np.isfinite(array).all():
        raise BagError(
            f"{path}/episode.json: '{name}' has shape {array.shape} with "
            f"{int((~np.isfinite(array)).sum())} non-finite values; need N x {columns} finite ones."
        )
    return array


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        episode = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BagError(f"{path} cannot be read: {error}.") from error
    if not isinstance(episode, dict):
        raise BagError(f"{path} holds a {type(episode).__name__}; need an object with 'states'.")
    return episode


def _probe(path: Path) -> tuple[int, float]:
    """Frames and frame rate of a video; the frames are counted, headers may lie."""
    count = sum(1 for _ in decode_video(path))
    with av.open(str(path)) as container:
        rate: Fraction | None = container.streams.video[0].average_rate
    if not count or not rate:
        raise BagError(f"{path} holds {count} frames at {rate} frames/s. Export it again.")
    return count, float(rate)


def decode_video(path: Path) -> Iterator[Image]:
    """Frames of a video, H x W x 3 uint8 RGB.

    Raises:
        BagError: not a video, or damaged.
    """
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise BagError(f"{path} has no picture track. Export it again.")
            for frame in container.decode(video=0):
                yield np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
    except av.error.FFmpegError as error:
        raise BagError(f"{path} cannot be decoded: {error}. Copy or export it again.") from error


def import_video_folder(
    folder: VideoFolder,
    out: str | Path,
    *,
    calibration: VideoCalibration | None = None,
    compressed: bool = False,
    overwrite: bool = False,
) -> int:
    """Write a checked folder as a bag with the package's topics; returns the number of frames.

    Args:
        calibration: gives camera_info, and the cameras in TF; there are none without, since such
            recordings carry no calibration.
        compressed: PNG on ``<camera>/image_raw/compressed`` instead of raw images.

    Raises:
        InvalidInputError: a calibrated camera is none of the folder's, or of another size.
    """
    given = calibration or VideoCalibration()
    models = _models(folder, given)
    suffix = "/compressed" if compressed else ""
    cameras = {**folder.views, **({"wrist_true": folder.wrist} if folder.wrist else {})}
    with BagWriter(out, overwrite=overwrite) as bag:
        bag.add_metadata(
            "wristworld_import",
            {
                "source": folder.path.name,
                "fps": f"{folder.fps:g}",
                "forward_kinematics_error_m": f"{folder.fk_error:.2g}",
            },
        )
        kind = "sensor_msgs/msg/CompressedImage" if compressed else "sensor_msgs/msg/Image"
        for name in cameras:
            bag.add_topic(f"/{name}/image_raw{suffix}", kind, "image")
        bag.add_topic("/instruction", "std_msgs/msg/String", "latched")
        if folder.joints:
            bag.add_topic("/joint_states", "sensor_msgs/msg/JointState", "state")
        if folder.poses:
            bag.add_topic("/tf", "tf2_msgs/msg/TFMessage", "tf")
        for name in models:
            bag.add_topic(f"/{name}/camera_info", "sensor_msgs/msg/CameraInfo", "image")
        bag.write("/instruction", {"data": folder.instruction}, START_NS)
        placed = [
            transform_fields(T, START_NS, BASE_FRAME, f"{name}_optical_frame")
            for name, (_, T) in given.cameras.items()
        ]
        if given.mount is not None:
            placed.append(transform_fields(given.mount, START_NS, HAND_FRAME, WRIST_FRAME))
        if placed:
            bag.add_topic("/tf_static", "tf2_msgs/msg/TFMessage", "tf_static")
            bag.write("/tf_static", tf_fields(placed), START_NS)
        videos = {name: decode_video(path) for name, path in cameras.items()}
        written = 0
        for i in range(folder.length):
            stamp = START_NS + round(i * 1e9 / folder.fps)
            written = _write_states(bag, folder, written, stamp)
            for name, frames in videos.items():
                wrist = name == "wrist_true"
                frame_id = WRIST_FRAME if wrist else f"{name}_optical_frame"
                late = given.latency_s.get("wrist" if wrist else name, 0.0)
                taken = stamp + round(1e9 * late)
                image = next(frames)
                if compressed:
                    fields = compressed_image_fields(image, "png", taken, frame_id)
                else:
                    fields = image_fields(image, "rgb8", taken, frame_id)
                if name in models:
                    info = camera_info_fields(models[name], taken, frame_id)
                    bag.write(f"/{name}/camera_info", info, stamp)
                bag.write(f"/{name}/image_raw{suffix}", fields, stamp)
        _write_states(bag, folder, written, (1 << 63) - 1)
    return folder.length


def _models(folder: VideoFolder, given: VideoCalibration) -> dict[str, CameraModel]:
    """Intrinsics by the name of the topic, checked against the videos."""
    if unknown := sorted(set(given.cameras) - set(folder.views)):
        raise InvalidInputError(
            f"the calibration has camera {', '.join(unknown)}; {folder.path} has "
            f"{', '.join(folder.views)}. Take the calibration of this station, or rename."
        )
    models = {n: camera for n, (camera, _) in given.cameras.items() if camera is not None}
    videos = dict(folder.views)
    if given.wrist is not None and folder.wrist is not None:
        models["wrist_true"], videos["wrist_true"] = given.wrist, folder.wrist
    for name, camera in models.items():
        height, width = next(decode_video(videos[name])).shape[:2]
        if (width, height) != (camera.width, camera.height):
            raise InvalidInputError(
                f"calibration of {name} is for {camera.width} x {camera.height} px, the video has "
                f"{width} x {height}. Calibrate with pictures of this size."
            )
    return models


def _write_states(bag: BagWriter, folder: VideoFolder, first: int, until_ns: int) -> int:
    """Write the robot states from index ``first`` up to a stamp; returns the next index."""
    for i in range(first, len(folder.poses)):
        stamp = START_NS + round(i * 1e9 / folder.state_rate)
        if stamp > until_ns:
            return i
        pose = transform_fields(folder.poses[i], stamp, BASE_FRAME, HAND_FRAME)
        bag.write("/tf", tf_fields([pose]), stamp)
        if folder.joints:
            bag.write("/joint_states", joint_state_fields(folder.joints[i], stamp), stamp)
    return len(folder.poses)
