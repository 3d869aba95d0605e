"""The 9-D pose encoding ``absT_quaR_FoV`` of VGGT (method.md, 2), batched in torch.

Translation and rotation are world-to-camera (OpenCV axes, metres, quaternion xyzw); the field of
view is (fov_h, fov_w) [rad] of a camera whose principal point is the image centre.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def quaternion_to_matrix(q: Tensor) -> Tensor:
    """(..., 4) quaternions xyzw of any non-zero norm -> (..., 3, 3) rotations."""
    x, y, z, w = F.normalize(q, dim=-1).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w),
        2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w),
        2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, -1).reshape(*q.shape[:-1], 3, 3)


def matrix_to_quaternion(R: Tensor) -> Tensor:
    """(..., 3, 3) rotations -> (..., 4) unit quaternions xyzw with w >= 0.

    Each of the four classical branches is exact where its pivot is largest; that one is taken.
    """
    m = R.reshape(*R.shape[:-2], 9)
    m00, m01, m02, m10, m11, m12, m20, m21, m22 = m.unbind(-1)
    squares = torch.stack(
        [
            1 + m00 - m11 - m22,
            1 - m00 + m11 - m22,
            1 - m00 - m11 + m22,
            1 + m00 + m11 + m22,
        ],
        -1,
    )
    candidates = torch.stack(
        [
            torch.stack([squares[..., 0], m01 + m10, m02 + m20, m21 - m12], -1),
            torch.stack([m01 + m10, squares[..., 1], m12 + m21, m02 - m20], -1),
            torch.stack([m02 + m20, m12 + m21, squares[..., 2], m10 - m01], -1),
            torch.stack([m21 - m12, m02 - m20, m10 - m01, squares[..., 3]], -1),
        ],
        -2,
    )
    best = squares.argmax(-1)[..., None, None].expand(*squares.shape[:-1], 1, 4)
    q = F.normalize(candidates.gather(-2, best).squeeze(-2), dim=-1)
    return torch.where(q[..., 3:] < 0, -q, q)


def encode_pose(T_camera_world: Tensor, fov_hw: Tensor) -> Tensor:
    """(..., 4, 4) world-to-camera transforms and (..., 2) fields of view -> (..., 9)."""
    q = matrix_to_quaternion(T_camera_world[..., :3, :3])
    return torch.cat([T_camera_world[..., :3, 3], q, fov_hw], -1)


def decode_pose(encoding: Tensor) -> tuple[Tensor, Tensor]:
    """(..., 9) -> (..., 4, 4) world-to-camera transforms and (..., 2) fields of view [rad]."""
    T = torch.zeros(*encoding.shape[:-1], 4, 4, dtype=encoding.dtype, device=encoding.device)
    T[..., :3, :3] = quaternion_to_matrix(encoding[..., 3:7])
    T[..., :3, 3] = encoding[..., :3]
    T[..., 3, 3] = 1
    return T, encoding[..., 7:9]


def intrinsics_from_fov(fov_hw: Tensor, height: int, width: int) -> Tensor:
    """(..., 2) fields of view [rad] -> (..., 3, 3) K [px] of a height x width image."""
    half = 0.5 * fov_hw.clamp(0.05, 3.0)
    K = torch.zeros(*fov_hw.shape[:-1], 3, 3, dtype=fov_hw.dtype, device=fov_hw.device)
    K[..., 0, 0] = 0.5 * width / torch.tan(half[..., 1])
    K[..., 1, 1] = 0.5 * height / torch.tan(half[..., 0])
    K[..., 0, 2] = 0.5 * width
    K[..., 1, 2] = 0.5 * height
    K[..., 2, 2] = 1
    return K


def fov_from_intrinsics(K: Tensor, height: int, width: int) -> Tensor:
    """(..., 3, 3) K [px] -> (..., 2) fields of view (h, w) [rad] as if centred."""
    return torch.stack(
        [
            2 * torch.atan(0.5 * height / K[..., 1, 1]),
            2 * torch.atan(0.5 * width / K[..., 0, 0]),
        ],
        -1,
    )
