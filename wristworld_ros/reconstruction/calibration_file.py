"""Calibration of a station as a YAML file that a person can read and correct.

Translations are in metres, quaternions xyzw, K in pixels with pixel centres at integer + 0.5 (half
a pixel more than in ROS's camera_info). Covariances are 6 x 6 over x, y, z [m] and rotation about
x, y, z [rad] in the parent frame: hand for the mount, base for a camera. Numbers are written with
12 significant digits.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from wristworld_ros.errors import CalibrationError, InvalidInputError
from wristworld_ros.geometry.transforms import from_quaternion, to_quaternion
from wristworld_ros.types import CameraModel, FloatArray, check_transform

FORMAT = 1
#: Key of the mount in ``StationCalibration.covariances``; no camera may be called so.
MOUNT = "mount"
_HEADER = (
    "# Calibration of a station (wristworld_ros). Translations [m], quaternions x y z w, K [px]\n"
    "# with pixel centres at integer + 0.5. T_a_b maps points in b to a. Covariances: x y z [m],\n"
    "# rotation about x y z [rad], in the parent frame (hand for the mount, base for a camera).\n"
)


class PlacedCamera(NamedTuple):
    """Intrinsics (None: not known) and pose ``T_base_camera`` (4 x 4) of a fixed camera."""

    camera: CameraModel | None
    T_base_camera: FloatArray


@dataclass(frozen=True)
class StationCalibration:
    """Where the cameras of a station are.

    Attributes:
        mount: 4 x 4 ``T_hand_wrist`` of the wrist camera on the hand, or None.
        wrist_camera: intrinsics of the wrist camera, or None.
        cameras: name of a fixed camera -> intrinsics and pose in the robot's base.
        covariances: ``mount`` or name of a camera -> 6 x 6 of its pose.
        residuals: name of a figure, with its unit at the end (``front_rms_px``) -> value.
        base_frame, hand_frame: names of the frames.
        made: how it was made and when, in words.

    Raises:
        CalibrationError: a transform is not rigid, a covariance is not a covariance or belongs to
            nothing, a residual is not finite.
    """

    mount: FloatArray | None = None
    wrist_camera: CameraModel | None = None
    cameras: Mapping[str, PlacedCamera] = field(default_factory=dict)
    covariances: Mapping[str, FloatArray] = field(default_factory=dict)
    residuals: Mapping[str, float] = field(default_factory=dict)
    base_frame: str = "base_link"
    hand_frame: str = "hand"
    made: str = ""

    def __post_init__(self) -> None:
        if self.mount is not None:
            check_transform(self.mount, "mount T_hand_wrist")
        if MOUNT in self.cameras:
            raise CalibrationError(f"a camera cannot be called '{MOUNT}'; rename it.")
        for name, placed in self.cameras.items():
            check_transform(placed.T_base_camera, f"T_base_camera of camera '{name}'")
        known = set(self.cameras) | ({MOUNT} if self.mount is not None else set())
        for name, covariance in self.covariances.items():
            if name not in known:
                raise CalibrationError(f"covariance of '{name}': there is no pose of that name.")
            check_covariance(covariance, f"covariance of '{name}'")
        for name, value in self.residuals.items():
            if not np.isfinite(value):
                raise CalibrationError(f"residual '{name}' is {value}; need a finite value.")


def check_covariance(covariance: FloatArray, name: str) -> None:
    """Raise CalibrationError unless it is a finite, symmetric, non-negative 6 x 6 matrix."""
    C = np.asarray(covariance, np.float64)
    if C.shape != (6, 6) or not np.isfinite(C).all():
        raise CalibrationError(f"{name}: got shape {C.shape}; need 6 x 6 finite values.")
    scale = float(np.abs(C).max())
    smallest = float(np.linalg.eigvalsh((C + C.T) / 2)[0])
    if np.abs(C - C.T).max() > 1e-6 * scale or smallest < -1e-6 * scale:
        raise CalibrationError(
            f"{name}: not symmetric, or its smallest eigenvalue {smallest:.3g} is negative; "
            "it has to be a covariance matrix."
        )


def save_calibration(path: str | Path, calibration: StationCalibration) -> None:
    """Write ``calibration`` to ``path``, atomically; folders are made."""
    c = calibration
    cameras = {}
    for name, placed in c.cameras.items():
        camera = {} if placed.camera is None else {"intrinsics": _intrinsics(placed.camera)}
        cameras[name] = {**camera, "T_base_camera": _pose(placed.T_base_camera)}
    document = {
        "format": FORMAT,
        "made": c.made,
        "base_frame": c.base_frame,
        "hand_frame": c.hand_frame,
        **({} if c.mount is None else {"T_hand_wrist": _pose(c.mount)}),
        **({} if c.wrist_camera is None else {"wrist_camera": _intrinsics(c.wrist_camera)}),
        "cameras": cameras,
        "covariances": {name: _numbers(C) for name, C in c.covariances.items()},
        "residuals": {name: float(value) for name, value in c.residuals.items()},
    }
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    text = yaml.safe_dump(document, sort_keys=False, default_flow_style=None, width=100)
    partial.write_text(_HEADER + text)
    os.replace(partial, path)


def load_calibration(path: str | Path) -> StationCalibration:
    """Read what ``save_calibration`` wrote, or a person did.

    Raises:
        CalibrationError: the file is missing or not YAML; a key is unknown or missing; a value is
            not possible.
    """
    path = Path(path)
    try:
        document = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CalibrationError(f"calibration {path} cannot be read: {error}") from error
    try:
        return _parse(document)
    except InvalidInputError as error:
        raise CalibrationError(f"calibration {path}: {error}") from error


def _numbers(values: Any) -> Any:
    """Nested lists of floats with 12 significant digits."""
    array = np.asarray(values, np.float64)
    if array.ndim == 0:
        return float(f"{array:.12g}") + 0.0  # no -0.0
    return [_numbers(v) for v in array]


def _pose(T: FloatArray) -> dict[str, Any]:
    translation, quaternion = to_quaternion(T)
    return {"translation": _numbers(translation), "quaternion_xyzw": _numbers(quaternion)}


def _intrinsics(camera: CameraModel) -> dict[str, Any]:
    return {
        "width": camera.width,
        "height": camera.height,
        "K": _numbers(camera.K),
        "distortion_model": camera.distortion_model,
        "D": _numbers(camera.D),
    }


def _parse(document: Any) -> StationCalibration:
    top = _mapping(
        document,
        "file",
        required={"format"},
        optional={
            "made", "base_frame", "hand_frame", "T_hand_wrist", "wrist_camera", "cameras",
            "covariances", "residuals",
        },
    )  # fmt: skip
    if top["format"] != FORMAT:
        raise CalibrationError(f"format is {top['format']!r}; this version reads {FORMAT}.")
    cameras = {}
    for name, entry in _mapping(top.get("cameras"), "cameras").items():
        entry = _mapping(entry, f"cameras.{name}", {"T_base_camera"}, {"intrinsics"})
        camera = entry.get("intrinsics")
        cameras[name] = PlacedCamera(
            None if camera is None else _read_intrinsics(camera, f"cameras.{name}.intrinsics"),
            _read_pose(entry["T_base_camera"], f"cameras.{name}.T_base_camera"),
        )
    mount, wrist = top.get("T_hand_wrist"), top.get("wrist_camera")
    return StationCalibration(
        mount=None if mount is None else _read_pose(mount, "T_hand_wrist"),
        wrist_camera=None if wrist is None else _read_intrinsics(wrist, "wrist_camera"),
        cameras=cameras,
        covariances={
            name: _array(value, (6, 6), f"covariances.{name}")
            for name, value in _mapping(top.get("covariances"), "covariances").items()
        },
        residuals={
            name: float(_array(value, (), f"residuals.{name}"))
            for name, value in _mapping(top.get("residuals"), "residuals").items()
        },
        base_frame=str(top.get("base_frame", "base_link")),
        hand_frame=str(top.get("hand_frame", "hand")),
        made=str(top.get("made", "")),
    )


def _mapping(
    value: Any,
    where: str,
    required: set[str] | None = None,
    optional: set[str] | None = None,
) -> dict[str, Any]:
    """``value`` as a mapping with text keys; with ``required`` given, no key but those named."""
    if value is None and required is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise CalibrationError(f"'{where}' is {value!r}; need names with values.")
    if required is not None:
        allowed = required | (optional or set())
        missing, unknown = sorted(required - set(value)), sorted(set(value) - allowed)
        if missing or unknown:
            raise CalibrationError(
                f"'{where}' lacks {missing} and has the unknown keys {unknown}; "
                f"known are {sorted(allowed)}."
            )
    return value


def _array(value: Any, shape: tuple[int, ...], where: str) -> FloatArray:
    try:
        array = np.array(value, np.float64)
    except (TypeError, ValueError) as error:
        raise CalibrationError(f"'{where}' is {value!r}; need numbers.") from error
    if array.shape != shape:
        raise CalibrationError(f"'{where}' has shape {array.shape}; need {shape}.")
    return array


def _read_pose(value: Any, where: str) -> FloatArray:
    entry = _mapping(value, where, {"translation", "quaternion_xyzw"})
    try:
        return from_quaternion(
            _array(entry["translation"], (3,), f"{where}.translation"),
            _array(entry["quaternion_xyzw"], (4,), f"{where}.quaternion_xyzw"),
        )
    except CalibrationError as error:
        raise CalibrationError(f"'{where}': {error}") from error


def _read_intrinsics(value: Any, where: str) -> CameraModel:
    entry = _mapping(value, where, {"width", "height", "K"}, {"distortion_model", "D"})
    try:
        return CameraModel(
            _array(entry["K"], (3, 3), f"{where}.K"),
            int(_array(entry["width"], (), f"{where}.width")),
            int(_array(entry["height"], (), f"{where}.height")),
            str(entry.get("distortion_model", "none")),
            tuple(np.atleast_1d(np.array(entry.get("D", ()), np.float64)).tolist()),
        )
    except (CalibrationError, ValueError, TypeError) as error:
        raise CalibrationError(f"'{where}': {error}") from error
