"""Hand-eye calibration: the mount of the wrist camera, and where the fixed cameras are.

With the pose of the hand in the robot's base known (kinematics), every sight of the wrist camera
from a fixed camera c gives T_base_c T_c_wrist = T_base_hand T_hand_wrist: hand-eye (AX = XB) where
the fixed cameras are known, robot-world/hand-eye (AX = ZB) where they are not.

A pose's error is (x, y, z [m], rotation vector [rad]) in its parent frame:
T_true = [exp(rotation) R | t + (x, y, z)]. Covariances are over the same six numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from wristworld_ros.errors import CalibrationError
from wristworld_ros.geometry.transforms import invert
from wristworld_ros.types import FloatArray, check_transform

#: The hand has to turn by this much about a second axis for AX = ZB to have one solution [rad].
MIN_SECOND_ROTATION = float(np.deg2rad(5.0))
#: Tukey's biweight: 95 % efficient for normal errors, blind to errors beyond 4.685 sigma.
TUKEY = 4.685
#: Median length of a normal vector of d components with unit variance each.
MEDIAN_NORM = {2: 1.177, 3: 1.538, 6: 2.313}


def perturb(T: FloatArray, change: NDArray) -> FloatArray:
    """``T`` moved by ``change`` (6: translation [m], rotation vector [rad]) in its parent frame."""
    out = np.eye(4)
    out[:3, :3] = Rotation.from_rotvec(change[3:]).as_matrix() @ T[:3, :3]
    out[:3, 3] = T[:3, 3] + change[:3]
    return out


def difference(T_from: NDArray, T_to: NDArray) -> FloatArray:
    """The change (... x 6) with ``perturb(T_from, change) = T_to``; ... x 4 x 4 each."""
    R = np.asarray(T_to)[..., :3, :3] @ np.swapaxes(np.asarray(T_from)[..., :3, :3], -1, -2)
    turn = Rotation.from_matrix(R.reshape(-1, 3, 3)).as_rotvec().reshape(*R.shape[:-2], 3)
    return np.concatenate([T_to[..., :3, 3] - T_from[..., :3, 3], turn], -1)


def inverted(T: NDArray) -> FloatArray:
    """Inverses of N x 4 x 4 rigid transforms."""
    out = np.zeros(T.shape)
    out[..., :3, :3] = np.swapaxes(T[..., :3, :3], -1, -2)
    out[..., :3, 3] = -np.einsum("...ij,...j->...i", out[..., :3, :3], T[..., :3, 3])
    out[..., 3, 3] = 1.0
    return out


def tukey_weights(norms: NDArray, dimension: int) -> FloatArray:
    """Weights in [0, 1] of residual norms, by Tukey's biweight with a scale from their median."""
    scale = float(np.median(norms)) / MEDIAN_NORM[dimension]
    u = norms / max(TUKEY * scale, 1e-12)
    return np.asarray(np.where(u < 1, (1 - u**2) ** 2, 0.0))


def cross_matrices(v: NDArray) -> FloatArray:
    """... x 3 -> ... x 3 x 3 with ``cross_matrices(v) @ w = v x w``."""
    out = np.zeros((*v.shape, 3))
    out[..., 0, 1], out[..., 0, 2], out[..., 1, 2] = -v[..., 2], v[..., 1], -v[..., 0]
    return out - np.swapaxes(out, -1, -2)


def pose_residuals(
    hands: NDArray, mount: FloatArray, camera: FloatArray, sights: NDArray
) -> tuple[FloatArray, FloatArray]:
    """Predicted minus seen poses of the wrist in a fixed camera, and what they change by.

    Args:
        hands, sights: N x 4 x 4 ``T_base_hand`` and ``T_camera_wrist``.
        mount, camera: ``T_hand_wrist`` and ``T_base_camera``.

    Returns:
        N x 6 errors in the camera's axes, and N x 6 x 12 derivatives by the errors of mount and
        camera (of rotations to first order in the error).
    """
    wrists = hands @ mount
    error = -difference(invert(camera) @ wrists, sights)
    R_c = camera[:3, :3].T
    turned = R_c @ hands[:, :3, :3]
    jacobian = np.zeros((len(hands), 6, 12))
    jacobian[:, :3, :3] = jacobian[:, 3:, 3:6] = turned
    jacobian[:, :3, 6:9] = jacobian[:, 3:, 9:] = -R_c
    jacobian[:, :3, 9:] = R_c @ cross_matrices(wrists[:, :3, 3] - camera[:3, 3])
    return error, jacobian


def average_pose(poses: NDArray, iterations: int = 20) -> tuple[FloatArray, FloatArray]:
    """Robust mean of N x 4 x 4 poses, and the weight in [0, 1] of each (0: outlier).

    Tukey's biweight on translation and rotation, started at the pose whose median distance to all
    others is smallest, so that up to half of the poses may be wrong.
    """
    poses = np.asarray(poses, np.float64)
    if len(poses) == 0:
        raise CalibrationError("the mean of no poses was asked for; give at least one.")
    pick = np.linspace(0, len(poses) - 1, min(len(poses), 100)).astype(int)
    changes = np.stack([difference(poses[i], poses) for i in pick])
    metres = np.median(np.linalg.norm(changes[..., :3], axis=-1), 1)
    turns = np.median(np.linalg.norm(changes[..., 3:], axis=-1), 1)
    cost = metres / max(metres.min(), 1e-9) + turns / max(turns.min(), 1e-9)
    mean, weights = poses[pick[int(np.argmin(cost))]], np.ones(len(poses))
    for _ in range(iterations):
        change = difference(mean, poses)
        weights = tukey_weights(np.linalg.norm(change[:, :3], axis=1), 3)
        weights *= tukey_weights(np.linalg.norm(change[:, 3:], axis=1), 3)
        if weights.sum() < 1e-9:
            weights = np.ones(len(poses))
        step = weights @ change / weights.sum()
        mean = perturb(mean, step)
        if np.abs(step).max() < 1e-10:
            break
    return mean, weights


def second_rotation(T_base_hand: NDArray) -> float:
    """By how much the hand turned about a second axis [rad]; 0 when all axes are parallel.

    Twice the second singular value (RMS) of the rotation vectors from the mean orientation.
    """
    if len(T_base_hand) < 2:
        return 0.0
    R = Rotation.from_matrix(np.asarray(T_base_hand)[:, :3, :3])
    vectors = (R * R.mean().inv()).as_rotvec()
    return float(2 * np.linalg.svd(vectors, compute_uv=False)[1] / np.sqrt(len(vectors)))


@dataclass(frozen=True)
class HandEye:
    """Solution of T_base_camera T_camera_wrist = T_base_hand T_hand_wrist.

    Attributes:
        T_hand_wrist, T_base_camera: 4 x 4.
        covariance: 12 x 12 over the mount's and the camera's errors, scaled by the residuals, as
            if they were independent from frame to frame.
        rms_m, rms_rad: root mean square length of the inliers' residuals.
        inliers: N bool.
    """

    T_hand_wrist: FloatArray
    T_base_camera: FloatArray
    covariance: FloatArray
    rms_m: float
    rms_rad: float
    inliers: NDArray[np.bool_]


def solve_robot_world_hand_eye(
    T_base_hand: Sequence[FloatArray] | NDArray,
    T_camera_wrist: Sequence[FloatArray] | NDArray,
    *,
    sigma: tuple[float, float] = (0.005, 0.02),
    iterations: int = 50,
) -> HandEye:
    """Mount and fixed camera from poses of the hand, and of the wrist camera in the fixed one.

    Works as well for a pattern at a fixed place seen by the wrist camera itself: give
    ``T_pattern_wrist`` as ``T_camera_wrist``; ``T_base_camera`` is then the pattern's pose.
    Started by Shah's closed form (doi 10.1115/1.4024473) on frames that agree with each other,
    refined on SE(3) by least squares with Tukey's biweight.

    Args:
        T_base_hand, T_camera_wrist: N x 4 x 4 each, N >= 3.
        sigma: relative weight of translation [m] and rotation [rad].

    Raises:
        CalibrationError: too few frames, or the hand turns about one axis only (any motion without
            rotation fits any mount).
    """
    hands, sights = np.asarray(T_base_hand, np.float64), np.asarray(T_camera_wrist, np.float64)
    if hands.shape != sights.shape or hands.ndim != 3 or len(hands) < 3:
        raise CalibrationError(
            f"hand-eye calibration got poses of shapes {hands.shape} and {sights.shape}; "
            "need the same number of 4 x 4 poses, at least 3."
        )
    for i, (hand, sight) in enumerate(zip(hands, sights, strict=True)):
        check_transform(hand, f"T_base_hand of frame {i}")
        check_transform(sight, f"T_camera_wrist of frame {i}")
    spread = second_rotation(hands)
    if spread < MIN_SECOND_ROTATION:
        raise CalibrationError(
            f"the hand turns by only {np.rad2deg(spread):.1f} deg about a second axis; need "
            f"{np.rad2deg(MIN_SECOND_ROTATION):.0f} deg. Record poses that are turned about two "
            "axes: without them many mounts fit."
        )
    mount, camera = _closed_form(hands, sights)
    scale = np.array([sigma[0]] * 3 + [sigma[1]] * 3)
    weights = np.ones(len(hands))

    for _ in range(iterations):
        error, jacobian = pose_residuals(hands, mount, camera, sights)
        error, jacobian = error / scale, jacobian / scale[:, None]
        previous, weights = weights, tukey_weights(np.linalg.norm(error, axis=1), 6)
        weighted = jacobian * weights[:, None, None]
        information = np.einsum("nij,nik->jk", weighted, jacobian)
        step = -np.linalg.solve(information, np.einsum("nij,ni->j", weighted, error))
        mount, camera = perturb(mount, step[:6]), perturb(camera, step[6:])
        if np.abs(weights - previous).max() < 1e-6 and np.abs(step).max() < 1e-9:
            break
    inliers = weights > 0.1
    freedom = max(6 * int(inliers.sum()) - 12, 1)
    variance = float((weights[:, None] * error**2).sum() / freedom)
    metres, radians = np.sqrt((error[inliers] ** 2).reshape(-1, 2, 3).sum(2).mean(0))
    return HandEye(
        mount,
        camera,
        np.linalg.inv(information) * variance,
        float(metres * sigma[0]),
        float(radians * sigma[1]),
        inliers,
    )


def _closed_form(
    hands: FloatArray, sights: FloatArray, samples: int = 60
) -> tuple[FloatArray, FloatArray]:
    """(T_hand_wrist, T_base_camera) by Shah's method on the sample of frames that fits most."""
    rng = np.random.default_rng(0)
    size = min(len(hands), 6)
    subsets = [np.arange(len(hands))]
    subsets += [rng.choice(len(hands), size, replace=False) for _ in range(samples)]
    best: tuple[float, FloatArray, FloatArray] | None = None
    for subset in subsets:
        if second_rotation(hands[subset]) < MIN_SECOND_ROTATION:
            continue
        mount, camera = _shah(hands[subset], sights[subset])
        error = difference(camera @ sights, hands @ mount)
        turns = np.linalg.norm(error[:, 3:], axis=1)
        cost = float(np.median(np.linalg.norm(error[:, :3], axis=1) + 0.2 * turns))
        if best is None or cost < best[0]:
            best = (cost, mount, camera)
    if best is None:
        raise CalibrationError(
            "hand-eye calibration found no frames that agree with each other. Check that both "
            "lists belong to the same moments and that T_a_b maps points in b to a."
        )
    return best[1], best[2]


def _shah(hands: FloatArray, sights: FloatArray) -> tuple[FloatArray, FloatArray]:
    """(M, C) with H M = C S, by Shah's method (doi 10.1115/1.4024473).

    Rotations come from the leading singular vectors of the sum of the Kronecker products of R_S and
    R_H, translations from linear least squares.
    """
    R_h, R_s = hands[:, :3, :3], sights[:, :3, :3]
    total = np.einsum("nij,nkl->ikjl", R_s, R_h).reshape(9, 9)  # vec stacks columns
    U, _, Vt = np.linalg.svd(total)
    mount, camera = np.eye(4), np.eye(4)
    mount[:3, :3] = _nearest_rotation(Vt[0].reshape(3, 3).T)
    camera[:3, :3] = _nearest_rotation(U[:, 0].reshape(3, 3).T)
    A = np.concatenate([R_h, -np.broadcast_to(np.eye(3), R_h.shape)], 2).reshape(-1, 6)
    b = sights[:, :3, 3] @ camera[:3, :3].T - hands[:, :3, 3]
    solution = np.linalg.lstsq(A, b.ravel(), rcond=None)[0]
    mount[:3, 3], camera[:3, 3] = solution[:3], solution[3:]
    return mount, camera


def _nearest_rotation(M: NDArray) -> FloatArray:
    """Rotation that is nearest to ``M`` up to a factor of either sign."""
    U, _, Vt = np.linalg.svd(M * np.sign(np.linalg.det(M)))
    return np.asarray(U @ np.diag([1, 1, np.linalg.det(U @ Vt)]) @ Vt)
