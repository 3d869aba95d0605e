"""Coloured point clouds from depth images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from wristworld_ros.errors import InvalidInputError
from wristworld_ros.geometry.camera import pixel_rays
from wristworld_ros.geometry.transforms import apply
from wristworld_ros.types import CameraModel, Image, PointCloud

FloatArray = NDArray[np.float64]


def cloud_from_depth(
    images: Sequence[Image],
    depths: Sequence[NDArray],
    cameras: Sequence[CameraModel],
    poses: Sequence[FloatArray],
    confidences: Sequence[NDArray] | None = None,
    *,
    min_confidence: float = 0.0,
    max_depth: float = 10.0,
) -> PointCloud:
    """Lift every valid pixel of every view into the world.

    Args:
        images: per view H x W x 3 uint8.
        depths: per view H x W along z [m]; 0 or not finite where unknown.
        cameras, poses: intrinsics of the images, and ``T_world_camera``.
        confidences: per view H x W in [0, 1]; 1 everywhere when None.
        min_confidence: points below it are left out.
        max_depth: points farther than this [m] are left out.

    Returns:
        Cloud in the world frame; the footprint is the edge of the source pixel at the point.
    """
    parts: list[tuple[NDArray, ...]] = []
    for i, (image, depth, camera, pose) in enumerate(
        zip(images, depths, cameras, poses, strict=True)
    ):
        sizes = {image.shape[:2], depth.shape, (camera.height, camera.width)}
        if len(sizes) > 1:
            raise InvalidInputError(
                f"view {i}: image, depth and camera differ in size (height, width): "
                f"{sorted(sizes)}; "
                "resize the depth and the camera to the image."
            )
        confidence = (
            np.ones(depth.shape, np.float32) if confidences is None else confidences[i]
        ).astype(np.float32)
        valid = np.isfinite(depth) & (depth > 0) & (depth <= max_depth)
        valid &= confidence >= min_confidence
        z = depth[valid].astype(np.float32)
        points = apply(pose, pixel_rays(camera).astype(np.float32)[valid] * z[:, None])
        focal = np.float32(np.sqrt(camera.K[0, 0] * camera.K[1, 1]))
        source = np.full(len(points), i, np.uint8)
        parts.append((points, image[valid], confidence[valid], z / focal, source))
    return PointCloud(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def depth_edges(depth: NDArray, relative: float = 0.04) -> NDArray[np.bool_]:
    """Pixels at a depth discontinuity, whose interpolated depth belongs to neither surface.

    Args:
        depth: H x W [m].
        relative: jump between neighbours, relative to the depth, that counts as an edge.

    Returns:
        H x W bool.
    """
    d = np.asarray(depth, np.float32)
    edges = np.zeros(d.shape, bool)
    for axis in (0, 1):
        a = np.moveaxis(d, axis, 0)
        jump = np.abs(a[1:] - a[:-1]) > relative * np.minimum(a[1:], a[:-1])
        e = np.moveaxis(edges, axis, 0)
        e[1:] |= jump
        e[:-1] |= jump
    return edges
