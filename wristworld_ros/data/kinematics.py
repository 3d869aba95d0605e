"""Forward kinematics of the Franka arms (Emika Panda and FR3), from their published parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from transforms3d.euler import euler2mat

from wristworld_ros.errors import InvalidInputError
from wristworld_ros.types import FloatArray

#: Denavit-Hartenberg parameters in Craig's convention, joints 1 to 7 and the flange:
#: a [m], d [m], alpha [rad] (Franka Control Interface documentation, "Denavit-Hartenberg").
FRANKA_DH: tuple[tuple[float, float, float], ...] = (
    (0.0, 0.333, 0.0),
    (0.0, 0.0, -np.pi / 2),
    (0.0, 0.316, np.pi / 2),
    (0.0825, 0.0, np.pi / 2),
    (-0.0825, 0.384, -np.pi / 2),
    (0.0, 0.0, np.pi / 2),
    (0.088, 0.0, np.pi / 2),
    (0.0, 0.107, 0.0),
)
FRANKA_JOINTS = tuple(f"panda_joint{i}" for i in range(1, 8))


def franka_flange(joints: Sequence[float] | Mapping[str, float]) -> FloatArray:
    """``T_base_flange`` (``panda_link0`` to ``panda_link8``) from the 7 joint angles [rad].

    Raises:
        InvalidInputError: not 7 finite values, or a name is missing.
    """
    if isinstance(joints, Mapping):
        if missing := [n for n in FRANKA_JOINTS if n not in joints]:
            raise InvalidInputError(f"joint states lack {missing}; they have {sorted(joints)}.")
        joints = [joints[n] for n in FRANKA_JOINTS]
    angles = np.asarray(joints, np.float64)
    if angles.shape != (7,) or not np.isfinite(angles).all():
        raise InvalidInputError(f"joint angles {angles.tolist()}: need 7 finite values [rad].")
    return franka_frames(angles[None])[0, -1]


def franka_frames(joints: FloatArray) -> FloatArray:
    """Frames of joints 1 to 7 and of the flange in the base, T x 8 x 4 x 4.

    Args:
        joints: T x 7 [rad].
    """
    angles = np.concatenate([joints, np.zeros((len(joints), 1))], 1)
    T = np.broadcast_to(np.eye(4), (len(joints), 4, 4))
    frames = []
    for (a, d, alpha), theta in zip(FRANKA_DH, angles.T, strict=True):
        c, s, ca, sa = np.cos(theta), np.sin(theta), np.cos(alpha), np.sin(alpha)
        step = np.zeros((len(joints), 4, 4))
        step[:, 0, 0], step[:, 0, 1], step[:, 0, 3] = c, -s, a
        step[:, 1, 0], step[:, 1, 1], step[:, 1, 2], step[:, 1, 3] = s * ca, c * ca, -sa, -d * sa
        step[:, 2, 0], step[:, 2, 1], step[:, 2, 2], step[:, 2, 3] = s * sa, c * sa, ca, d * ca
        step[:, 3, 3] = 1
        T = T @ step
        frames.append(T)
    return np.stack(frames, 1)


def pose_from_xyz_rpy(values: Sequence[float]) -> FloatArray:
    """4 x 4 from x, y, z [m] and roll, pitch, yaw [rad] about the fixed axes x, then y, then z.

    DROID's cartesian states are of this form, and are the pose of the flange in the base.
    """
    v = np.asarray(values, np.float64)
    if v.shape != (6,) or not np.isfinite(v).all():
        raise InvalidInputError(f"pose {v.tolist()}: need 6 finite values x y z roll pitch yaw.")
    T = np.eye(4)
    T[:3, :3] = euler2mat(v[3], v[4], v[5], "sxyz")
    T[:3, 3] = v[:3]
    return T
