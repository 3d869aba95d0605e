"""Where a camera may be: starts for ``bundle.solve``, of which the best explains most tracks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.spatial.transform import Rotation

from wristworld_ros.calibration.bundle import Motion, Sightings, Solution, solve, track_errors
from wristworld_ros.errors import CalibrationError
from wristworld_ros.types import CameraModel, FloatArray

#: Focal lengths that the search starts from, as shares of the image's width.
_FOCAL_SHARES = (0.4, 0.6, 0.9)
#: Share of the tracks that a start is improved on.
_TRIMMED = 0.7
#: Where fixed cameras are assumed to look, and from how far, for the start [m].
_TARGET, _DISTANCE = np.array([0.45, 0.0, 0.25]), 1.0


Start = tuple[CameraModel, FloatArray]


def mount_starts(size: tuple[int, int], aspect: float | None) -> list[Start]:
    """A wrist camera at the hand that looks along it, turned in all ways.

    Args:
        size: (width, height) of the pictures [px].
        aspect: fy / fx; 1 when None.

    Returns:
        Intrinsics and poses 1 x 4 x 4.
    """
    starts = []
    for share in _FOCAL_SHARES:
        for roll in range(0, 360, 45):
            X = np.eye(4)
            X[:3, :3] = Rotation.from_euler("z", roll, degrees=True).as_matrix()
            starts.append((_guess(share, *size, aspect), X[None]))
    return starts


def fixed_starts(size: tuple[int, int], aspect: float | None) -> list[Start]:
    """The same of a camera that looks at the workspace from any side."""
    return [
        (_guess(share, *size, aspect), _looking_from(azimuth, elevation)[None])
        for share in _FOCAL_SHARES
        for azimuth in range(0, 360, 45)
        for elevation in (15, 45)
    ]


def sample_points(s: Sightings, count: int, random: np.random.Generator) -> Sightings:
    """At most ``count`` points, chosen at random."""
    if not s.count:
        raise CalibrationError("no point could be tracked. Record more texture and slower motion.")
    keep = np.zeros(s.count, bool)
    keep[random.permutation(s.count)[:count]] = True
    return s.points(keep)


def _guess(share: float, width: int, height: int, aspect: float | None) -> CameraModel:
    f = share * width
    K = np.array([[f, 0, width / 2], [0, f * (aspect or 1.0), height / 2], [0, 0, 1]])
    return CameraModel(K, width, height)


def _looking_from(azimuth: float, elevation: float) -> FloatArray:
    """Pose of a camera that looks at the workspace, upright; angles in degrees."""
    a, e = np.deg2rad([azimuth, elevation])
    forward = -np.array([np.cos(a) * np.cos(e), np.sin(a) * np.cos(e), np.sin(e)])
    right = np.array([-np.sin(a), np.cos(a), 0.0])
    T = np.eye(4)
    T[:3, :3] = np.stack([right, np.cross(forward, right), forward], 1)
    T[:3, 3] = _TARGET - _DISTANCE * forward
    return T


def search(
    s: Sightings, motion: Motion, starts: Sequence[Start], random: np.random.Generator
) -> Solution:
    """The start from which most tracks are explained, after some steps on pose and focal length.

    Tracks of shadows, fingers and objects that move by themselves fit no camera, and with hundreds
    of pixels each they would decide: every step is taken on the ``_TRIMMED`` best ones, and a start
    is as good as its median track. A third of the tracks may be anything; a mount may be tilted
    by some 45 deg against its start.
    """
    few = sample_points(s, 200, random)

    def middling(solution: Solution) -> float:
        return float(np.median(track_errors(few, motion, solution, solution.X)))

    def stepped(solution: Solution, times: int, free: Sequence[str], iterations: int) -> Solution:
        K = solution.camera.K
        for _ in range(times):
            errors = track_errors(few, motion, solution, solution.X)
            kept = few.points(errors <= np.quantile(errors, _TRIMMED))
            solution = solve(
                kept, motion, solution.camera, solution.X, free=free, iterations=iterations,
                aspect=K[1, 1] / K[0, 0],
            )  # fmt: skip
        return solution

    found = [solve(few, motion, camera, X, free=(), iterations=1) for camera, X in starts]
    found = sorted(found, key=middling)[: max(6, len(found) // 3)]
    found = sorted((stepped(f, 2, (), 8) for f in found), key=middling)[:4]
    return min((stepped(f, 3, ("focal",), 10) for f in found), key=middling)
