"""Rigid transforms as 4 x 4 float64 arrays; ``T_a_b`` maps points in ``b`` to ``a``.

Quaternions are xyzw, as in ROS; transforms3d (wxyz) does the conversions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from transforms3d.quaternions import mat2quat, quat2mat

from wristworld_ros.errors import CalibrationError

FloatArray = NDArray[np.float64]


def from_quaternion(translation: ArrayLike, quaternion_xyzw: ArrayLike) -> FloatArray:
    """4 x 4 transform from a translation [m] and a unit quaternion xyzw.

    Raises:
        CalibrationError: a value is not finite, or the norm is off 1 by more than 1e-3.
    """
    t = np.asarray(translation, np.float64)
    q = np.asarray(quaternion_xyzw, np.float64)
    if t.shape != (3,) or q.shape != (4,) or not (np.isfinite(t).all() and np.isfinite(q).all()):
        raise CalibrationError(
            f"translation {t.tolist()} with quaternion {q.tolist()}: need 3 and 4 finite values."
        )
    norm = float(np.linalg.norm(q))
    if abs(norm - 1) > 1e-3:
        raise CalibrationError(
            f"quaternion {q.tolist()} has norm {norm:.4g}; need 1 within 1e-3. Normalise it."
        )
    T = np.eye(4)
    T[:3, :3] = quat2mat(q[[3, 0, 1, 2]] / norm)
    T[:3, 3] = t
    return T


def to_quaternion(T: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Translation (3,) [m] and unit quaternion (4,) xyzw with w >= 0."""
    q = np.asarray(mat2quat(T[:3, :3]), np.float64)[[1, 2, 3, 0]]
    return T[:3, 3].copy(), q if q[3] >= 0 else -q


def invert(T: FloatArray) -> FloatArray:
    """Inverse of a rigid transform."""
    out = np.eye(4)
    out[:3, :3] = T[:3, :3].T
    out[:3, 3] = -T[:3, :3].T @ T[:3, 3]
    return out


def apply(T: FloatArray, points: NDArray) -> NDArray:
    """Map ``points`` (... x 3) by ``T``."""
    return points @ T[:3, :3].T.astype(points.dtype) + T[:3, 3].astype(points.dtype)


def interpolate(T0: FloatArray, T1: FloatArray, fraction: float) -> FloatArray:
    """Pose between ``T0`` (fraction 0) and ``T1`` (1): linear in translation, slerp in rotation."""
    t0, q0 = to_quaternion(T0)
    t1, q1 = to_quaternion(T1)
    dot = float(q0 @ q1)
    if dot < 0:
        q1, dot = -q1, -dot
    angle = np.arccos(min(dot, 1.0))
    if angle < 1e-8:
        q = q0 * (1 - fraction) + q1 * fraction
    else:
        q = np.sin((1 - fraction) * angle) * q0 + np.sin(fraction * angle) * q1
    return from_quaternion(t0 * (1 - fraction) + t1 * fraction, q / np.linalg.norm(q))


def pose_error(T_a: FloatArray, T_b: FloatArray) -> tuple[float, float]:
    """Distance between two poses: translation [m] and rotation angle [rad]."""
    R = T_a[:3, :3].T @ T_b[:3, :3]
    # atan2 of the skew part stays exact at small angles, where arccos of the trace does not.
    sine = 0.5 * np.linalg.norm([R[2, 1] - R[1, 2], R[0, 2] - R[2, 0], R[1, 0] - R[0, 1]])
    cosine = 0.5 * (np.trace(R) - 1)
    return float(np.linalg.norm(T_a[:3, 3] - T_b[:3, 3])), float(np.arctan2(sine, cosine))


def orthonormal(T: NDArray) -> FloatArray:
    """The rigid transforms (... x 4 x 4) nearest to a network's, whose rotations are rounded."""
    T = np.asarray(T, np.float64)
    U, _, Vt = np.linalg.svd(T[..., :3, :3])
    out = np.zeros_like(T)
    out[..., :3, :3] = U @ Vt
    out[..., :3, 3] = T[..., :3, 3]
    out[..., 3, 3] = 1
    return out
