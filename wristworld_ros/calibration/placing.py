"""Where the cameras of a calibrated station are in each recording, old or new."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from wristworld_ros.calibration.bundle import Motion, Solution
from wristworld_ros.calibration.recordings import Recording
from wristworld_ros.calibration.station import SAME_PLACE_PX, locate_fixed, part_of
from wristworld_ros.calibration.tracks import background_shift
from wristworld_ros.errors import CalibrationError
from wristworld_ros.geometry.transforms import invert
from wristworld_ros.reconstruction.calibration_file import PlacedCamera, StationCalibration
from wristworld_ros.types import CameraModel, FloatArray


def read_station(path: str | Path) -> dict[str, Any]:
    """What ``wristworld calibrate --json`` wrote.

    Raises:
        CalibrationError: the file is missing, is not JSON, or has no wrist or no fixed camera.
    """
    try:
        document = json.loads(Path(path).read_text())
        lacking = [k for k in ("wrist", "fixed") if not document.get(k)]
    except (OSError, ValueError, AttributeError) as error:
        raise CalibrationError(
            f"calibration {path} cannot be read: {error}. Give the file that "
            "`wristworld calibrate --json FILE` writes."
        ) from error
    if lacking:
        raise CalibrationError(
            f"calibration {path} lacks {lacking}; calibrate recordings that have a wrist video."
        )
    return dict(document)


def place_recording(
    document: Mapping[str, Any],
    recording: Recording,
    known: Sequence[Recording],
    size: tuple[int, int],
) -> tuple[StationCalibration, FloatArray, str]:
    """Cameras of a station in one recording.

    A recording of the calibration has its poses. In another one a camera stands where its
    background says, or is located again on the first half of the recording.

    Args:
        document: of ``read_station``.
        known: recordings of the calibration, to compare backgrounds with.
        size: width and height of the wrist pictures that the calibration was made from.

    Returns:
        The calibration, the wrist camera's poses T x 4 x 4 in the base (latency taken into
        account), and in words how the cameras were placed.
    """
    words, cameras = [], {}
    for name in recording.views:
        if name not in document["fixed"]:
            raise CalibrationError(
                f"{recording.name}: camera '{name}' is not in the calibration, which has "
                f"{sorted(document['fixed'])}."
            )
        entry = document["fixed"][name]
        height, width = recording.views[name].shape[1:3]
        solution = camera_solution(entry, (width, height))
        places = entry["place"]
        row = places.get(recording.name)
        if row is None:
            usable = [r for r in known if r.name in places and name in r.views]
            shifts = {r.name: background_shift(recording.views[name], r.views[name])
                      for r in usable}  # fmt: skip
            nearest = min(shifts, key=lambda n: shifts[n]) if shifts else ""
            if nearest and shifts[nearest] < SAME_PLACE_PX:
                row = places[nearest]
                words.append(f"{name} as in {nearest}")
        if row is None:
            half = part_of(recording, slice(0, max(len(recording) // 2, 2)))
            pose = locate_fixed(half, solution, name).X[0]
            words.append(f"{name} located on the first half")
        else:
            pose = solution.X[row]
        cameras[name] = PlacedCamera(solution.camera, pose)
    wrist = camera_solution(document["wrist"], size)
    motion = Motion.of(recording.hand, recording.period)
    R, t = motion.world_to_camera(wrist.X, wrist.latency)
    T = np.tile(np.eye(4), (len(recording), 1, 1))
    T[:, :3, :3], T[:, :3, 3] = R, t
    calibration = StationCalibration(wrist.X[0], wrist.camera, cameras)
    return calibration, np.stack([invert(m) for m in T]), "; ".join(words) or "as calibrated"


def camera_solution(entry: Mapping[str, Any], size: tuple[int, int]) -> Solution:
    """A camera of the document; pictures of ``size`` (width, height)."""
    X = np.tile(np.eye(4), (len(entry["poses"]), 1, 1))
    for T, pose in zip(X, entry["poses"], strict=True):
        T[:3, :3] = Rotation.from_rotvec(pose["rotation_vector_rad"]).as_matrix()
        T[:3, 3] = pose["translation_m"]
    D = tuple(entry["D"])
    camera = CameraModel(
        np.array(entry["K"]), *size, "plumb_bob" if any(D) else "none", D if any(D) else ()
    )
    return Solution(
        camera, X, entry["latency_s"], np.zeros((0, 3)), np.zeros(0), np.zeros((len(X), 6, 6)),
        float("nan"), float("nan"),
    )  # fmt: skip
