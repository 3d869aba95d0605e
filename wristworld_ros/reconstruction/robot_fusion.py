"""The robot's body in the reconstruction: exact depth in the anchors, and its share of the map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from wristworld_ros.geometry.camera import project
from wristworld_ros.geometry.splatting import splat_depth
from wristworld_ros.geometry.transforms import apply, invert
from wristworld_ros.reconstruction.robot_model import EDGE
from wristworld_ros.types import (
    ROBOT_VIEW,
    CameraModel,
    FloatArray,
    Image,
    PointCloud,
)

#: Where predicted depth is nearer than the robot by more than this [m], something hides it.
HIDDEN = 0.03
#: A point of the surface is the one that a picture shows within this [m].
SAME_SURFACE = 0.008
#: Pixels around the robot's outline that mix it with what is behind.
RIM = 1
#: Points of one colour that have to be seen before the unseen ones take theirs.
ENOUGH = 30
#: Their colours differ less than this from their median, light and shadow included; others belong
#: to something before the robot.
ODD = 60


def robot_depth(
    surface: PointCloud, T_world_camera: FloatArray, camera: CameraModel
) -> NDArray[np.float32]:
    """Depth of the robot in a picture, H x W [m], 0 where it is not."""
    depth = splat_depth(surface, T_world_camera, camera)
    return np.asarray(cv2.medianBlur(depth, 3), np.float32)  # closes holes of single pixels


def in_picture(
    points: NDArray[np.float32], T_world_camera: FloatArray, camera: CameraModel, near: float
) -> NDArray[np.bool_]:
    """N bool: points (N x 3 [m]) beyond ``near`` whose pixels are in the picture or at its edge."""
    T = invert(T_world_camera).astype(np.float32)
    x = points @ T[:3, :3].T + T[:3, 3]
    z = np.maximum(x[:, 2], near)
    u = x[:, 0] / z * camera.K[0, 0] + camera.K[0, 2]
    v = x[:, 1] / z * camera.K[1, 1] + camera.K[1, 2]
    inside = (u > -EDGE) & (u < camera.width + EDGE) & (v > -EDGE) & (v < camera.height + EDGE)
    return np.asarray(inside & (x[:, 2] > near))


def with_robot(
    depth: NDArray[np.float32], confidence: NDArray[np.float32], robot: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
    """Put the robot's depth in the place of predicted depth.

    Args:
        depth, confidence: H x W predicted [m], [0, 1] (below 0: not to be used).
        robot: H x W ``robot_depth`` [m].

    Returns:
        Depth, confidence (1 on the robot, -1 at its rim), and H x W bool: shows the robot.
    """
    body = robot > 0
    kernel = np.ones((2 * RIM + 1, 2 * RIM + 1), np.uint8)
    inner = cv2.erode(body.astype(np.uint8), kernel, borderValue=1) > 0
    outer = cv2.dilate(body.astype(np.uint8), kernel) > 0
    shown = inner & (depth > robot - HIDDEN)
    depth = np.where(shown, robot, depth)
    confidence = np.where(shown, np.float32(1), np.where(outer & ~inner, -1, confidence))
    return depth, confidence.astype(np.float32), shown


def colour_surface(
    surface: PointCloud,
    images: Sequence[Image],
    depths: Sequence[NDArray[np.float32]],
    shown: Sequence[NDArray[np.bool_]],
    cameras: Sequence[CameraModel],
    poses: Sequence[FloatArray],
) -> PointCloud:
    """Colours of the robot's surface as the pictures show it.

    Points that no picture shows take the median of the seen ones that have the same colour in the
    robot's description; their ``view`` is ``ROBOT_VIEW``.

    Args:
        surface: with the description's colours.
        images, depths, shown: per view, H x W: pictures, depth [m], and where it is the robot's.
        cameras, poses: intrinsics of the pictures, and ``T_world_camera``.
    """
    n = len(surface)
    colours = surface.colors.copy()
    view = np.full(n, ROBOT_VIEW, np.uint8)
    nearest = np.full(n, np.inf, np.float32)
    for i, (image, depth, robot, camera, pose) in enumerate(
        zip(images, depths, shown, cameras, poses, strict=True)
    ):
        pixels, z = project(apply(invert(pose), surface.points), camera)
        inside = (z > 0) & (pixels >= 0).all(1) & (pixels < [camera.width, camera.height]).all(1)
        index = np.flatnonzero(inside)
        column, row = pixels[index].astype(int).T
        seen = robot[row, column] & (np.abs(depth[row, column] - z[index]) < SAME_SURFACE)
        seen &= z[index] < nearest[index]
        index, row, column = index[seen], row[seen], column[seen]
        colours[index] = image[row, column]
        view[index], nearest[index] = i, z[index]
    _guess_unseen(surface.colors, colours, view)
    return replace(surface, colors=colours, view=view)


def _guess_unseen(nominal: Image, colours: Image, view: Image) -> None:
    """Give points that no view shows, or with the colour of something else, a likely colour.

    Changes ``colours`` and ``view`` (N, ``ROBOT_VIEW`` where unseen) in place.
    """
    seen = view != ROBOT_VIEW
    if not seen.any():
        return
    gain = np.median(colours[seen] / np.maximum(nominal[seen].astype(np.float32), 8), 0)
    keys = nominal.astype(np.int32) @ np.array([65536, 256, 1])
    for key in np.unique(keys):
        same = keys == key
        known = same & seen
        likely = np.clip(nominal[same][0] * gain, 0, 255)
        if known.sum() >= ENOUGH:
            median = np.median(colours[known], 0)
            likely = median if np.abs(median - likely).max() < ODD else likely
            view[known & (np.abs(colours - likely).max(1) > ODD)] = ROBOT_VIEW
        colours[same & (view == ROBOT_VIEW)] = likely.astype(np.uint8)
