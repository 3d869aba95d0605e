"""Anchor cameras and wrist camera fitted together, to all points that the pictures show of both.

One camera by itself hardly tells a long lens from a near robot: its landmarks fit either. But all
anchors see one hand of known size at one place, which only the right lenses agree on. So the
anchors' poses and focal lengths and the wrist's pose are one least-squares problem, a bundle
adjustment whose points are fixed to the robot's base or to the wrist camera. Beyond the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from wristworld_ros.errors import InvalidInputError
from wristworld_ros.geometry.transforms import invert
from wristworld_ros.reconstruction.hand_eye import cross_matrices
from wristworld_ros.types import FloatArray, check_transform

#: Residuals beyond this many standard deviations count linearly (Huber).
HUBER = 2.0
#: Points nearer than this before a camera [m] are held there.
MIN_DEPTH = 0.05
ITERATIONS = 40
#: Largest step of one iteration [m, rad, log focal].
MAX_STEP = 0.3


@dataclass(frozen=True)
class PointSights:
    """Points of one body, located in every view.

    Attributes:
        model: K x 3 in the body's frame [m].
        pixels: V x K x 2 [px].
        sigma: V x K standard deviations per axis [px]; infinite where a point was not seen.
    """

    model: FloatArray
    pixels: FloatArray
    sigma: FloatArray

    def __post_init__(self) -> None:
        K = len(self.model)
        V = len(self.pixels)
        if self.model.shape != (K, 3) or self.pixels.shape != (V, K, 2):
            raise InvalidInputError(
                f"points {self.model.shape} with pixels {self.pixels.shape}; need K x 3 and "
                "V x K x 2."
            )
        if self.sigma.shape != (V, K) or not (self.sigma > 0).all():
            raise InvalidInputError(f"sigmas {self.sigma.shape}; need V x K positive values.")
        if not np.isfinite(self.pixels[np.isfinite(self.sigma)]).all():
            raise InvalidInputError("a point that was seen needs a finite place in the picture.")


@dataclass(frozen=True)
class ScenePriors:
    """Standard deviations of what the fit starts from.

    Attributes:
        camera: of the anchors' poses [m, rad].
        log_focal: of the logarithm of their focal lengths.
        wrist: of the wrist camera's pose [m, rad].
    """

    camera: tuple[float, float] = (0.3, 0.2)
    log_focal: float = 0.1
    wrist: tuple[float, float] = (0.3, 0.6)


@dataclass(frozen=True)
class SceneFit:
    """What fits.

    Attributes:
        T_base_camera: V x 4 x 4.
        K: V x 3 x 3 [px].
        T_base_wrist: 4 x 4.
        covariance: 6 x 6 of the wrist's (translation [m], rotation [rad]): in the first anchor's
            frame where the anchors' poses were free, else in the base frame.
        residual: RMS of the residuals in stated standard deviations.
    """

    T_base_camera: FloatArray
    K: FloatArray
    T_base_wrist: FloatArray
    covariance: FloatArray
    residual: float


def fit_scene(
    base: Sequence[PointSights],
    wrist: Sequence[PointSights],
    T_base_camera: FloatArray,
    K: FloatArray,
    T_base_wrist: FloatArray,
    *,
    free_poses: bool = True,
    free_focal: bool = True,
    priors: ScenePriors | None = None,
) -> SceneFit:
    """Levenberg-Marquardt with Huber weights.

    Args:
        base, wrist: points fixed to the robot's base, and to the wrist camera.
        T_base_camera, K, T_base_wrist: V x 4 x 4, V x 3 x 3 [px] and 4 x 4 to start from.
        free_poses, free_focal: whether the anchors' poses and focal lengths are estimated; fy / fx
            stays.

    Raises:
        InvalidInputError: no points, or other numbers of views.
    """
    V = len(T_base_camera)
    sights = [*base, *wrist]
    if not wrist or any(len(s.pixels) != V for s in sights) or K.shape != (V, 3, 3):
        raise InvalidInputError(
            f"a fit of {V} anchors needs points of the wrist in as many views, and {V} intrinsics; "
            f"got points in {[len(s.pixels) for s in sights]} views, and {K.shape}."
        )
    check_transform(T_base_wrist, "start of the wrist's pose")
    problem = _Problem(
        base, wrist, T_base_camera, K, T_base_wrist, priors or ScenePriors(), free_poses, free_focal
    )
    state = problem.start()
    cost = problem.cost(state)
    damping = 1e-3
    for _ in range(ITERATIONS):
        H, g = problem.normal_equations(state)
        while True:
            A = H + damping * np.diag(np.diag(H))
            step = np.asarray(-np.linalg.solve(A, g), np.float64)
            step *= min(1.0, MAX_STEP / max(float(np.abs(step).max()), 1e-12))
            moved = problem.moved(state, step)
            new = problem.cost(moved)
            if new <= cost or damping > 1e6:
                break
            damping *= 10
        if new > cost:
            break
        gain = cost - new
        state, cost, damping = moved, new, max(damping * 0.2, 1e-9)
        if gain < 1e-6 * (1 + cost):
            break
    return problem.result(state)


@dataclass(frozen=True)
class _State:
    T_camera_base: FloatArray
    log_scale: FloatArray
    T_base_wrist: FloatArray


class _Problem:
    """Parameters: per anchor rotation, translation (in its own frame), log focal; wrist translation
    and rotation in the base frame."""

    def __init__(
        self,
        base: Sequence[PointSights],
        wrist: Sequence[PointSights],
        T_base_camera: FloatArray,
        K: FloatArray,
        T_base_wrist: FloatArray,
        priors: ScenePriors,
        free_poses: bool = True,
        free_focal: bool = True,
    ) -> None:
        self.base, self.wrist = list(base), list(wrist)
        self.K, self.first = K, T_base_wrist
        self.anchors = np.stack([invert(T) for T in T_base_camera])
        V = len(K)
        self.size = 7 * V + 6
        rotation, translation = priors.camera[1] ** -2, priors.camera[0] ** -2
        camera = [rotation] * 3 + [translation] * 3 + [priors.log_focal**-2]
        self.prior = np.array(
            camera * V + [priors.wrist[0] ** -2] * 3 + [priors.wrist[1] ** -2] * 3
        )
        free = [free_poses] * 6 + [free_focal]
        self.free_poses = free_poses
        self.chosen: NDArray[np.intp] = np.flatnonzero(free * V + [True] * 6)

    def start(self) -> _State:
        return _State(self.anchors, np.zeros(len(self.K)), self.first)

    def moved(self, state: _State, step: FloatArray) -> _State:
        full = np.zeros(self.size)
        full[self.chosen] = step
        V = len(self.K)
        by_camera, wrist = full[: 7 * V].reshape(V, 7), full[7 * V :]
        T = state.T_camera_base.copy()
        turns = Rotation.from_rotvec(by_camera[:, :3]).as_matrix()
        T[:, :3] = turns @ T[:, :3]
        T[:, :3, 3] += by_camera[:, 3:6]
        T_wrist = state.T_base_wrist.copy()
        T_wrist[:3, :3] = Rotation.from_rotvec(wrist[3:]).as_matrix() @ T_wrist[:3, :3]
        T_wrist[:3, 3] += wrist[:3]
        return _State(T, state.log_scale + by_camera[:, 6], T_wrist)

    def _away(self, state: _State) -> FloatArray:
        """How far the state is from the start, in the parameters' order."""
        turn = state.T_camera_base[:, :3, :3] @ self.anchors[:, :3, :3].transpose(0, 2, 1)
        # The anchor's place in its own frame, as it started.
        centres = -(self.anchors[:, :3, :3].transpose(0, 2, 1) @ self.anchors[:, :3, 3:])[..., 0]
        moved = (state.T_camera_base[:, :3, :3] @ centres[..., None])[..., 0]
        moved += state.T_camera_base[:, :3, 3]
        cameras = np.concatenate(
            [Rotation.from_matrix(turn).as_rotvec(), moved, state.log_scale[:, None]], 1
        )
        T = state.T_base_wrist
        wrist = Rotation.from_matrix(T[:3, :3] @ self.first[:3, :3].T).as_rotvec()
        return np.concatenate([cameras.ravel(), T[:3, 3] - self.first[:3, 3], wrist])

    def _residuals(self, state: _State, sights: PointSights, moving: bool) -> tuple[NDArray, ...]:
        """Points from the body's origin K x 3, in the cameras V x K x 3, and their errors V x K x 2
        in standard deviations."""
        arm = sights.model @ state.T_base_wrist[:3, :3].T if moving else sights.model
        points = arm + state.T_base_wrist[:3, 3] if moving else arm
        T = state.T_camera_base
        x = np.einsum("vij,kj->vki", T[:, :3, :3], points) + T[:, None, :3, 3]
        z = np.maximum(x[..., 2:], MIN_DEPTH)
        focal = self._focal(state)[:, None]
        error = x[..., :2] / z * focal + self.K[:, None, :2, 2] - sights.pixels
        seen = np.isfinite(sights.sigma)[..., None]
        return arm, x, np.where(seen, error, 0.0) / sights.sigma[..., None]

    def _focal(self, state: _State) -> FloatArray:
        return np.asarray(self.K[:, [0, 1], [0, 1]] * np.exp(state.log_scale)[:, None])

    def cost(self, state: _State) -> float:
        total = 0.5 * float((self.prior * self._away(state) ** 2)[self.chosen].sum())
        for sights, moving in self._all():
            norm = np.linalg.norm(self._residuals(state, sights, moving)[2], axis=-1)
            total += float(
                np.where(norm < HUBER, 0.5 * norm**2, HUBER * (norm - 0.5 * HUBER)).sum()
            )
        return total

    def _all(self) -> list[tuple[PointSights, bool]]:
        return [(s, False) for s in self.base] + [(s, True) for s in self.wrist]

    def normal_equations(self, state: _State) -> tuple[FloatArray, FloatArray]:
        """Gauss-Newton matrix and gradient of the free parameters."""
        V = len(self.K)
        H, g = np.zeros((self.size, self.size)), np.zeros(self.size)
        focal = self._focal(state)[:, None]
        R = state.T_camera_base[:, :3, :3]
        for sights, moving in self._all():
            arm, x, error = self._residuals(state, sights, moving)
            norm = np.linalg.norm(error, axis=-1)
            weight = 1 / np.maximum(norm / HUBER, 1)
            z = np.maximum(x[..., 2], MIN_DEPTH)
            scale = focal / z[..., None] / sights.sigma[..., None]  # V x K x 2
            xy = x[..., :2] / z[..., None]
            K = len(sights.model)
            d_camera = np.concatenate(
                [-cross_matrices(x), np.broadcast_to(np.eye(3), (V, K, 3, 3))], -1
            )
            J = np.concatenate(
                [_projected(d_camera, scale, xy), (scale * x[..., :2])[..., None]], -1
            )
            parts = [J]
            if moving:
                d_wrist = np.concatenate(
                    [
                        np.broadcast_to(R[:, None], (V, K, 3, 3)),
                        -np.einsum("vij,kjc->vkic", R, cross_matrices(arm)),
                    ],
                    -1,
                )
                parts.append(_projected(d_wrist, scale, xy))
            J = np.concatenate(parts, -1)
            JW = J * weight[..., None, None]
            products = np.einsum("vkdi,vkdj->vij", JW, J)
            slopes = np.einsum("vkdi,vkd->vi", JW, error)
            last = slice(7 * V, None)
            for v in range(V):
                own = slice(7 * v, 7 * v + 7)
                H[own, own] += products[v, :7, :7]
                g[own] += slopes[v, :7]
                if moving:
                    H[own, last] += products[v, :7, 7:]
                    H[last, own] += products[v, 7:, :7]
                    H[last, last] += products[v, 7:, 7:]
                    g[last] += slopes[v, 7:]
        H += np.diag(self.prior)
        g += self.prior * self._away(state)
        return H[np.ix_(self.chosen, self.chosen)], g[self.chosen]

    def result(self, state: _State) -> SceneFit:
        covariance = np.zeros((self.size, self.size))
        inverse = np.linalg.inv(self.normal_equations(state)[0])
        covariance[np.ix_(self.chosen, self.chosen)] = inverse
        errors = [self._residuals(state, s, moving)[2] for s, moving in self._all()]
        seen = sum(int(np.isfinite(s.sigma).sum()) for s, _ in self._all())
        residual = np.sqrt(sum(float((e**2).sum()) for e in errors) / max(2 * seen, 1))
        K = self.K.copy()
        K[:, [0, 1], [0, 1]] = self._focal(state)
        return SceneFit(
            np.stack([invert(T) for T in state.T_camera_base]),
            K,
            state.T_base_wrist,
            self._wrist_covariance(state, covariance),
            residual,
        )

    def _wrist_covariance(self, state: _State, covariance: FloatArray) -> FloatArray:
        V = len(self.K)
        J = np.zeros((6, self.size))
        if self.free_poses:  # in the first anchor's frame
            T = state.T_camera_base[0]
            p = T[:3, :3] @ state.T_base_wrist[:3, 3] + T[:3, 3]
            J[:3, :3], J[:3, 3:6] = -cross_matrices(p), np.eye(3)
            J[3:, :3] = np.eye(3)
            J[:3, 7 * V : 7 * V + 3] = J[3:, 7 * V + 3 :] = T[:3, :3]
        else:
            J[:, 7 * V :] = np.eye(6)
        return np.asarray(J @ covariance @ J.T)


def _projected(d_x: NDArray, scale: NDArray, xy: NDArray) -> FloatArray:
    """Derivatives V x K x 2 x N of errors from those of points in the cameras, V x K x 3 x N."""
    return np.asarray(scale[..., None] * (d_x[..., :2, :] - xy[..., None] * d_x[..., 2:, :]))
