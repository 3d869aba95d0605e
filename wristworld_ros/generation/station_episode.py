"""A recording of one station as the station model takes it: undistorted views, poses, gripper."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from wristworld_ros.errors import CalibrationError, InvalidInputError
from wristworld_ros.geometry.camera import rectify
from wristworld_ros.geometry.transforms import invert
from wristworld_ros.reconstruction.calibration_file import StationCalibration
from wristworld_ros.types import CameraModel, FloatArray


@dataclass(frozen=True)
class StationEpisode:
    """T moments of one station; the V fixed cameras are in alphabetical order.

    Attributes:
        name: of the recording.
        views: V x T x H x W x 3 uint8, lens distortion removed.
        K: V x 3 x 3 [px of ``views``], pixel centres at integer + 0.5.
        T_view_base: V x 4 x 4, base to camera.
        T_base_wrist: T x 4 x 4, pose of the wrist camera.
        gripper: T, 0 (open) to 1 (closed).
        wrist: T x h x w x 3 uint8, what the real wrist camera saw; None where it had none.
    """

    name: str
    views: NDArray[np.uint8]
    K: FloatArray
    T_view_base: FloatArray
    T_base_wrist: FloatArray
    gripper: FloatArray
    wrist: NDArray[np.uint8] | None

    def __len__(self) -> int:
        return len(self.T_base_wrist)


def output_camera(camera: CameraModel, width: int, height: int) -> CameraModel:
    """The wrist camera, lens included, for pictures of another size.

    Raises:
        InvalidInputError: a side that the network cannot halve three times.
    """
    if min(width, height) < 16 or width % 8 or height % 8:
        raise InvalidInputError(
            f"size {width} x {height} px: sides must be multiples of 8, 16 px or more; "
            "take for instance 160 x 96."
        )
    sx, sy = width / camera.width, height / camera.height
    K = np.diag([sx, sy, 1.0]) @ camera.K
    return CameraModel(K, width, height, camera.distortion_model, camera.D)


def make_episode(
    name: str,
    views: Mapping[str, NDArray[np.uint8]],
    calibration: StationCalibration,
    T_base_wrist: FloatArray,
    gripper: FloatArray | None,
    wrist: NDArray[np.uint8] | None,
    size: tuple[int, int],
) -> StationEpisode:
    """Put together what was recorded and what is known of the cameras.

    Args:
        views: camera -> T x H x W x 3 uint8, all of one size.
        calibration: intrinsics and poses of these cameras.
        T_base_wrist: T x 4 x 4.
        gripper: T, 0 (open) to 1 (closed); None: taken as open, with the hand's picture constant.
        wrist: T x any size x 3 uint8, or None.
        size: width and height that ``wrist`` is brought to, by area means.

    Raises:
        CalibrationError: a camera's intrinsics or pose are not known.
        InvalidInputError: the pictures differ in size, or the gripper is not within 0 to 1.
    """
    frames = len(T_base_wrist)
    pictures, Ks, poses = [], [], []
    for camera in sorted(views):
        placed = calibration.cameras.get(camera)
        if placed is None or placed.camera is None:
            raise CalibrationError(
                f"{name}: intrinsics and pose of camera '{camera}' are not in the calibration, "
                f"which has {sorted(calibration.cameras)}. Run `wristworld calibrate`."
            )
        model = placed.camera.resized(views[camera].shape[2], views[camera].shape[1])
        flat = [rectify(image, model) for image in views[camera][:frames]]
        pictures.append(np.stack([image for image, _ in flat]))
        Ks.append(model.K)
        poses.append(invert(placed.T_base_camera))
    if len({p.shape for p in pictures}) != 1 or len(pictures[0]) != frames:
        raise InvalidInputError(
            f"{name}: the views have the shapes {[p.shape for p in pictures]} for {frames} hand "
            "poses; need one size, and a picture for every pose."
        )
    grip = np.zeros(frames) if gripper is None else np.asarray(gripper, np.float64)
    if grip.shape != (frames,) or not ((grip >= 0) & (grip <= 1)).all():
        raise InvalidInputError(
            f"{name}: gripper of shape {grip.shape} from {np.min(grip):g} to {np.max(grip):g}; "
            f"need {frames} values from 0 (open) to 1 (closed)."
        )
    small = None
    if wrist is not None:
        small = np.stack(
            [cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image in wrist[:frames]]
        ).astype(np.uint8)
    return StationEpisode(
        name, np.stack(pictures), np.stack(Ks), np.stack(poses), T_base_wrist, grip, small
    )
