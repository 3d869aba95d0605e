"""A whole station: calibrate on some recordings, score on others, write the result."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from wristworld_ros.calibration.bundle import Solution, track_errors, triangulate
from wristworld_ros.calibration.contours import franka_meshes, has_outline, outline_offsets
from wristworld_ros.calibration.pictures import draw_points, draw_robot
from wristworld_ros.calibration.recordings import Recording
from wristworld_ros.calibration.station import (
    ROUNDS_PX,
    SAME_PLACE_PX,
    Accuracy,
    FixedCalibration,
    WristCalibration,
    calibrate_fixed,
    calibrate_wrist,
    fixed_accuracy,
    locate_fixed,
    part_of,
    wrist_accuracy,
    wrist_sightings,
)
from wristworld_ros.calibration.tracks import background_shift
from wristworld_ros.errors import CalibrationError, InvalidInputError
from wristworld_ros.reconstruction.calibration_file import PlacedCamera, StationCalibration
from wristworld_ros.types import CameraModel, FloatArray, Image

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Placed:
    """A fixed camera in a held-out recording.

    Attributes:
        T_base_camera, covariance: its pose, 4 x 4 and 6 x 6.
        how: where the pose is from, in words.
        tracks: errors on tracks of the arm.
        outline_median, outline_p90: distance of the arm's edges from its outline [px], NaN when
            its meshes are unknown.
        edges: number of them.
    """

    T_base_camera: FloatArray
    covariance: FloatArray
    how: str
    tracks: Accuracy
    outline_median: float = float("nan")
    outline_p90: float = float("nan")
    edges: int = 0


@dataclass(frozen=True)
class StationResult:
    """What ``calibrate_station`` found.

    Attributes:
        wrist: None when the recordings have no wrist pictures.
        fixed: by camera.
        wrist_training, wrist_held_out: accuracy on recordings used, and on others.
        held_out: recording -> camera -> pose and accuracy.
    """

    wrist: WristCalibration | None
    fixed: Mapping[str, FixedCalibration]
    wrist_training: Accuracy | None = None
    wrist_held_out: Mapping[str, Accuracy] = field(default_factory=dict)
    held_out: Mapping[str, Mapping[str, Placed]] = field(default_factory=dict)


def calibrate_station(
    recordings: Sequence[Recording],
    held_out: Sequence[Recording] = (),
    *,
    aspect: float | None = None,
    say: Callable[[str], None] = logger.info,
) -> StationResult:
    """Calibrate every camera on ``recordings`` and score it on ``held_out``.

    A fixed camera that was moved before a held-out recording (its background says so) is located
    again, with its intrinsics kept, on the first half of that recording, and scored on the second.

    Args:
        aspect: fy / fx of all cameras when known.
        say: is told what was done, a line at a time.
    """
    _check(recordings, held_out)
    wrist = training = None
    wrist_scores = {}
    if all(r.wrist is not None for r in recordings):
        wrist = calibrate_wrist(recordings, aspect=aspect)
        training = wrist_accuracy(wrist, recordings)
        wrist_scores = {r.name: wrist_accuracy(wrist, [r]) for r in held_out}
        say(f"wrist camera: {_words(wrist.solution)}")
    fixed = {}
    for name in recordings[0].views:
        fixed[name] = calibrate_fixed(recordings, name, aspect=aspect)
        places = len(fixed[name].solution.X)
        say(f"{name}: {_words(fixed[name].solution)}; {places} places in {len(recordings)}")
    scores = {
        r.name: {name: score_fixed(r, c, recordings) for name, c in fixed.items()} for r in held_out
    }
    return StationResult(wrist, fixed, training, wrist_scores, scores)


def score_fixed(
    r: Recording, calibration: FixedCalibration, recordings: Sequence[Recording]
) -> Placed:
    """Pose and accuracy of a fixed camera in a recording that it was not calibrated on."""
    name, solution = calibration.name, calibration.solution
    shifts = {b.name: background_shift(r.views[name], b.views[name]) for b in recordings}
    nearest = min(shifts, key=lambda b: shifts[b])
    if shifts[nearest] < SAME_PLACE_PX:
        row = calibration.place[nearest]
        X, covariance = solution.X[row], solution.covariance[row]
        scored, how = r, f"as in {nearest} (background within {shifts[nearest]:.2f} px)"
    else:
        half = len(r) // 2
        found = locate_fixed(part_of(r, slice(0, half)), solution, name)
        X, covariance = found.X[0], found.covariance[0]
        scored = part_of(r, slice(half, None))
        how = (
            f"moved ({shifts[nearest]:.1f} px against {nearest}): located on the first half, "
            "scored on the second"
        )
    tracks = fixed_accuracy(scored, name, solution, X)
    if not has_outline(r):
        return Placed(X, covariance, how, tracks)
    offsets = np.abs(outline_offsets([scored], name, solution.camera, X, solution.latency))
    if not len(offsets):
        return Placed(X, covariance, how, tracks)
    median, p90 = np.percentile(offsets, [50, 90])
    return Placed(X, covariance, how, tracks, float(median), float(p90), len(offsets))


def station_file(result: StationResult, recording: str, made: str) -> StationCalibration:
    """The calibration as it holds in one recording, used or held out."""
    cameras, covariances, residuals = {}, {}, {}
    mount = wrist_camera = None
    if result.wrist is not None:
        solution = result.wrist.solution
        mount, wrist_camera = solution.X[0], solution.camera
        covariances["mount"] = solution.covariance[0]
        residuals["wrist_latency_s"] = solution.latency
        for name, score in result.wrist_held_out.items():
            residuals[f"wrist_held_out_{name}_median_px"] = score.median
            residuals[f"wrist_held_out_{name}_p90_px"] = score.p90
    for name, calibration in result.fixed.items():
        solution = calibration.solution
        if recording in calibration.place:
            row = calibration.place[recording]
            pose, covariance = solution.X[row], solution.covariance[row]
        else:
            placed = result.held_out[recording][name]
            pose, covariance = placed.T_base_camera, placed.covariance
            residuals[f"{name}_median_px"] = placed.tracks.median
            residuals[f"{name}_p90_px"] = placed.tracks.p90
        cameras[name] = PlacedCamera(solution.camera, pose)
        covariances[name] = covariance
        residuals[f"{name}_latency_s"] = solution.latency
    return StationCalibration(
        mount, wrist_camera, cameras, covariances, residuals, made=f"{made}; as in {recording}"
    )


@dataclass(frozen=True)
class Difference:
    """A camera as calibrated against what a recording states.

    Attributes:
        translation_m, rotation_deg: between the two poses.
        focal_percent: between the focal lengths, None when the recording states none.
    """

    translation_m: float
    rotation_deg: float
    focal_percent: float | None = None


def differences(stated: StationCalibration, found: StationCalibration) -> dict[str, Difference]:
    """Cameras (``wrist`` for the mount) that both know -> how far they are apart."""
    pairs = {
        name: ((camera.T_base_camera, camera.camera), (placed.T_base_camera, placed.camera))
        for name, camera in stated.cameras.items()
        if (placed := found.cameras.get(name)) is not None
    }
    if stated.mount is not None and found.mount is not None:
        pairs["wrist"] = ((stated.mount, stated.wrist_camera), (found.mount, found.wrist_camera))
    out = {}
    for name, ((T, camera), (X, sought)) in pairs.items():
        turn = Rotation.from_matrix(T[:3, :3].T @ X[:3, :3]).magnitude()
        focal = None
        if camera is not None and sought is not None:
            # Pictures of one camera in two sizes have one field of view.
            scale = camera.width / sought.width
            focal = 100 * abs(sought.K[0, 0] * scale / camera.K[0, 0] - 1)
        shift = float(np.linalg.norm(T[:3, 3] - X[:3, 3]))
        out[name] = Difference(shift, float(np.degrees(turn)), focal)
    return out


def metrics(result: StationResult) -> dict[str, Any]:
    """All figures, for JSON."""
    out: dict[str, Any] = {"fixed": {}, "held_out": {}}
    if result.wrist is not None and result.wrist_training is not None:
        out["wrist"] = {
            **_figures(result.wrist.solution),
            "training": asdict(result.wrist_training),
            "held_out": {name: asdict(a) for name, a in result.wrist_held_out.items()},
        }
    for name, calibration in result.fixed.items():
        out["fixed"][name] = {**_figures(calibration.solution), "place": calibration.place}
    for recording, cameras in result.held_out.items():
        out["held_out"][recording] = {
            name: {
                "how": p.how,
                "tracks": asdict(p.tracks),
                "outline": {"median_px": p.outline_median, "p90_px": p.outline_p90,
                            "edges": p.edges} if p.edges else None,
            }
            for name, p in cameras.items()
        }  # fmt: skip
    return out


def held_out_pictures(
    result: StationResult, held_out: Sequence[Recording], count: int = 6
) -> dict[str, Image]:
    """``<recording>_<camera>`` -> sheet of ``count`` frames with the robot or points drawn in."""
    sheets = {}
    for r in held_out:
        frames = np.linspace(2, len(r) - 3, count).astype(int)
        meshes = franka_meshes() if has_outline(r) else None
        for name, placed in result.held_out[r.name].items():
            camera = result.fixed[name].solution.camera
            sheets[f"{r.name}_{name}"] = _sheet(
                [
                    draw_robot(r.views[name][i], r.bodies[i], camera, placed.T_base_camera, meshes)
                    for i in frames
                ]
            )
        if result.wrist is not None and r.wrist is not None:
            sheets[f"{r.name}_wrist"] = _sheet(_wrist_pictures(result.wrist, r, frames))
    return sheets


def _wrist_pictures(
    wrist: WristCalibration, r: Recording, frames: NDArray[np.int64]
) -> list[Image]:
    """Points seen, and where the other sightings of their tracks predict them."""
    s, motion = wrist_sightings([r], wrist.still)
    solution = wrist.solution
    out = []
    assert r.wrist is not None
    s = s.points(track_errors(s, motion, solution, solution.X) < ROUNDS_PX[-1])
    for i in frames:
        here = s.points(s.mean_by_point((s.pose == i).astype(float)) > 0)
        now = here.pose == i
        seen, predicted = here.pixel[now], here.pixel[now]
        if len(seen):
            _, residuals = triangulate(
                here, motion, solution.camera, solution.X, solution.latency, ~now
            )
            predicted = seen + residuals[now]
        out.append(draw_points(r.wrist[i], seen, predicted))
    return out


def _sheet(pictures: Sequence[Image], columns: int = 3) -> Image:
    rows = [np.concatenate(pictures[i : i + columns], 1) for i in range(0, len(pictures), columns)]
    return np.concatenate(rows, 0)


def _check(recordings: Sequence[Recording], held_out: Sequence[Recording]) -> None:
    names = [r.name for r in (*recordings, *held_out)]
    if not recordings:
        raise InvalidInputError("no recording to calibrate on; name at least one.")
    if len(set(names)) != len(names):
        raise InvalidInputError(f"recordings {names} are not unique; a held-out one is not used.")
    for r in (*recordings, *held_out):
        if (
            set(r.views) != set(recordings[0].views)
            or r.bodies.shape[1] != (recordings[0].bodies.shape[1])
        ):
            raise CalibrationError(
                f"{r.name} has cameras {sorted(r.views)} and {r.bodies.shape[1]} links, "
                f"{recordings[0].name} {sorted(recordings[0].views)} and "
                f"{recordings[0].bodies.shape[1]}; calibrate recordings of one station together."
            )


def _words(solution: Solution) -> str:
    K = solution.camera.K
    return (
        f"fx {K[0, 0]:.1f} +- {solution.focal_deviation:.1f} px, fy {K[1, 1]:.1f} px, "
        f"latency {solution.latency * 1e3:.0f} ms, median {np.median(solution.errors):.2f} px over "
        f"{len(solution.errors)} observations of {len(solution.points)} points"
    )


def _figures(solution: Solution) -> dict[str, Any]:
    camera: CameraModel = solution.camera
    deviations = np.sqrt(np.diagonal(solution.covariance, axis1=1, axis2=2))
    return {
        "K": camera.K.tolist(),
        "D": list(camera.D),
        "latency_s": solution.latency,
        "fx_deviation_px": solution.focal_deviation,
        "poses": [
            {
                "translation_m": X[:3, 3].tolist(),
                "rotation_vector_rad": Rotation.from_matrix(X[:3, :3]).as_rotvec().tolist(),
                "deviation_m": d[:3].tolist(),
                "deviation_deg": np.degrees(d[3:]).tolist(),
            }
            for X, d in zip(solution.X, deviations, strict=True)
        ],
    }
