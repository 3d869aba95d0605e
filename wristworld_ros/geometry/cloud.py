"""Coloured point clouds from depth images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from wristworld_ros.errors import InvalidInputError
from wristworld_ros.geometry.camera import pixel_rays
from wristworld_ros.geometry.transforms import apply
from wristworld_ros.types import CameraModel, Image, PointCloud

FloatArray = NDArray[np.float64]

#: Footprint of a point that stands for a cube of ``limit_points``, in edges of the cube.
CUBE_REACH = 1.5
#: Grids that ``limit_points`` tries.
GRID_TRIES = 20
#: A relative jump of depth that is an edge in any case, and the share of a smaller one that bends.
STEEP, BEND = 0.05, 0.6


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
        relative: jump between neighbours, relative to the depth, that counts as an edge; one below
            ``STEEP`` only where no plane explains it, seen at however flat an angle: inverse depth
            is linear over planes, and ``BEND`` of the jump has to be a bend.

    Returns:
        H x W bool.
    """
    d = np.asarray(depth, np.float32)
    edges = np.zeros(d.shape, bool)
    for axis in (0, 1):
        a, e = np.moveaxis(d, axis, 0), np.moveaxis(edges, axis, 0)
        inverse = 1 / np.maximum(a, 1e-3)
        bends = np.abs(inverse[2:] + inverse[:-2] - 2 * inverse[1:-1]) * a[1:-1] > BEND * relative
        bent = np.zeros(a.shape, bool)
        for part in (bent[:-2], bent[1:-1], bent[2:]):
            part |= bends
        jump = np.abs(a[1:] - a[:-1]) / np.maximum(np.minimum(a[1:], a[:-1]), 1e-3)
        edge = (jump > max(relative, STEEP)) | ((jump > relative) & (bent[1:] | bent[:-1]))
        e[1:] |= edge
        e[:-1] |= edge
    return edges


def limit_points(cloud: PointCloud, max_points: int) -> PointCloud:
    """At most ``max_points`` points: per cube of a grid the most trusted, nearest its middle.

    Cubes are as small as the limit allows. Footprints grow to ``CUBE_REACH`` of a cube's edge, so
    that a surface without holes keeps none when it is splatted. Points keep their order, and the
    same cloud gives the same points.

    Args:
        cloud: in any frame.
        max_points: at least 1; a cloud within it comes back as it is.

    Raises:
        InvalidInputError: ``max_points`` is below 1.
    """
    if max_points < 1:
        raise InvalidInputError(f"a cloud of at most {max_points} points; allow at least 1.")
    if len(cloud) <= max_points:
        return cloud
    points = cloud.points.astype(np.float64)
    lower = points.min(0)
    extent = float(np.ptp(points, axis=0).max())
    # A first guess from the area that the points cover by their own footprints.
    area = float(np.square(cloud.footprint, dtype=np.float64).sum())
    edge = max(np.sqrt(area / max_points), 1e-6 * extent, 1e-9)
    for _ in range(GRID_TRIES):
        cube = np.floor((points - lower) / edge).astype(np.int64)
        side = int(extent / edge) + 2
        keys = (cube[:, 0] * side + cube[:, 1]) * side + cube[:, 2]
        occupied = len(np.unique(keys))
        if occupied <= max_points:
            break
        edge *= max(float(np.sqrt(occupied / max_points)), 1.02)
    else:
        edge = extent + 1.0
        cube, keys = np.zeros_like(points, np.int64), np.zeros(len(points), np.int64)
    off = np.square((points - lower) / edge - cube - 0.5).sum(1)
    # Confidence in steps, so that among equals the grid's regularity decides.
    order = np.lexsort((off, -np.round(cloud.confidence * 10), keys))
    sorted_keys = keys[order]
    kept = np.sort(order[np.r_[True, sorted_keys[1:] != sorted_keys[:-1]]])
    return replace(
        select_points(cloud, kept),
        footprint=np.maximum(cloud.footprint[kept], np.float32(CUBE_REACH * edge)),
    )


def select_points(cloud: PointCloud, kept: NDArray) -> PointCloud:
    """The points of a mask (N bool) or of indices, in that order."""
    columns = (cloud.points, cloud.colors, cloud.confidence, cloud.footprint, cloud.view)
    return PointCloud(*(column[kept] for column in columns))


def join_points(first: PointCloud, second: PointCloud) -> PointCloud:
    """The points of both."""
    pairs = zip(vars(first).values(), vars(second).values(), strict=True)
    return PointCloud(*(np.concatenate(pair) for pair in pairs))


def front_fraction(cloud: PointCloud, T_world_camera: FloatArray) -> float:
    """Share of the points before a camera (4 x 4), in [0, 1]; 0 of an empty cloud."""
    if not len(cloud):
        return 0.0
    axis, origin = T_world_camera[:3, 2], T_world_camera[:3, 3]
    return float(((cloud.points - origin) @ axis > 0).mean())


def mean_confidence(cloud: PointCloud) -> float:
    """Of the points, in [0, 1]; 0 of an empty cloud."""
    return float(cloud.confidence.mean()) if len(cloud) else 0.0


def move_points(cloud: PointCloud, T: FloatArray) -> PointCloud:
    """The cloud in another frame; ``T`` (4 x 4) maps its points there."""
    return replace(cloud, points=apply(T, cloud.points))
