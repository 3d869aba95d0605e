"""Pictures of one moment at the pixels of another, by depth and motion."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from wristworld_ros.geometry.camera import pixel_rays, project
from wristworld_ros.geometry.transforms import apply, invert
from wristworld_ros.types import CameraModel, FloatArray


def warped(image: NDArray, T_new_old: FloatArray, camera: CameraModel, depth: NDArray) -> Any:
    """An image of one moment at the pixels of the next, for a scene that stands still.

    Args:
        image: H x W or H x W x 3 as seen before.
        T_new_old: 4 x 4 motion of the camera, old optical frame to new.
        depth: H x W [m] as seen now, 0 where unknown.

    Returns:
        The image seen now (linear; nearest for H x W), and H x W the depth [m] that the old camera
        had of each pixel's point, 0 outside its picture.
    """
    points = apply(invert(T_new_old), pixel_rays(camera).reshape(-1, 3) * depth.reshape(-1, 1))
    pixels, z = project(points, camera)
    inside = (depth.ravel() > 0) & (z > 0)
    with np.errstate(invalid="ignore"):
        inside &= ((pixels >= 0.5) & (pixels <= [camera.width - 0.5, camera.height - 0.5])).all(1)
    grid = np.where(inside[:, None], pixels - 0.5, -10).astype(np.float32)
    grid = grid.reshape(*depth.shape, 2)
    kind = cv2.INTER_LINEAR if image.ndim == 3 else cv2.INTER_NEAREST
    seen = cv2.remap(image, grid[..., 0], grid[..., 1], kind)
    return seen, np.where(inside, z, 0).reshape(depth.shape)
