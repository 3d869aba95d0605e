"""Cameras from point tracks and known motion: bundle adjustment with the points eliminated.

One problem covers both kinds of camera. The camera's pose in the frame that a point is fixed in is
``A X`` with ``A`` known and ``X`` sought:

- wrist camera: points fixed in the base, ``A = T_base_hand``, ``X = T_hand_wrist``;
- fixed camera: points fixed on a moving link, ``A = T_link_base``, ``X = T_base_camera``.

The points are eliminated (variable projection, Kaufman's approximation), so that an outer
``scipy.optimize.least_squares`` sees only intrinsics, poses and the latency of the video.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from wristworld_ros.errors import CalibrationError
from wristworld_ros.types import CameraModel, FloatArray

#: Residuals above this count linearly [px].
ROBUST_PX = 1.0
#: Points closer to the camera than this, or behind it, are projected as if they were here [m].
_NEAR = 0.01
#: Parameters before those of the poses: log fx, log fy, cx / 100, cy / 100, k1, latency.
_LENS = 6
_FREE = {"focal": (0, 1), "centre": (2, 3), "k1": (4,), "latency": (5,)}


@dataclass(frozen=True)
class Motion:
    """T known poses, each with the unknown one that follows it.

    Attributes:
        A: T x 4 x 4, known part of the camera's pose in the points' frame.
        rate: T x 6, A(t + dt) = A exp(dt rate): rotation [rad/s], translation [m/s] in A's frame.
        group: T, which of the poses X applies.
    """

    A: FloatArray
    rate: FloatArray
    group: NDArray[np.int64]

    @classmethod
    def of(cls, A: FloatArray, period: float, group: int = 0) -> Motion:
        """From poses ``A`` (T x 4 x 4) that are ``period`` [s] apart; rates by differences."""
        index = np.arange(len(A))
        before, after = np.maximum(index - 1, 0), np.minimum(index + 1, len(A) - 1)
        turn = Rotation.from_matrix(np.swapaxes(A[before, :3, :3], 1, 2) @ A[after, :3, :3])
        moved = (A[after, :3, 3] - A[before, :3, 3])[:, None] @ A[:, :3, :3]
        span = np.maximum(after - before, 1)[:, None] * period
        rate = np.concatenate([turn.as_rotvec(), moved[:, 0]], 1) / span
        return cls(np.asarray(A, np.float64), rate, np.full(len(A), group, np.int64))

    @classmethod
    def join(cls, parts: list[Motion]) -> Motion:
        """All poses in a row."""
        return cls(
            np.concatenate([m.A for m in parts]),
            np.concatenate([m.rate for m in parts]),
            np.concatenate([m.group for m in parts]),
        )

    def world_to_camera(self, X: FloatArray, latency: float) -> tuple[FloatArray, FloatArray]:
        """Rotation and translation (T x 3 x 3, T x 3) from the points' frame to the camera."""
        R_A, R_X, t_X = self.A[:, :3, :3], X[self.group, :3, :3], X[self.group, :3, 3]
        t_A = self.A[:, :3, 3] + latency * (R_A @ self.rate[:, 3:, None])[..., 0]
        R_A = R_A @ Rotation.from_rotvec(latency * self.rate[:, :3]).as_matrix()
        R = np.swapaxes(R_A @ R_X, 1, 2)
        return R, -(R @ (t_A + (R_A @ t_X[..., None])[..., 0])[..., None])[..., 0]


@dataclass(frozen=True)
class Sightings:
    """N observations of P points, sorted by point.

    Attributes:
        point: N, 0 to P - 1.
        pose: N, row of the motion.
        pixel: N x 2 [px].
    """

    point: NDArray[np.int64]
    pose: NDArray[np.int64]
    pixel: FloatArray

    def __len__(self) -> int:
        return len(self.point)

    @property
    def count(self) -> int:
        """Number of points."""
        return int(self.point[-1]) + 1 if len(self.point) else 0

    def select(self, keep: NDArray[np.bool_]) -> Sightings:
        """The observations chosen by ``keep`` (N); points numbered anew."""
        _, point = np.unique(self.point[keep], return_inverse=True)
        return Sightings(point.astype(np.int64), self.pose[keep], self.pixel[keep])

    def points(self, keep: NDArray[np.bool_]) -> Sightings:
        """The observations of the points chosen by ``keep`` (P)."""
        return self.select(keep[self.point])

    def mean_by_point(self, values: FloatArray) -> FloatArray:
        """P, mean of ``values`` (N) over the sightings of each point."""
        return np.bincount(self.point, values) / np.bincount(self.point)


@dataclass(frozen=True)
class Solution:
    """Camera, poses and points that explain sightings.

    Attributes:
        camera: intrinsics; ``plumb_bob`` with k1 alone, or no distortion.
        X: G x 4 x 4.
        latency: how long after the time of its pose a picture was taken [s].
        points: P x 3 [m], in the frame that each is fixed in.
        errors: N, reprojection errors [px].
        covariance: G x 6 x 6 of X: translation [m], rotation about the parent's axes [rad]. The
            sightings of one point count as one.
        focal_deviation: standard deviation of fx [px], NaN when it was not sought.
        cost: robust cost.
    """

    camera: CameraModel
    X: FloatArray
    latency: float
    points: FloatArray
    errors: FloatArray
    covariance: FloatArray
    focal_deviation: float
    cost: float


def _lens(camera: CameraModel, latency: float) -> FloatArray:
    K = camera.K
    k1 = camera.D[0] if camera.D else 0.0
    centre = (K[0, 2] / 100, K[1, 2] / 100)
    return np.array([np.log(K[0, 0]), np.log(K[1, 1]), *centre, k1, latency])


def _camera(lens: FloatArray, like: CameraModel) -> CameraModel:
    fx, fy = np.exp(lens[:2])
    K = np.array([[fx, 0, 100 * lens[2]], [0, fy, 100 * lens[3]], [0, 0, 1]])
    if not lens[4]:
        return CameraModel(K, like.width, like.height)
    return CameraModel(K, like.width, like.height, "plumb_bob", (float(lens[4]), 0, 0, 0, 0))


def _project(q: FloatArray, lens: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Pixels of points in the camera frame (N x 3), and derivative by the point (N x 2 x 3)."""
    (fx, fy), k1 = np.exp(lens[:2]), lens[4]
    z = np.maximum(q[:, 2], _NEAR)
    x, y = np.clip(q[:, 0] / z, -20, 20), np.clip(q[:, 1] / z, -20, 20)
    r2 = x**2 + y**2
    # Beyond a right angle of view the polynomial may turn back: it is held there.
    inside = r2 < 1.5
    d = 1 + k1 * np.where(inside, r2, 1.5)
    slope = 2 * k1 * inside
    pixel = np.stack([fx * x * d + 100 * lens[2], fy * y * d + 100 * lens[3]], 1)
    J = np.empty((len(q), 2, 3))
    J[:, 0, 0], J[:, 0, 1] = fx * (d + slope * x * x) / z, fx * slope * x * y / z
    J[:, 1, 0], J[:, 1, 1] = fy * slope * x * y / z, fy * (d + slope * y * y) / z
    J[:, :, 2] = -(J[:, :, 0] * x[:, None] + J[:, :, 1] * y[:, None])
    return pixel, J


class _Points:
    """Residuals of the sightings, and the points that make them small."""

    def __init__(self, s: Sightings, motion: Motion) -> None:
        self.s, self.motion = s, motion
        self._starts = np.flatnonzero(np.diff(s.point, prepend=-1))

    def residuals(
        self, points: FloatArray, lens: FloatArray, X: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """N x 2 residuals [px] and their derivative by the point, N x 2 x 3."""
        R, t = self.motion.world_to_camera(X, lens[5])
        R, t = R[self.s.pose], t[self.s.pose]
        q = (R @ points[self.s.point][..., None])[..., 0] + t
        pixel, J = _project(q, lens)
        return pixel - self.s.pixel, J @ R

    def sums(self, values: FloatArray) -> FloatArray:
        """P x ...: sums of ``values`` (N x ...) over the sightings of each point."""
        return np.add.reduceat(values, self._starts, axis=0)

    def start(self, lens: FloatArray, X: FloatArray) -> FloatArray:
        """Points nearest to their rays, weakly drawn to half a metre along the first ray."""
        R, t = self.motion.world_to_camera(X, lens[5])
        R, t = R[self.s.pose], t[self.s.pose]
        seen = (self.s.pixel - 100 * lens[2:4]) / np.exp(lens[:2])
        ideal = seen
        for _ in range(5):
            ideal = seen / (1 + lens[4] * np.minimum((ideal**2).sum(1, keepdims=True), 1.5))
        ray = np.concatenate([ideal, np.ones((len(seen), 1))], 1)
        ray = (ray[:, None] @ R)[:, 0] / np.linalg.norm(ray, axis=1, keepdims=True)
        origin = -(t[:, None] @ R)[:, 0]
        across = np.eye(3) - ray[:, :, None] * ray[:, None, :]
        guess = (origin + 0.5 * ray)[self._starts]
        g = self.sums((across @ origin[..., None])[..., 0]) + 1e-4 * guess
        return np.linalg.solve(self.sums(across) + 1e-4 * np.eye(3), g[..., None])[..., 0]

    def refine(
        self, points: FloatArray, lens: FloatArray, X: FloatArray, iterations: int
    ) -> FloatArray:
        """Levenberg-Marquardt on every point by itself."""
        damping = np.full(len(points), 1e-4)
        cost, g, H = self._system(points, lens, X)
        for _ in range(iterations):
            lift = damping * (np.trace(H, axis1=1, axis2=2) / 3 + 1e-12)
            step = np.linalg.solve(H + lift[:, None, None] * np.eye(3), g[..., None])[..., 0]
            trial = points - step
            new_cost, new_g, new_H = self._system(trial, lens, X)
            better = new_cost <= cost
            points = np.where(better[:, None], trial, points)
            cost = np.where(better, new_cost, cost)
            g = np.where(better[:, None], new_g, g)
            H = np.where(better[:, None, None], new_H, H)
            damping = np.clip(np.where(better, damping / 5, damping * 10), 1e-9, 1e6)
        return points

    def _system(
        self, points: FloatArray, lens: FloatArray, X: FloatArray
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Robust cost (P), gradient (P x 3) and Gauss-Newton matrix (P x 3 x 3)."""
        r, J = self.residuals(points, lens, X)
        cost = 2 * ROBUST_PX**2 * (1 / _weights(r) - 1).sum(1)
        WJ = np.swapaxes(J * _weights(r)[:, :, None], 1, 2)
        return self.sums(cost), self.sums((WJ @ r[..., None])[..., 0]), self.sums(WJ @ J)


def _weights(residuals: FloatArray) -> FloatArray:
    """Weights of iteratively reweighted least squares for scipy's ``soft_l1``."""
    return (1 + (residuals / ROBUST_PX) ** 2) ** -0.5


def triangulate(
    s: Sightings,
    motion: Motion,
    camera: CameraModel,
    X: FloatArray,
    latency: float = 0.0,
    seen_in: NDArray[np.bool_] | None = None,
) -> tuple[FloatArray, FloatArray]:
    """Points of the least robust reprojection error, the cameras given.

    Args:
        X: G x 4 x 4.
        seen_in: N, sightings that the points are made from (at least one of each point);
            all when None. The errors of the others are those of a prediction.

    Returns:
        P x 3 [m] and the residuals (predicted less seen) of all sightings, N x 2 [px].
    """
    lens, X = _lens(camera, latency), np.asarray(X, np.float64)
    used = _Points(s if seen_in is None else s.select(seen_in), motion)
    points = used.refine(used.start(lens, X), lens, X, 12)
    return points, _Points(s, motion).residuals(points, lens, X)[0]


def track_errors(s: Sightings, motion: Motion, solution: Solution, X: FloatArray) -> FloatArray:
    """P, RMS reprojection error of each track, with its point made from all its sightings [px]."""
    _, residuals = triangulate(s, motion, solution.camera, X, solution.latency)
    return np.asarray(np.sqrt(s.mean_by_point((residuals**2).sum(1))))


def solve(
    s: Sightings,
    motion: Motion,
    camera: CameraModel,
    X: FloatArray,
    *,
    latency: float = 0.0,
    free: Collection[str] = ("focal", "k1", "latency"),
    aspect: float | None = None,
    iterations: int = 30,
) -> Solution:
    """Refine camera, poses and points from a start.

    Args:
        camera: intrinsics to start from.
        X: G x 4 x 4 poses to start from.
        free: which of ``focal``, ``centre``, ``k1``, ``latency`` are sought; the poses always are.
        aspect: fy / fx, held; both are sought when None.

    Raises:
        CalibrationError: fewer observations than unknowns.
    """
    problem, X0 = _Points(s, motion), np.asarray(X, np.float64)
    groups = len(X0)
    if 2 * len(s) < 3 * s.count + _LENS + 6 * groups:
        raise CalibrationError(
            f"{len(s)} observations of {s.count} points cannot fix {groups} camera poses. "
            "Record more motion in front of more texture."
        )
    start = np.concatenate([_lens(camera, latency), np.zeros(6 * groups)])
    if aspect is not None:
        start[1] = start[0] + np.log(aspect)
    sought = np.concatenate([np.zeros(_LENS, bool), np.ones(6 * groups, bool)])
    for name in free:
        sought[list(_FREE[name])] = True
    if aspect is not None:
        sought[1] = False

    def unpack(theta: FloatArray) -> tuple[FloatArray, FloatArray]:
        full = start.copy()
        full[sought] = theta
        if aspect is not None:
            full[1] = full[0] + np.log(aspect)
        change = full[_LENS:].reshape(-1, 6)
        moved = X0.copy()
        moved[:, :3, 3] += change[:, :3]
        moved[:, :3, :3] = Rotation.from_rotvec(change[:, 3:]).as_matrix() @ X0[:, :3, :3]
        return full[:_LENS], moved

    points = problem.refine(problem.start(*unpack(start[sought])), *unpack(start[sought]), 12)

    def residuals(theta: FloatArray) -> FloatArray:
        nonlocal points
        points = problem.refine(points, *unpack(theta), 4)
        return problem.residuals(points, *unpack(theta))[0].ravel()

    def jacobian(theta: FloatArray) -> FloatArray:
        base, J_p = problem.residuals(points, *unpack(theta))
        columns = []
        for step in 1e-6 * np.eye(len(theta)):
            ahead, _ = problem.residuals(points, *unpack(theta + step))
            columns.append((ahead - base) / 1e-6)
        J = np.stack(columns, -1)
        WJ_p = np.swapaxes(J_p * _weights(base)[:, :, None], 1, 2)
        H, g = problem.sums(WJ_p @ J_p), problem.sums(WJ_p @ J)
        lift = 1e-7 * (np.trace(H, axis1=1, axis2=2) + 1e-9)
        change = np.linalg.solve(H + lift[:, None, None] * np.eye(3), g)
        return (J - J_p @ change[s.point]).reshape(-1, len(theta))

    found = least_squares(
        residuals, start[sought], jacobian, loss="soft_l1", f_scale=ROBUST_PX, x_scale="jac",
        max_nfev=iterations, ftol=1e-6, xtol=1e-7,
    )  # fmt: skip
    r, J = residuals(found.x), jacobian(found.x)
    w = _weights(r)
    variance = (w * r**2).sum() / max(len(r) - 3 * s.count - len(found.x), 1)
    # A track drifts off its point: its sightings err together, and count as one.
    variance *= len(s) / s.count
    full = np.zeros((len(start), len(start)))
    full[np.ix_(sought, sought)] = variance * np.linalg.pinv((J * w[:, None]).T @ J)
    lens, poses = unpack(found.x)
    blocks = [full[i : i + 6, i : i + 6] for i in range(_LENS, len(start), 6)]
    return Solution(
        camera=_camera(lens, camera),
        X=poses,
        latency=float(lens[5]),
        points=points,
        errors=np.linalg.norm(r.reshape(-1, 2), axis=1),
        covariance=np.stack(blocks),
        focal_deviation=float(np.exp(lens[0]) * np.sqrt(full[0, 0])) if sought[0] else np.nan,
        cost=float(found.cost),
    )
