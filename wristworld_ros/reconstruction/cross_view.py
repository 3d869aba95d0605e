"""How well the depths of neighbouring views agree."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wristworld_ros.geometry.camera import pixel_rays
from wristworld_ros.geometry.transforms import apply, invert
from wristworld_ros.types import CameraModel, FloatArray


def cross_view_error(
    depths: list[NDArray[np.float32]],
    cameras: list[CameraModel],
    poses: list[FloatArray],
    *,
    grid: int = 16,
    consistency: float = 0.1,
) -> float:
    """Forward-backward reprojection error between neighbouring views, RMS [px]; NaN for one view.

    A pixel of one view is lifted, projected into the next, lifted there by that view's depth and
    projected back. Points whose two depths differ by more than ``consistency`` (relative) are taken
    for occluded.
    """
    squared: list[NDArray] = []
    for i in range(len(depths)):
        j = (i + 1) % len(depths)
        if i == j:
            break
        a, b = cameras[i], cameras[j]
        u, v = np.meshgrid(
            (np.arange(grid) + 0.5) * a.width / grid, (np.arange(grid) + 0.5) * a.height / grid
        )
        pixels = np.stack([u, v], -1).reshape(-1, 2)
        z = depths[i][pixels[:, 1].astype(int), pixels[:, 0].astype(int)]
        in_b = apply(invert(poses[j]) @ poses[i], pixel_rays(a, pixels) * z[:, None])
        zb = np.maximum(in_b[:, 2], 1e-6)
        q = in_b[:, :2] / zb[:, None] * b.K[[0, 1], [0, 1]] + b.K[:2, 2]
        ok = (in_b[:, 2] > 0) & (q >= 0).all(1) & (q < [b.width, b.height]).all(1)
        if not ok.any():
            continue
        q, zb, pixels = q[ok], zb[ok], pixels[ok]
        seen = depths[j][q[:, 1].astype(int), q[:, 0].astype(int)]
        same = np.abs(seen - zb) < consistency * zb
        back = apply(invert(poses[i]) @ poses[j], pixel_rays(b, q) * seen[:, None])
        p = back[:, :2] / np.maximum(back[:, 2:], 1e-6) * a.K[[0, 1], [0, 1]] + a.K[:2, 2]
        squared.append(((p - pixels) ** 2).sum(1)[same])
    values = np.concatenate(squared) if squared else np.zeros(0)
    return float(np.sqrt(values.mean())) if len(values) else float("nan")
