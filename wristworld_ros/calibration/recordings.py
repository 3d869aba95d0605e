"""What calibration needs of a recording: pictures, and where the links of the robot were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wristworld_ros.data.bags import BagReader
from wristworld_ros.data.frames import BagFrames
from wristworld_ros.data.kinematics import FRANKA_JOINTS, franka_frames
from wristworld_ros.data.video_folder import (
    GRIPPER_CLOSED,
    GRIPPER_JOINT,
    decode_video,
    read_video_folder,
)
from wristworld_ros.errors import BagError
from wristworld_ros.geometry.transforms import invert
from wristworld_ros.reconstruction.calibration_file import PlacedCamera, StationCalibration
from wristworld_ros.types import CameraModel, FloatArray

#: Largest change of the flange in the hand over a recording when both are rigidly joined [m].
_RIGID = 1e-3


@dataclass(frozen=True)
class Recording:
    """One recording with T frames, all in memory.

    Attributes:
        name: of the file or folder.
        period: mean time between frames [s].
        views: name of a fixed camera -> T x H x W x 3 uint8.
        wrist: T x H x W x 3 uint8 of the wrist camera, or None.
        bodies: T x L x 4 x 4, poses of the robot's links in its base; the last one is the hand.
        stated: what the recording itself says of its cameras (camera_info with TF), to compare
            with; calibration never uses it.
        gripper: T, 0 (open) to 1 (closed), from ``GRIPPER_JOINT``; None where it is not recorded.
    """

    name: str
    period: float
    views: Mapping[str, NDArray[np.uint8]]
    wrist: NDArray[np.uint8] | None
    bodies: FloatArray
    stated: StationCalibration = field(default_factory=StationCalibration)
    gripper: FloatArray | None = None

    def __len__(self) -> int:
        return len(self.bodies)

    @property
    def hand(self) -> FloatArray:
        """T x 4 x 4, ``T_base_hand``."""
        return self.bodies[:, -1]


def read_recording(
    path: str | Path, *, base_frame: str = "base_link", hand_frame: str = "hand"
) -> Recording:
    """Read a folder of videos (``read_video_folder``) or a bag.

    Raises:
        BagError: it is neither, or lacks the hand's poses.
    """
    path = Path(path)
    if path.is_dir() and any(path.glob("*.mp4")):
        return _read_folder(path)
    return _read_bag(path, base_frame, hand_frame)


def _bodies(hand: FloatArray, joints: list[Mapping[str, float] | None]) -> FloatArray:
    """Links of the arm where joint states tell them, then the hand; T x L x 4 x 4."""
    known = [j for j in joints if j is not None and all(n in j for n in FRANKA_JOINTS)]
    if len(known) == len(hand):
        links = franka_frames(np.array([[j[n] for n in FRANKA_JOINTS] for j in known]))[:, 1:7]
        mount = np.stack([invert(a) @ b for a, b in zip(links[:, -1], hand, strict=True)])
        if np.ptp(mount[:, :3, 3], axis=0).max() < _RIGID:
            return np.concatenate([links[:, :-1], hand[:, None]], 1)
    return hand[:, None]


def _gripper(joints: Sequence[Mapping[str, float] | None]) -> FloatArray | None:
    """How far the gripper is closed, T values in [0, 1]; None where a moment lacks its joint."""
    found = [j[GRIPPER_JOINT] for j in joints if j is not None and GRIPPER_JOINT in j]
    if len(found) < len(joints):
        return None
    return (np.array(found) / GRIPPER_CLOSED).clip(0, 1)


def _read_folder(path: Path) -> Recording:
    folder = read_video_folder(path)
    if not folder.poses:
        raise BagError(f"{path} has no robot states; calibration needs 'states' in episode.json.")
    index = np.round(np.arange(folder.length) * folder.state_rate / folder.fps).astype(int)
    index = index.clip(0, len(folder.poses) - 1)
    joints = [folder.joints[i] for i in index] if folder.joints else [None] * len(index)

    def pictures(video: Path) -> NDArray[np.uint8]:
        return np.stack(list(decode_video(video))[: folder.length])

    return Recording(
        path.name,
        1 / folder.fps,
        {name: pictures(video) for name, video in folder.views.items()},
        None if folder.wrist is None else pictures(folder.wrist),
        _bodies(np.stack(folder.poses)[index], joints),
        gripper=_gripper(joints),
    )


def _read_bag(path: Path, base_frame: str, hand_frame: str) -> Recording:
    stamps, hand, joints = [], [], []
    wrist: list[NDArray[np.uint8]] = []
    views: dict[str, list[Any]] = {}
    mount: FloatArray | None = None
    wrist_camera: CameraModel | None = None
    placed: dict[str, PlacedCamera] = {}
    with BagReader(path) as bag:
        frames = BagFrames(bag, world_frame=base_frame)
        for frame, truth in frames.with_truth():
            stamps.append(frame.stamp_ns)
            hand.append(frames.tree.lookup(base_frame, hand_frame, frame.stamp_ns, 0.1))
            joints.append(frame.joints)
            if truth is not None:
                wrist.append(truth.image)
                if mount is None and truth.T_world_camera is not None:
                    mount, wrist_camera = invert(hand[-1]) @ truth.T_world_camera, truth.camera
            for view in frame.views:
                views.setdefault(view.name, []).append(view.image)
                if view.T_world_camera is not None:
                    placed.setdefault(view.name, PlacedCamera(view.camera, view.T_world_camera))
    if len(stamps) < 2:
        raise BagError(f"{path} has {len(stamps)} frames; calibration needs robot motion.")
    return Recording(
        path.stem,
        float(np.diff(stamps).mean()) * 1e-9,
        {name: np.stack(images) for name, images in views.items()},
        np.stack(wrist) if len(wrist) == len(stamps) else None,
        _bodies(np.stack(hand), joints),
        StationCalibration(mount, wrist_camera, placed),
        _gripper(joints),
    )
